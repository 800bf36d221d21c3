"""Ids that stand twice: by default nothing is published, and nothing of the work is lost."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import open_snapshot
from pipeline.config import JobConfig
from pipeline.errors import SourceError
from pipeline.execution.planning.plan import Plan, make_plan, read_columns_of
from pipeline.execution.proof import duplicates
from pipeline.execution.proof.duplicates import check_ids, find_repeated_rows
from pipeline.records import Part, Shard, SourceFile, Span
from pipeline.schemas import SPANS_PER_SHARD, document_schema
from pipeline.storage.filesystem import Store
from pipeline.storage.listing import list_source
from pipeline.storage.parquet import PartName, publish_part, read_columns
from pipeline.storage.rows import ReadColumns
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
    assert str(told.value).startswith(f"1 row has the id of another row, for instance {where}")
    assert "(from in/1.jsonl)" in str(told.value)
    assert "source.duplicate_ids" in str(told.value)


def test_chunks_of_one_document_are_no_duplicates_and_the_same_chunk_twice_is_one(local: Store) -> None:
    parts = [published(local, "s0", rows_of(["a", "a", "b"], chunk=[0, 1, 0]))]
    check_ids(local, shards_of(1), parts, chunked=True)
    parts.append(published(local, "s0", rows_of(["a"], chunk=[1]), block=1))
    with pytest.raises(SourceError, match=r"^1 row has"):
        check_ids(local, shards_of(1), parts, chunked=True)


def test_of_parts_that_bring_no_other_ids_than_those_they_replace_no_other_is_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = shards_of(30)
    parts = [published(store, f"s{n}", rows_of(range(10 * n, 10 * n + 10))) for n in range(29)]
    was, others = parts[7], [*parts[:7], *parts[8:]]
    asked: list[str] = []

    def noting(store: Store, key: str, *others: Any) -> pa.Table:
        asked.append(key)
        return read_columns(store, key, *others)

    monkeypatch.setattr(duplicates, "read_columns", noting)
    same, another, twice = (
        published(store, "s29", rows_of(ids), block)
        for block, ids in enumerate([range(79, 70, -1), [*range(70, 79), 5], [*range(70, 79), 78]])
    )
    check_ids(store, shards, [*others, same], False, parts)
    assert len(asked) == 2
    check_ids(store, shards, others, False, parts)
    check_ids(store, shards, [*parts, published(store, "s29", rows_of([1000]), 4)], False, parts)
    with pytest.raises(SourceError, match=r"^1 row has the id of another row, for instance 5 in row 5 of"):
        check_ids(store, shards, [*others, another], False, parts)
    with pytest.raises(SourceError, match=r"^1 row has the id of another row, for instance 78 in"):
        check_ids(store, shards, [*others, twice], False, parts)
    with pytest.raises(SourceError, match=r"^9 rows"):
        check_ids(store, shards, [*others, was, same], False, parts)


def write(corpus: Path, name: str, ids: Iterable[int]) -> None:
    """Write a file that is long enough to be a Shard of its own."""
    lines = (orjson.dumps({"id": id, "text": f"{id} of {name} " * 20, "file": name}) + b"\n" for id in ids)
    (corpus / f"{name}.jsonl").write_bytes(b"".join(lines))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two files with the ids 0-5 and 4-9, and a text of its own per row."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    write(folder, "a", range(6))
    write(folder, "b", range(4, 10))
    return folder


def config_of(corpus: Path) -> str:
    return written_config(
        corpus.parent / "job.yaml",
        source={"uri": str(corpus), "keep_columns": ["file"]},
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


def published_rows(output: str) -> list[tuple[int, str]]:
    rows = open_snapshot(output).to_table(["id", "file"])
    return sorted(zip(rows["id"].to_pylist(), rows["file"].to_pylist(), strict=True))


def test_the_first_row_of_an_id_is_kept_and_another_takes_its_place_when_it_is_gone(corpus: Path) -> None:
    config, output = config_of(corpus), f"{corpus.parent}/out"
    assert embed(config).code == 1
    first = embed(config, "source.duplicate_ids=keep_first")
    assert first.code == 0, first.stderr
    report = first.report
    assert (report["rows_read"], report["reused"], report["embedded"], report["deduplicated"]) == (12, 6, 4, 2)
    assert report["accounted"] == 12
    assert published_rows(output) == [*((id, "a") for id in range(6)), *((id, "b") for id in range(6, 10))]
    shards = {row["rows_read"] - row["embedded"]: row for row in open_snapshot(output).shards.to_pylist()}
    assert {left_out: row["deduplicated"] for left_out, row in shards.items()} == {0: 0, 2: 2}
    assert embed(config, "source.duplicate_ids=keep_first", seconds=60).report["outcome"] == "nothing_to_do"

    write(corpus, "a", range(5))
    second = embed(config, "source.duplicate_ids=keep_first")
    assert (second.code, second.report["deduplicated"]) == (0, 1)
    assert published_rows(output) == [*((id, "a") for id in range(5)), *((id, "b") for id in range(5, 10))]


def plan_of(corpus: Path, policy: str, **output: Any) -> Plan:
    sections = {"source": {"uri": str(corpus), "duplicate_ids": policy, "empty_text": "quarantine"}}
    output = {"uri": str(corpus.parent / "out"), "rows_per_part": 4} | output
    config = JobConfig.model_validate(sections | {"recipe": {"model": "hashing://8"}, "output": output})
    return make_plan(config, Store(config.output.uri))


def test_only_shards_that_lose_rows_get_another_name(corpus: Path) -> None:
    plain, deduplicated = plan_of(corpus, "error"), plan_of(corpus, "keep_first")
    assert plain.run_key == plan_of(corpus, "allow").run_key != deduplicated.run_key
    assert plain.wanted[0] == deduplicated.wanted[0]
    assert plain.wanted[1].shard_id != deduplicated.wanted[1].shard_id
    assert list(deduplicated.dropped) == [deduplicated.wanted[1].shard_id]
    write(corpus, "b", range(6, 10))
    assert plan_of(corpus, "error").run_key == plan_of(corpus, "keep_first").run_key


def test_the_first_row_is_the_first_of_the_first_file_also_within_a_gathered_shard(corpus: Path) -> None:
    write(corpus, "c", [11, 9, 11, 0, 12, 12])
    shard, *others = plan_of(corpus, "keep_first", rows_per_part=1000).wanted
    assert (len(shard.spans), others) == (3, [])
    ((_, dropped),) = plan_of(corpus, "keep_first", rows_per_part=1000).dropped.items()
    places = sorted((int(position) % (1 << 20), int(position) >> 20) for position in dropped)
    assert places == [(1, 0), (1, 1), (2, 1), (2, 2), (2, 3), (2, 5)]


@given(st.lists(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=8), max_size=6))
def test_what_is_left_out_is_all_but_the_first_good_row_of_each_id(files: list[list[tuple[int, bool]]]) -> None:
    expected, seen = set(), set[int]()
    with TemporaryDirectory() as folder:
        for number, rows in enumerate(files):
            lines = (orjson.dumps({"id": id, "text": "good" if is_good else None}) for id, is_good in rows)
            Path(folder, f"{number}.jsonl").write_bytes(b"\n".join(lines))
            for row, (id, is_good) in enumerate(rows):
                if is_good and id in seen:
                    expected.add((f"{number}.jsonl", row))
                seen |= {id} if is_good else set()
        spans = [Span(file) for file in list_source([folder], "auto")] if files else []
        shards = [Shard(str(first), tuple(spans[first : first + 2])) for first in range(0, len(spans), 2)]
        columns = ReadColumns("id", "text", (), document_schema(pa.int64(), []))
        found = set()
        for shard, positions in zip(shards, find_repeated_rows(shards, columns), strict=True):
            for row, span in (divmod(position, SPANS_PER_SHARD) for position in positions.tolist()):
                found.add((Path(shard.spans[span].file.uri).name, row))
    assert found == expected


def test_a_row_in_quarantine_is_not_the_first_of_its_id(corpus: Path) -> None:
    bad = b'{"id": 7, "text": null, "file": "_"}\n{"id": 8, "text": " ", "file": "_"}\n'
    (corpus / "0.jsonl").write_bytes(bad + (corpus / "a.jsonl").read_bytes())
    (corpus / "a.jsonl").unlink()
    plan = plan_of(corpus, "keep_first")
    assert [sorted(int(position) >> 20 for position in rows) for rows in plan.dropped.values()] == [[0, 1]]


def test_a_source_that_cannot_be_read_is_an_error_of_the_search_for_repeats(corpus: Path) -> None:
    plan = plan_of(corpus, "allow")
    (corpus / "a.jsonl").unlink()
    with pytest.raises(SourceError, match=r"a\.jsonl"):
        find_repeated_rows(plan.wanted, read_columns_of(plan.layout))
