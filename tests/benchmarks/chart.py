"""The comparison as a picture for the README: ratios to `SentenceTransformer.encode` in float32."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]

TITLE = "Tokens per second, as multiples of SentenceTransformer.encode in float32"
LEGEND = "Bars: medians of the rounds; lines: from the lowest to the highest round; blue: ours."


def write_chart(lines: Sequence[Line], path: Path) -> bool:
    """Draw one bar per variant of every comparison that has ratios; return whether there was any.

    Args:
        lines: of all benchmarks.
        path: ends in .svg.
    """
    import altair as alt
    import vl_convert

    comparisons: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line.get("to_encode_float32"):
            comparisons[str(line["benchmark"]).removeprefix("encoders, ")].append(_bar(line))
    if not comparisons:
        return False
    widest = max(bar["highest"] for bars in comparisons.values() for bar in bars)
    charts = [_comparison(title, bars, widest) for title, bars in comparisons.items()]
    title = {"text": TITLE, "subtitle": LEGEND, "anchor": "start", "fontSize": 14, "offset": 12}
    chart = alt.vconcat(*charts).properties(title=title, background="white", padding=12)
    chart = chart.configure_view(stroke=None).configure_axis(grid=False, domain=False, ticks=False)
    path.write_text(vl_convert.vegalite_to_svg(chart.to_dict()), encoding="utf-8")
    return True


def _comparison(title: str, bars: Sequence[Line], widest: float) -> Any:
    import altair as alt

    scale = alt.Scale(domain=[0, widest * 1.1], nice=False)
    x = alt.X("ratio:Q", scale=scale, title=None)
    y = alt.Y("variant:N", sort=None, title=None, axis=alt.Axis(minExtent=260, labelLimit=320, labelFontSize=12))
    base = alt.Chart(alt.InlineData(values=bars))
    colour = alt.Color("colour:N", scale=None)
    reference = alt.Chart(alt.InlineData(values=[{"ratio": 1}]))
    layers = alt.layer(
        base.mark_bar(height=15).encode(x=x, y=y, color=colour),
        reference.mark_rule(color="#33393d", strokeDash=[3, 3]).encode(x=x),
        base.mark_rule(color="#33393d").encode(x="lowest:Q", x2="highest:Q", y=y),
        base.mark_text(align="left", dx=6, fontSize=12).encode(x="highest:Q", y=y, text="label:N"),
    )
    heading = {"text": title, "anchor": "start", "fontSize": 12}
    return layers.properties(width=420, height={"step": 21}, title=heading)


def _bar(line: Line) -> Line:
    return {
        "variant": f"{line['variant']}, {line['precision']}",
        "ratio": line["to_encode_float32"],
        "lowest": line["lowest"],
        "highest": line["highest"],
        "label": f"{line['to_encode_float32']:.2f}",
        "colour": "#2f6f9f" if str(line["variant"]).startswith("ours") else "#b9c2c9",
    }
