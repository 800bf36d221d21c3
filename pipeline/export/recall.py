"""Recall of an index: how many of the true neighbours of some rows it finds, rows counted by their position."""

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 10

HELD = 64
"""True neighbours held of each query: those that are as near as the tenth, as copies of one text are, count as well."""

SAME = 1e-6
"""Inner products of vectors of length 1 that differ by less are of neighbours equally near; float32 errs by as much."""


class ExactSearch:
    """The nearest rows of each query among all rows that it has looked at, itself excepted.

    Args:
        rows_Q: positions of the queries among the rows.
        queries_QD: their vectors.
    """

    def __init__(self, rows_Q: NDArray[np.int64], queries_QD: NDArray[np.float32]) -> None:
        self.rows_Q, self.queries_QD = rows_Q, queries_QD
        self.near_QH = np.full((len(rows_Q), HELD), -np.inf, np.float32)
        self.labels_QH = np.full((len(rows_Q), HELD), -1)
        self.seen = 0

    def look_at(self, vectors_ND: NDArray[np.float32]) -> None:
        """Take in the next rows."""
        near_QN = self.queries_QD @ vectors_ND.T
        own_N = self.rows_Q - self.seen
        is_here_Q = (own_N >= 0) & (own_N < len(vectors_ND))
        near_QN[np.flatnonzero(is_here_Q), own_N[is_here_Q]] = -np.inf
        labels_QN = np.broadcast_to(self.seen + np.arange(len(vectors_ND)), near_QN.shape)
        near_Q = np.concatenate([self.near_QH, near_QN], axis=1)
        labels_Q = np.concatenate([self.labels_QH, labels_QN], axis=1)
        best_QH = np.argpartition(-near_Q, HELD - 1, axis=1)[:, :HELD]
        self.near_QH = np.take_along_axis(near_Q, best_QH, axis=1)
        self.labels_QH = np.take_along_axis(labels_Q, best_QH, axis=1)
        self.seen += len(vectors_ND)


def recall_of(found_QK: NDArray[np.int64], exact: ExactSearch) -> float:
    """Return the share of the NEIGHBOURS nearest rows that an index has found, 0 to 1.

    Args:
        found_QK: positions of the NEIGHBOURS + 1 rows that the index gives for each query, the best first; -1 = none.
    """
    wanted = min(NEIGHBOURS, exact.seen - 1)
    if wanted < 1:
        return 1.0
    is_own_QK = found_QK == exact.rows_Q[:, None]
    order_QK = np.argsort(is_own_QK, axis=1, kind="stable")
    found_Q = np.take_along_axis(found_QK, order_QK, axis=1)[:, :wanted]
    least_Q1 = -np.sort(-exact.near_QH, axis=1)[:, wanted - 1 : wanted] - SAME
    true_QH = np.where((exact.near_QH >= least_Q1) & (exact.labels_QH >= 0), exact.labels_QH, -2)
    hits_Q = (found_Q[:, :, None] == true_QH[:, None, :]).any(axis=2).sum(axis=1)
    return float(hits_Q.mean() / wanted)
