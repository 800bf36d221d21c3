"""Live progress on stderr: a bar on a terminal, one plain line every 30 seconds elsewhere."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TextIO

from jobs.logs import are_json
from jobs.pace import Curve, expected_end, extended, recent_rate, smoothed
from pipeline.units import duration, percent, short_count, thousands

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

log = logging.getLogger(__name__)

LINE_SECONDS = 30.0
"""Least time between two plain lines of one phase."""

SHORTEST_BAR, LONGEST_BAR = 8, 40
"""Columns of a terminal."""

Mode = Literal["auto", "live", "lines", "quiet"]


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of the run at one moment."""

    phase: str = "starting"
    rows_done: int = 0
    rows_total: int | None = None
    tokens_done: int = 0
    fraction_done: float = 0.0
    """Share of the work, by bytes or tokens."""
    quarantined: int = 0
    encoder_busy: float | None = None
    """Share of the time so far in which an encoder was computing."""
    tokens_curve: Curve = ()
    work_curve: Curve = ()
    tokens_per_second: float | None = None
    began_at: float | None = None
    """Of the first update, on the clock of the run."""
    updated_at: float | None = None
    finish_at: float | None = None
    """Expected end on the clock of the run, smoothed."""


def advanced(
    status: Status,
    now: float,
    rows_done: int,
    rows_total: int | None,
    tokens_done: int,
    fraction_done: float,
    quarantined: int,
    encoder_busy: float | None = None,
) -> Status:
    """Return the status after an update: rates over the recent window, the end by work done."""
    tokens_curve = extended(status.tokens_curve, now, tokens_done)
    work_curve = extended(status.work_curve, now, fraction_done)
    began_at = now if status.began_at is None else status.began_at
    passed = 0.0 if status.updated_at is None else now - status.updated_at
    end = expected_end(work_curve, now)
    return replace(
        status,
        rows_done=rows_done,
        rows_total=rows_total,
        tokens_done=tokens_done,
        fraction_done=fraction_done,
        quarantined=quarantined,
        encoder_busy=encoder_busy,
        tokens_curve=tokens_curve,
        work_curve=work_curve,
        tokens_per_second=recent_rate(tokens_curve, now),
        began_at=began_at,
        updated_at=now,
        finish_at=None if end is None else smoothed(status.finish_at, end, passed, now - began_at),
    )


def line_text(status: Status, now: float) -> str:
    """Return the status as one line of `key=value`; what is unknown is left out."""
    left = None if status.finish_at is None else max(0.0, status.finish_at - now)
    fields = {
        "phase": status.phase.replace(" ", "_"),
        "rows": status.rows_done,
        "rows_total": status.rows_total,
        "tokens": status.tokens_done,
        "tokens_per_second": None if status.tokens_per_second is None else round(status.tokens_per_second),
        "done": f"{status.fraction_done:.3f}",
        "eta_seconds": None if left is None else round(left),
        "encoder_busy": None if status.encoder_busy is None else f"{status.encoder_busy:.2f}",
        "quarantined": status.quarantined,
    }
    return "progress " + " ".join(f"{key}={value}" for key, value in fields.items() if value is not None)


def live_texts(status: Status, now: float, width: int) -> list[str]:
    """Return what stands right of the bar, as much of it as fits; what encoders do, speed and rows give way first.

    Args:
        width: columns that phase, bar and texts may take together.
    """
    if status.updated_at is None:
        return []
    left = None if status.finish_at is None else max(1, round(status.finish_at - now))
    total = "" if status.rows_total is None else f" of {thousands(status.rows_total)}"
    texts = {"percent": percent(status.fraction_done), "rows": f"{thousands(status.rows_done)}{total} rows"}
    if status.tokens_per_second is not None:
        texts["speed"] = f"{short_count(status.tokens_per_second)} tokens/s"
    if left is not None and status.fraction_done < 1:
        texts["left"] = f"{left} s left" if left < 60 else f"{duration(left)} left"
    if status.encoder_busy is not None:
        texts["busy"] = f"encoders {percent(status.encoder_busy)} busy"
    if status.quarantined:
        texts["quarantined"] = f"{thousands(status.quarantined)} quarantined"
    for name in ("busy", "speed", "rows", "quarantined", "left"):
        if len(status.phase) + SHORTEST_BAR + sum(len(text) + 2 for text in texts.values()) + 2 > width:
            texts.pop(name, None)
    return list(texts.values())


