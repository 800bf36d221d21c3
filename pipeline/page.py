"""Pages to look at: one look for all, light and dark, in one file, with charts drawn offline in their colours."""

from typing import TYPE_CHECKING, Any

from pipeline.units import byte_size, duration, percent, thousands

if TYPE_CHECKING:
    import altair as alt

WIDTH, HEIGHT = 430, 190
"""Pixels of a drawing's inner plane; the page scales it to its column."""


def rendered(template: str, **values: Any) -> str:
    """Return one self-contained HTML page: no script, no font, nothing from the network.

    Args:
        template: path below this package of a template that extends `page.html.jinja`; a value is escaped unless it is
            Markup.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("pipeline", "")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters.update(bytes=byte_size, thousands=thousands, duration=duration, percent=percent)
    return pages.get_template(template).render(values)


def svg_of(chart: "alt.LayerChart | alt.Chart", description: str, width: float = WIDTH, height: float = HEIGHT) -> str:
    """Render a chart to an SVG element; colours stay CSS variables, so that one serves both themes."""
    import vl_convert

    spec = (
        chart.properties(width=width, height=height, background="transparent")
        .configure_view(stroke=None)
        .configure_axis(
            labelColor="var(--muted)",
            titleColor="var(--muted)",
            gridColor="var(--rule)",
            labelFontSize=11,
            titleFontSize=11,
            titleFontWeight="normal",
            titlePadding=10,
            ticks=False,
            domain=False,
            labelPadding=6,
        )
        .configure_axisX(domain=True, domainColor="var(--axis)")
        .to_dict()
    )
    svg = vl_convert.vegalite_to_svg(spec)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)
