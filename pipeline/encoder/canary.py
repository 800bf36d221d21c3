"""Whether an encoder gives the vectors it should: those of pinned texts compared with references."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 5
"""Of each text, how many nearest ones of the others are looked at."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """How near the vectors of N pinned texts are to their references."""

    texts: int
    min_cosine: float
    """0 where a vector or its reference is not finite or has no length."""
    mean_cosine: float
    worst_row: int
    """The text of the least cosine; -1 of none."""
    neighbours_kept: float
    """Of the nearest texts by the references, the share that is among the nearest by the vectors."""
    order_kept: float
    """Of the pairs of these nearest texts, the share that lies in the same order."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least that is asked of a Likeness."""

    min_cosine: float
    neighbours_kept: float = 0.0
    order_kept: float = 0.0

    def findings(self, found: Likeness) -> list[str]:
        """Return what falls short, a sentence each; none if the encoder may go on."""
        if not found.texts:
            return ["no text to compare"]
        names = {
            "min_cosine": f"cosine to the reference (worst: text {found.worst_row})",
            "neighbours_kept": "share of nearest neighbours kept",
            "order_kept": "share of neighbours in the same order",
        }
        return [
            f"{told} {getattr(found, name):.6f}, at least {getattr(self, name):.6f} expected"
            for name, told in names.items()
            if not getattr(found, name) >= getattr(self, name)
        ]


def compare(
    vectors_ND: NDArray[np.float32], references_ND: NDArray[np.float32], neighbours: int = NEIGHBOURS
) -> Likeness:
    """Compare the vectors of N texts with the references of the same texts, in the same order.

    Lengths do not count, only directions. Of one or two texts there is no order of neighbours: it counts as kept.

    Args:
        vectors_ND: as an encoder gives them, normalised or not.
        references_ND: what they should be.
        neighbours: how many of the nearest other texts; fewer texts have fewer.

    Raises:
        ValueError: the two are not of one shape.
    """
    if vectors_ND.shape != references_ND.shape:
        raise ValueError(f"vectors of shape {vectors_ND.shape}, references of shape {references_ND.shape}")
    found_ND, expected_ND = directions(vectors_ND), directions(references_ND)
    count = len(found_ND)
    if not count:
        return Likeness(0, 0.0, 0.0, -1, 0.0, 0.0)
    cosines_N = np.einsum("nd,nd->n", found_ND, expected_ND)
    near = min(neighbours, count - 1)
    expected_NN, found_NN = cosines_to_others(expected_ND), cosines_to_others(found_ND)
    expected_NK = nearest(expected_NN, near)
    kept_NK = kept(expected_NK, nearest(found_NN, near))
    nearer, farther = np.triu_indices(near, 1)
    theirs_NK = np.take_along_axis(found_NN, expected_NK, axis=1)
    in_order_NP = theirs_NK[:, nearer] >= theirs_NK[:, farther]
    return Likeness(
        texts=count,
        min_cosine=float(cosines_N.min()),
        mean_cosine=float(cosines_N.mean()),
        worst_row=int(cosines_N.argmin()),
        neighbours_kept=float(kept_NK.mean()) if kept_NK.size else 1.0,
        order_kept=float(in_order_NP.mean()) if in_order_NP.size else 1.0,
    )


def directions(vectors_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return vectors of length 1; one that has no direction is zero."""
    vectors = np.where(np.isfinite(vectors_ND).all(axis=1, keepdims=True), vectors_ND, 0).astype(np.float64)
    norms_N1 = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms_N1 > 0, norms_N1, 1), np.float64)


def cosines_to_others(directions_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosines between N vectors of length 1, (N, N); of one to itself -inf."""
    cosines_NN = directions_ND @ directions_ND.T
    np.fill_diagonal(cosines_NN, -np.inf)
    return cosines_NN


def nearest(cosines_NN: NDArray[np.float64], neighbours: int) -> NDArray[np.int64]:
    """Return which are nearest to each, the nearest first, (N, neighbours)."""
    return np.asarray(np.argsort(-cosines_NN, axis=1, kind="stable")[:, :neighbours], np.int64)


def kept(expected_NK: NDArray[np.int64], found_NK: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of the expected neighbours of each are among the found ones, (N, K)."""
    return np.asarray((expected_NK[:, :, None] == found_NK[:, None, :]).any(axis=2))
