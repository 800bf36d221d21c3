"""The main job on Ray: every row once, with its columns, from and to local folders and S3, also after changes."""

import datetime
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import orjson
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from jobs.demo.local_s3 import LocalS3
from pipeline import open_snapshot
from pipeline.arrow import vectors_of
from pipeline.encoder.hashing import HashingEncoder
from pipeline.storage.filesystem import Store
from pipeline.text.tokenizer import ByteTokenizer
from tests.running import Finished, embed, jobs, written_config

ROWS = 90
WITHOUT_RAY: dict[str, Any] = {"without_ray_bytes": 2**30}
"""For what the stages do, whoever runs them; Ray takes ten seconds to start."""

LABELS = ["pos", "neg", None, "a/b=c", "空"]
KEPT = ["label", "when", "tags", "facts", "price", "kind", "nothing", "flag", "blob", "day"]
LONG = "".join(f"第{number}句:这家酒店的早餐很好,房间也很干净。Breakfast {number} was fine! " for number in range(40))


def table_of(first: int, rows: int) -> pa.Table:
    """Return rows with a column of every kind that a source may hold."""
    numbers = range(first, first + rows)
    utc = datetime.UTC
    return pa.table(
        {
            "text": [f"text {n} " + "好" * (n % 50) for n in numbers],
            "id": [f"r{n:04d}" for n in numbers],
            "label": [LABELS[n % len(LABELS)] for n in numbers],
            "when": pa.array([datetime.datetime(2026, 1, 1, tzinfo=utc)] * rows, pa.timestamp("ms", "UTC")),
            "tags": [[str(n), None] if n % 3 else None for n in numbers],
            "facts": [{"a": n, "b": {"c": [n / 2]}} for n in numbers],
            "price": pa.array([Decimal(n) / 4 for n in numbers], pa.decimal128(12, 2)),
            "kind": pa.array([["x", "y"][n % 2] for n in numbers]).dictionary_encode(),
            "nothing": pa.nulls(rows),
            "flag": [None if n % 7 == 0 else n % 2 == 0 for n in numbers],
            "blob": [bytes([n % 256]) for n in numbers],
            "day": [datetime.date(2026, 1, 1 + n % 28) for n in numbers],
            "not kept": [0] * rows,
        }
    )


@dataclass(frozen=True)
class Run:
    """A job, and what its last run said."""

    config: str
    output: str
    finished: Finished

    def rows(self) -> pa.Table:
        """Return what is published, ordered, without the time at which it was made."""
        rows = open_snapshot(self.output).to_table().drop_columns(["created_timestamp", "event_timestamp"])
        return rows.sort_by("id").combine_chunks()


def run_job(folder: Path, read: str, write: str, **sections: dict[str, Any]) -> Run:
    """Write a config and run it once; the model gives vectors of 64 numbers unless told otherwise."""
    defaults: dict[str, Any] = {
        "source": {"keep_columns": KEPT},
        "output": {"partition_by": ["label"], "rows_per_part": 16},
    }
    chosen: dict[str, Any] = defaults | {"recipe": {"model": "hashing://64"}} | sections
    chosen["source"] = {"uri": read} | chosen["source"]
    chosen["output"] = {"uri": write} | chosen["output"]
    chosen["runtime"] = {"without_ray_bytes": 0} | chosen.get("runtime", {})
    config = written_config(folder / f"{len(list(folder.glob('*.yaml')))}.yaml", **chosen)
    return Run(config, write, embed(config))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embed")


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Path:
    """Three Parquet files of 30 rows."""
    (folder / "corpus").mkdir()
    for number in range(3):
        pq.write_table(table_of(30 * number, 30), folder / "corpus" / f"{number}.parquet", row_group_size=7)
    return folder / "corpus"


@pytest.fixture(scope="module")
def s3_bucket(s3: LocalS3, corpus: Path) -> str:
    """A bucket that holds the corpus."""
    s3.create_bucket("embed-module")
    for path in corpus.iterdir():
        s3.filesystem().put_file(str(path), f"embed-module/in/{path.name}")
    return "embed-module"


@pytest.fixture(scope="module")
def local_run(folder: Path, corpus: Path) -> Run:
    run = run_job(folder, str(corpus), str(folder / "out"))
    assert run.finished.code == 0, run.finished.stderr
    return run


@pytest.fixture(scope="module")
def s3_run(folder: Path, s3_bucket: str) -> Run:
    run = run_job(folder, f"s3://{s3_bucket}/in/", f"s3://{s3_bucket}/out/")
    assert run.finished.code == 0, run.finished.stderr
    return run


