"""The commit protocol, on a local folder and on S3: one winner, everything whole, nothing twice."""

import itertools
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SnapshotConflict, SourceError, StorageError
from pipeline.records import BlockReceipt, Part, SourceFile
from pipeline.schemas import embedding_fields
from pipeline.storage.filesystem import Store, open_source, stat_of
from pipeline.storage.journal import Journal, read_journal
from pipeline.storage.listing import list_source
from pipeline.storage.parquet import PartName, publish_part, read_metadata, rows_hash
from pipeline.storage.snapshots import (
    SnapshotRecord,
    encode_schema,
    load_snapshot,
    open_snapshot,
    publish_snapshot,
    snapshot_numbers,
)

NAME = PartName("embeddings", "00000001-run", "", "shard", 0)
METADATA = {"fingerprint": "f" * 32}
SCHEMA = pa.schema([("id", pa.string()), ("text_hash", pa.binary(2)), *embedding_fields(2, "float32")])


def rows(ids: str = "ab", vector: float = 1.0) -> pa.Table:
    """Return one row per letter; every number of its vector is the same."""
    hashes = [letter.encode() * 2 for letter in ids]
    return pa.table([list(ids), hashes, [[vector, vector]] * len(ids)], schema=SCHEMA)


def receipt(block: int = 0, parts: tuple[Part, ...] = ()) -> BlockReceipt:
    return BlockReceipt("shard", block, True, 2, 2, 0, parts, {"tokens": 3.0}, {})


def record(number: int = 1, run_key: str = "run") -> SnapshotRecord:
    schema = encode_schema(SCHEMA)
    layout: dict[str, Any] = {"partition_by": []}
    folder = f"{number:08d}-{run_key}"
    return SnapshotRecord(
        number, None, run_key, folder, "f", {"model": "m"}, layout, {"rows": 2}, 2, schema, schema, "now", "0", "me"
    )


def test_only_the_first_of_many_writers_of_a_key_wins(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: store.put_new("a/key", b"%d" % n), range(8)))
    winner = found.index(None)
    assert store.read("a/key") == b"%d" % winner
    assert [answer for answer in found if answer is not None] == [b"%d" % winner] * 7


