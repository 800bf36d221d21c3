"""The Ray Data pipeline itself: Shards in, receipts out, four stages that overlap."""

import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import orjson
import ray
import ray.data
import ray.exceptions
from numpy.typing import NDArray

from pipeline import errors
from pipeline.config import Runtime
from pipeline.errors import PipelineError, SickDevice
from pipeline.execution.attempts import Work
from pipeline.execution.clusters.cluster import Shares, divide, gpus_by_node
from pipeline.execution.encode_stage import EncodeBlocks
from pipeline.execution.sick_gpus import SickGpus, sickness_of
from pipeline.execution.stage_settings import StageSettings
from pipeline.execution.stages import read_blocks, tokenize_blocks, write_blocks
from pipeline.records import BlockReceipt, Shard
from pipeline.units import duration

logger = logging.getLogger(__name__)

MAX_READ_TASKS = 2000
"""Shards beyond this share read tasks: each task costs the scheduler some 10 ms."""

LITTLE_BYTES, LITTLE_AT_ONCE = 8 * 2**20, 2
"""Of a source so small no stage has more workers than this: to start one takes 1.3 s of a core, which is longer than it
would work."""

RAY_APPENDS = "\nFailed to apply UDF transform"
"""Beginning of what Ray 2.60 adds to the message of every exception that a stage raises."""

NODE_LABEL = "ray.io/node-id"
"""Ray gives every node this label."""


@dataclass(frozen=True, slots=True)
class Todo:
    """What is missing of one Shard."""

    shard: Shard
    done_blocks: frozenset[int]
    """Blocks that need no work."""
    dropped: NDArray[np.int64]
    """Rows to leave out, by their position in the Shard, ascending: their id stands elsewhere before."""


def stream_healthy(
    todo: Sequence[Todo], settings: StageSettings, runtime: Runtime, shares: Shares
) -> Iterator[BlockReceipt]:
    """Yield the receipt of every missing Block as it is written, in any order, on healthy nodes only.

    When the encoders of a GPU, or of a node without, have failed too often on good texts, the stream ends there, and
    what is still missing is streamed anew without that GPU or node.

    Args:
        todo: what is missing.
        settings: for the stages.
        runtime: by which the cluster is divided when a node is left out.
        shares: of the cluster as it is now.

    Raises:
        EncoderError: no node is left on which an encoder works.
        PipelineError: what a stage has raised, as it was raised.
    """
    missing = {one.shard.shard_id: one for one in todo}
    blocks_of: dict[str, int] = {}
    left_out: dict[str, str] = {}
    known: dict[str, str] = {}
    gpus = SickGpus()
    while True:
        try:
            for receipt in stream_blocks(list(missing.values()), settings, shares, left_out.keys()):
                one = missing[receipt.shard_id]
                missing[receipt.shard_id] = replace(one, done_blocks=one.done_blocks | {receipt.block})
                if receipt.is_last:
                    blocks_of[receipt.shard_id] = receipt.block + 1
                yield receipt
            return
        except SickDevice:
            sick = settings.attempts.excluded()
            if sick.keys() <= known.keys():
                raise
            known, left_out = sick, gpus.hold(sickness_of(sick), gpus_by_node())
            missing = {key: one for key, one in missing.items() if len(one.done_blocks) != blocks_of.get(key)}
            logger.warning("event=left_out places=%s", ",".join(sorted(sick)))
            shares = divide(runtime, left_out, gpus.held())
            settings.attempts.forget_begun()


def stream_blocks(
    todo: Sequence[Todo], settings: StageSettings, shares: Shares, left_out: Collection[str] = ()
) -> Iterator[BlockReceipt]:
    """Yield the receipt of every missing Block as it is written, in any order.

    Args:
        todo: what is missing.
        settings: for the stages.
        shares: what the workers reserve. Stages must differ in it: equal neighbours would be fused into one task
            and no longer overlap.
        left_out: nodes that no encoder may run on.

    Raises:
        PipelineError: what a stage has raised, as it was raised.
    """
    rows = [
        {
            "shard": orjson.dumps(one.shard.to_json()),
            "done_blocks": sorted(one.done_blocks),
            "dropped": one.dropped.tobytes(),
        }
        for one in todo
    ]
    options: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    is_little = sum(one.shard.size_bytes for one in todo) < LITTLE_BYTES
    tasks = options | {"compute": ray.data.TaskPoolStrategy(size=LITTLE_AT_ONCE if is_little else None)}
    blocks = (
        ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_READ_TASKS))
        .map_batches(partial(read_blocks, settings=settings), num_cpus=shares.stage_cpus, **tasks)
        .map_batches(partial(tokenize_blocks, settings=settings), num_cpus=shares.stage_cpus * 1.01, **tasks)
        .map_batches(
            EncodeBlocks,
            fn_constructor_args=(settings,),
            compute=ray.data.ActorPoolStrategy(size=shares.encoders),
            num_cpus=shares.encoder_cpus,
            num_gpus=shares.encoder_gpus or None,
            resources=dict(shares.encoder_resources) or None,
            label_selector={NODE_LABEL: f"!in({','.join(sorted(left_out))})"} if left_out else None,
            **options,
        )
        .map_batches(partial(write_blocks, settings=settings), num_cpus=shares.stage_cpus, **tasks)
    )
    try:
        for batch in blocks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for receipt in batch["receipt"].to_pylist():
                yield BlockReceipt.from_json(orjson.loads(receipt))
    except (ray.exceptions.RayError, RuntimeError) as error:
        raise told_by_stage(error) from error


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


def told_by_stage(error: BaseException) -> PipelineError:
    """Return the PipelineError that a stage has raised on its worker, or one that says what went wrong there.

    Ray gives an error back as a class of its own that also derives from the class that was raised.
    """
    cause: BaseException = error
    while (inner := getattr(cause, "cause", None) or cause.__cause__) is not None:
        cause = inner
    own = [kind for kind in type(cause).__mro__ if kind.__module__ == PipelineError.__module__]
    if own:
        return cast(PipelineError, own[0](str(cause.args[0] if cause.args else cause).split(RAY_APPENDS)[0]))
    where = f"{_place(str(error))}{_work(cause, str(error))}"
    return _told_by_text(str(error)) or PipelineError(
        f"a stage failed with {type(cause).__name__} at {where}; this is a bug or a broken installation"
    )


def _work(cause: BaseException, text: str) -> str:
    """Return which Block was worked on, as `marked` has noted it; empty where the failure was outside of one."""
    notes = [*getattr(cause, "__notes__", ()), text]
    found = re.findall(r"in \w+ of Shard \w+, Block \d+ \([^\n]+\)", "\n".join(notes))
    return f", {found[-1]}" if found else ""


def _place(text: str) -> str:
    """Return the last line of our code in a traceback; the message itself may quote the data."""
    found = re.findall(r'File ".*?((?:pipeline|jobs)/[\w/]+\.py)", line (\d+)', text)
    return ":".join(found[-1]) if found else "a place unknown"


def _told_by_text(text: str) -> PipelineError | None:
    """Return the PipelineError that a dying actor has left behind only in the text of Ray's message."""
    found = re.findall(rf"{PipelineError.__module__}\.(\w+): (.+)", text)
    kind = getattr(errors, found[-1][0], PipelineError) if found else None
    return cast(PipelineError, kind(found[-1][1])) if kind else None
