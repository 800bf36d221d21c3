"""A run that stands still is ended, and what stands still is named."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from pipeline.errors import PipelineError
from pipeline.execution.attempts import Work
from pipeline.records import BlockReceipt
from pipeline.units import duration


def watched(
    blocks: Iterator[BlockReceipt],
    stall_seconds: float,
    tick_seconds: float,
    standing: Callable[[], Sequence[tuple[Work, float]]],
) -> Iterator[BlockReceipt | None]:
    """Pass receipts on, a None at least every tick, and end a run in which no receipt has come for too long.

    The stream is drawn in a thread, so that this one stays awake for signals and for the clock.

    Args:
        stall_seconds: longest wait for a receipt, the start of the encoders included.
        tick_seconds: longest wait for anything.
        standing: what workers have begun and not ended, the longest first, with its age in seconds.

    Raises:
        PipelineError: what the stream raises, or that it stands still.
    """
    arrivals: queue.Queue[BlockReceipt | BaseException | None] = queue.Queue()

    def draw() -> None:
        try:
            for receipt in blocks:
                arrivals.put(receipt)
            arrivals.put(None)
        except BaseException as error:  # noqa: BLE001  it is raised again in the thread that waits
            arrivals.put(error)

    threading.Thread(target=draw, name="blocks", daemon=True).start()
    last_arrival = time.monotonic()
    while True:
        try:
            arrival = arrivals.get(timeout=min(tick_seconds, stall_seconds))
        except queue.Empty:
            if time.monotonic() - last_arrival < stall_seconds:
                yield None
                continue
            raise PipelineError(
                f"no Block was finished for {duration(stall_seconds)} (runtime.stall_minutes); {_told(standing())}; "
                "what was encoded is kept, run again to go on"
            ) from None
        last_arrival = time.monotonic()
        if arrival is None:
            return
        if isinstance(arrival, BaseException):
            raise arrival
        yield arrival


def _told(standing: Sequence[tuple[Work, float]]) -> str:
    """Return which stage of which Shard stands still."""
    if not standing:
        return "no worker has begun anything: the cluster may lack the CPUs or GPUs that the stages ask for"
    work, seconds = standing[0]
    others = f", and {len(standing) - 1} more" if len(standing) > 1 else ""
    return (
        f"{work.stage} of Shard {work.shard_id}, Block {work.block} ({work.place}) was begun {duration(seconds)} ago "
        f"and has not ended{others}"
    )
