"""`verify` finds every manipulation of a published snapshot, names file and row, and blames nothing that is right."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from jobs.__main__ import main
from jobs.verify import verification_text
from pipeline.arrow import vectors_of
from pipeline.execution.verification.findings import Finding, Verification
from pipeline.execution.verification.verify import verify
from pipeline.storage.filesystem import Store
from pipeline.storage.snapshots import open_snapshot
from tests.running import jobs, written_config
from tests.tampering import content_of, forge_parts, part_keys, rewrite, vouch
from tests.without_ray import published_in_process

FILES, ROWS = 2, 30


def write_corpus(folder: Path) -> None:
    folder.mkdir()
    for number in range(FILES):
        ids = range(number * ROWS, number * ROWS + ROWS)
        lines = (orjson.dumps({"id": f"r{id}", "text": f"text {id} " * 40}) + b"\n" for id in ids)
        (folder / f"{number}.jsonl").write_bytes(b"".join(lines))
    (folder / "1.jsonl").write_bytes((folder / "1.jsonl").read_bytes() + b"{broken\n")


def config_of(folder: Path, name: str = "job", **sections: dict[str, Any]) -> str:
    defaults: dict[str, dict[str, Any]] = {
        "source": {"uri": str(folder / "corpus")},
        "recipe": {"model": "hashing://16"},
        "output": {"uri": str(folder / name), "rows_per_part": 16},
        "runtime": {"max_quarantined_fraction": 0.5},
    }
    merged = {section: values | sections.get(section, {}) for section, values in defaults.items()}
    return written_config(folder / f"{name}.yaml", **merged)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus of 60 rows and a broken one, `ours` made of it, and `theirs` by another recipe."""
    folder = tmp_path_factory.mktemp("published")
    write_corpus(folder / "corpus")
    published_in_process(config_of(folder, "ours"))
    published_in_process(config_of(folder, "theirs", recipe={"max_tokens": 100}))
    return folder


@pytest.fixture
def local_output(published: Path, tmp_path: Path) -> Store:
    return Store(str(shutil.copytree(published / "ours", tmp_path / "output")))


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, published: Path) -> Iterator[Store]:
    """A copy of `ours` to tamper with: on disk, and in a bucket."""
    if request.param == "local":
        yield request.getfixturevalue("local_output")
        return
    store = Store(f"s3://{request.getfixturevalue('bucket')}/output")
    for path in (published / "ours").rglob("*"):
        if path.is_file():
            store.put(str(path.relative_to(published / "ours")), path.read_bytes())
    yield store


def delete(store: Store, keys: list[str], published: Path) -> str:
    store.delete(keys[1])
    return keys[1]


def truncate(store: Store, keys: list[str], published: Path) -> str:
    store.put(keys[1], content_of(store, keys[1])[:-100])
    return keys[1]


