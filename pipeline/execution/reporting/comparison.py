"""What was estimated of a run beside what happened."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.units import byte_size, duration, money, percent, thousands

if TYPE_CHECKING:
    from pipeline.execution.reporting.metrics import RunReport


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure, estimated and as it came."""

    name: str
    estimated: str
    happened: str
    off: float | None
    """Estimated over happened, minus one; None where one of them is nothing."""

    @property
    def told(self) -> str:
        """How far the estimate was off, with its sign."""
        if self.off is None:
            return "–"
        return "exact" if not self.off else f"{'+' if self.off > 0 else '−'}{percent(abs(self.off))}"


def compared(report: "RunReport") -> list[Compared]:
    """Return the figures of the estimate that was kept for a run; none without one, or where the run has failed."""
    estimate = report.estimate
    if not estimate or report.outcome != "published":
        return []
    seconds = estimate["seconds"]
    rate = estimate["tokens"] / seconds["run"] if seconds["run"] else None  # all texts were known
    truncated = report.truncated / report.embedded if report.embedded else 0.0
    figures: list[tuple[str, float | None, float | None, Callable[[float], str]]] = [
        ("Tokens", estimate["tokens"], report.tokens, thousands),
        ("Tokens per second", rate, report.tokens_per_second, thousands),
        ("Time of the start", seconds["start"], report.seconds.get("start"), duration),
        ("Time of encoding", seconds["run"], report.seconds.get("run"), duration),
        ("Time in all", seconds["total"], report.seconds.get("total"), duration),
        ("Truncated texts", estimate["truncated_fraction"], truncated, percent),
        ("Written", estimate["output_bytes"], report.bytes_written, byte_size),
        ("Cost", estimate.get("cost"), report.cost, money),
    ]
    return [
        Compared(name, told(expected), told(came), expected / came - 1 if came else None)
        for name, expected, came, told in figures
        if expected is not None and came is not None
    ]
