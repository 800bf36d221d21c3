"""Chunks to documents: which rows belong together, and what each way of pooling makes of them."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.features.pooling import Pool, document_starts, latest_times, pool_chunks

ROWS = pa.table({"id": ["a", "a", "a", "b", "b", "b", "c"], "chunk": pa.array([0, 1, 2, 0, 0, 2, 1], pa.int32())})
VECTORS_72 = np.array([[1, 0], [4, 0], [1, 9], [2, 2], [0, 5], [0, 7], [3, 3]], np.float32)
TOKENS_7 = np.array([1, 2, 1, 8, 3, 1, 0], np.int32)
STARTS = [0, 3, 4, 6]
"""`b` names two documents; of `c` the first chunk is missing."""


def test_a_document_begins_with_another_id_or_where_the_chunks_count_anew() -> None:
    assert document_starts(ROWS).tolist() == STARTS
    assert document_starts(ROWS.slice(0, 0)).tolist() == []


def test_without_chunks_every_row_is_a_document() -> None:
    assert document_starts(ROWS.drop_columns("chunk")).tolist() == list(range(7))


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("mean", [[2, 3], [2, 2], [0, 6], [3, 3]]),
        ("max", [[4, 9], [2, 2], [0, 7], [3, 3]]),
        ("first", [[1, 0], [2, 2], [0, 5], [3, 3]]),
        ("by_tokens", [[2.5, 2.25], [2, 2], [0, 5.5], [0, 0]]),
    ],
)
def test_each_way_of_pooling_gives_what_is_computed_by_hand(pool: Pool, expected: list[list[float]]) -> None:
    pooled_42 = pool_chunks(VECTORS_72, TOKENS_7, np.array(STARTS), pool)
    np.testing.assert_allclose(pooled_42, expected)
    assert pooled_42.dtype == np.float32


def test_a_document_is_as_young_as_its_youngest_chunk() -> None:
    times_7 = pa.chunked_array([pa.array([1, 1, 9, 4, None, 2, None], pa.timestamp("us", tz="UTC"))])
    latest = latest_times(times_7, np.array(STARTS))
    assert (latest.type, latest.cast(pa.int64()).to_pylist()) == (times_7.type, [9, 4, 2, None])
    assert latest_times(times_7.slice(0, 0), np.array([], np.int64)).to_pylist() == []
