"""An encoder actor with several calls: one Block is put together while the next one is on the device."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from pipeline.encoder.hashing import HashingEncoder
from pipeline.encoder.vectors import finish
from pipeline.execution import encode_stage
from pipeline.execution.encode_stage import CALLS_AT_ONCE, EncodeBlocks
from pipeline.execution.stage_settings import StageSettings
from pipeline.execution.travelling import from_rows
from tests import without_ray
from tests.running import written_config

BLOCKS, ROWS = 2, 20


class Watched(HashingEncoder):
    """Notes the threads that it is called in, and says when it has begun the second Block."""

    def __init__(self, dimension: int) -> None:
        super().__init__(dimension)
        self.threads: list[str] = []
        self.second_began = threading.Event()
        self._is_free = threading.Lock()

    def encode(self, batch: Any) -> NDArray[np.float32]:
        assert self._is_free.acquire(blocking=False), "two Blocks at once on the device"
        try:
            self.threads.append(threading.current_thread().name)
            if len(self.threads) == BLOCKS:
                self.second_began.set()
            return super().encode(batch)
        finally:
            self._is_free.release()


def tokenised_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[StageSettings, list[pa.Table]]:
    """Run a job and return what its encode stage was given."""
    given: list[pa.Table] = []
    stages: list[EncodeBlocks] = []

    class Noting(EncodeBlocks):
        def __call__(self, batch: pa.Table) -> Any:
            stages.append(self)
            given.append(batch)
            return super().__call__(batch)

    monkeypatch.setattr(without_ray, "EncodeBlocks", Noting)
    texts = [f"text {n}" for n in range(BLOCKS * ROWS)]
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), tmp_path / "a.parquet")
    config = written_config(
        tmp_path / "job.yaml",
        source={"uri": str(tmp_path / "a.parquet")},
        recipe={"model": "hashing://8"},
        output={"uri": str(tmp_path / "out"), "rows_per_part": ROWS},
    )
    without_ray.run_in_process(config)
    assert len(given) == BLOCKS
    return stages[0].settings, given


def test_a_block_is_put_together_while_the_next_one_is_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, blocks = tokenised_blocks(tmp_path, monkeypatch)
    stage = EncodeBlocks(settings)
    stage.encoder = watched = Watched(8)

    def finish_when_the_second_is_on_the_device(*arguments: Any) -> NDArray[np.float32]:
        assert watched.second_began.wait(60), "nothing reaches the device before this Block is ready"
        return finish(*arguments)

    monkeypatch.setattr(encode_stage, "finish", finish_when_the_second_is_on_the_device)
    with ThreadPoolExecutor(CALLS_AT_ONCE) as calls:
        rows = [list(given) for given in calls.map(lambda block: list(stage(block)), blocks)]
    ids = [id for (row,) in rows for _, block in from_rows(row) for id in block.documents["id"].to_pylist()]
    assert sorted(ids) == list(range(BLOCKS * ROWS))
    assert len(watched.threads) == BLOCKS
    assert len(set(watched.threads)) == 1
