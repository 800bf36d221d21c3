"""The figures and facts of the report page, as rows of text."""

import json
import statistics
from collections import Counter
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, Any

from pipeline.units import byte_size, counted, duration, money, percent, thousands

if TYPE_CHECKING:
    from pipeline.execution.reporting.metrics import RunReport


def moment(started_at: str) -> str:
    """Return an ISO 8601 time as a person writes it, or unchanged if it is not one."""
    try:
        return datetime.fromisoformat(started_at).astimezone(UTC).strftime("%-d %B %Y, %H:%M UTC")
    except ValueError:
        return started_at


def plain(value: Any) -> str:
    """Return a recipe value as the config spells it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def key_figures(report: "RunReport") -> list[tuple[str, str, str]]:
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
        (
            "Encoders busy",
            "–" if report.encoder_busy is None else percent(report.encoder_busy),
            f"{percent(report.padding_fraction)} padding" if report.padded_tokens else "",
        ),
        (
            "Written",
            byte_size(report.bytes_written),
            " of ".join(filter(None, [counted(report.parts, "Part"), str(report.recipe.get("stored", ""))])),
        ),
    ]


def equation(report: "RunReport") -> dict[str, Any]:
    """Return the reconciliation: what was read, what became of it, and whether the two are equal."""
    names = ("embedded", "reused", "quarantined", "deduplicated")
    return {
        "read": report.rows_read,
        "terms": [(name, getattr(report, name)) for name in names],
        "difference": abs(report.rows_read - report.accounted),
    }


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


def _calibration(report: "RunReport") -> str:
    """Return which calibration the vectors are of, and what making it took where this output has made it."""
    told = report.calibration
    if not told or "likeness" not in told:
        return told["identity"] if told else ""
    took = f"{duration(told['seconds'])} and {byte_size(told['peak_memory_bytes'])} of memory for {told['texts']} texts"
    return f"{told['identity']}; {took}; least cosine to float32 {told['likeness']['min_cosine']:.4f}"


def facts(report: "RunReport") -> dict[str, str]:
    """Return what ran, where and on what, without what is unknown."""
    facts = {
        "started": moment(report.started_at),
        "source": ", ".join(report.source),
        "files": f"{counted(report.source_files, 'file')}, {byte_size(report.source_bytes)}",
        "shards": f"{report.shards:,}, of which {report.shards_reused:,} were done before",
        "texts encoded": f"{report.encoded_texts:,}" if report.encoded_texts != report.embedded else "",
        "known texts": f"{report.taken_over:,} rows of new or changed files" if report.taken_over else "",
        "output": report.output_uri,
        "snapshot folder": report.folder,
        "dimension": thousands(report.dimension) if report.dimension else "",
        "run": report.run_key,
        "fingerprint": report.fingerprint,
        "hosts": ", ".join(report.hosts),
        "executor": report.executor,
        "device": report.device,
        "encoders": str(report.encoders) if report.encoders else "",
        "engine": _engine(report),
        "calibration": _calibration(report),
        "attention": "; ".join(report.attention),
        "padding": f"{percent(report.padding_fraction)} of the computed tokens" if report.padded_tokens else "",
        "batches": f"{report.batches:,}"
        + (f", {report.batch_splits:,} split after a failure" * bool(report.batch_splits)),
        "begun again": counted(report.retries, "Block") if report.retries else "",
        "encoder hours": f"{report.encoder_hours:.3g}" if report.encoder_hours else "",
        "cost": money(report.cost) if report.cost is not None else "",
        "time": ", ".join(f"{phase} {duration(spent)}" for phase, spent in report.seconds.items()),
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    }
    return {name: value for name, value in facts.items() if value}