def test_every_id_comes_out_once_with_its_kept_columns_and_its_vector(local_run: Run) -> None:
    rows, source = local_run.rows(), table_of(0, ROWS)
    assert rows["id"].to_pylist() == source["id"].to_pylist()
    for name in KEPT:
        assert rows.schema.field(name).type == source.schema.field(name).type, name
        assert rows[name].to_pylist() == source[name].to_pylist(), name
    assert "not kept" not in rows.column_names
    tokens, _ = ByteTokenizer()(source["text"].combine_chunks(), 512)
    expected_ND = HashingEncoder(64).encode(tokens)
    expected_ND /= np.linalg.norm(expected_ND, axis=1, keepdims=True)
    assert np.allclose(vectors_of(rows["embedding"]), expected_ND, rtol=0, atol=1e-6)
    assert rows["tokens"].to_pylist() == tokens.lengths_N.tolist()


def test_the_report_accounts_for_every_row(local_run: Run) -> None:
    report = local_run.finished.report
    assert (report["outcome"], report["snapshot"]) == ("published", 1)
    assert report["rows_read"] == report["embedded"] == report["accounted"] == ROWS
    assert (report["source_files"], report["dimension"], report["vectors"]) == (3, 64, ROWS)


def test_a_row_lies_in_the_folder_of_its_partition_and_no_other_file_does(local_run: Run) -> None:
    root = Path(open_snapshot(local_run.output).folder)
    files = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    names = {"label=pos", "label=neg", "label=__HIVE_DEFAULT_PARTITION__", "label=a%2Fb%3Dc", "label=空"}
    assert {path.parts[0] for path in files} == names
    assert all(len(path.parts) == 2 and path.suffix == ".parquet" for path in files)
    assert Path(local_run.output, "LATEST").read_text().strip() == root.name


def test_four_tools_read_the_folder_as_plain_vectors(local_run: Run) -> None:
    folder = open_snapshot(local_run.output).folder
    expected = local_run.rows()
    vectors_ND = vectors_of(expected["embedding"])
    by_arrow = pq.read_table(folder)
    label = by_arrow.column_names.index("label")  # a dictionary with null, which pyarrow cannot sort
    by_arrow = by_arrow.set_column(label, "label", by_arrow["label"].cast(pa.string())).sort_by("id")
    assert by_arrow.schema.field("embedding").type.equals(expected.schema.field("embedding").type)
    # pandas must be told the type: a partition that holds null comes as dictionaries, which Arrow cannot unify
    partitioning = pa.dataset.partitioning(pa.schema([("label", pa.string())]), flavor="hive")
    by_pandas = pd.read_parquet(folder, partitioning=partitioning).sort_values("id")
    by_duckdb: Any = duckdb.sql(f"from read_parquet('{folder}/**/*.parquet', hive_partitioning=true) order by id")
    by_polars = pl.scan_parquet(folder, hive_partitioning=True).sort("id").collect()
    assert by_polars.schema["embedding"] == pl.Array(pl.Float32, 64)
    assert dict(zip(by_duckdb.columns, map(str, by_duckdb.types), strict=True))["embedding"] == "FLOAT[]"
    as_array = by_duckdb.project("embedding::FLOAT[64] as embedding").fetchnumpy()["embedding"]
    for found in (
        vectors_of(by_arrow["embedding"]),
        np.stack(by_pandas["embedding"].to_list()),
        np.stack([np.asarray(row) for row in as_array]),
        by_polars["embedding"].to_numpy(),
    ):
        assert found.dtype == np.float32
        assert np.array_equal(found, vectors_ND)
    labels = expected["label"].to_pylist()
    assert by_arrow["label"].to_pylist() == labels
    assert [None if pd.isna(label) else label for label in by_pandas["label"]] == labels
    assert [row[0] for row in by_duckdb.project("label").fetchall()] == labels
    assert by_polars["label"].to_list() == labels


def test_s3_to_s3_and_local_to_s3_give_the_rows_of_local_to_local(
    folder: Path, corpus: Path, s3_bucket: str, s3_run: Run, local_run: Run
) -> None:
    mixed = run_job(folder, str(corpus), f"s3://{s3_bucket}/mixed")
    assert mixed.finished.code == 0, mixed.finished.stderr
    assert s3_run.rows().equals(local_run.rows())
    assert mixed.rows().equals(local_run.rows())


def test_running_again_does_nothing(s3_run: Run) -> None:
    store = Store(s3_run.output)
    before = store.files("")
    again = embed(s3_run.config, seconds=30)
    assert again.code == 0, again.stderr
    assert again.report["outcome"] == "nothing_to_do"
    assert again.report["rows_read"] == again.report["reused"] == ROWS
    assert store.files("") == before


def test_changing_the_runtime_re_embeds_nothing(s3_run: Run) -> None:
    again = embed(s3_run.config, "runtime.batch_tokens=1024", "runtime.encoders=2", seconds=30)
    assert again.report["outcome"] == "nothing_to_do"


def test_no_secret_is_written_anywhere(s3_run: Run, s3: LocalS3) -> None:
    store = Store(s3_run.output)
    assert s3.secret_key not in s3_run.finished.stdout + s3_run.finished.stderr
    for key in store.files(""):
        assert s3.secret_key.encode() not in (store.read(key) or b"")


