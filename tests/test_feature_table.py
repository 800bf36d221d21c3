"""`features`: one row per entity and moment, each made of what was known then; published whole, once, or not at all."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from jobs.__main__ import main
from pipeline.arrow import vectors_of
from pipeline.config_file import load_config
from pipeline.errors import ConfigError, StorageError
from pipeline.execution.feature_tables import feature_plan
from pipeline.execution.feature_tables.feature_table import FeatureRun, make_features
from pipeline.features.asof import as_of_join
from pipeline.storage.feature_tables import open_feature_table
from pipeline.storage.filesystem import Store
from pipeline.storage.snapshots import Snapshot
from tests.running import written_config
from tests.without_ray import published_in_process

DIMENSION = 16
TEXTS = ["甲 one", "乙 two", "丙 three", "丁 four"]


def reviews() -> pa.Table:
    """Four texts of two users; ann has three, two of them at one moment."""
    days = ["2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z", "2026-01-31T00:00:00Z", "2026-01-03T00:00:00Z"]
    return pa.table({"id": [1, 2, 3, 4], "text": TEXTS, "user": ["ann", "ann", "ann", "bob"], "day": days})


class Job:
    """A corpus that is embedded, and the config that makes features of it."""

    def __init__(self, folder: Path, table: pa.Table, uri: str = "", **features: Any) -> None:
        (folder / "corpus").mkdir()
        self.file = folder / "corpus" / "a.parquet"
        pq.write_table(table, self.file)
        kept = [name for name in table.column_names if name not in ("id", "text")]
        sections: dict[str, Mapping[str, Any]] = {
            "source": {"uri": str(folder / "corpus"), "keep_columns": kept},
            "recipe": {"model": f"hashing://{DIMENSION}"},
            "output": {"uri": str(folder / "out"), "rows_per_part": 3},
            "features": {"uri": uri or str(folder / "table"), **features},
        }
        self.path = written_config(folder / "job.yaml", **sections)

    def embed(self, *overrides: str) -> Snapshot:
        return published_in_process(self.path, *overrides)

    def features(self, *overrides: str) -> FeatureRun:
        return make_features(load_config(self.path, overrides))


def rows_of(run: FeatureRun) -> pa.Table:
    """Return the rows of a table, read as a folder, in the order of their keys and times."""
    found = pyarrow.dataset.dataset(run.table.address, format="parquet").to_table()
    keys = [*run.table.record.settings["entity"], "event_timestamp"]
    return found.sort_by([(key, "ascending") for key in keys]).combine_chunks()


def written_at(run: FeatureRun) -> dict[Path, int]:
    """Return when each file below the table's address was written."""
    return {path: path.stat().st_mtime_ns for path in Path(run.table.store.root).rglob("*") if path.is_file()}


def embeddings_of(rows: pa.Table) -> NDArray[np.float32]:
    return vectors_of(rows["embedding"]).astype(np.float32)


def vectors_by_id(snapshot: Snapshot) -> dict[Any, NDArray[np.float32]]:
    table = snapshot.to_table(["id", "embedding"])
    return dict(zip(table["id"].to_pylist(), vectors_of(table["embedding"]).astype(np.float32), strict=True))


def unit(vector_D: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vector_D / np.linalg.norm(vector_D), np.float32)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path, reviews(), entity="user", event_time="day")


def test_a_row_holds_the_newest_text_of_its_entity_at_its_time(job: Job) -> None:
    vectors, rows = vectors_by_id(job.embed()), rows_of(job.features())
    assert rows["user"].to_pylist() == ["ann", "ann", "ann", "bob"]
    assert [str(time.date()) for time in rows["event_timestamp"].to_pylist()] == [
        "2026-01-01",
        "2026-01-03",
        "2026-01-31",
        "2026-01-03",
    ]
    np.testing.assert_array_equal(embeddings_of(rows), [vectors[id] for id in (1, 2, 3, 4)])


