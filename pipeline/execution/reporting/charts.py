"""The pictures of a RunReport: static SVG, drawn offline, inked with the page's own CSS colours."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pipeline.execution.reporting.metrics import STAGES, TOKEN_BUCKETS
from pipeline.page import HEIGHT, WIDTH, svg_of
from pipeline.units import duration, percent, short_count

if TYPE_CHECKING:
    import altair as alt

MOST_INTERVALS = 48
"""Bars of the throughput chart: enough to see a stall, few enough to see a trend."""

TIME_UNITS = (("seconds", 1.0), ("minutes", 60.0), ("hours", 3600.0), ("days", 86400.0))
"""Units of a time axis; each serves up to 300 of it."""

GROUP_COLOURS = tuple(f"var(--group-{number})" for number in range(1, 8))
"""Of the page; the last is for all groups that have no colour of their own."""

Timeline = Sequence[tuple[float, int, int]]


def at_time(timeline: Timeline, seconds: float, column: int) -> float:
    """Return rows (column 1) or tokens (column 2) done at a moment, linear between two points."""
    after = bisect_right(timeline, seconds, key=lambda point: point[0])
    if after == 0:
        return float(timeline[0][column])
    if after == len(timeline):
        return float(timeline[-1][column])
    (start, *_), (end, *_) = timeline[after - 1], timeline[after]
    done, next_done = timeline[after - 1][column], timeline[after][column]
    return done + (next_done - done) * (seconds - start) / (end - start)


def throughput(timeline: Timeline) -> list[dict[str, float]]:
    """Return tokens per second in equal stretches of time.

    Blocks finish in bursts, so that the rate between two neighbouring points says little; equal stretches
    keep the area under the bars equal to the tokens done.

    Returns:
        `start`, `end` (seconds) and `rate` per stretch; empty if the timeline spans no time.
    """
    if len(timeline) < 2 or timeline[-1][0] <= timeline[0][0]:
        return []
    count = min(MOST_INTERVALS, len(timeline) - 1)
    first, span = timeline[0][0], timeline[-1][0] - timeline[0][0]
    edges = [first + span * n / count for n in range(count)] + [timeline[-1][0]]
    done = [at_time(timeline, edge, 2) for edge in edges]
    return [
        {"start": edges[n], "end": edges[n + 1], "rate": (done[n + 1] - done[n]) / (edges[n + 1] - edges[n])}
        for n in range(count)
    ]


def token_buckets(histogram: Sequence[int]) -> list[dict[str, Any]]:
    """Return the buckets between the first and the last that hold rows, with a label each.

    Args:
        histogram: rows per bucket of TOKEN_BUCKETS, and one more for what is longer.
    """
    labels = [*(f"≤ {bound}" for bound in TOKEN_BUCKETS), f"> {TOKEN_BUCKETS[-1]}"]
    filled = [n for n, rows in enumerate(histogram) if rows]
    if not filled:
        return []
    return [
        {
            "tokens": labels[n],
            "rows": histogram[n],
            "label": short_count(histogram[n]) if histogram[n] else "",
        }
        for n in range(filled[0], filled[-1] + 1)
    ]


def stage_shares(stage_seconds: dict[str, float]) -> list[dict[str, Any]]:
    """Return seconds and share per stage, in the order a row passes them; empty if none took time."""
    total = sum(stage_seconds.get(stage, 0.0) for stage in STAGES)
    if total <= 0:
        return []
    return [
        {
            "stage": stage,
            "seconds": stage_seconds.get(stage, 0.0),
            "share": stage_seconds.get(stage, 0.0) / total,
        }
        for stage in STAGES
    ]


def throughput_svg(timeline: Timeline, average: float) -> str | None:
    """Draw tokens per second over time, and the average as a dashed line; None without two moments."""
    import altair as alt

    stretches = throughput(timeline)
    if not stretches:
        return None
    steps = [(stretch["start"], stretch["rate"]) for stretch in stretches]
    area = _area([*steps, (stretches[-1]["end"], stretches[-1]["rate"])], "step-after")
    if average <= 0:
        return svg_of(area, "Tokens encoded per second, over the run")
    mean = alt.Chart(alt.InlineData(values=[{"done": average}])).encode(y="done:Q")
    rule = mean.mark_rule(color="var(--ink)", strokeDash=[3, 4], strokeWidth=1)
    return svg_of(area + rule, "Tokens encoded per second, over the run")


def rows_svg(timeline: Timeline) -> str | None:
    """Draw rows done over time; None without two moments."""
    if not throughput(timeline):
        return None
    step = max(1, len(timeline) // 200)
    points = [*timeline[:-1:step], timeline[-1]]
    return svg_of(_area([(seconds, rows) for seconds, rows, _ in points], "linear"), "Rows done, over the run")


def histogram_svg(histogram: Sequence[int]) -> str | None:
    """Draw rows by tokens per row; None if no row was encoded."""
    import altair as alt

    buckets = token_buckets(histogram)
    if not buckets:
        return None
    base = alt.Chart(alt.InlineData(values=buckets)).encode(
        x=alt.X("tokens:N", sort=None, title="tokens per row", axis=alt.Axis(labelAngle=0, labelOverlap=False)),
        y=alt.Y("rows:Q", axis=None),
    )
    width = min(56, round(0.86 * WIDTH / len(buckets)))
    bars = base.mark_bar(color="var(--accent)", size=width, cornerRadiusEnd=2)
    counts = base.mark_text(dy=-8, color="var(--muted)", fontSize=11).encode(text="label:N")
    return svg_of(bars + counts, "Rows by tokens per row")


def stages_svg(stage_seconds: dict[str, float], waited: float = 0.0) -> str | None:
    """Draw seconds per stage as horizontal bars with their shares; None if no stage took time.

    Args:
        waited: seconds for which encoders stood idle, a bar of its own.
    """
    import altair as alt

    shares = stage_shares(stage_seconds)
    if not shares:
        return None
    longest = max(entry["seconds"] for entry in shares)
    for entry in shares:
        entry["label"] = f"{percent(entry['share'])} · {duration(entry['seconds'])}"
        entry["colour"] = "var(--accent)" if entry["seconds"] == longest else "var(--accent-mid)"
    if waited:
        label = duration(waited)
        shares.append({"stage": "idle", "seconds": waited, "label": label, "colour": "var(--axis)"})
        longest = max(longest, waited)
    names = alt.Axis(labelFontSize=13, labelColor="var(--ink)", labelPadding=8)
    base = alt.Chart(alt.InlineData(values=shares)).encode(
        x=alt.X("seconds:Q", axis=None, scale=alt.Scale(domain=[0, longest * 1.45], nice=False)),
        y=alt.Y("stage:N", sort=None, title=None, axis=names),
    )
    bars = base.mark_bar(height=26, cornerRadiusEnd=2).encode(color=alt.Color("colour:N", scale=None))
    labels = base.mark_text(align="left", dx=7, color="var(--ink)", fontSize=13).encode(text="label:N")
    return svg_of(bars + labels, "Seconds per stage, summed over all workers")


def map_svg(points: Sequence[tuple[float, float, str]], groups: Sequence[str]) -> str:
    """Draw vectors on a plane, coloured by group; the page tells which colour is which.

    Args:
        points: (x, y, group).
        groups: in the order of GROUP_COLOURS.
    """
    import altair as alt

    colours = dict(zip(groups, GROUP_COLOURS, strict=False))
    values = [{"x": x, "y": y, "colour": colours.get(group, GROUP_COLOURS[0])} for x, y, group in points]
    plane = alt.Chart(alt.InlineData(values=values)).mark_circle(size=34, opacity=0.55)
    hidden: dict[str, Any] = {"axis": None, "scale": alt.Scale(zero=False, nice=False, padding=8)}
    drawn = plane.encode(x=alt.X("x:Q", **hidden), y=alt.Y("y:Q", **hidden), color=alt.Color("colour:N", scale=None))
    return svg_of(drawn, "A sample of the vectors on their two main directions", width=2 * WIDTH, height=2 * HEIGHT)


def _area(points: Sequence[tuple[float, float]], interpolate: Literal["linear", "step-after"]) -> "alt.Chart":
    """Plot (seconds, done) as a line over a soft area, time in the unit that suits its span."""
    import altair as alt

    unit, seconds_per_unit = next((pair for pair in TIME_UNITS if points[-1][0] < 300 * pair[1]), TIME_UNITS[-1])
    values = [{"time": seconds / seconds_per_unit, "done": done} for seconds, done in points]
    short = alt.Axis(tickCount=4, labelExpr="datum.value ? format(datum.value, '~s') : '0'")
    line = alt.LineConfig(color="var(--accent)", strokeWidth=1.6)
    chart = alt.Chart(alt.InlineData(values=values))
    drawn: alt.Chart = chart.mark_area(color="var(--accent-soft)", interpolate=interpolate, line=line).encode(
        x=alt.X("time:Q", title=unit, scale=alt.Scale(nice=False), axis=alt.Axis(grid=False, tickCount=8)),
        y=alt.Y("done:Q", title=None, axis=short),
    )
    return drawn


def load_drawing() -> None:
    """Draw something, so that later charts need not wait for the second that their packages take to load."""
    import altair as alt

    svg_of(alt.Chart({"values": [{"one": 1}]}).mark_point().encode(x="one:Q"), "nothing")