def flip_a_byte(store: Store, keys: list[str], published: Path) -> str:
    content = bytearray(content_of(store, keys[1]))
    content[len(content) // 3] ^= 1
    store.put(keys[1], bytes(content))
    return keys[1]


def duplicate_beside(store: Store, keys: list[str], published: Path) -> str:
    key = keys[1].replace("-00001.parquet", "-00002.parquet").replace("-00000.parquet", "-00003.parquet")
    assert key not in keys
    store.put(key, content_of(store, keys[1]))
    return key


def duplicate_over_another(store: Store, keys: list[str], published: Path) -> str:
    store.put(keys[2], content_of(store, keys[1]))
    return keys[2]


def put_a_part_of_another_recipe(store: Store, keys: list[str], published: Path) -> str:
    theirs = Store(str(published / "theirs"))
    store.put(keys[1], content_of(theirs, part_keys(theirs)[1]))
    return keys[1]


Manipulation = Callable[[Store, list[str], Path], str]


@pytest.mark.parametrize(
    ("manipulate", "checks"),
    [
        (delete, {"missing"}),
        (truncate, {"size", "content"}),
        (flip_a_byte, {"content"}),
        (duplicate_beside, {"stray"}),
        (duplicate_over_another, {"place", "rows", "duplicate_id"}),
        (put_a_part_of_another_recipe, {"recipe"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_manipulation_is_found_named_and_told_by_exit_code_4(
    output: Store, published: Path, manipulate: Manipulation, checks: set[str]
) -> None:
    key = manipulate(output, part_keys(output), published)
    finished = jobs("verify", output.uri, "--json")
    assert finished.code == 4, finished.stderr
    assert finished.report["is_sound"] is False
    assert checks <= {finding["check"] for finding in finished.report["findings"] if finding["path"] == key}


def test_an_untouched_snapshot_is_sound_in_every_respect(output: Store) -> None:
    finished = jobs("verify", output.uri, "--sample", "25", "--json")
    assert finished.code == 0, finished.stdout + finished.stderr
    found = finished.report
    assert (found["rows"], found["is_sound"], found["ids_are_unique"], found["findings"]) == (60, True, True, [])
    assert (found["recount"]["rows"], found["recount"]["not_compared"]) == (61, 0)
    assert (found["sample"]["rows"], found["sample"]["not_compared"]) == (25, 0)
    assert found["sample"]["min_cosine"] > 0.999999


def test_a_person_reads_what_was_compared_and_what_is_wrong(local_output: Store, published: Path) -> None:
    config = str(published / "ours.yaml")
    sound = jobs("verify", config, "--sample", "5", f"output.uri={local_output.uri}")
    assert sound.code == 0, sound.stderr
    first, source, sample = sound.stdout.splitlines()
    assert first == "snapshot 1: 60 rows in 4 Parts: sound"
    assert source == "  source       61 rows in 2 Shards counted again"
    assert sample.startswith(
        "  sample       5 rows encoded again in float32: cosine at least 1.000000, mean 1.000000 ("
    )
    key = delete(local_output, part_keys(local_output), published)
    broken = jobs("verify", config, f"output.uri={local_output.uri}")
    assert broken.code == 4
    assert broken.stdout.splitlines()[0] == "snapshot 1: 46 rows in 4 Parts: NOT sound"
    assert f"\n{key}\n  missing      published with 14 rows\n" in broken.stdout


def findings_of(store: Store, *options: Any) -> list[Finding]:
    return verify(open_snapshot(store.uri), *options).findings


def changed_vectors(change: Callable[[NDArray[Any]], object]) -> Callable[[pa.Table], pa.Table]:
    """Return a manipulation of the vectors of a Part."""

    def changed(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index("embedding")
        vectors_ND = vectors_of(table["embedding"]).copy()
        change(vectors_ND)
        field = table.schema.field(index)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel(), field.type.value_type), type=field.type)
        return table.set_column(index, field, column)

    return changed


@pytest.mark.parametrize(
    ("check", "factor"), [("norm", 2.0), ("zero", 0.0), ("not_finite", np.nan), ("not_finite", np.inf)]
)
def test_a_bad_vector_is_found_with_its_row_though_the_metadata_vouches_for_the_file(
    local_output: Store, check: str, factor: float
) -> None:
    key = part_keys(local_output)[0]

    def scale(vectors_ND: NDArray[Any]) -> None:
        vectors_ND[3] *= factor

    rewrite(local_output, key, changed_vectors(scale))
    vouch(local_output)
    (found,) = findings_of(local_output)
    assert (found.check, found.path, found.row) == (check, key, 3)


def test_vectors_of_another_width_are_found(local_output: Store) -> None:
    key = part_keys(local_output)[0]

    def half(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index("embedding")
        halves_ND = np.ascontiguousarray(vectors_of(table["embedding"])[:, :8])
        type = pa.list_(table.schema.field(index).type.value_field, 8)
        column = pa.FixedSizeListArray.from_arrays(pa.array(halves_ND.ravel()), type=type)
        return table.set_column(index, pa.field("embedding", type, nullable=False), column)

    rewrite(local_output, key, half)
    vouch(local_output)
    (found,) = findings_of(local_output)
    assert (found.check, found.path) == ("width", key)


def test_rows_that_stand_twice_are_named_with_both_places(local_output: Store) -> None:
    keys = part_keys(local_output)
    local_output.put(keys[2], content_of(local_output, keys[1]))
    twice = [found for found in findings_of(local_output) if found.check == "duplicate_id"]
    assert {found.path for found in twice} == {keys[2]}
    assert sorted(found.row or 0 for found in twice) == list(range(len(twice)))
    assert twice[0].detail == f"has the id of row {twice[0].row} of {keys[1]}"


def test_only_a_sample_tells_that_vectors_were_exchanged(local_output: Store) -> None:
    key = part_keys(local_output)[0]

    def exchange(vectors_ND: NDArray[Any]) -> None:
        vectors_ND[[2, 5]] = vectors_ND[[5, 2]]

    rewrite(local_output, key, changed_vectors(exchange))
    vouch(local_output)
    assert findings_of(local_output) == []
    found = findings_of(local_output, 60)
    assert [(one.check, one.path, one.row) for one in found] == [("vector", key, 2), ("vector", key, 5)]


def test_a_row_whose_text_the_source_does_not_have_is_found_by_a_sample(local_output: Store) -> None:
    key = part_keys(local_output)[0]

    def other_texts(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index("text_hash")
        hashes = [b"x" * 16 if row == 7 else hash for row, hash in enumerate(table["text_hash"].to_pylist())]
        return table.set_column(index, table.schema.field(index), pa.array(hashes, pa.binary(16)))

    rewrite(local_output, key, other_texts)
    vouch(local_output)
    assert [(one.check, one.path, one.row) for one in findings_of(local_output, 60)] == [("text", key, 7)]


def test_a_sample_is_the_same_for_the_same_seed(local_output: Store) -> None:
    def exchange(vectors_ND: NDArray[Any]) -> None:
        vectors_ND[:] = vectors_ND[::-1].copy()

    rewrite(local_output, part_keys(local_output)[0], changed_vectors(exchange))
    vouch(local_output)
    drawn = [{found.row for found in findings_of(local_output, 12, seed)} for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_model_that_is_another_one_now_is_an_error_of_the_sample_alone(published: Path, tmp_path: Path) -> None:
    output = Store(str(shutil.copytree(published / "ours", tmp_path / "output")))
    key = "_meta/snapshots/00000001.json"
    record = orjson.loads(content_of(output, key))
    record["recipe"]["model"] = "hashing://32"
    output.put(key, orjson.dumps(record))
    assert findings_of(output) == []
    finished = jobs("verify", output.uri, "--sample", "3")
    assert finished.code == 1
    assert "hashing://32 is not the model that snapshot 1 was made with" in finished.errors[0]


def test_a_recipe_that_does_not_have_its_fingerprint_is_found(local_output: Store) -> None:
    key = "_meta/snapshots/00000001.json"
    record = orjson.loads(content_of(local_output, key))
    record["recipe"]["max_tokens"] = 100
    local_output.put(key, orjson.dumps(record))
    assert [(found.check, found.path) for found in findings_of(local_output)] == [("recipe", key)]


def test_a_file_in_the_quarantine_folder_that_nobody_wrote_is_found(local_output: Store) -> None:
    (key,) = local_output.files("quarantine")
    local_output.put(key.replace("-0000", "-9000"), b"")
    assert [(found.check, found.path) for found in findings_of(local_output)] == [
        ("stray", key.replace("-0000", "-9000"))
    ]


def test_parts_left_where_they_are_are_checked_there_and_strays_beside_them_found(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    config = config_of(tmp_path, output={"carry": "reference"})
    published_in_process(config)
    (tmp_path / "corpus" / "0.jsonl").write_bytes(b'{"id": "new", "text": "new"}\n')
    snapshot = published_in_process(config)
    folders = sorted(snapshot.parts["folder"].unique().to_pylist())
    assert len(folders) == 2
    assert verify(snapshot).is_sound
    stray = f"snapshots/{folders[0]}/stray.parquet"
    snapshot.store.put(stray, b"")
    assert [(found.check, found.path) for found in verify(snapshot).findings] == [("stray", stray)]


def copied_source(published: Path, tmp_path: Path) -> tuple[Store, Path]:
    """Publish a corpus of its own; return the output and the corpus."""
    shutil.copytree(published / "corpus", tmp_path / "corpus")
    return published_in_process(config_of(tmp_path)).store, tmp_path / "corpus"


def test_a_source_that_holds_other_rows_at_the_same_version_is_found(published: Path, tmp_path: Path) -> None:
    store, corpus = copied_source(published, tmp_path)
    path = corpus / "0.jsonl"
    times = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes().replace(b"\n", b" ", 1))
    os.utime(path, ns=(times, times))
    (found,) = findings_of(store)
    assert (found.check, found.path) == ("source", str(path))
    assert found.detail.startswith("29 rows in the source, 30 read for Shard")


def test_a_source_that_was_changed_or_is_gone_is_told_and_only_a_sample_of_it_fails(
    published: Path, tmp_path: Path
) -> None:
    store, corpus = copied_source(published, tmp_path)
    (corpus / "0.jsonl").write_bytes(b"{}\n")
    (corpus / "1.jsonl").unlink()
    assert verify(open_snapshot(store.uri)).is_sound
    result = verify(open_snapshot(store.uri), 60)
    assert [(found.check, found.detail) for found in result.findings] == [
        ("sample", "none of 60 rows could be encoded again")
    ]
    assert (result.recount.shards, result.recount.not_compared) == (0, 2)
    assert "0.jsonl was changed between plan and read" in result.recount.why
    assert result.sample is not None
    assert (result.sample.rows, result.sample.not_compared) == (0, 60)
    lines = verification_text(result).splitlines()
    assert "2 Shards could not be compared (" in lines[1]
    assert lines[2].startswith("  sample       no row was encoded again; 60 rows could not be compared")


def test_the_rows_of_a_giant_parquet_file_are_counted_by_its_footer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corpus").mkdir()
    table = pa.table({"id": range(200), "text": [f"text {id}" for id in range(200)]})
    pq.write_table(table, tmp_path / "corpus" / "giant.parquet", row_group_size=50)
    monkeypatch.setattr("pipeline.execution.planning.shards.SPLIT_BYTES", 1000)
    snapshot = published_in_process(config_of(tmp_path))
    assert snapshot.shards.num_rows > 1
    result = verify(snapshot, 200)
    assert result.is_sound, result.findings
    assert (result.recount.rows, result.recount.shards) == (200, snapshot.shards.num_rows)
    assert result.sample is not None
    assert result.sample.rows == 200


def test_ids_that_were_allowed_to_stand_twice_are_no_finding(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_bytes(b'{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}\n')
    result = verify(published_in_process(config_of(tmp_path), "source.duplicate_ids=allow"), 2)
    assert result.is_sound, result.findings
    assert result.ids_are_unique is None
    assert "  ids          not compared: published with source.duplicate_ids: allow" in verification_text(result)


@pytest.mark.parametrize("stored", ["float32", "float16", "int8", "binary"])
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_every_number_type_stays_within_what_it_explains_and_exchanged_vectors_do_not(
    tmp_path: Path, m3e_small: Path, compute: str, stored: str
) -> None:
    (tmp_path / "corpus").mkdir()
    texts = [
        "酒店的位置很好",
        "早餐一般,房间干净",
        "服务员态度很差",
        "屏幕很大,电池不耐用",
        "价格便宜,送货也快",
        "good",
    ]
    lines = (orjson.dumps({"id": id, "text": text}) + b"\n" for id, text in enumerate(texts))
    (tmp_path / "corpus" / "a.jsonl").write_bytes(b"".join(lines))
    recipe = {"model": str(m3e_small), "compute": compute, "stored": stored, "dimensions": 256}
    snapshot = published_in_process(config_of(tmp_path, recipe=recipe))
    result = verify(snapshot, len(texts))
    assert result.is_sound, result.findings
    assert result.sample is not None
    assert result.sample.min_cosine is not None
    assert 0.8 < result.sample.expected <= result.sample.min_cosine
    (key,) = part_keys(snapshot.store)

    def exchange(table: pa.Table) -> pa.Table:
        for name in {"embedding", "scale"} & set(table.column_names):
            index = table.schema.get_field_index(name)
            rows = pa.array([1, 0, *range(2, len(texts))])
            table = table.set_column(index, table.schema.field(index), table[name].take(rows))
        return table

    rewrite(snapshot.store, key, exchange)
    vouch(snapshot.store)
    assert [found.row for found in findings_of(snapshot.store, len(texts))] == [0, 1]


def test_chunks_in_partitions_without_repeated_ids_are_found_again_too(tmp_path: Path, m3e_small: Path) -> None:
    (tmp_path / "corpus").mkdir()
    rows = [{"id": id % 9, "text": "这家酒店很好。" * (1 + 3 * id), "label": "ab"[id % 2]} for id in range(12)]
    (tmp_path / "corpus" / "a.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    recipe = {"model": str(m3e_small), "compute": "float32", "max_tokens": 48, "long_text": "chunk", "prompt": "评论:"}
    config = config_of(
        tmp_path,
        source={"keep_columns": ["label"], "duplicate_ids": "keep_first"},
        recipe=recipe | {"chunk_overlap_tokens": 8},
        output={"partition_by": ["label"], "rows_per_part": 4},
    )
    snapshot = published_in_process(config)
    assert (snapshot.totals["embedded"], snapshot.totals["deduplicated"]) == (9, 3)
    result = verify(snapshot, 1000)
    assert result.is_sound, result.findings
    assert result.sample is not None
    assert result.sample.rows == result.rows == snapshot.totals["rows"] > 20
    assert result.sample.min_cosine is not None
    assert result.sample.min_cosine > 0.99999


@pytest.mark.parametrize("stored", ["float32", "int8", "binary"])
def test_the_zero_vector_of_an_empty_text_is_right_and_in_a_sample_too(tmp_path: Path, stored: str) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_bytes(b'{"id": 1, "text": " "}\n{"id": 2, "text": "full"}\n{broken\n')
    config = config_of(tmp_path, source={"empty_text": "zero"}, recipe={"stored": stored})
    result = verify(published_in_process(config), 2)
    assert result.is_sound, result.findings
    assert result.sample is not None
    assert (result.rows, result.sample.rows) == (2, 2)
    assert result.sample.min_cosine is not None
    assert result.sample.min_cosine > 0.999


def test_a_part_of_the_quarantine_that_is_not_listed_any_more_is_found(local_output: Store) -> None:
    (key,) = local_output.files("quarantine")
    snapshot = open_snapshot(local_output.uri)
    forge_parts(snapshot, [line for line in snapshot.parts.to_pylist() if line["kind"] == "embeddings"])
    found = findings_of(local_output)
    assert [(one.check, one.path) for one in found if one.check == "stray"] == [("stray", key)]
    assert [one.detail for one in found if one.check == "rows"] == [
        "its Parts hold 30 + 0 lines for 30 embedded + 1 quarantined rows"
    ]


@pytest.mark.parametrize("sample", ["0", "-3", "many"])
def test_a_sample_of_no_rows_is_a_wrong_argument(sample: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["verify", "out", f"--sample={sample}"])
    assert ended.value.code == 2
    assert "expected 1 or more" in capsys.readouterr().err


def test_many_findings_of_one_kind_are_counted_and_hide_no_other() -> None:
    result = Verification(1, ids_are_unique=True)
    for row in range(150):
        result.add(Finding("zero", "a.parquet", "length 0", row))
    result.add(Finding("missing", "b.parquet", "published with 14 rows"))
    assert (len(result.findings), result.counts) == (101, {"zero": 150, "missing": 1})
    assert verification_text(result).splitlines()[2:] == [
        "a.parquet",
        *(f"  zero         row {row}: length 0" for row in range(3)),
        "  zero         … and 97 rows more",
        "b.parquet",
        "  missing      published with 14 rows",
        "… and 50 findings more",
    ]