def test_a_window_holds_the_texts_of_its_days_up_to_the_rows_own_time(job: Job) -> None:
    vectors = vectors_by_id(job.embed())
    rows = rows_of(job.features("features.aggregate=mean", "features.window_days=28"))
    # 31 January minus 28 days is the 3rd, which the open end of the window leaves out
    expected = [vectors[1], unit(vectors[1] + vectors[2]), vectors[3], vectors[4]]
    np.testing.assert_allclose(embeddings_of(rows), np.stack(expected), atol=1e-6)
    rows = rows_of(job.features("features.aggregate=mean", "features.window_days=29"))
    expected[2] = unit(vectors[2] + vectors[3])
    np.testing.assert_allclose(embeddings_of(rows), np.stack(expected), atol=1e-6)


def test_of_texts_of_one_moment_one_row_is_made_and_the_others_are_counted(tmp_path: Path) -> None:
    job = Job(tmp_path, reviews(), entity="user")  # event_timestamp: of the one run that saw them all
    vectors, run = vectors_by_id(job.embed()), job.features()
    rows = rows_of(run)
    assert rows["user"].to_pylist() == ["ann", "bob"]
    assert run.table.record.totals | {"bytes": 0} == {
        "rows": 2,
        "documents": 4,
        "unkeyed": 0,
        "superseded": 2,
        "bytes": 0,
    }
    assert any(np.array_equal(embeddings_of(rows)[0], vectors[id]) for id in (1, 2, 3))
    mean = rows_of(job.features("features.aggregate=mean"))
    np.testing.assert_allclose(embeddings_of(mean)[0], unit(vectors[1] + vectors[2] + vectors[3]), atol=1e-6)


def test_a_row_without_entity_or_time_is_left_out_and_counted(tmp_path: Path) -> None:
    table = reviews().set_column(2, "user", pa.array(["ann", None, "ann", "bob"]))
    table = table.set_column(3, "day", pa.array([*reviews()["day"].to_pylist()[:3], None]))
    job = Job(tmp_path, table, entity="user", event_time="day")
    job.embed()
    totals = job.features().table.record.totals
    assert (totals["documents"], totals["rows"], totals["unkeyed"]) == (4, 2, 2)


def test_a_table_without_rows_is_a_folder_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(tmp_path, reviews().set_column(2, "user", pa.nulls(4, pa.string())), entity="user")
    job.embed()
    run = job.features()
    assert (rows_of(run).num_rows, run.table.record.totals["unkeyed"]) == (0, 4)
    assert rows_of(run).schema.names == ["user", "event_timestamp", "created_timestamp", "embedding"]
    assert run.table.dataset().count_rows() == 0
    assert main(["features", job.path]) == 0
    assert "no document has both a key and a time, the table is empty" in capsys.readouterr().out


@pytest.mark.parametrize("stored", ["float32", "float16", "int8", "binary"])
def test_vectors_are_truncated_normalised_again_and_stored_as_asked(job: Job, stored: str) -> None:
    vectors = vectors_by_id(job.embed())
    rows = rows_of(job.features("features.dimensions=8", f"features.stored={stored}"))
    expected_ND = np.stack([unit(vectors[id][:8]) for id in (1, 2, 3, 4)])
    if stored == "binary":
        assert rows["embedding"].to_pylist() == [np.packbits(vector > 0).tobytes() for vector in expected_ND]
        return
    scale_N1 = rows["scale"].to_numpy()[:, None] if stored == "int8" else 1.0
    found_ND = embeddings_of(rows) * scale_N1
    np.testing.assert_allclose(found_ND, expected_ND, atol={"float32": 1e-7, "float16": 1e-3, "int8": 1e-2}[stored])


def test_feast_is_told_the_ttl_to_the_microsecond(job: Job) -> None:
    job.embed()
    view = Path(job.features("features.ttl_days=30.041666667").table.store.root, "feature_view.py").read_text()
    assert "ttl=timedelta(days=30.041666667)," in view


