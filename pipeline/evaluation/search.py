"""Exact search in bounded memory: the best documents of each query, block by block of documents."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def top_documents(
    queries_QD: NDArray[np.float32], blocks: Iterable[NDArray[np.float32]], top: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the inner products of the best documents of each query, and where these stand, best first.

    faiss compares each block with all queries in tiles of its own; of the block's result no more than `top` per query
    is kept.

    Args:
        blocks: of documents, each (B, D) and C-contiguous; numbered through, from 0.
        top: how many, at most; fewer come if there are fewer documents.

    Returns:
        Scores and numbers of documents, both (Q, at most top).
    """
    import faiss

    scores_QK, numbers_QK = np.empty((len(queries_QD), 0), np.float32), np.empty((len(queries_QD), 0), np.int64)
    first = 0
    for block_BD in blocks:
        found_QK, at_QK = faiss.knn(queries_QD, block_BD, min(top, len(block_BD)), metric=faiss.METRIC_INNER_PRODUCT)
        scores_QK = np.concatenate([scores_QK, found_QK], axis=1)
        numbers_QK = np.concatenate([numbers_QK, at_QK + first], axis=1)
        kept_QK = np.argsort(-scores_QK, axis=1, kind="stable")[:, :top]
        scores_QK = np.take_along_axis(scores_QK, kept_QK, axis=1)
        numbers_QK = np.take_along_axis(numbers_QK, kept_QK, axis=1)
        first += len(block_BD)
    return scores_QK, numbers_QK