def test_a_writer_adopts_its_own_write_whose_answer_was_lost(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    create, attempts = store._create, itertools.count()

    def lose_the_first_answer(path: str, content: bytes) -> None:
        attempt = next(attempts)
        create(path, content)
        if attempt == 0:
            raise ConnectionResetError("the answer was lost")

    monkeypatch.setattr(store, "_create", lose_the_first_answer)
    assert store.put_new("key", b"mine") is None
    assert next(attempts) == 2
    assert store.put_new("key", b"another's") == b"mine"


def test_a_writer_that_fails_leaves_nothing_under_the_name(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        local.put_new("key", b"content")
    assert local.read("key") is None
    assert list(Path(local.root).rglob("*.*")) == []


def test_what_is_listed_is_what_was_written(store: Store) -> None:
    store.put_new("a/one", b"1")
    store.put_new("a/b/two", b"22")
    store.put_new("c/three", b"333")
    found = store.files("a")
    assert {key: stat.size_bytes for key, stat in found.items()} == {"a/one": 1, "a/b/two": 2}
    assert found["a/one"] == store.stat("a/one")
    assert (store.folders("a"), store.folders("nowhere"), store.files("nowhere")) == (["b"], [], {})
    store.delete("a/one")
    store.delete("a/one")
    assert (store.read("a/one"), store.stat("a/one")) == (None, None)


def closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody list a folder; its mode would not keep root out."""
    scan = os.scandir

    def scandir(path: str) -> Any:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)


@pytest.mark.parametrize("folder", ["a/b", "a"])
def test_a_folder_that_cannot_be_listed_is_an_error_and_not_empty(
    local: Store, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.put_new("a/b/two", b"22")
    closed(Path(local.root, folder), monkeypatch)
    with pytest.raises(StorageError, match=r"cannot list .*access denied"):
        local.files("a")


@pytest.mark.parametrize("pattern", ["", "*/*.jsonl", "**/*.jsonl"])
def test_a_source_of_which_a_folder_cannot_be_listed_is_an_error_and_not_smaller(
    tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jsonl").write_bytes(b"{}")
    address = f"{tmp_path}/{pattern}"
    assert len(list_source([address], "auto")) == 2
    closed(tmp_path / "b", monkeypatch)
    with pytest.raises(SourceError, match=r"cannot list .*access denied"):
        list_source([address], "auto")


GLOBS = ("part[1].jsonl", "why?.jsonl", "why[?].jsonl", "wh??.jsonl", "part[0-9].jsonl")


def test_a_name_that_looks_like_a_glob_is_a_file_where_there_is_one(store: Store) -> None:
    for key in ("part[1].jsonl", "part1.jsonl", "why?.jsonl", "whys.jsonl"):
        store.put(key, key.encode())
    names = {key: [f.uri.rpartition("/")[2] for f in list_source([store.uri_of(key)], "auto")] for key in GLOBS}
    assert names == {
        "part[1].jsonl": ["part[1].jsonl"],
        "why?.jsonl": ["why?.jsonl"],
        "why[?].jsonl": ["why?.jsonl"],
        "wh??.jsonl": ["why?.jsonl", "whys.jsonl"],
        "part[0-9].jsonl": ["part1.jsonl"],
    }
    (file,) = list_source([store.uri_of("part[1].jsonl")], "auto")
    with open_source(file) as stream:
        assert stream.read() == b"part[1].jsonl"


def test_what_goes_while_it_is_listed_is_not_there(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("a/stays", "a/goes"):
        local.put_new(key, b"content")
    listed = local.filesystem.find(local.path_of("a"), detail=True)
    local.delete("a/goes")
    monkeypatch.setattr(local.filesystem, "find", lambda *_, **__: listed)
    assert list(local.files("a")) == ["a/stays"]


def test_a_copy_holds_the_same_bytes_and_replaces_nothing(store: Store) -> None:
    store.put_new("from", b"content")
    store.put_new("other", b"another")
    assert store.copy_new("from", "to/there")
    assert not store.copy_new("other", "to/there")
    assert store.read("to/there") == b"content"


def test_a_copy_of_what_is_not_there_is_an_error(store: Store) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        store.copy_new("nowhere", "to")


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/x", "a//b", "a/./b", "", "a\\b", "a\0b", "..", "a/.."])
def test_no_operation_touches_a_key_outside_the_output(store: Store, key: str) -> None:
    store.put_new("from", b"content")
    operations: list[Callable[[], object]] = [
        partial(store.read, key),
        partial(store.stat, key),
        partial(store.delete, key),
    ]
    operations += [partial(store.put_new, key, b"x"), partial(store.put, key, b"x")]
    operations += [partial(store.copy_new, "from", key), partial(store.copy_new, key, "to")]
    for operation in operations:
        with pytest.raises(StorageError, match="refused to touch"):
            operation()
    assert list(store.files("")) == ["from"]


def test_a_local_copy_is_a_hard_link(local: Store) -> None:
    local.put_new("from", b"content")
    local.copy_new("from", "to")
    assert Path(local.root, "from").samefile(Path(local.root, "to"))


def test_a_file_says_when_it_was_written(store: Store) -> None:
    store.put_new("a/b", b"content")
    stat = store.stat("a/b")
    assert stat is not None
    assert abs(stat.modified_at - time.time()) < 60
    assert store.files("a")["a/b"].modified_at == pytest.approx(stat.modified_at, abs=1)


def test_a_store_is_probed_before_it_is_trusted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.check_writable()
    assert store.files("_meta/probe") == {}
    monkeypatch.setattr(store, "_create", lambda path, content: store.filesystem.pipe_file(path, content))
    with pytest.raises(StorageError, match="does not enforce put-if-absent"):
        store.check_writable()


def test_a_source_is_read_at_its_planned_version_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"one")
    store = Store(str(tmp_path))
    stat = stat_of(store.filesystem.info(str(path)))
    file = SourceFile(str(path), stat.version, 3, "jsonl")
    with open_source(file) as stream:
        assert stream.read() == b"one"
    path.write_bytes(b"two!")
    with pytest.raises(SourceError, match="changed between plan and read"), open_source(file):
        pass


def test_a_second_attempt_adopts_the_part_of_the_first_though_its_vectors_differ(store: Store) -> None:
    first = publish_part(store, NAME, rows(vector=1.0), METADATA)
    second = publish_part(store, NAME, rows(vector=1.0000001), METADATA)
    assert second == first
    assert (first.path, first.rows, first.shard_id, first.block) == ("shard-00000.parquet", 2, "shard", 0)
    content = store.read(NAME.key)
    assert content is not None
    table = pq.read_table(pa.BufferReader(content))
    assert table["embedding"].to_pylist() == [[1.0, 1.0]] * 2
    assert read_metadata(table.schema.metadata)["content_hash"] == first.content_hash


@pytest.mark.parametrize(
    ("other", "metadata"),
    [(rows("ac"), METADATA), (rows("a"), METADATA), (rows("ba"), METADATA), (rows(), {"fingerprint": "0"})],
    ids=["another id", "fewer rows", "another order", "another recipe"],
)
def test_a_part_of_other_rows_is_never_adopted(local: Store, other: pa.Table, metadata: dict[str, Any]) -> None:
    publish_part(local, NAME, rows(), METADATA)
    with pytest.raises(StorageError, match="exists with other rows"):
        publish_part(local, NAME, other, metadata)


def test_the_hash_of_rows_does_not_depend_on_how_they_lie_in_memory() -> None:
    hashes = pa.array([bytes([number]) * 16 for number in range(10)], pa.binary(16))
    rows = pa.table({"id": [f"r{number}" for number in range(10)], "text_hash": hashes})
    fresh = pa.Table.from_pylist(rows.slice(3, 4).to_pylist(), rows.schema)
    pieces = pa.concat_tables([rows.slice(3, 1), rows.slice(4, 0), rows.slice(4, 3)])
    assert rows_hash(rows.slice(3, 4)) == rows_hash(pieces) == rows_hash(fresh)
    assert len({rows_hash(rows), rows_hash(rows[:0]), rows_hash(rows.slice(2, 4)), rows_hash(fresh)}) == 4


def test_something_that_is_no_parquet_file_is_never_adopted(local: Store) -> None:
    local.put_new(NAME.key, b"PAR1 but cut off")
    with pytest.raises(StorageError, match="no Parquet file"):
        publish_part(local, NAME, rows(), METADATA)


def test_a_flipped_bit_in_a_part_is_found_by_its_readers(local: Store) -> None:
    publish_part(local, NAME, rows("abcdefgh" * 50), METADATA)
    path = Path(local.root, NAME.key)
    vectors = pq.read_metadata(path).row_group(0).column(2)
    content = bytearray(path.read_bytes())
    content[vectors.data_page_offset + vectors.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC checksum"):
        pq.read_table(path, page_checksum_verification=True)


def test_a_journal_is_read_back_in_order(store: Store) -> None:
    journal = Journal(store, "run", "00000001-run", "driver", read_journal(store, "run").next_number)
    part = publish_part(store, NAME, rows(), METADATA)
    journal.append([receipt(0, (part,)), receipt(1)])
    journal.append([receipt(2)])
    found = read_journal(store, "run")
    assert found.next_number == 2
    assert found.receipts == [("00000001-run", receipt(0, (part,))), *(("00000001-run", receipt(n)) for n in (1, 2))]
    assert read_journal(store, "another").receipts == []


def test_a_driver_that_lost_the_journal_stops(store: Store) -> None:
    old, new = (Journal(store, "run", "folder", driver, 0) for driver in ("old", "new"))
    new.append([receipt(0)])
    with pytest.raises(SnapshotConflict, match="taken over"):
        old.append([receipt(0)])
    assert [one.block for _, one in read_journal(store, "run").receipts] == [0]


def test_a_snapshot_is_read_back_as_it_was_published(store: Store) -> None:
    part = publish_part(store, NAME, rows(), METADATA)
    shards = [{"shard_id": "shard", "sources": "[]", "blocks": 1, "rows_read": 2, "embedded": 2}]
    shards[0] |= {"quarantined": 0, "reasons": "{}", "deduplicated": 0, "entries": 0, "unreadable_bytes": 0}
    publish_snapshot(store, record(), [("00000001-run", part)], shards)
    found = open_snapshot(store.uri)
    assert replace(found.record, tables={}) == record()
    assert found.parts.to_pylist()[0]["content_hash"] == part.content_hash
    assert found.shards.to_pylist() == shards
    assert found.to_table().equals(rows())
    assert found.to_table(columns=["id"]).column_names == ["id"]
    assert store.read("LATEST") == b"00000001-run\n"


def test_the_second_publisher_of_a_number_loses_and_changes_nothing(store: Store) -> None:
    part = publish_part(store, NAME, rows(), METADATA)
    publish_snapshot(store, record(), [("00000001-run", part)], [])
    with pytest.raises(SnapshotConflict, match="published by another run"):
        publish_snapshot(store, record(run_key="late"), [], [])
    found = open_snapshot(store.uri)
    assert (found.record.run_key, found.parts.num_rows) == ("run", 1)
    assert store.read("LATEST") == b"00000001-run\n"


def test_the_newest_snapshot_is_the_one_that_is_opened(local: Store) -> None:
    for number in (1, 2, 10):
        publish_snapshot(local, replace(record(number), parent=number - 1), [], [])
    assert snapshot_numbers(local) == [1, 2, 10]
    assert open_snapshot(local.uri).number == 10
    assert open_snapshot(local.uri, 2).number == 2
    assert open_snapshot(local.uri).to_table().num_rows == 0


def test_an_output_without_a_snapshot_says_so(store: Store) -> None:
    assert load_snapshot(store) is None
    with pytest.raises(StorageError, match="no snapshot is published there"):
        open_snapshot(store.uri)
