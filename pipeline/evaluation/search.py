"""Exact search in bounded memory: the best documents of each query, block by block of documents."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.optional import library

Mapped = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""`map`, or what calls a function elsewhere and gives the results in the order of the arguments, too."""

Nearest = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Scores and numbers of documents, both (Q, top), best first."""

QUERIES_AT_ONCE = 512
"""Compared by one thread. With several threads to a product faiss gives other last bits for each number of them."""

NONE = -1
"""What faiss gives for the number of a document where there are no more."""


class Block(Protocol):
    """Documents that are searched at once, wherever their vectors are."""

    @property
    def first(self) -> int:
        """Number of the first one; the others follow."""

    def vectors(self) -> NDArray[np.float32]:
        """Return their vectors, (B, D) and C-contiguous."""


def top_documents(queries_QD: NDArray[np.float32], blocks: Iterable[Block], top: int, mapped: Mapped = map) -> Nearest:
    """Return the inner products of the best documents of each query, and which these are, best first.

    faiss compares and merges; of documents equally near, those of an earlier block come first. So the result is the
    same to the last bit whoever has searched the blocks, on processors of one kind.

    Args:
        top: how many, at most; fewer come if there are fewer documents.
        mapped: searches the blocks.
    """
    faiss = library("faiss", "evaluation", "the search of an evaluation")
    scores_QK = np.full((len(queries_QD), top), np.finfo(np.float32).min)
    numbers_QK = np.full((len(queries_QD), top), NONE)
    for found_QK, at_QK in mapped(partial(_nearest_in, queries_QD, top), blocks):
        for some in _slices(len(queries_QD)):
            scores_2QK = np.stack([found_QK[some], scores_QK[some]])
            numbers_2QK = np.stack([at_QK[some], numbers_QK[some]])
            scores_QK[some], numbers_QK[some] = faiss.merge_knn_results(scores_2QK, numbers_2QK, keep_max=True)
    found = int((numbers_QK[:1] != NONE).sum())
    return scores_QK[:, :found], numbers_QK[:, :found]


def _nearest_in(queries_QD: NDArray[np.float32], top: int, block: Block) -> Nearest:
    faiss = library("faiss", "evaluation", "the search of an evaluation")
    vectors_BD = block.vectors()
    scores_QK, numbers_QK = np.empty((len(queries_QD), top), np.float32), np.empty((len(queries_QD), top), np.int64)

    def compare(some: slice) -> None:
        scores_QK[some], numbers_QK[some] = faiss.knn(
            queries_QD[some], vectors_BD, top, metric=faiss.METRIC_INNER_PRODUCT
        )

    threads = faiss.omp_get_max_threads()
    with ThreadPoolExecutor(threads, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
        list(pool.map(compare, _slices(len(queries_QD))))
    numbers_QK[numbers_QK != NONE] += block.first
    return scores_QK, numbers_QK


def _slices(queries: int) -> Iterator[slice]:
    return (slice(first, first + QUERIES_AT_ONCE) for first in range(0, queries, QUERIES_AT_ONCE))
