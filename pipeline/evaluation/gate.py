"""The gate between two evaluations: how far the mean of a kind may fall."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pipeline.config import Kind
from pipeline.evaluation.card_tasks import KINDS

MAX_DROP: dict[Kind, float] = dict.fromkeys(KINDS, 0.2) | {"Clustering": 1.5}
"""Points. The six kinds with 15 tasks moved by at most 0.1 between float32 and float16 or int8 with a scale per row;
clustering by up to 1.3, from the seed alone (m3e-small)."""


@dataclass(frozen=True, slots=True)
class KindDrop:
    """What became of one kind, in points."""

    kind: Kind
    baseline: float
    ours: float
    allowed: float

    @property
    def drop(self) -> float:
        return self.baseline - self.ours

    @property
    def is_within(self) -> bool:
        return self.drop <= self.allowed


def drops(ours: Mapping[str, Any], baseline: Mapping[str, Any], max_drop: Mapping[Kind, float]) -> list[KindDrop]:
    """Compare two evaluations of the same tasks and data, kind by kind.

    Args:
        ours: `points`: by kind, by task, the main metric.
        baseline: the same.
        max_drop: by kind; of the others MAX_DROP.
    """
    allowed = {**MAX_DROP, **max_drop}
    return [
        KindDrop(kind, fmean(baseline["points"][kind].values()), fmean(points.values()), allowed[kind])
        for kind, points in ours["points"].items()
    ]


def drops_text(found: list[KindDrop]) -> str:
    """Return one line per kind."""
    return "\n".join(
        f"  {drop.kind:<19} {drop.baseline:6.2f} → {drop.ours:6.2f}  ({-drop.drop:+.2f}, allowed -{drop.allowed:g}) "
        f"{'✓' if drop.is_within else '✗'}"
        for drop in found
    )