def test_status_tells_what_is_published(s3_run: Run) -> None:
    run = jobs("status", s3_run.config, "--json")
    assert (run.code, [snapshot["number"] for snapshot in run.report["snapshots"]]) == (0, [1])
    assert run.report["folder"] == open_snapshot(s3_run.output).folder


def test_one_changed_file_re_embeds_its_shard_and_equals_a_run_from_scratch(
    folder: Path, corpus: Path, local_run: Run
) -> None:
    before = {part["path"]: part for part in open_snapshot(local_run.output).parts.to_pylist()}
    original = (corpus / "1.parquet").read_bytes()
    changed = table_of(30, 30).set_column(0, "text", pa.array([f"changed {n}" for n in range(30)]))
    try:
        pq.write_table(changed.slice(0, 29), corpus / "1.parquet")
        second = embed(local_run.config)
        assert second.code == 0, second.stderr
        assert (second.report["snapshot"], second.report["embedded"], second.report["reused"]) == (2, 29, 60)
        scratch = run_job(folder, str(corpus), str(folder / "scratch"), runtime=WITHOUT_RAY)
        assert local_run.rows().num_rows == 89
        assert local_run.rows().equals(scratch.rows())
        kept = [part for part in open_snapshot(local_run.output).parts.to_pylist() if part["path"] in before]
        assert len(kept) > 5
        for part in kept:
            old, new = (
                Path(local_run.output, "snapshots", name, part["path"])
                for name in (before[part["path"]]["folder"], part["folder"])
            )
            assert old.samefile(new)
        assert open_snapshot(local_run.output, 1).to_table(["id"]).num_rows == ROWS
    finally:
        (corpus / "1.parquet").write_bytes(original)


def test_bad_rows_go_to_quarantine_and_too_many_of_them_publish_nothing(folder: Path) -> None:
    lines = [orjson.dumps({"id": n, "text": f"text {n}"}) for n in range(10)]
    lines[2], lines[5], lines[7] = b'{"id": 2, "text": null}', b"{broken", b'{"text": "no id"}'
    (folder / "bad.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    source: dict[str, Any] = {"keep_columns": []}
    output: dict[str, Any] = {"partition_by": [], "rows_per_part": 4}
    failed = run_job(
        folder, str(folder / "bad.jsonl"), str(folder / "bad"), source=source, output=output, runtime=WITHOUT_RAY
    )
    assert failed.finished.code == 1
    assert (failed.finished.report["outcome"], failed.finished.report["quarantined"]) == ("failed", 3)
    assert "max_quarantined_fraction" in failed.finished.errors[0]
    assert not Path(failed.output, "_meta", "snapshots").exists()

    allowed = embed(failed.config, "runtime.max_quarantined_fraction=0.3")
    assert allowed.code == 0, allowed.stderr
    assert (allowed.report["rows_read"], allowed.report["reused"], allowed.report["quarantined"]) == (10, 7, 3)
    assert failed.rows()["id"].to_pylist() == [0, 1, 3, 4, 6, 8, 9]
    quarantine = pq.read_table(f"{failed.output}/quarantine").sort_by("row").to_pylist()
    assert [(row["row"], row["reason"]) for row in quarantine] == [
        (2, "null_text"),
        (5, "invalid_json"),
        (7, "missing_id"),
    ]
    assert quarantine[1]["raw"] == b"{broken"
    assert quarantine[1]["byte_offset"] == sum(len(line) + 1 for line in lines[:5])


def test_chunks_cover_every_character_of_a_long_text(folder: Path, m3e_small: Path) -> None:
    texts = ["短", LONG, "", LONG[:500]]
    pq.write_table(pa.table({"id": range(4), "text": texts}), folder / "long.parquet")
    recipe = {"model": str(m3e_small), "compute": "float32", "max_tokens": 64, "long_text": "chunk"}
    run = run_job(
        folder,
        str(folder / "long.parquet"),
        str(folder / "long"),
        source={"keep_columns": [], "empty_text": "embed"},
        output={"partition_by": []},
        recipe=recipe | {"stored": "float16", "dimensions": 128},
        runtime=WITHOUT_RAY | {"batch_tokens": 1024},
    )
    assert run.finished.code == 0, run.finished.stderr
    rows = open_snapshot(run.output).to_table().sort_by([("id", "ascending"), ("chunk", "ascending")]).to_pylist()
    assert run.finished.report["embedded"] == 4
    assert run.finished.report["vectors"] == len(rows) > 12
    assert not any(row["truncated"] or row["tokens"] > 64 for row in rows)
    for id, text in enumerate(texts):
        mine = [row for row in rows if row["id"] == id]
        assert [row["chunk"] for row in mine] == list(range(len(mine)))
        assert "".join(text[row["char_start"] : row["char_end"]] for row in mine) == text
    assert pl.scan_parquet(run.finished.report["folder"]).collect_schema()["embedding"] == pl.Array(pl.Float16, 128)
