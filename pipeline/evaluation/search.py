"""Exact search in bounded memory: the best documents of each query, block by block of documents."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

QUERIES_AT_ONCE = 4096
"""As many as faiss compares with documents at once; beside the result there are scores of these alone."""

NONE = -1
"""What faiss gives for the number of a document where there are no more."""


def top_documents(
    queries_QD: NDArray[np.float32], blocks: Iterable[NDArray[np.float32]], top: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the inner products of the best documents of each query, and where these stand, best first.

    faiss compares and merges; of documents equally near, those of an earlier block come first.

    Args:
        blocks: of documents, each (B, D) and C-contiguous; numbered through, from 0.
        top: how many, at most; fewer come if there are fewer documents.

    Returns:
        Scores and numbers of documents, both (Q, at most top).
    """
    import faiss

    scores_QK = np.full((len(queries_QD), top), np.finfo(np.float32).min)
    numbers_QK = np.full((len(queries_QD), top), NONE)
    documents = 0
    for block_BD in blocks:
        for first in range(0, len(queries_QD), QUERIES_AT_ONCE):
            some = slice(first, first + QUERIES_AT_ONCE)
            found_QK, at_QK = faiss.knn(queries_QD[some], block_BD, top, metric=faiss.METRIC_INNER_PRODUCT)
            at_QK[at_QK != NONE] += documents
            scores_2QK, numbers_2QK = np.stack([found_QK, scores_QK[some]]), np.stack([at_QK, numbers_QK[some]])
            scores_QK[some], numbers_QK[some] = faiss.merge_knn_results(scores_2QK, numbers_2QK, keep_max=True)
        documents += len(block_BD)
    return scores_QK[:, :documents], numbers_QK[:, :documents]
