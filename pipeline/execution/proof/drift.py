"""How far the vectors of the same texts lie apart in two Snapshots, whatever model, dimension or precision each has."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.canary import cosines_to_others, directions, kept, nearest
from pipeline.execution.proof.common_texts import CommonTexts, common_texts
from pipeline.storage.snapshots import Snapshot

NEIGHBOURS = 10

QUANTILES = (0.01, 0.1, 0.5)

SHOWN = 5
"""Ids named."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two Snapshots."""

    snapshot: int
    model: str
    compute: str
    stored: str
    dimension: int
    norms: tuple[float, float, float] | None
    """Least, mean and greatest length of the sampled vectors, as they are stored; None without a common text."""


@dataclass(frozen=True, slots=True)
class Cosines:
    """Between the old and the new vector of each text."""

    least: float
    mean: float
    quantiles: dict[str, float]
    """By the share of texts that lie below."""
    farthest: tuple[str, ...]
    """Ids of the least ones in the newer Snapshot, the least first."""


@dataclass(frozen=True, slots=True)
class Drift:
    """What was found of a sample of texts that both have."""

    texts: int
    looked_at: int
    same_ids: int
    before: Side
    after: Side
    mean_cosine: float | None
    """Between the two mean vectors; like all that compares vector with vector None where the dimensions differ."""
    mean_distance: float | None
    cosines: Cosines | None
    neighbours: int
    """Of each text, how many nearest ones of the sample are looked at."""
    overlap: float | None
    """Share of them that both have, 0 to 1; None with fewer than two texts."""


def drift(before: Snapshot, after: Snapshot) -> Drift:
    """Compare two Snapshots by the vectors of a sample of common texts; memory and errors as `common_texts`."""
    return drift_of(before, after, common_texts(before, after))


def drift_of(before: Snapshot, after: Snapshot, common: CommonTexts) -> Drift:
    """Compare the vectors of these texts."""
    old_ND, new_ND = common.before_ND, common.after_ND
    texts = len(old_ND)
    is_comparable = bool(texts) and old_ND.shape == new_ND.shape
    mean_cosine, mean_distance = _between_means(old_ND, new_ND) if is_comparable else (None, None)
    return Drift(
        texts=texts,
        looked_at=common.looked_at,
        same_ids=common.same_ids,
        before=_side(before, old_ND),
        after=_side(after, new_ND),
        mean_cosine=mean_cosine,
        mean_distance=mean_distance,
        cosines=_cosines(common) if is_comparable else None,
        neighbours=min(NEIGHBOURS, max(texts - 1, 0)),
        overlap=_overlap(old_ND, new_ND) if texts > 1 else None,
    )


def _side(snapshot: Snapshot, vectors_ND: NDArray[np.float32]) -> Side:
    norms_N = np.linalg.norm(vectors_ND, axis=1)
    norms = (float(norms_N.min()), float(norms_N.mean()), float(norms_N.max())) if len(norms_N) else None
    model, compute, stored = (str(snapshot.recipe[name]) for name in ("model", "compute", "stored"))
    return Side(snapshot.number, model, compute, stored, snapshot.record.dimension, norms)


def _between_means(old_ND: NDArray[np.float32], new_ND: NDArray[np.float32]) -> tuple[float, float]:
    """Return cosine and distance of the two mean vectors."""
    old_D, new_D = (vectors_ND.mean(axis=0, dtype=np.float64) for vectors_ND in (old_ND, new_ND))
    lengths = float(np.linalg.norm(old_D) * np.linalg.norm(new_D))
    return float(old_D @ new_D) / lengths if lengths else 0.0, float(np.linalg.norm(old_D - new_D))


def _cosines(common: CommonTexts) -> Cosines:
    cosines_N = np.einsum("nd,nd->n", directions(common.before_ND), directions(common.after_ND))
    return Cosines(
        least=float(cosines_N.min()),
        mean=float(cosines_N.mean()),
        quantiles={f"{share:g}": float(np.quantile(cosines_N, share)) for share in QUANTILES},
        farthest=tuple(common.ids[at] for at in np.argsort(cosines_N, kind="stable")[:SHOWN].tolist()),
    )


def _overlap(old_ND: NDArray[np.float32], new_ND: NDArray[np.float32]) -> float:
    near = min(NEIGHBOURS, len(old_ND) - 1)
    old_NK, new_NK = (nearest(cosines_to_others(directions(vectors)), near) for vectors in (old_ND, new_ND))
    return float(kept(old_NK, new_NK).mean())
