"""A RunReport as one HTML page to look at, and as one JSON object."""

import json
import statistics
from collections import Counter
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.units import byte_size, counted, duration, percent, thousands

if TYPE_CHECKING:
    from pipeline.execution.metrics import RunReport

ENCODER_BOUND = 0.8
"""Busy share of the encoders above which they, and not the stages around them, set the pace."""

FASTER = {
    "read": "give reading more CPU workers, or bring the compute nearer to the source",
    "tokenize": "give tokenising more CPU workers",
    "encode": "use a faster device or more encoders, or try a larger runtime.batch_tokens",
    "write": "bring the compute nearer to the output, or store vectors smaller (recipe.stored)",
}
"""What to turn when a stage sets the pace."""


def report_json(report: "RunReport") -> bytes:
    """Return the report as indented JSON, fields in the order of RunReport."""
    import orjson

    return orjson.dumps(report.to_json(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


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


def encoder_busy(report: "RunReport") -> float | None:
    """Return the share of the run in which an encoder was computing, 0 to 1; None if not measured."""
    available = report.encoders * report.seconds.get("run", 0.0)
    return min(1.0, report.stage_seconds.get("encode", 0.0) / available) if available else None


def bottleneck(report: "RunReport") -> str | None:
    """Return which stage set the pace and which knob to turn; None if no time was measured."""
    others = {stage: spent for stage, spent in report.stage_seconds.items() if stage != "encode"}
    busy = encoder_busy(report)
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


def render_html(report: "RunReport") -> str:
    """Return the run as one self-contained HTML page: no script, no font, nothing from the network.

    Charts that have nothing to show are replaced by a sentence that says so.
    """
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined

    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters.update(bytes=byte_size, thousands=thousands, duration=duration, percent=percent)
    template = page.from_string(files("pipeline.execution").joinpath("report.html.jinja").read_text("utf-8"))
    return template.render(
        report=report,
        headline=headline(report),
        sentence=sentence(report),
        started=_moment(report.started_at),
        figures=_key_figures(report),
        equation=_equation(report),
        charts=_charts(report),
        bottleneck=bottleneck(report),
        recipe={name: _plain(value) for name, value in report.recipe.items()},
        facts=_facts(report),
        snippets=reading_snippets(report.folder) if report.folder else {},
    )


def _moment(started_at: str) -> str:
    """Return an ISO 8601 time as a person writes it, or unchanged if it is not one."""
    try:
        return datetime.fromisoformat(started_at).astimezone(UTC).strftime("%-d %B %Y, %H:%M UTC")
    except ValueError:
        return started_at


def _quoted(text: str) -> str:
    """Return a Python literal in double quotes; JSON's strings are Python's as well."""
    return json.dumps(text, ensure_ascii=False)


def _plain(value: Any) -> str:
    """Return a recipe value as the config spells it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _key_figures(report: "RunReport") -> list[tuple[str, str, str]]:
    """Return the big numbers of the page: label, figure, and a note beneath."""
    run, total = report.seconds.get("run"), report.seconds.get("total")
    vectors = f"{thousands(report.embedded + report.reused)} with a vector"
    encoded = f"{report.tokens / report.embedded:.0f} per row" if report.embedded and report.tokens else ""
    where = " on ".join(filter(None, [counted(report.encoders, "encoder"), report.device])) if report.encoders else ""
    return [
        ("Rows read", thousands(report.rows_read), vectors),
        ("Tokens", thousands(report.tokens), encoded),
        ("Tokens per second", thousands(report.tokens_per_second) if run else "–", where),
        (
            "Duration",
            duration(total) if total is not None else "–",
            f"{duration(run)} encoding" if run else "",
        ),
        ("Written", byte_size(report.bytes_written), counted(report.parts, "Part")),
        ("Dimension", thousands(report.dimension), str(report.recipe.get("stored", ""))),
    ]


def _equation(report: "RunReport") -> dict[str, Any]:
    """Return the reconciliation: what was read, what became of it, and whether the two are equal."""
    names = ("embedded", "reused", "quarantined", "deduplicated")
    return {
        "read": report.rows_read,
        "terms": [(name, getattr(report, name)) for name in names],
        "difference": abs(report.rows_read - report.accounted),
    }


def _charts(report: "RunReport") -> dict[str, Any]:
    """Return the drawings as safe markup: they hold numbers and our own words, nothing from outside."""
    from markupsafe import Markup

    from pipeline.execution import charts

    drawings = {
        "throughput": charts.throughput_svg(report.timeline, report.tokens_per_second),
        "rows": charts.rows_svg(report.timeline),
        "histogram": charts.histogram_svg(report.token_histogram),
        "stages": charts.stages_svg(report.stage_seconds),
    }
    return {name: Markup(svg) if svg else None for name, svg in drawings.items()}


def _engine(report: "RunReport") -> str:
    """Return what computed the forward passes, and what trials of other engines came to."""
    choices = report.engine_choices
    if not choices:
        return report.engine
    figures = {
        name: statistics.median(rates)
        for name in sorted({name for choice in choices for name in choice.tokens_per_second})
        if (rates := [c.tokens_per_second[name] for c in choices if name in c.tokens_per_second])
    }
    ends = ", ".join(f"{name} {times}" for name, times in Counter(choice.engine for choice in choices).most_common())
    speeds = ", ".join(f"{name} {thousands(rate)} tokens/s" for name, rate in figures.items())
    passed_over = dict(chain.from_iterable(choice.passed_over.items() for choice in choices))
    reasons = [f"{name} passed over: {why}" for name, why in passed_over.items()]
    return "; ".join(filter(None, [f"{report.engine}; by trial: {ends}", speeds, *reasons]))


def _facts(report: "RunReport") -> dict[str, str]:
    """Return what ran, where and on what, without what is unknown."""
    facts = {
        "started": _moment(report.started_at),
        "source": f"{counted(report.source_files, 'file')}, {byte_size(report.source_bytes)}",
        "shards": f"{report.shards:,}, of which {report.shards_reused:,} were done before",
        "texts encoded": f"{report.encoded_texts:,}" if report.encoded_texts != report.embedded else "",
        "known texts": f"{report.taken_over:,} rows of new or changed files" if report.taken_over else "",
        "output": report.output_uri,
        "snapshot folder": report.folder,
        "run": report.run_key,
        "fingerprint": report.fingerprint,
        "device": report.device,
        "encoders": str(report.encoders) if report.encoders else "",
        "engine": _engine(report),
        "attention": "; ".join(report.attention),
        "padding": f"{percent(report.padding_fraction)} of the computed tokens" if report.padded_tokens else "",
        "time": ", ".join(f"{phase} {duration(spent)}" for phase, spent in report.seconds.items()),
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    }
    return {name: value for name, value in facts.items() if value}
