"""A run in this process: everything of `execution.run` but Ray, which is replaced by a loop over the same stages."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import orjson
import pyarrow as pa

from pipeline.config import JobConfig
from pipeline.config_file import load_config
from pipeline.encoder.describe import ModelDescription
from pipeline.execution import run as execution
from pipeline.execution.attempts import Attempts
from pipeline.execution.lending import Ledger
from pipeline.execution.planning.plan import Plan
from pipeline.execution.repeats import repeated_texts, unknown_hashes
from pipeline.execution.reporting.metrics import RunReport
from pipeline.execution.settings import stage_settings
from pipeline.execution.stages import EncodeBlocks, read_blocks, tokenize_blocks, write_blocks
from pipeline.records import BlockReceipt
from pipeline.storage.filesystem import Store
from pipeline.storage.journal import Journal
from pipeline.storage.snapshots import Snapshot, open_snapshot


@contextmanager
def without_ray() -> Iterator[None]:
    """Let every run of this process go through the stages here."""
    with patch.object(execution, "_encode_missing", _encode_missing):
        yield


def run_in_process(config: str | Path, *overrides: str, max_deleted: float | None = None) -> RunReport:
    """Run `embed`, or with a limit of deletes `nightly`, without Ray and without a process of its own."""
    with without_ray():
        return execution.run(load_config(str(config), overrides), lambda progress: None, (), max_deleted)


def published_in_process(config: str | Path, *overrides: str) -> Snapshot:
    """Run `embed` without Ray; return what it has published."""
    report = run_in_process(config, *overrides)
    return open_snapshot(report.output_uri)


def _encode_missing(
    config: JobConfig,
    plan: Plan,
    store: Store,
    description: ModelDescription,
    planned_at: pa.Scalar,
    journal: Journal,
    report: RunReport,
    watch: Any,
) -> list[BlockReceipt]:
    book = Attempts()
    plan, _ = execution._with_index(plan, store, report, watch)
    settings = replace(stage_settings(config, plan, description, planned_at, 1), attempts=book)
    if settings.chunk_overlap_tokens is None:
        of_shards = (unknown_hashes(shard, plan.done_blocks(shard.shard_id), settings) for shard in plan.embed)
        halves_R2, new_texts = repeated_texts(of_shards)
        settings = replace(settings, ledger=Ledger(halves_R2, description.dimension), has_new_texts=new_texts > 0)
    encode = EncodeBlocks(settings)
    receipts = []
    for shard in plan.embed:
        dropped = plan.dropped.get(shard.shard_id)
        todo = {
            "shard": [orjson.dumps(shard.to_json())],
            "done_blocks": pa.array([sorted(plan.done_blocks(shard.shard_id))], pa.list_(pa.int64())),
            "dropped": pa.array([b"" if dropped is None else dropped.tobytes()], pa.binary()),
        }
        for read in read_blocks(pa.table(todo), settings):
            for tokenised in tokenize_blocks(read, settings):
                for encoded in encode(tokenised):
                    for written in write_blocks(encoded, settings):
                        receipts += [BlockReceipt.from_json(orjson.loads(r)) for r in written["receipt"].to_pylist()]
    report.engine_choices = book.engine_choices()
    for receipt in receipts:
        report.add(receipt)
    journal.append(receipts)
    return receipts
