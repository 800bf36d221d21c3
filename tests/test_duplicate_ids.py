"""Ids that stand twice: by default nothing is published, and nothing of the work is lost."""

from collections.abc import Sequence
from pathlib import Path

import orjson
import pyarrow as pa
import pytest

from pipeline import open_snapshot
from pipeline.errors import SourceError
from pipeline.execution.duplicates import check_ids
from pipeline.records import Part, Shard, SourceFile, Span
from pipeline.storage.filesystem import Store
from pipeline.storage.parquet import PartName, publish_part
from tests.running import embed, written_config


def shards_of(count: int) -> list[Shard]:
    return [Shard(f"s{n}", (Span(SourceFile(f"in/{n}.jsonl", "v", 1, "jsonl")),)) for n in range(count)]


def published(store: Store, shard: str, rows: pa.Table, block: int = 0) -> tuple[str, Part]:
    name = PartName("embeddings", "00000001-run", "", shard, block)
    return "00000001-run", publish_part(store, name, rows, {"fingerprint": "f"})


def rows_of(ids: Sequence[object], **columns: Sequence[object]) -> pa.Table:
    return pa.table({"id": ids, **columns, "text_hash": pa.array([b"0" * 16] * len(ids), pa.binary(16))})


def test_ids_that_stand_once_are_taken(store: Store) -> None:
    parts = [published(store, f"s{n}", rows_of(range(10 * n, 10 * n + 10))) for n in range(3)]
    check_ids(store, shards_of(3), parts, chunked=False)


def test_a_repeated_id_is_named_with_both_places_the_earlier_first(store: Store) -> None:
    parts = [published(store, "s1", rows_of(["d", "b"])), published(store, "s0", rows_of(["a", "b", "c"]))]
    with pytest.raises(SourceError) as told:
        check_ids(store, shards_of(2), parts, chunked=False)
    where = "'b' in row 1 of snapshots/00000001-run/s0-00000.parquet (from in/0.jsonl) and row 1 of snapshots/"
    assert str(told.value).startswith(f"1 rows have the id of another row, for instance {where}")
    assert "(from in/1.jsonl)" in str(told.value)
    assert "source.duplicate_ids" in str(told.value)


def test_chunks_of_one_document_are_no_duplicates_and_the_same_chunk_twice_is_one(local: Store) -> None:
    parts = [published(local, "s0", rows_of(["a", "a", "b"], chunk=[0, 1, 0]))]
    check_ids(local, shards_of(1), parts, chunked=True)
    parts.append(published(local, "s0", rows_of(["a"], chunk=[1]), block=1))
    with pytest.raises(SourceError, match=r"^1 rows"):
        check_ids(local, shards_of(1), parts, chunked=True)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two files with the ids 0-5 and 4-9, and a text of its own per row."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, first in (("a", 0), ("b", 4)):
        lines = (orjson.dumps({"id": id, "text": f"text {id} of {name}"}) + b"\n" for id in range(first, first + 6))
        (folder / f"{name}.jsonl").write_bytes(b"".join(lines))
    return folder


def config_of(corpus: Path) -> str:
    return written_config(
        corpus.parent / "job.yaml",
        source={"uri": str(corpus)},
        recipe={"model": "hashing://16"},
        output={"uri": str(corpus.parent / "out"), "rows_per_part": 4},
    )


def test_duplicates_publish_nothing_and_allowing_them_publishes_at_once_what_was_encoded(corpus: Path) -> None:
    config = config_of(corpus)
    failed = embed(config)
    assert failed.code == 1
    assert "2 rows have the id of another row" in failed.errors[0]
    assert str(corpus) in failed.errors[0]
    assert not Path(f"{corpus.parent}/out/_meta/snapshots").exists()

    allowed = embed(config, "source.duplicate_ids=allow", seconds=60)
    assert allowed.code == 0, allowed.stderr
    assert (allowed.report["embedded"], allowed.report["reused"], allowed.report["encoders"]) == (0, 12, 0)
    snapshot = open_snapshot(f"{corpus.parent}/out")
    assert sorted(snapshot.to_table(["id"])["id"].to_pylist()) == sorted([*range(6), *range(4, 10)])
    assert snapshot.record.duplicate_ids == "allow"

    refused = embed(config)
    assert (refused.code, refused.report["embedded"]) == (1, 0)
    assert open_snapshot(f"{corpus.parent}/out").number == 1
