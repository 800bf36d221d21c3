"""The index of a snapshot's texts: every text is found at its first place, in however many pieces, and no other is."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.arrow import hash_strings
from pipeline.errors import StorageError
from pipeline.storage import index_making, uniqueness
from pipeline.storage.filesystem import Store
from pipeline.storage.index_making import write_index
from pipeline.storage.parquet import read_columns
from pipeline.storage.snapshots import open_snapshot
from pipeline.storage.text_index import IndexReference, TextIndex, open_index, part_and_row
from tests.running import written_config
from tests.without_ray import published_in_process

ROWS = 300


@pytest.fixture
def output(tmp_path: Path) -> Store:
    """A snapshot of 300 rows, of which 50 texts stand twice, in Parts of 32 rows."""
    texts = [f"text {n % (ROWS - 50)}" for n in range(ROWS)]
    pq.write_table(pa.table({"id": range(ROWS), "text": texts}), tmp_path / "corpus.parquet")
    config = written_config(
        tmp_path / "job.yaml",
        source={"uri": str(tmp_path / "corpus.parquet")},
        recipe={"model": "hashing://8"},
        output={"uri": str(tmp_path / "out"), "rows_per_part": 32},
    )
    published_in_process(config)
    return Store(str(tmp_path / "out"))


def small_pieces(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Let a piece of an index hold so many rows, and memory as well."""
    monkeypatch.setattr(index_making, "SORTED_ROWS", rows)
    monkeypatch.setattr(uniqueness.distinct, "__defaults__", (rows,))