def test_the_same_command_again_does_nothing_and_a_new_snapshot_makes_a_new_table(job: Job) -> None:
    job.embed()
    first = job.features()
    before = written_at(first)
    again = job.features("features.ttl_days=null")
    assert (first.is_new, again.is_new, again.table.record.number) == (True, False, 1)
    assert written_at(first) == before
    pq.write_table(reviews().slice(0, 3), job.file)
    job.embed()
    newer = job.features()
    assert (newer.is_new, newer.table.record.number, rows_of(newer).num_rows) == (True, 2, 3)
    assert rows_of(first).num_rows == 4  # of a table that was published nothing changes
    assert Path(newer.table.store.root, "LATEST").read_text().strip() == newer.table.record.folder


@pytest.mark.parametrize("deaths", [0, 1, 2])
def test_a_run_that_dies_shows_no_reader_a_table_and_the_same_command_finishes(
    job: Job, deaths: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.embed()
    monkeypatch.setattr(feature_plan, "BUCKET_BYTES", 16)
    put_new, written = Store.put_new, []

    def dying(store: Store, key: str, content: bytes) -> bytes | None:
        written.append(key)
        if len([key for key in written if "probe" not in key]) > deaths:
            raise StorageError("dead")
        return put_new(store, key, content)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_new", dying)
        with pytest.raises(StorageError, match="dead"):
            job.features()
    with pytest.raises(StorageError, match="no feature table is published"):
        open_feature_table(str(job.file.parents[1] / "table"))
    finished = job.features()
    assert (finished.table.record.number, rows_of(finished).num_rows) == (1, 4)


def test_many_small_buckets_hold_the_same_rows_as_one(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.embed()
    whole = rows_of(job.features("features.aggregate=mean"))
    monkeypatch.setattr(feature_plan, "BUCKET_BYTES", 16)
    run = job.features("features.aggregate=mean")
    assert (run.table.record.number, len(run.table.record.files)) == (2, 2)  # ann's and bob's
    assert rows_of(run).drop_columns("embedding") == whole.drop_columns("embedding")
    np.testing.assert_allclose(embeddings_of(rows_of(run)), embeddings_of(whole), atol=1e-6)


def test_a_table_in_folders_of_days_reads_and_joins_as_one_file_does(job: Job) -> None:
    job.embed()
    whole = job.features().table
    table = job.features("features.partition_by=event_date").table
    assert sorted(file["path"] for file in table.record.files) == [
        "event_date=2026-01-01/00000.parquet",
        "event_date=2026-01-03/00000.parquet",
        "event_date=2026-01-31/00000.parquet",
    ]
    of_day = table.dataset().to_table(filter=pc.field("event_date") == datetime.date(2026, 1, 3))
    assert sorted(of_day["user"].to_pylist()) == ["ann", "bob"]
    order = [("user", "ascending"), ("event_timestamp", "ascending")]
    rows = table.dataset().to_table().sort_by(order)
    assert rows.drop_columns("event_date") == whole.dataset().to_table().sort_by(order)
    times = pa.array(["2026-01-02T00:00:00Z", "2026-01-09T00:00:00Z"] * 2).cast(pa.timestamp("us", "UTC"))
    training = pa.table({"user": ["ann", "ann", "bob", "bob"], "event_timestamp": times})
    joined = as_of_join(training, table.dataset(), ["user"])
    assert joined.drop_columns("event_date") == as_of_join(training, whole.dataset(), ["user"])
    assert "event_date" not in Path(table.store.root, "feature_view.py").read_text()
    counted = f"SELECT count(*) FROM '{table.address}/**/*.parquet' WHERE event_date = DATE '2026-01-03'"
    assert duckdb.connect().execute(counted).fetchall() == [(2,)]


def test_a_table_in_folders_of_an_entity_keeps_its_type(job: Job) -> None:
    job.embed()
    whole = job.features().table.dataset().to_table()
    table = job.features("features.partition_by=[user, event_date]").table
    assert "user=ann/event_date=2026-01-31/00000.parquet" in [file["path"] for file in table.record.files]
    rows = table.dataset().to_table(columns=whole.column_names)
    order = [("user", "ascending"), ("event_timestamp", "ascending")]
    assert rows.sort_by(order) == whole.sort_by(order)


def test_a_column_of_the_folders_is_an_entity_as_good_as_any(job: Job) -> None:
    vectors = vectors_by_id(job.embed("output.partition_by=[user]"))
    rows = rows_of(job.features("output.partition_by=[user]"))
    assert rows["user"].to_pylist() == ["ann", "ann", "ann", "bob"]
    np.testing.assert_array_equal(embeddings_of(rows)[3], vectors[4])


def test_the_table_is_published_on_s3_and_opened_from_there(tmp_path: Path, bucket: str) -> None:
    job = Job(tmp_path, reviews(), f"s3://{bucket}/table", entity="user", event_time="day")
    job.embed()
    assert job.features().is_new
    assert not job.features().is_new
    table = open_feature_table(f"s3://{bucket}/table")
    assert table.dataset().to_table(columns=["user"]).num_rows == 4
    times = pa.array(["2026-01-02T00:00:00Z", "2026-01-02T00:00:00Z"]).cast(pa.timestamp("us", "UTC"))
    joined = as_of_join(pa.table({"user": ["ann", "bob"], "event_timestamp": times}), table.dataset(), ["user"])
    assert [row["feature_timestamp"] and row["feature_timestamp"].day for row in joined.to_pylist()] == [1, None]
    view = table.store.read("feature_view.py") or b""
    assert b's3_endpoint_override=os.environ.get("AWS_ENDPOINT_URL", "")' in view


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("features.entity=nobody", "features.entity names nobody; add it to source.keep_columns"),
        ("features.event_time=never", "features.event_time names never; add it to source.keep_columns"),
        ("features.entity=usr", "features.entity names usr, no such column is kept; did you mean user?"),
        ("features.event_time=event_timestmp", "did you mean event_timestamp?"),
        ("features.windw_days=3", "did you mean features.window_days?"),
        ("features.window_days=3", "window_days needs aggregate: mean"),
        ("features.uri=corpus/table", "features.uri lies in source.uri"),
        ("features.name=my view", "features.name"),
        ("features.partition_by=day", "partition_by takes event_date and columns of features.entity"),
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(job: Job, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(job.path, [override, *(["source.uri=corpus"] if "corpus" in override else [])])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("features.event_time=n", "n is int64; expected a time"),
        ("features.event_time=word", "word holds a value that is no time"),
        ("features.entity=x", "x is double; expected string or integer"),
        ("features.dimensions=17", "the vectors of the snapshot have 16"),
    ],
)
def test_a_section_that_does_not_fit_the_snapshot_is_refused(tmp_path: Path, override: str, said: str) -> None:
    table = pa.table({"id": [1], "text": ["甲"], "n": [1], "word": ["soon"], "x": [0.5]})
    job = Job(tmp_path, table)
    job.embed()
    with pytest.raises(ConfigError) as caught:
        job.features(override)
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_command_prints_where_every_document_went(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.embed()
    assert main(["features", job.path, "--dry-run"]) == 0
    assert "Feature table 1 would be made of 4 rows of snapshot 1" in capsys.readouterr().out
    assert not (job.file.parents[1] / "table").exists()
    assert main(["features", job.path]) == 0
    printed = capsys.readouterr().out
    assert "Feature table 1 published in" in printed
    assert "4 = 4 rows + 0 superseded + 0 without key or time" in printed
    assert main(["features", job.path, "--json"]) == 0
    assert '"outcome":"nothing to do"' in capsys.readouterr().out
    assert main(["features", job.path, "--dry-run"]) == 0
    assert capsys.readouterr().out == "Feature table 1 stands; nothing to do\n"


def test_an_output_without_a_snapshot_or_without_the_column_is_told_with_what_to_do(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["features", job.path]) == 1
    assert "no snapshot is published there; check the address, or run `embed` first" in capsys.readouterr().err
    job.embed("source.keep_columns=[day]", "features.entity=id")
    assert main(["features", job.path]) == 2
    assert "keep user (source.keep_columns) and run `embed`" in capsys.readouterr().err


def test_a_config_without_the_section_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sections = {"source": {"uri": "in"}, "recipe": {"model": "hashing://8"}, "output": {"uri": "out"}}
    assert main(["features", written_config(tmp_path / "job.yaml", **sections)]) == 2
    assert "the config has no section features" in capsys.readouterr().err
