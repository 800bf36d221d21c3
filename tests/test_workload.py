"""How far a run is: by tokens, with what an estimate and the Shards done say of those left."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config_file import load_config
from pipeline.execution.attempts import Attempts
from pipeline.execution.workload import Workload
from pipeline.records import BlockReceipt, Shard, SourceFile, Span
from tests.inline import run_inline
from tests.running import written_config


def shard(name: str, size_bytes: int, format: str = "parquet") -> Shard:
    file = SourceFile(f"/in/{name}.{format}", "1", size_bytes, format)  # type: ignore[arg-type]
    return Shard(name, (Span(file),))


def receipt(shard_id: str, block: int, tokens: int, is_last: bool, source_bytes: float = 0.0) -> BlockReceipt:
    metrics = {"tokens": float(tokens), "source_bytes": source_bytes}
    return BlockReceipt(shard_id, block, is_last, 10, 10, 0, (), metrics)


def test_without_an_estimate_tokens_are_learnt_from_the_shards_done() -> None:
    work = Workload([shard("a", 100), shard("b", 300)])
    assert work.fraction == 0
    assert work.tokens_total is None
    work.add(receipt("a", 0, 1000, is_last=True))
    assert work.tokens_total == 4000
    assert work.rows_total == 40
    assert work.fraction == pytest.approx(0.25)


def test_an_estimate_knows_before_anything_is_done_that_one_kind_holds_more_tokens_per_byte() -> None:
    seen = {
        ".parquetparquet": {"bytes": 10, "rows": 1, "tokens": 90},
        ".jsonljsonl": {"bytes": 10, "rows": 1, "tokens": 10},
    }
    work = Workload([shard("a", 100), shard("b", 100, "jsonl")], {"by_kind": seen})
    assert work.tokens_total == 1000
    work.add(receipt("b", 0, 100, is_last=True))
    assert work.fraction == pytest.approx(0.1), "half of the bytes are done, and a tenth of the tokens"


def test_a_block_counts_by_the_bytes_that_were_read_for_it_and_the_last_one_for_all_that_are_left() -> None:
    work = Workload([shard("a", 100)])
    work.add(receipt("a", 0, 50, is_last=False, source_bytes=50.0))
    assert work.fraction == pytest.approx(0.5)
    work.add(receipt("a", 1, 50, is_last=False, source_bytes=500.0))
    assert work.fraction < 1
    work.add(receipt("a", 2, 10, is_last=True))
    assert work.fraction == 1
    assert work.tokens_total == 110


def test_what_the_encoders_have_before_them_follows_from_their_pace_and_from_how_many_they_are() -> None:
    work = Workload([shard("a", 100), shard("b", 300)])
    assert work.seconds_left(1) == 0, "nothing is known yet"
    done = receipt("a", 0, 1000, is_last=True)
    work.add(replace(done, metrics=done.metrics | {"encode_seconds": 10.0}))
    assert work.seconds_left(1) == pytest.approx(30)
    assert work.seconds_left(2) == pytest.approx(15)
    work.add(receipt("b", 0, 3000, is_last=True))
    assert work.seconds_left(1) == 0


def test_a_run_whose_texts_are_all_known_goes_by_bytes() -> None:
    work = Workload([shard("a", 100), shard("b", 100)])
    work.add(receipt("a", 0, 0, is_last=True))
    assert work.fraction == pytest.approx(0.5)
    assert work.tokens_total is None


def test_the_book_of_a_run_is_told_after_each_block_what_the_encoders_still_have_before_them(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for file in range(3):
        texts = [f"text {row} of {file}" for row in range(10)]
        pq.write_table(pa.table({"id": texts, "text": texts}), tmp_path / "in" / f"{file}.parquet")
    config = written_config(
        tmp_path / "job.yaml",
        source={"uri": str(tmp_path / "in")},
        recipe={"model": "hashing://8"},
        output={"uri": str(tmp_path / "out"), "rows_per_part": 5},
    )
    with patch.object(Attempts, "expect") as told:
        run_inline(load_config(config))
    seconds = [call.args[0] for call in told.call_args_list]
    assert len(seconds) == 6
    assert max(seconds) > 0 == seconds[-1]
