"""Attempt marks, and work in processes that may die."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from numpy.typing import NDArray

from pipeline.encoder.hashing import HashingEncoder
from pipeline.encoder.packed import encode_packed
from pipeline.execution.attempts import MAX_DEATHS, MAX_STRIKES, Attempts, Work, marked
from pipeline.execution.isolated import IsolatedEncoder, in_halves, survivors
from pipeline.isolation import Isolated, ProcessDied
from pipeline.records import Shard, SourceFile, Span, TokenBatch

WORK = Work("encode", "s1", 4, "a.parquet")
SHARD = Shard("s1", (Span(SourceFile("a.parquet", "v1", 1, "parquet")),))


def test_work_is_deadly_after_three_workers_that_never_ended_it() -> None:
    book = Attempts()
    verdicts = [book.begin(WORK).is_deadly for _ in range(MAX_DEATHS + 1)]
    assert verdicts == [False, False, False, True]
    assert not book.begin(Work("encode", "s1", 5, "a.parquet")).is_deadly


def test_work_that_ended_or_failed_with_an_error_is_no_death() -> None:
    book = Attempts()
    for _ in range(5):
        with pytest.raises(ValueError, match="alive"), marked(book, "encode", SHARD, 4) as verdict:
            raise ValueError("alive")
    assert verdict.deaths == 0
    assert book.standing() == []


def test_what_stands_longest_comes_first() -> None:
    book = Attempts()
    book.begin(Work("read", "s1", 9, "a.parquet"))
    book.begin(WORK)
    assert [work.stage for work, _ in book.standing()] == ["read", "encode"]
    book.forget_begun()
    assert book.standing() == []


def test_a_node_is_left_out_after_three_strikes_and_another_is_not() -> None:
    book = Attempts()
    for strike in range(1, MAX_STRIKES + 1):
        assert book.strike(f"error {strike}", "node-1") == (strike < MAX_STRIKES)
    assert book.strike("error", "node-2")
    assert book.excluded() == {"node-1": "error 3"}


def test_a_node_on_which_a_fresh_encoder_works_has_its_strikes_back() -> None:
    book = Attempts()
    for _ in range(10):
        assert book.strike("error", "node-1")
        book.forgive("node-1")
    assert book.excluded() == {}


def test_the_smallest_budget_that_was_learnt_holds_for_all() -> None:
    book = Attempts()
    book.lower(800)
    book.lower(2000)
    assert book.begin(WORK).batch_tokens == 800


def _reciprocal() -> Callable[[int], float]:
    return lambda number: os._exit(139) if number == 13 else 1 / number


def test_a_death_is_an_exception_and_the_next_call_has_a_fresh_process() -> None:
    isolated: Isolated[int, float] = Isolated(_reciprocal)
    assert isolated(4) == 0.25
    with pytest.raises(ProcessDied):
        isolated(13)
    with pytest.raises(ZeroDivisionError):
        isolated(0)
    assert isolated(2) == 0.5
    isolated.close()


DEADLY = 7
"""A token or number that kills."""


class Deadly(HashingEncoder):
    """Ends its process, noting how often, when it meets DEADLY."""

    def __init__(self, log: Path) -> None:
        super().__init__(8)
        self.log = log

    def encode(self, batch: TokenBatch) -> NDArray[np.float32]:
        if (batch.token_ids_T == DEADLY).any():
            with self.log.open("a") as log:
                log.write(f"{len(batch)}\n")
            os._exit(139)
        return super().encode(batch)


def test_a_block_that_kills_is_halved_down_to_the_row_and_the_others_get_their_vectors(tmp_path: Path) -> None:
    ids_N = np.arange(10, 42, dtype=np.int32)
    ids_N[11] = DEADLY
    tokens = TokenBatch(ids_N, np.arange(33, dtype=np.int64))
    log = tmp_path / "deaths"
    isolated = IsolatedEncoder(HashingEncoder(8), partial(Deadly, log))
    result = encode_packed(isolated, tokens, 1024)
    isolated.close()
    assert result.failures == {11: "ProcessDied"}
    expected_ND = encode_packed(HashingEncoder(8), tokens, 1024).vectors_ND
    good = [row for row in range(32) if row != 11]
    np.testing.assert_array_equal(result.vectors_ND[good], expected_ND[good])
    assert [int(rows) for rows in log.read_text().split()] == [32, 16, 8, 4, 2, 1, 1]  # the last row is asked twice


class OnceDeadly(HashingEncoder):
    """Ends its process the first time it is asked, as an operator or a lack of memory might."""

    def __init__(self, mark: Path) -> None:
        super().__init__(8)
        self.mark = mark

    def encode(self, batch: TokenBatch) -> NDArray[np.float32]:
        if not self.mark.exists():
            self.mark.touch()
            os._exit(137)
        return super().encode(batch)


def test_a_row_whose_process_dies_once_by_chance_is_not_put_aside(tmp_path: Path) -> None:
    isolated = IsolatedEncoder(HashingEncoder(8), partial(OnceDeadly, tmp_path / "mark"))
    result = encode_packed(isolated, TokenBatch(np.array([5], np.int32), np.array([0, 1])), 1024)
    isolated.close()
    assert (tmp_path / "mark").exists()
    assert result.done_N.all()


def _doubling() -> Callable[[pa.Table], pa.Table]:
    def double(rows: pa.Table) -> pa.Table:
        if pc.any(pc.equal(rows["n"], DEADLY)).as_py():
            os._exit(139)
        return pa.table({"n": pc.multiply(rows["n"], 2)})

    return double


def test_rows_that_kill_are_told_by_position_and_the_others_keep_their_order() -> None:
    tables, deadly = survivors(pa.table({"n": [1, 2, DEADLY, 4, 5, DEADLY]}), _doubling)
    assert deadly.tolist() == [2, 5]
    assert pa.concat_tables(tables)["n"].to_pylist() == [2, 4, 8, 10]


def _never() -> Callable[[pa.Table], pa.Table]:
    os._exit(139)


def test_no_row_is_put_aside_if_the_child_dies_without_any() -> None:
    with pytest.raises(ProcessDied):
        survivors(pa.table({"n": [1, 2, 3]}), _never)


def test_a_row_on_which_a_function_raises_is_found_and_the_others_keep_their_order() -> None:
    def reciprocal(rows: pa.Table) -> pa.Table:
        return pa.table({"n": pa.array([12 // number for number in rows["n"].to_pylist()], pa.int64())})

    tables, bad = in_halves(pa.table({"n": pa.array([1, 2, 0, 4, 0], pa.int64())}), reciprocal, ZeroDivisionError)
    assert bad.tolist() == [2, 4]
    assert pa.concat_tables(tables)["n"].to_pylist() == [12, 6, 3]
