"""Chunks to documents: one vector for each text that became several rows."""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.arrow import one_array

NEVER = np.iinfo(np.int64).min

Pool = Literal["mean", "max", "first", "by_tokens"]


def document_starts(rows: pa.Table) -> NDArray[np.int64]:
    """Return where each document begins in the rows of one Part.

    Args:
        rows: N rows with `id` and, if texts were chunked, `chunk`; the chunks of a document follow each other.

    Returns:
        (M,), ascending, beginning with 0 unless there are no rows.
    """
    if "chunk" not in rows.column_names:
        return np.arange(rows.num_rows)
    ids, chunk_N = one_array(rows["id"]), rows["chunk"].to_numpy()
    is_other_N1 = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    is_start_N = np.ones(rows.num_rows, np.bool_)
    is_start_N[1:] = is_other_N1 | (chunk_N[1:] <= chunk_N[:-1])  # one id may name two documents
    return np.flatnonzero(is_start_N)


def pool_chunks(
    vectors_ND: NDArray[np.float32], tokens_N: NDArray[np.int32], starts_M: NDArray[np.int64], pool: Pool
) -> NDArray[np.float32]:
    """Return one vector per document, not normalised.

    Args:
        vectors_ND: of the chunks.
        tokens_N: of the chunks; the weights of `by_tokens`.
        starts_M: as `document_starts` gives them.
        pool: mean | max (of each number) | first (chunk) | by_tokens (mean weighted by tokens).
    """
    if len(starts_M) == len(vectors_ND) or pool == "first":
        return vectors_ND[starts_M]
    if pool == "max":
        return np.maximum.reduceat(vectors_ND, starts_M, axis=0)
    weight_N = tokens_N.astype(np.float32) if pool == "by_tokens" else np.ones(len(vectors_ND), np.float32)
    sums_MD = np.add.reduceat(vectors_ND * weight_N[:, None], starts_M, axis=0)
    return np.asarray(sums_MD / np.maximum(np.add.reduceat(weight_N, starts_M), 1)[:, None], np.float32)


def latest_times(times: pa.ChunkedArray, starts_M: NDArray[np.int64]) -> pa.ChunkedArray:
    """Return the latest time among the chunks of each document: before it, its pooled vector was another one.

    Args:
        times: of the chunks, timestamp[us, UTC].
        starts_M: as `document_starts` gives them.

    Returns:
        M times, null where no chunk has one.
    """
    if len(starts_M) == len(times):
        return times
    latest_M = np.maximum.reduceat(pc.fill_null(times.cast(pa.int64()), NEVER).to_numpy(), starts_M)
    return pa.chunked_array([pa.array(latest_M, mask=latest_M == NEVER).cast(times.type)])