def chosen_mode(mode: Mode, stream: TextIO) -> Literal["live", "lines", "quiet"]:
    """Return how to show: as asked, or live if a person watches the stream."""
    if mode != "auto":
        return mode
    if are_json():
        return "lines"
    return "live" if stream.isatty() and os.environ.get("TERM") != "dumb" else "lines"


class Progress:
    """Show how far a run is, from `with` to the end of it.

    Args:
        mode: `auto` takes `live` on a terminal and `lines` elsewhere; `quiet` shows nothing.
        stream: where the bar is drawn; lines go through logging.
        clock: seconds, ascending.
    """

    def __init__(
        self, mode: Mode = "auto", stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stream = stream or sys.stderr
        self.mode = chosen_mode(mode, self.stream)
        self.clock = clock
        self.status = Status()
        self.phase_at: float | None = None
        self.line_at: float | None = None
        self.over, self.speaking = threading.Event(), threading.Lock()
        self.speaker: threading.Thread | None = None
        self.live: Live | None = None
        self.redirected: list[logging.StreamHandler[TextIO]] = []

    def __enter__(self) -> Self:
        if self.mode == "live":
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self.stream)
            self.live = Live(console=console, get_renderable=self.bar, refresh_per_second=8, redirect_stdout=False)
            before = sys.stderr
            self.live.start()
            self.redirected = redirect_log_handlers(before, sys.stderr)
        if self.mode == "lines":
            self.speaker = threading.Thread(target=self._speak_up, name="progress", daemon=True)
            self.speaker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        if self.speaker is not None:
            self.speaker.join(LINE_SECONDS)  # else Python's end could wait for the stream it writes to
        if self.live is not None:
            self.live.stop()
            for handler in self.redirected:
                handler.setStream(sys.stderr)
            self.live = None

    def phase(self, text: str) -> None:
        """Say what the run does now: `planning`, `starting encoders`, `embedding`, `publishing`."""
        self.status = replace(self.status, phase=text)
        if self.mode == "lines":
            self.phase_at = self.line_at = self.clock()
            log.info("progress phase=%s", text.replace(" ", "_"))

    def update(
        self,
        rows_done: int,
        rows_total_estimate: int | None,
        tokens_done: int,
        fraction_done: float,
        quarantined: int,
        encoder_busy: float | None = None,
    ) -> None:
        """Take in how far the run is; cheap enough to call as often as one likes.

        Args:
            rows_done: rows accounted for, quarantined ones included.
            rows_total_estimate: rows of the whole run, if something is known of it.
            tokens_done: tokens encoded by this run.
            fraction_done: share of the work by tokens, 0 to 1; the ETA goes by it.
            quarantined: rows put aside so far.
            encoder_busy: share of the time so far in which an encoder was computing.
        """
        now = self.clock()
        self.status = advanced(
            self.status, now, rows_done, rows_total_estimate, tokens_done, fraction_done, quarantined, encoder_busy
        )
        if self.line_at is None:
            self.line_at = now
        self._line()

    def _speak_up(self) -> None:
        """Write the lines of phases in which nothing is heard for long: a first Block may take minutes."""
        while not self.over.wait(LINE_SECONDS / 6):
            self._line()

    def _line(self) -> None:
        """Write a line if the last one is old enough; of a phase without figures how long it has taken."""
        with self.speaking:
            now = self.clock()
            if self.mode != "lines" or self.line_at is None or now - self.line_at < LINE_SECONDS:
                return
            self.line_at = now
        if self.status.updated_at is None and self.phase_at is not None:
            log.info("progress phase=%s seconds=%d", self.status.phase.replace(" ", "_"), now - self.phase_at)
        else:
            log.info(line_text(self.status, now))

    def bar(self) -> "Table":
        """Return the live line: phase, bar, figures; the bar shortens where the terminal is narrow."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        width = self.live.console.width if self.live else 80
        known = self.status.updated_at is not None
        texts = live_texts(self.status, self.clock(), width)
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1, min_width=SHORTEST_BAR, max_width=LONGEST_BAR)
        for _ in texts:
            grid.add_column(no_wrap=True, overflow="ellipsis")
        done = ProgressBar(total=1.0 if known else None, completed=self.status.fraction_done, pulse=not known)
        grid.add_row(self.status.phase, done, *texts)
        return grid


def redirect_log_handlers(before: TextIO, after: TextIO) -> list["logging.StreamHandler[TextIO]"]:
    """Send log lines above the bar instead of through it; return the handlers that were changed."""
    if before is after:
        return []
    handlers = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is before
    ]
    for handler in handlers:
        handler.setStream(after)
    return handlers
