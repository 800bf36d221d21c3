"""Scores beside those of a reference card: per task, per kind, and over all tasks, by the card's own convention."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from pipeline.config import Kind
from pipeline.evaluation.card_tasks import CARD_TASKS, KINDS, MAIN_METRIC, REDEFINED
from pipeline.evaluation.model_index import Card, table_of

NO_REVISION = ("None", "", None)
"""What cards write where they do not know it."""


@dataclass(frozen=True, slots=True)
class Line:
    """One task, one kind or all: its main metric here and there, 0 to 100."""

    name: str
    metric: str
    ours: float | None
    reference: float | None
    flags: tuple[str, ...] = ()
    """Why the two may not be compared: another split, revision or definition of the metric."""

    @property
    def difference(self) -> float | None:
        return None if self.ours is None or self.reference is None else self.ours - self.reference


@dataclass(frozen=True, slots=True)
class Comparison:
    """All lines; averages are over the tasks that both have, so that they can be compared."""

    model: str
    reference: str
    tasks: tuple[Line, ...]
    kinds: tuple[Line, ...]
    average: Line
    normalized: bool


def main_scores(card: Card) -> dict[str, tuple[Kind, float]]:
    """Return by task its kind and main metric, for the tasks whose main metric the card has."""
    found: dict[str, tuple[Kind, float]] = {}
    for result in card.results:
        kind = next((kind for kind in KINDS if kind == result.task_type), None)
        if kind is not None and result.metric_type == MAIN_METRIC[kind]:
            found[result.dataset_name] = (kind, result.metric_value)
    return found


def averages(card: Card) -> tuple[dict[Kind, float], float]:
    """Return the mean main metric of each kind, and that over all tasks (each counts once, not each kind)."""
    scores = main_scores(card)
    by_kind = {kind: [score for of, score in scores.values() if of == kind] for kind in KINDS}
    means = {kind: fmean(values) for kind, values in by_kind.items() if values}
    return means, fmean(score for _, score in scores.values())


def compare(ours: Card, reference: Card, normalized: bool) -> Comparison:
    """Lay two cards side by side, tasks in the order of ours.

    Args:
        normalized: whether our vectors have length 1, as those of C-MTEB cards.
    """
    mine, theirs = main_scores(ours), main_scores(reference)
    tasks = [
        Line(name, MAIN_METRIC[kind], score, theirs.get(name, (kind, None))[1], _flags(ours, reference, name, kind))
        for name, (kind, score) in mine.items()
    ]
    both = [line for line in tasks if line.reference is not None]
    kinds = [
        _mean(kind, MAIN_METRIC[kind], [line for line in both if mine[line.name][0] == kind])
        for kind in KINDS
        if any(mine[line.name][0] == kind for line in both)
    ]
    return Comparison(
        model=ours.model,
        reference=reference.model,
        tasks=tuple(tasks),
        kinds=tuple(kinds),
        average=_mean(f"mean of {len(both)} tasks", "main metric", both),
        normalized=normalized,
    )


def comparison_markdown(comparison: Comparison) -> str:
    """Return the comparison as a page of Markdown."""
    columns = ("", "metric", comparison.model, comparison.reference, "difference", "remarks")
    lines = (*comparison.tasks, *comparison.kinds, comparison.average)
    rows = [
        (line.name, line.metric, *map(_points, (line.ours, line.reference, line.difference)), "; ".join(line.flags))
        for line in lines
    ]
    return f"{table_of(columns, rows)}\n\n{comparison_notes(comparison)}\n"


def comparison_notes(comparison: Comparison) -> str:
    """Return what is to be known of all lines."""
    whole = len([line for line in comparison.tasks if line.reference is not None]) == len(CARD_TASKS)
    notes = [
        "" if whole else f"Not all {len(CARD_TASKS)} tasks of the card: the mean is no C-MTEB score. ",
        "Vectors of length 1. " if comparison.normalized else "Vectors are not normalised, those of the card were. ",
        "Differences below 0.05 points mean nothing: the card was computed in half precision.",
    ]
    return "".join(notes)


def _mean(name: str, metric: str, lines: Sequence[Line]) -> Line:
    if not lines:
        return Line(name, metric, None, None)
    ours, theirs = ([getattr(line, side) for line in lines] for side in ("ours", "reference"))
    return Line(name, metric, fmean(ours), fmean(theirs))


def _flags(ours: Card, reference: Card, name: str, kind: Kind) -> tuple[str, ...]:
    here, there = ours.of_task(name), reference.of_task(name)
    if here is None or there is None:
        return ("not in the reference",)
    flags = []
    if here.dataset_split != there.dataset_split:
        flags.append(f"split {here.dataset_split}, there {there.dataset_split}")
    if there.dataset_revision in NO_REVISION:
        flags.append("revision there unknown")
    elif here.dataset_revision != there.dataset_revision:
        flags.append("another revision of the data")
    if here.dataset_type != there.dataset_type:
        flags.append(f"data from {here.dataset_type}, there {there.dataset_type}")
    if kind in REDEFINED:
        flags.append("metric is defined otherwise today")
    return tuple(flags)


def _points(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
