"""What fails in an encoder can fail by chance: attempts at one Block may set other rows aside, and the run goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from pipeline.encoder.hashing import HashingEncoder
from pipeline.errors import AttemptsDiffer, PipelineError
from pipeline.execution import encode_stage, stages
from pipeline.execution.verification.verify import verify
from pipeline.records import TokenBatch
from pipeline.storage.journal import Journal
from pipeline.storage.snapshots import open_snapshot
from tests.running import written_config
from tests.without_ray import run_in_process

ROWS = 12
LONG = 40
"""Bytes of the one text that an unlucky encoder fails on; all others are shorter."""


class Unlucky(HashingEncoder):
    """Gives NaN for the long text."""

    def encode(self, batch: TokenBatch) -> NDArray[np.float32]:
        vectors_BD = super().encode(batch)
        vectors_BD[batch.lengths_N > LONG] = np.nan
        return vectors_BD


@contextmanager
def unlucky(is_unlucky: bool) -> Iterator[None]:
    encoder = Unlucky(8) if is_unlucky else HashingEncoder(8)
    with patch.object(encode_stage, "open_encoder", lambda *_: encoder):
        yield


@contextmanager
def dying_before_the_journal() -> Iterator[None]:
    """Let the driver end after all Parts are written and before it has noted any."""
    append = Journal.append

    def dies(journal: Journal, receipts: list[object]) -> None:
        if receipts:
            raise PipelineError("the driver died")
        append(journal, [])

    with patch.object(Journal, "append", dies), pytest.raises(PipelineError, match="the driver died"):
        yield


@pytest.mark.parametrize("partition_by", [[], ["label"]], ids=["plain", "alone in its partition"])
@pytest.mark.parametrize("first_is_unlucky", [True, False], ids=["bad then good", "good then bad"])
def test_an_attempt_that_sets_other_rows_aside_ends_in_a_fresh_folder(
    tmp_path: Path, first_is_unlucky: bool, partition_by: list[str]
) -> None:
    texts = [f"text {row}" for row in range(ROWS - 1)] + ["x" * LONG]
    labels = ["a"] * (ROWS - 1) + ["b"]
    pq.write_table(pa.table({"id": range(ROWS), "text": texts, "label": labels}), tmp_path / "corpus.parquet")
    config = written_config(
        tmp_path / "job.yaml",
        source={"uri": str(tmp_path / "corpus.parquet"), "keep_columns": ["label"]},
        recipe={"model": "hashing://8"},
        output={"uri": str(tmp_path / "out"), "partition_by": partition_by},
        runtime={"max_quarantined_fraction": 0.5},
    )
    with unlucky(first_is_unlucky), dying_before_the_journal():
        run_in_process(config)
    with unlucky(not first_is_unlucky):
        with pytest.raises(AttemptsDiffer, match="run again"):
            run_in_process(config)
        report = run_in_process(config)
    assert report.outcome == "published"
    assert (report.rows_read, report.quarantined) == (ROWS, int(not first_is_unlucky))
    snapshot = open_snapshot(str(tmp_path / "out"))
    assert snapshot.to_table(["id"]).num_rows == ROWS - report.quarantined
    assert verify(snapshot).is_sound
    assert run_in_process(config).outcome == "nothing_to_do"


def test_a_text_on_which_the_tokenizer_fails_costs_itself_only(tmp_path: Path) -> None:
    table = pa.table({"id": range(ROWS), "text": [f"text {row}" for row in range(ROWS)]})
    pq.write_table(table, tmp_path / "corpus.parquet")
    config = written_config(
        tmp_path / "job.yaml",
        source={"uri": str(tmp_path / "corpus.parquet")},
        recipe={"model": "hashing://8"},
        output={"uri": str(tmp_path / "out")},
        runtime={"max_quarantined_fraction": 0.5},
    )
    tokenize = stages.tokenize_documents

    def frail(documents: pa.Table, settings: stages.StageSettings) -> pa.Table:
        if 7 in documents["id"].to_pylist():
            raise ValueError("text 7")
        return tokenize(documents, settings)

    with patch.object(stages, "tokenize_documents", frail):
        report = run_in_process(config)
    assert (report.embedded, report.reasons) == (ROWS - 1, {"tokenize_failed": 1})
    assert 7 not in open_snapshot(str(tmp_path / "out")).to_table(["id"])["id"].to_pylist()
