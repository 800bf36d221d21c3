"""An evaluation as one page to look at: each task beside the reference and the baseline, kind by kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pipeline.config import Kind
from pipeline.evaluation.card_tasks import KINDS, MAIN_METRIC
from pipeline.evaluation.comparison import Comparison, comparison_notes
from pipeline.evaluation.gate import KindDrop
from pipeline.evaluation.score import Scored
from pipeline.page import WIDTH, rendered, svg_of
from pipeline.storage.filesystem import Store
from pipeline.storage.snapshots import Snapshot

TASK, BELOW = 44, 8
"""Pixels from one task to the next, and by how much its bar lies below the middle of them: its name stands above."""

BEHIND = 36
"""Points of room behind 100, for the figures of a long bar."""


@dataclass(frozen=True, slots=True)
class TaskScore:
    """The main metric of one task, 0 to 100, here and there."""

    name: str
    kind: Kind
    ours: float
    reference: float | None = None
    baseline: float | None = None
    remarks: str = ""
    """Why it may not be compared with the reference."""

    @property
    def metric(self) -> str:
        return MAIN_METRIC[self.kind]

    @property
    def difference(self) -> float | None:
        """To the reference, or where there is none to the baseline."""
        other = self.baseline if self.reference is None else self.reference
        return None if other is None else self.ours - other


def task_scores(
    scored: Scored, comparison: Comparison | None, baseline: Mapping[str, Any] | None
) -> tuple[TaskScore, ...]:
    """Lay what was scored beside a reference card and the points of another evaluation, where these are given."""
    lines = {line.name: line for line in comparison.tasks} if comparison else {}
    points = baseline["points"] if baseline else {}
    found = []
    for task, ours in scored.points.items():
        line = lines.get(task.dataset_name)
        there = points.get(task.kind, {}).get(task.name)
        reference, remarks = (line.reference, "; ".join(line.flags)) if line else (None, "")
        found.append(TaskScore(task.dataset_name.removeprefix("MTEB "), task.kind, ours, reference, there, remarks))
    return tuple(found)


def kind_svg(scores: Sequence[TaskScore]) -> str:
    """Draw a bar per task, with a stroke at the reference's score and a ring at the baseline's."""
    import altair as alt

    base = alt.Chart(alt.InlineData(values=[_drawn(score) for score in scores])).encode(
        y=alt.Y("task:N", sort=None, axis=None)
    )
    plane = alt.Scale(domain=[0, 100 + BEHIND], nice=False)
    points = alt.X("ours:Q", scale=plane, axis=alt.Axis(values=[0, 25, 50, 75, 100]), title=None)
    bars = base.mark_bar(height=14, yOffset=BELOW, color="var(--accent-mid)", cornerRadiusEnd=2).encode(x=points)
    names = base.mark_text(align="left", dy=-BELOW, fontSize=13, color="var(--ink)")
    figures = base.mark_text(align="left", dx=10, dy=BELOW, fontSize=12, color="var(--ink)")
    layers = [bars, names.encode(x=alt.value(0), text="task:N"), figures.encode(x="end:Q", text="label:N")]
    if any(score.reference is not None for score in scores):
        strokes = base.mark_tick(color="var(--ink)", thickness=2.5, size=22, yOffset=BELOW)
        layers.append(strokes.encode(x="reference:Q"))
    if any(score.baseline is not None for score in scores):
        rings = base.mark_point(
            color="var(--group-2)", shape="circle", size=70, strokeWidth=2, opacity=1, yOffset=BELOW
        )
        layers.append(rings.encode(x="baseline:Q"))
    return svg_of(alt.LayerChart(layer=layers), f"Scores of {scores[0].kind}", WIDTH, TASK * len(scores))


def _drawn(score: TaskScore) -> dict[str, Any]:
    others = {name: at for name in ("reference", "baseline") if (at := getattr(score, name)) is not None}
    difference = "" if score.difference is None else f"  {score.difference:+.2f}"
    label = f"{score.ours:.2f}{difference}".replace("-", "−")
    end = max(0.0, score.ours, *others.values())
    return {"task": score.name, "ours": max(0.0, score.ours), "end": end, "label": label} | others


def evaluation_html(
    scored: Scored,
    snapshot: Snapshot,
    comparison: Comparison | None,
    baseline: Mapping[str, Any] | None,
    drops: Sequence[KindDrop],
) -> str:
    """Return the page: no script, no font, nothing from the network, and no text of a task."""
    from markupsafe import Markup

    scores = task_scores(scored, comparison, baseline)
    kinds = {kind: [score for score in scores if score.kind == kind] for kind in KINDS}
    return rendered(
        "evaluation/evaluation.html.jinja",
        model=scored.card.model,
        recipe={name: value for name, value in snapshot.recipe.items() if value is not None},
        snapshot=snapshot,
        scores=scores,
        mean=fmean(score.ours for score in scores),
        kinds=[
            (kind, fmean(score.ours for score in of_kind), MAIN_METRIC[kind], Markup(kind_svg(of_kind)))
            for kind, of_kind in kinds.items()
            if of_kind
        ],
        comparison=comparison,
        notes=comparison_notes(comparison) if comparison else "",
        has_baseline=baseline is not None,
        drops=drops,
    )


def write_page(store: Store, name: str, page: str) -> str:
    """Write the page beside the other files of a report; return its key."""
    key = f"reports/{name}/report.html"
    store.put(key, page.encode())
    return key
