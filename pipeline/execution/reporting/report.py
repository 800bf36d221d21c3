"""A RunReport as one HTML page to look at, and as one JSON object."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.execution.reporting.comparison import compared
from pipeline.execution.reporting.report_tables import equation, facts, key_figures, moment, plain
from pipeline.page import rendered
from pipeline.units import counted, duration, percent, thousands

if TYPE_CHECKING:
    from pipeline.execution.reporting.metrics import RunReport
    from pipeline.execution.reporting.vector_map import Neighbours, VectorMap

ENCODER_BOUND = 0.8
"""Busy share of the encoders above which they, and not the stages around them, set the pace."""

FASTER = {
    "read": "give reading more CPU workers, or bring the compute nearer to the source",
    "tokenize": "give tokenising more CPU workers",
    "encode": "use a faster device or more encoders; `python -m jobs tune` measures which settings are fastest",
    "write": "bring the compute nearer to the output, or store vectors smaller (recipe.stored)",
}
"""What to turn when a stage sets the pace."""


def report_facts(report: "RunReport") -> dict[str, Any]:
    """Return the report as plain JSON values, fields in the order of RunReport, the event for lineage last."""
    from pipeline.execution.reporting.lineage import run_event

    return report.to_json() | {"lineage": run_event(report)}


def report_json(report: "RunReport") -> bytes:
    """Return the report as indented JSON."""
    import orjson

    return orjson.dumps(report_facts(report), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def headline(report: "RunReport") -> str:
    """Return the outcome in three or four words."""
    number = "" if report.snapshot is None else f" {report.snapshot}"
    return {
        "published": f"Snapshot{number} published",
        "nothing_to_do": "Nothing to do",
        "failed": "Run failed",
    }[report.outcome]


def sentence(report: "RunReport") -> str:
    """Return what happened, in one sentence for a person who knows nothing of the run."""
    if report.outcome == "failed":
        error = (report.error or "The run ended without saying why").rstrip()
        stop = "" if error.endswith((".", "!", "?")) else "."
        kept = "; what was done is kept and will be used by the next run" if report.parts else ""
        return f"{error}{stop} Nothing was published{kept}."
    if report.outcome == "nothing_to_do":
        number = "" if report.snapshot is None else f" {report.snapshot}"
        return f"Snapshot{number} already holds every row of this source under this recipe; nothing was encoded."
    took = f" in {duration(report.seconds['total'])}" if "total" in report.seconds else ""
    became = f"{counted(report.embedded, 'row')} became vectors of {thousands(report.dimension)} numbers{took}"
    fates = (
        (report.reused, "kept from before"),
        (report.deduplicated, "found twice"),
        (report.quarantined, "put aside"),
    )
    return ", ".join([became, *(f"{thousands(rows)} {fate}" for rows, fate in fates if rows)]) + "."


def waited_seconds(report: "RunReport") -> float:
    """Return how long encoders stood idle while the run went on, summed over them."""
    return max(0.0, report.encoders * report.seconds.get("run", 0.0) - report.stage_seconds.get("encode", 0.0))


def bottleneck(report: "RunReport") -> str | None:
    """Return which stage set the pace and which knob to turn; None if no time was measured."""
    others = {stage: spent for stage, spent in report.stage_seconds.items() if stage != "encode"}
    busy = report.encoder_busy
    if busy is None or not any(report.stage_seconds.values()):
        return None
    computed = f"The encoders computed {percent(busy)} of the run"
    if busy >= ENCODER_BOUND:
        return f"{computed}: they set the pace. To go faster, {FASTER['encode']}."
    slowest = max(others, key=lambda stage: others[stage])
    waited = f"{computed} and waited for the rest"
    return f"{waited}. Of the other stages {slowest} took the most time: {FASTER[slowest]}."


def reading_snippets(folder_uri: str) -> dict[str, str]:
    """Return three lines of Python per library that read a snapshot's folder.

    On object storage pyarrow and DuckDB go through fsspec, which takes the endpoint and the credentials from
    the environment as this pipeline does; pyarrow's own S3 client ignores the endpoint variable.

    Args:
        folder_uri: `RunReport.folder`.
    """
    scheme = urlsplit(folder_uri).scheme if "://" in folder_uri else "file"
    folder = folder_uri.removeprefix("file://").rstrip("/")
    files = f"{folder}/**/*.parquet"
    escaped = files.replace("'", "''")
    sql = f"SELECT id, embedding FROM read_parquet('{escaped}', hive_partitioning = true)"
    if scheme == "file":
        duckdb = ["import duckdb", f"rows = duckdb.sql({_quoted(sql)})", "vectors = rows.to_arrow_table()"]
    else:
        opened = f"duckdb.register_filesystem(fsspec.filesystem({_quoted(scheme)}))"
        duckdb = ["import duckdb, fsspec", opened, f"vectors = duckdb.sql({_quoted(sql)}).to_arrow_table()"]
    return {
        "pyarrow": "import fsspec, pyarrow.dataset\n"
        f"filesystem, folder = fsspec.url_to_fs({_quoted(folder)})\n"
        'rows = pyarrow.dataset.dataset(folder, filesystem=filesystem, partitioning="hive")',
        "DuckDB": "\n".join(duckdb),
        "Polars": "import polars\n"
        f"rows = polars.scan_parquet({_quoted(files)}, hive_partitioning=True)\n"
        'vectors = rows.select("id", "embedding").collect()',
    }


def render_html(
    report: "RunReport", vectors: "VectorMap | None" = None, neighbours: "Sequence[Neighbours]" = ()
) -> str:
    """Return the run as one self-contained HTML page: no script, no font, nothing from the network.

    Charts that have nothing to show are replaced by a sentence that says so.

    Args:
        vectors: a sample of what was published, to draw.
        neighbours: texts to show; without them no text stands in the page.
    """
    from pipeline.execution.reporting import charts

    return rendered(
        "execution/reporting/report.html.jinja",
        report=report,
        headline=headline(report),
        sentence=sentence(report),
        started=moment(report.started_at),
        figures=key_figures(report),
        equation=equation(report),
        charts=_charts(report, vectors),
        bottleneck=bottleneck(report),
        recipe={name: plain(value) for name, value in report.recipe.items()},
        facts=facts(report),
        compared=compared(report),
        vectors=vectors,
        colours=charts.GROUP_COLOURS,
        neighbours=neighbours,
        snippets=reading_snippets(report.folder) if report.folder else {},
    )


def _quoted(text: str) -> str:
    """Return a Python literal in double quotes; JSON's strings are Python's as well."""
    return json.dumps(text, ensure_ascii=False)


def _charts(report: "RunReport", vectors: "VectorMap | None") -> dict[str, Any]:
    """Return the drawings as safe markup: they hold numbers and our own words, nothing from outside."""
    from markupsafe import Markup

    from pipeline.execution.reporting import charts

    drawings = {
        "throughput": charts.throughput_svg(report.timeline, report.tokens_per_second),
        "rows": charts.rows_svg(report.timeline),
        "histogram": charts.histogram_svg(report.token_histogram),
        "stages": charts.stages_svg(report.stage_seconds, waited_seconds(report)),
        "map": charts.map_svg(vectors.points, vectors.groups) if vectors else None,
    }
    return {name: Markup(svg) if svg else None for name, svg in drawings.items()}
