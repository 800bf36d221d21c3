"""Entities through time: the rows in order, and for each the documents that a window up to its own time holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.arrow import one_array

COLUMNS_AT_ONCE = 64
"""Dimensions whose running sums are held at once, in float64."""


@dataclass(frozen=True, slots=True)
class Moments:
    """The distinct (entity, event time) of N ordered documents: one row of the feature table each."""

    entity_N: NDArray[np.int64]
    """Number of the entity of each document, ascending."""
    time_N: NDArray[np.int64]
    """Event time in microseconds, ascending within an entity."""
    last_M: NDArray[np.int64]
    """The last document of each moment."""


def ordered(documents: pa.Table, keys: Sequence[str], ties: Sequence[str]) -> pa.Table:
    """Return documents by entity, event time and what decides between documents of one moment.

    Args:
        keys: the columns that name an entity.
        ties: columns after `event_timestamp`; the largest comes last.
    """
    order = [(name, "ascending") for name in (*keys, "event_timestamp", *ties)]
    return documents.take(pc.sort_indices(documents, sort_keys=order)).combine_chunks()


def moments_of(documents: pa.Table, keys: Sequence[str]) -> Moments:
    """Return the moments of documents that are `ordered`."""
    is_new_N = np.zeros(documents.num_rows, np.bool_)
    for name in keys:
        column = one_array(documents[name])
        is_new_N[1:] |= pc.not_equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
    entity_N = np.cumsum(is_new_N)
    time_N = documents["event_timestamp"].cast(pa.int64()).to_numpy()
    is_last_N = np.ones(documents.num_rows, np.bool_)
    is_last_N[:-1] = (entity_N[1:] != entity_N[:-1]) | (time_N[1:] != time_N[:-1])
    return Moments(entity_N, time_N, np.flatnonzero(is_last_N))


def window_starts(moments: Moments, window_us: int) -> NDArray[np.int64]:
    """Return for each moment the first document of its entity that is younger than its time minus the window.

    Args:
        window_us: length in microseconds; the window is open at its old end and closed at the moment itself.

    Returns:
        (M,); the window of moment m is the documents `starts[m]` to `last_M[m]`, both included.
    """
    distinct_U, rank_N = np.unique(moments.time_N, return_inverse=True)
    first_rank_M = np.searchsorted(distinct_U, moments.time_N[moments.last_M] - window_us, side="right")
    place_N = moments.entity_N * len(distinct_U) + rank_N  # ascending, as the documents are
    first_place_M = moments.entity_N[moments.last_M] * len(distinct_U) + first_rank_M
    return np.searchsorted(place_N, first_place_M, side="left")


def window_means(
    vectors_ND: NDArray[np.float32], starts_M: NDArray[np.int64], last_M: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the mean of the documents `starts_M` to `last_M` of each moment, not normalised; O(N) for any window."""
    means_MD = np.empty((len(last_M), vectors_ND.shape[1]), np.float32)
    count_M1 = (last_M + 1 - starts_M)[:, None]
    for left in range(0, vectors_ND.shape[1], COLUMNS_AT_ONCE):
        columns = slice(left, left + COLUMNS_AT_ONCE)
        sums_N1C = np.zeros((len(vectors_ND) + 1, vectors_ND[:, columns].shape[1]))
        np.cumsum(vectors_ND[:, columns], axis=0, dtype=np.float64, out=sums_N1C[1:])
        means_MD[:, columns] = (sums_N1C[last_M + 1] - sums_N1C[starts_M]) / count_M1
    return means_MD


def newest_in_windows(
    created_N: NDArray[np.int64], starts_M: NDArray[np.int64], last_M: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the largest of `created_N` among the documents `starts_M` to `last_M` of each moment; O(N log N)."""
    newest_M = np.empty(len(last_M), np.int64)
    level_M = np.frexp(last_M + 1 - starts_M)[1] - 1  # a window is two stretches of 2**level documents that overlap
    largest_N = created_N
    for level in range(level_M.max(initial=-1) + 1):
        of_level = np.flatnonzero(level_M == level)
        ends = last_M[of_level] + 1 - 2**level
        newest_M[of_level] = np.maximum(largest_N[starts_M[of_level]], largest_N[ends])
        largest_N = np.maximum(largest_N[: -(2**level)], largest_N[2**level :])
    return newest_M