@pytest.mark.parametrize("piece_rows", [7, 100, 1 << 20])
def test_every_text_leads_to_its_first_place_and_no_other_text_to_any(
    output: Store, piece_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pieces(monkeypatch, piece_rows)
    reference, unreadable = write_index(output, open_snapshot(output.uri))
    index = open_index(output, reference)
    hashes = [read_columns(output, key, ["text_hash"])["text_hash"].to_pylist() for key in index.keys]
    first: dict[bytes, tuple[int, int]] = {}
    for part, of_part in enumerate(hashes):
        for row, hash in enumerate(of_part):
            first.setdefault(hash, (part, row))
    asked = list(first)
    places_N = index.find(pa.array(asked, pa.binary(16)))
    parts_N, rows_N = part_and_row(places_N)
    assert list(zip(parts_N.tolist(), rows_N.tolist(), strict=True)) == list(first.values())
    assert (index.find(hash_strings(pa.array([f"other {n}" for n in range(999)]))) == -1).all()
    assert (unreadable, len(first)) == (0, ROWS - 50)
    assert list(map(len, hashes)) == index.rows_P


def entries_of(output: Store, reference: IndexReference) -> list[tuple[int, str, int]]:
    """Return the leading half, the Part and the row of every entry of an index, in their order."""
    index = open_index(output, reference)
    facts = orjson.loads(output.read(f"{reference.key}/index.json") or b"")
    content = [output.read(f"{reference.key}/{piece['name']}") or b"" for piece in facts["pieces"]]
    entries_2R = np.concatenate([np.frombuffer(one, "<u8").reshape(2, -1) for one in content], axis=1)
    part_R, row_R = part_and_row(entries_2R[1].astype(np.int64))
    names = [index.keys[part] for part in part_R.tolist()]
    return list(zip(entries_2R[0].tolist(), names, row_R.tolist(), strict=True))


@pytest.mark.parametrize("piece_rows", [7, 1 << 20])
@pytest.mark.parametrize("carry", ["copy", "reference"])
def test_an_index_derived_from_that_of_the_night_before_is_the_one_made_of_all_parts(
    tmp_path: Path, carry: str, piece_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pieces(monkeypatch, piece_rows)
    read: list[str] = []

    def noting(store: Store, key: str, *asked: Any) -> pa.Table:
        read.append(key)
        return read_columns(store, key, *asked)

    corpus, output, rng = tmp_path / "corpus", Store(str(tmp_path / "out")), np.random.default_rng(5)
    corpus.mkdir()
    config = written_config(
        tmp_path / "job.yaml",
        source={"uri": str(corpus), "empty_text": "zero", "duplicate_ids": "allow"},
        recipe={"model": "hashing://8"},
        output={"uri": output.uri, "rows_per_part": 8, "carry": carry},
    )
    for night in range(3):
        for number in rng.choice(6, 6 if night == 0 else 2, replace=False).tolist():
            texts = [f"{n} {'x' * 300}" if n else "" for n in rng.integers(0, 40, 20).tolist()]
            lines = [orjson.dumps({"id": id, "text": text}) for id, text in enumerate(texts)]
            (corpus / f"{number}.jsonl").write_bytes(b"\n".join(lines))
        snapshot = published_in_process(config)
        with monkeypatch.context() as patch:
            patch.setattr(index_making, "read_columns", noting)
            read.clear()
            derived = entries_of(output, write_index(output, snapshot)[0])
        parts = snapshot.parts.filter(pc.equal(snapshot.parts["kind"], "embeddings"))
        if night:
            assert 0 < len(read) < parts.num_rows / 2
        folder = Path(output.root, f"_meta/snapshots/{snapshot.number:08d}.index")
        away = [shutil.move(path, tmp_path / path.name) for path in folder.parent.glob("*.index")]
        assert derived == entries_of(output, write_index(output, snapshot)[0])
        shutil.rmtree(folder)
        for path in away:
            shutil.move(path, folder.parent)


def test_a_damaged_index_is_no_base_of_the_next_one(output: Store, tmp_path: Path) -> None:
    before = entries_of(output, write_index(output, open_snapshot(output.uri))[0])
    (piece,) = Path(output.root).rglob("*.bin")
    piece.write_bytes(bytes(len(piece.read_bytes())))
    extra = tmp_path / "corpus" / "extra.parquet"
    extra.parent.mkdir()
    pq.write_table(pa.table({"id": [ROWS], "text": ["one more"]}), extra)
    uris = f"source.uri=[{tmp_path / 'corpus.parquet'},{extra}]"
    after = entries_of(output, write_index(output, published_in_process(tmp_path / "job.yaml", uris))[0])
    assert len(after) == len(before) + 1
    assert {high for high, *_ in before} < {high for high, *_ in after}


def test_hashes_that_are_a_slice_of_a_longer_column_are_found(output: Store) -> None:
    index = open_index(output, write_index(output, open_snapshot(output.uri))[0])
    hashes = hash_strings(pa.array([f"text {n}" for n in range(20)]))
    assert np.array_equal(index.find(hashes.slice(5, 6)), index.find(hashes)[5:11])
    assert len(index.find(hashes.slice(20))) == 0


def test_a_second_call_finds_the_index_and_writes_nothing(output: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = open_snapshot(output.uri)
    first = write_index(output, snapshot)
    monkeypatch.setattr(Store, "put", None)
    assert write_index(output, snapshot) == first


def test_an_index_in_a_bucket_is_fetched_once_per_night_and_those_of_before_go(
    output: Store, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_EMBEDDINGS_CACHE", str(tmp_path / "cache"))
    remote = Store(f"s3://{bucket}/out")
    for key in output.files(""):
        remote.put(key, output.read(key) or b"")
    snapshot, hashes = open_snapshot(remote.uri), hash_strings(pa.array(["text 3"]))
    reference, _ = write_index(remote, snapshot)
    assert open_index(remote, reference).find(hashes)[0] >= 0
    (copy,) = (path for path in (tmp_path / "cache" / "indexes").glob("*/*") if path.is_dir())
    copy.rename(copy.with_name("0" * 32))
    assert open_index(remote, reference).find(hashes)[0] >= 0
    assert [path for path in copy.parent.iterdir() if path.is_dir()] == [copy]


def test_an_index_that_is_not_there_is_told_by_its_place(output: Store, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="read the index"):
        TextIndex(tmp_path / "nowhere")


@pytest.mark.parametrize("suffix", ["json", "bin"])
def test_an_index_that_is_damaged_is_told_and_not_searched(output: Store, suffix: str) -> None:
    folder = Path(output.root, write_index(output, open_snapshot(output.uri))[0].key)
    (path,) = folder.glob(f"*.{suffix}")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StorageError, match="damaged"):
        TextIndex(folder)
