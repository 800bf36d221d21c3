"""What a person reads on the terminal: the end of a run, and a plan before it."""

from typing import TYPE_CHECKING, TextIO

from pipeline.execution.reporting.report import headline, reading_snippets
from pipeline.units import byte_size, counted, duration, percent, thousands

if TYPE_CHECKING:
    from pipeline.execution.planning.estimate import PlanSummary
    from pipeline.execution.reporting.metrics import RunReport

SHORTEST_SECONDS = 0.05
"""Of a phase that is told."""


def summary_text(report: "RunReport") -> str:
    """Return the end of a run in at most ten aligned lines; what does not apply is left out."""
    mark = "✓" if report.accounted == report.rows_read else "✗ does not add up"
    fates = ("embedded", "reused", "quarantined", "deduplicated")
    terms = " + ".join(f"{thousands(getattr(report, fate))} {fate}" for fate in fates)
    lines = {
        "rows": f"{thousands(report.rows_read)} read = {terms} {mark}" if report.rows_read or report.accounted else "",
        "texts": _texts(report),
        "tokens": _tokens(report),
        "padding": f"{percent(report.padding_fraction)} of the computed tokens" if report.padded_tokens else "",
        "time": _time(report),
        "quarantine": "; ".join(
            filter(
                None,
                [
                    reasons_text(report.reasons),
                    f"{byte_size(report.unreadable_bytes)} unreadable" if report.unreadable_bytes else "",
                    _retried(report.rows_retried, report.shards_redone),
                ],
            )
        ),
        "warning": "; ".join(report.warnings),
        "output": _output(report),
        "read with": _scan(report.folder) if report.folder else "",
        "report": report.report_uri or "",
    }
    return "\n".join([_outcome(report), *aligned(lines)])


def print_summary(report: "RunReport", file: TextIO) -> None:
    """Print the end of a run."""
    print(summary_text(report), file=file)


def plan_text(plan: "PlanSummary") -> str:
    """Return what a run now would do: what there is, what is done, what is left."""
    left = plan["shards"] - plan["shards_done"]
    first = f"{thousands(left)} of {counted(plan['shards'], 'shard')} to embed"
    standing = "none yet" if plan["snapshot"] is None else f"{plan['snapshot']} stands"
    lines = {
        "source": f"{counted(plan['files'], 'file')}, {byte_size(plan['source_bytes'])}",
        "rows": f"{'' if plan['rows_are_exact'] else 'about '}{thousands(plan['rows'])}",
        "shards": f"{thousands(plan['shards'])}, of which {thousands(plan['shards_done'])} are done",
        "quarantine": _retried(plan["rows_retried"], plan["shards_redone"]),
        "to read": byte_size(plan["bytes_to_read"]),
        "snapshot": standing,
    }
    if not left:
        first = (
            "nothing to do" if plan["is_done"] else "nothing to embed; a new snapshot of old Parts is to be published"
        )
    return "\n".join([first, *aligned(lines)])


def aligned(lines: dict[str, str]) -> list[str]:
    """Return `  label       text` per line that has a text."""
    return [f"  {label:<11} {text}" for label, text in lines.items() if text]


def _outcome(report: "RunReport") -> str:
    """Return the first line: what came of the run, and after how long."""
    after = f" in {duration(report.seconds['total'])}" if "total" in report.seconds else ""
    if report.outcome == "failed":
        return f"{headline(report)}{after}: {report.error or 'no reason given'}"
    if report.outcome == "nothing_to_do" and report.snapshot is not None:
        return f"{headline(report)}: snapshot {report.snapshot} stands, compared{after}"
    return headline(report) + after


def _texts(report: "RunReport") -> str:
    """Return how many texts were encoded, where that is not the number of rows."""
    spared = (
        (report.taken_over, "rows of new files have the vector of a known text"),
        (report.repeated_texts, "that of an equal text of this run"),
    )
    told = [f"{thousands(rows)} {how}" for rows, how in spared if rows]
    return ", ".join([f"{thousands(report.encoded_texts)} encoded", *told]) if told else ""


def _tokens(report: "RunReport") -> str:
    """Return tokens, speed and truncation; nothing if nothing was encoded."""
    if not report.tokens:
        return ""
    speed = f"{thousands(report.tokens)} at {thousands(report.tokens_per_second)} tokens/s"
    where = f" on {counted(report.encoders, 'encoder')}" if report.encoders else ""
    device = f" ({report.device})" if report.device else ""
    cut = f", {counted(report.truncated, 'row')} truncated" if report.truncated else ""
    return speed + where + device + cut


def _time(report: "RunReport") -> str:
    """Return the share of each stage, then the wall time of each phase."""
    spent = sum(report.stage_seconds.values())
    stages = [f"{stage} {percent(seconds / spent)}" for stage, seconds in report.stage_seconds.items() if spent]
    phases = [
        f"{name} {duration(seconds)}"
        for name, seconds in report.seconds.items()
        if name != "total" and seconds >= SHORTEST_SECONDS
    ]
    return " | ".join(filter(None, [", ".join(stages), ", ".join(phases)]))


def reasons_text(reasons: dict[str, int]) -> str:
    """Return quarantined rows by reason, the most frequent first."""
    ordered = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{thousands(rows)} {reason}" for reason, rows in ordered)


def _retried(rows: int, shards: int) -> str:
    """Return what a requeue does anew."""
    return f"{counted(rows, 'row')} of before tried again, with {counted(shards, 'shard')}" if shards else ""


def _output(report: "RunReport") -> str:
    """Return what lies where."""
    if not report.folder:
        return report.output_uri
    size = f", {byte_size(report.bytes_written)} written" if report.bytes_written else ""
    wide = f", {thousands(report.dimension)} dimensions" if report.dimension else ""
    return f"{report.folder} ({counted(report.parts, 'Part')}{size}{wide})"


def _scan(folder: str) -> str:
    """Return the one line of Polars that opens the result."""
    return reading_snippets(folder)["Polars"].splitlines()[1].removeprefix("rows = ")
