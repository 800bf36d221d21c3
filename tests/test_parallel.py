"""Threads that work ahead are bounded, keep what they promise of the order, and raise what they meet."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from pipeline.parallel import in_order, merged


def test_results_come_in_the_order_of_their_arguments() -> None:
    assert list(in_order(lambda number: number * number, range(50), 4)) == [number * number for number in range(50)]


def test_nothing_is_computed_far_ahead_of_its_consumer() -> None:
    begun: list[int] = []
    results = in_order(lambda number: begun.append(number), range(1000), 2)
    next(results)
    assert len(begun) <= 4
    results.close()  # type: ignore[attr-defined]


def numbers(upto: int) -> Iterator[int]:
    yield from range(upto)


def test_what_several_iterators_give_comes_once_in_any_order() -> None:
    assert sorted(merged(numbers, [3, 0, 500, 2], 3)) == sorted([*range(3), *range(500), *range(2)])
    assert list(merged(numbers, [], 3)) == []


def test_an_error_in_a_thread_is_raised_where_the_results_are_taken() -> None:
    def failing(upto: int) -> Iterator[int]:
        yield upto
        raise ValueError("seen")

    with pytest.raises(ValueError, match="seen"):
        list(merged(failing, range(10), 3))


def test_closing_ends_the_threads_though_their_iterators_have_no_end() -> None:
    before = threading.active_count()

    def endless(start: int) -> Iterator[int]:
        while True:
            yield start

    with closing(merged(endless, range(3), 3)) as results:
        assert next(results) in range(3)
        assert threading.active_count() > before
    for thread in threading.enumerate():
        if thread.name.startswith("merged"):
            thread.join(5)
    assert threading.active_count() == before
