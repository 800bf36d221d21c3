"""Receipts of a run as they come: counted, journalled every few seconds, shown to whoever watches."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.execution.attempts import Book
from pipeline.execution.reporting.metrics import RunReport
from pipeline.execution.workload import Workload
from pipeline.records import BlockReceipt
from pipeline.storage.journal import Journal

logger = logging.getLogger(__name__)

JOURNAL_SECONDS = 3.0
"""At most this much finished work is encoded again after a driver dies."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is; given to whoever watches it."""

    phase: str
    rows_done: int = 0
    tokens_done: int = 0
    fraction_done: float = 0.0
    """By tokens, 0 to 1; by bytes of the source while no token is known of."""
    quarantined: int = 0
    rows_total: int | None = None
    """As far as an estimate or the Shards done so far tell."""
    encoder_busy: float | None = None
    """Share of the time so far in which an encoder was computing."""


Watcher = Callable[[Progress], None]


def follow(
    blocks: Iterator[BlockReceipt | None],
    workload: Workload,
    book: Book,
    journal: Journal,
    report: RunReport,
    watch: Watcher,
    starting: float,
) -> list[BlockReceipt]:
    """Take in receipts as they come: count, show, and journal them every few seconds.

    Args:
        workload: of the Shards that are worked on.
        book: is told how long the encoders will still be busy.
        starting: when the workers were started, on the performance counter.
    """
    receipts: list[BlockReceipt] = []
    journalled, last_entry = 0, time.perf_counter()
    watch(Progress("waiting for the first Block"))
    try:
        for receipt in blocks:
            now = time.perf_counter()
            if receipt is not None:
                if not receipts:
                    report.seconds["start"] = max(0.0, now - starting - _first_seconds(receipt))
                    report.timeline.append((report.seconds["start"], 0, 0))
                receipts.append(receipt)
                if receipt.reasons.keys() - report.reasons.keys():  # the first of its reason; more would be a flood
                    logger.warning("event=quarantined %s", _told_of(receipt))
                report.add(receipt)
                report.timeline.append((round(now - starting, 3), report.rows_read, report.tokens))
                workload.add(receipt)
                book.expect(workload.seconds_left(max(1, report.encoders)))
                watch(_progress(report, workload, now - starting))
            if receipts[journalled:] and now - last_entry >= JOURNAL_SECONDS:
                journal.append(receipts[journalled:])
                journalled, last_entry = len(receipts), now
    finally:
        if receipts[journalled:]:
            journal.append(receipts[journalled:])
    report.seconds["run"] = time.perf_counter() - starting - report.seconds.get("start", 0.0)
    return receipts


def _progress(report: RunReport, workload: Workload, seconds: float) -> Progress:
    """Return how far a run is, so many seconds after the workers were started."""
    available = report.encoders * (seconds - report.seconds["start"])
    return Progress(
        "encoding",
        report.rows_read,
        report.tokens,
        workload.fraction,
        report.quarantined,
        workload.rows_total,
        min(1.0, report.stage_seconds["encode"] / available) if available > 0 else None,
    )


def _told_of(receipt: BlockReceipt) -> str:
    """Return which rows of a Block went to quarantine, as `key=value`."""
    reasons = ",".join(f"{reason}:{rows}" for reason, rows in receipt.reasons.items())
    where = f" first={receipt.first_bad}" if receipt.first_bad else ""
    return f"shard={receipt.shard_id} block={receipt.block} reasons={reasons}{where}"


def _first_seconds(receipt: BlockReceipt) -> float:
    """Return how long the first Block was worked on: start-up is what came before it."""
    return sum(receipt.metrics.get(f"{stage}_seconds", 0.0) for stage in ("read", "tokenize", "encode", "write"))
