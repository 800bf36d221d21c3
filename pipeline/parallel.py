"""Work done by threads, in order, and never far ahead of whoever takes its results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
R = TypeVar("R")


def in_order(function: Callable[[A], R], arguments: Iterable[A], threads: int) -> Iterator[R]:
    """Yield the result of each argument, in their order; at most twice as many as there are threads wait to be taken.

    `ThreadPoolExecutor.map` would take all arguments and keep all results, however slow their consumer is.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        for argument in arguments:
            waiting.append(pool.submit(function, argument))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
