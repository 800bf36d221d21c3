"""The Ray Data pipeline itself: Shards in, receipts out, four stages that overlap."""

import logging
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

import orjson
import ray
import ray.data
import ray.exceptions

from pipeline.config import Runtime
from pipeline.errors import SickDevice
from pipeline.execution.attempts import RemoteAttempts
from pipeline.execution.clusters.cluster import Shares, divide, gpus_by_node
from pipeline.execution.encode_stage import CALLS_AT_ONCE, EncodeBlocks
from pipeline.execution.executors.executor import Missing, Todo
from pipeline.execution.sick_gpus import SickGpus, sickness_of
from pipeline.execution.stage_settings import StageSettings
from pipeline.execution.stages import read_blocks, tokenize_blocks, write_blocks
from pipeline.execution.told_by_stage import told_by_stage
from pipeline.records import BlockReceipt

logger = logging.getLogger(__name__)

MAX_READ_TASKS = 2000
"""Shards beyond this share read tasks: each task costs the scheduler some 10 ms."""

LITTLE_BYTES, LITTLE_AT_ONCE = 8 * 2**20, 2
"""Of a source so small no stage has more workers than this: to start one takes 1.3 s of a core, which is longer than it
would work."""

NODE_LABEL = "ray.io/node-id"
"""Ray gives every node this label."""


def stream_healthy(
    todo: Sequence[Todo], settings: StageSettings, attempts: RemoteAttempts, runtime: Runtime, shares: Shares
) -> Iterator[BlockReceipt]:
    """Yield the receipt of every missing Block as it is written, in any order, on healthy nodes only.

    When the encoders of a GPU, or of a node without, have failed too often on good texts, the stream ends there, and
    what is still missing is streamed anew without that GPU or node.

    Args:
        todo: what is missing.
        settings: for the stages.
        attempts: the book that the stages mark.
        runtime: by which the cluster is divided when a node is left out.
        shares: of the cluster as it is now.

    Raises:
        EncoderError: no node is left on which an encoder works.
        PipelineError: what a stage has raised, as it was raised.
    """
    missing = Missing(todo)
    left_out: dict[str, str] = {}
    known: dict[str, str] = {}
    gpus = SickGpus()
    while True:
        try:
            for receipt in stream_blocks(missing.left(), settings, shares, left_out.keys()):
                missing.take_off(receipt)
                yield receipt
            return
        except SickDevice:
            sick = attempts.excluded()
            if sick.keys() <= known.keys():
                raise
            known, left_out = sick, gpus.hold(sickness_of(sick), gpus_by_node())
            logger.warning("event=left_out places=%s", ",".join(sorted(sick)))
            shares = divide(runtime, left_out, gpus.held())
            attempts.forget_begun()


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
    rows = [one.to_row() for one in todo]
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
            compute=_encoders(shares.encoders),
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


def _encoders(count: int) -> ray.data.ActorPoolStrategy:
    """Return a pool of encoders; more calls than run at once are given to none, so that all end at the same time."""
    return ray.data.ActorPoolStrategy(
        size=count,
        max_tasks_in_flight_per_actor=CALLS_AT_ONCE,
        max_concurrent_calls_per_actor=CALLS_AT_ONCE,
        enable_true_multi_threading=True,
    )
