"""The Ray Data pipeline itself: Shards in, receipts out, four stages that overlap."""

import queue
import re
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import orjson
import ray
import ray.data
import ray.exceptions

from pipeline import errors
from pipeline.errors import PipelineError
from pipeline.execution.cluster import Shares
from pipeline.execution.stages import EncodeBlocks, StageSettings, read_blocks, tokenize_blocks, write_blocks
from pipeline.records import BlockReceipt, Shard

MAX_READ_TASKS = 2000
"""Shards beyond this share read tasks: each task costs the scheduler some 10 ms."""


def stream_blocks(
    todo: Sequence[tuple[Shard, frozenset[int], list[int]]], settings: StageSettings, shares: Shares
) -> Iterator[BlockReceipt]:
    """Yield the receipt of every missing Block as it is written, in any order.

    Args:
        todo: Shards, each with the Blocks that need no work and the positions of rows to leave out.
        settings: for the stages.
        shares: what the workers reserve. Stages must differ in it: equal neighbours would be fused into one task
            and no longer overlap.

    Raises:
        PipelineError: what a stage has raised, as it was raised.
    """
    rows = [
        {"shard": orjson.dumps(shard.to_json()), "done_blocks": sorted(done), "dropped": dropped}
        for shard, done, dropped in todo
    ]
    options: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    blocks = (
        ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_READ_TASKS))
        .map_batches(partial(read_blocks, settings=settings), num_cpus=shares.stage_cpus, **options)
        .map_batches(partial(tokenize_blocks, settings=settings), num_cpus=shares.stage_cpus * 1.01, **options)
        .map_batches(
            EncodeBlocks,
            fn_constructor_args=(settings,),
            compute=ray.data.ActorPoolStrategy(size=shares.encoders),
            num_cpus=shares.encoder_cpus,
            num_gpus=shares.encoder_gpus or None,
            **options,
        )
        .map_batches(partial(write_blocks, settings=settings), num_cpus=shares.stage_cpus, **options)
    )
    try:
        for batch in blocks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for receipt in batch["receipt"].to_pylist():
                yield BlockReceipt.from_json(orjson.loads(receipt))
    except (ray.exceptions.RayError, RuntimeError) as error:
        raise told_by_stage(error) from error


def watched(
    blocks: Iterator[BlockReceipt], shards: Sequence[Shard], stall_seconds: float, tick_seconds: float
) -> Iterator[BlockReceipt | None]:
    """Pass receipts on, a None at least every tick, and end a run in which no receipt has come for too long.

    The stream is drawn in a thread, so that this one stays awake for signals and for the clock.

    Args:
        shards: all that are worked on; those without their last Block are named when nothing moves.
        stall_seconds: longest wait for a receipt, the start of the encoders included.
        tick_seconds: longest wait for anything.

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
    unfinished = {shard.shard_id: shard for shard in shards}
    last_arrival = time.monotonic()
    while True:
        try:
            arrival = arrivals.get(timeout=min(tick_seconds, stall_seconds))
        except queue.Empty:
            if time.monotonic() - last_arrival < stall_seconds:
                yield None
                continue
            uris = [span.file.uri for shard in unfinished.values() for span in shard.spans]
            raise PipelineError(
                f"no Block was finished for {stall_seconds / 60:g} minutes (runtime.stall_minutes); "
                f"{len(unfinished)} Shards are waited for, the first of {', '.join(uris[:3])}; what was encoded is kept"
            ) from None
        last_arrival = time.monotonic()
        if arrival is None:
            return
        if isinstance(arrival, BaseException):
            raise arrival
        if arrival.is_last:
            unfinished.pop(arrival.shard_id, None)
        yield arrival


def told_by_stage(error: BaseException) -> PipelineError:
    """Return the PipelineError that a stage has raised on its worker, or one that says what went wrong there.

    Ray gives an error back as a class of its own that also derives from the class that was raised.
    """
    cause: BaseException = error
    while (inner := getattr(cause, "cause", None) or cause.__cause__) is not None:
        cause = inner
    own = [kind for kind in type(cause).__mro__ if kind.__module__ == PipelineError.__module__]
    if own:
        return cast(PipelineError, own[0](*cause.args))
    return _told_by_text(str(error)) or PipelineError(
        f"a stage failed with {type(cause).__name__} at {_place(str(error))}; this is a bug or a broken installation"
    )


def _place(text: str) -> str:
    """Return the last line of our code in a traceback; the message itself may quote the data."""
    found = re.findall(r'File ".*?((?:pipeline|jobs)/[\w/]+\.py)", line (\d+)', text)
    return ":".join(found[-1]) if found else "a place unknown"


def _told_by_text(text: str) -> PipelineError | None:
    """Return the PipelineError that a dying actor has left behind only in the text of Ray's message."""
    found = re.findall(rf"{PipelineError.__module__}\.(\w+): (.+)", text)
    kind = getattr(errors, found[-1][0], PipelineError) if found else None
    return cast(PipelineError, kind(found[-1][1])) if kind else None
