"""Runs without Ray: plan, journal and publish as they are, the four stages one after the other in this process."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import JobConfig
from pipeline.encoder.describe import ModelDescription
from pipeline.encoder.hashing import HashingEncoder
from pipeline.execution import following
from pipeline.execution import run as execution
from pipeline.execution.attempts import Attempts
from pipeline.execution.planning.plan import Plan
from pipeline.execution.reporting import run_report
from pipeline.execution.reporting.metrics import RunReport
from pipeline.execution.settings import stage_settings
from pipeline.execution.stages import EncodeBlocks, StageSettings, tokenize_documents, write_block
from pipeline.execution.workload import Workload
from pipeline.records import BlockReceipt, Reason, Shard
from pipeline.storage.filesystem import Store, open_source
from pipeline.storage.journal import Journal
from pipeline.storage.readers import read_shard

FRAIL = "!"
"""A text that begins so has no vector while the device is sick."""


class SickEncoder(HashingEncoder):
    """Gives frail texts no vector."""

    def encode(self, batch: Any) -> NDArray[np.float32]:
        vectors_BD = super().encode(batch)
        vectors_BD[batch.token_ids_T[batch.offsets_N1[:-1] + 1] == ord(FRAIL)] = np.nan
        return vectors_BD


def blocks_of(
    store: Store, settings: StageSettings, shard: Shard, done: frozenset[int], is_sick: bool
) -> Iterator[BlockReceipt]:
    """Take a Shard through the four stages, Block by Block."""
    encoder = EncodeBlocks(settings)
    if is_sick:
        encoder.encoder = SickEncoder(encoder.encoder.dimension)
    for block in read_shard(shard, settings.columns, settings.rows_per_part, open_source, done):
        tokenized = replace(block, documents=tokenize_documents(block.documents, settings))
        yield write_block(store, shard, encoder.encode(shard, tokenized), settings)


class Killed(BaseException):
    """The driver is dead."""


@contextmanager
def inline(before_block: Callable[[int], None], is_sick: bool = False) -> Iterator[None]:
    """Let every run of this process go through the stages here, Block by Block, each journalled at once.

    Args:
        before_block: called with how many Blocks this run has journalled, when the next one is written.
        is_sick: whether frail texts have no vector.
    """

    def encode_missing(
        config: JobConfig,
        plan: Plan,
        store: Store,
        model: ModelDescription,
        planned_at: pa.Scalar,
        journal: Journal,
        report: RunReport,
        watch: following.Watcher,
    ) -> list[BlockReceipt]:
        plan, _ = execution._with_index(plan, store, report, watch)
        settings = stage_settings(config, plan, model, planned_at, 1)

        def receipts() -> Iterable[BlockReceipt]:
            blocks = 0
            for shard in plan.embed:
                for receipt in blocks_of(store, settings, shard, plan.done_blocks(shard.shard_id), is_sick):
                    before_block(blocks)
                    yield receipt
                    blocks += 1

        return following.follow(iter(receipts()), Workload(plan.embed), Attempts(), journal, report, watch, 0.0)

    with (
        patch.object(execution, "_encode_missing", encode_missing),
        patch.object(following, "JOURNAL_SECONDS", 0.0),
        patch.object(run_report, "_map_of", lambda store, report: None),
        patch.object(run_report, "render_html", lambda report, vectors: ""),
    ):
        yield


def run_inline(
    config: JobConfig, retry: Collection[Reason] = (), is_sick: bool = False, dies_after_blocks: int | None = None
) -> RunReport:
    """Run a job in this process.

    Args:
        retry: as for `requeue`.
        is_sick: whether frail texts have no vector.
        dies_after_blocks: end, as by SIGKILL, when so many Blocks are journalled.

    Raises:
        Killed: it was ended so.
        PipelineError: as `execution.run`.
    """

    def before_block(blocks: int) -> None:
        if blocks == dies_after_blocks:
            raise Killed

    with inline(before_block, is_sick):
        return execution.run(config, lambda progress: None, retry)
