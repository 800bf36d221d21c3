"""`expire` of feature tables: the newest stay whole, fits stay, whatever it is interrupted by."""

import math
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from pipeline.errors import StorageError
from pipeline.execution.feature_tables import feature_table
from pipeline.storage.feature_expiry import expire_tables
from pipeline.storage.feature_tables import load_feature_table, open_feature_table, table_numbers
from pipeline.storage.filesystem import Store
from tests.test_feature_table import Job, reviews, rows_of


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job of which three tables are published, with one row less each."""
    job = Job(tmp_path, reviews(), entity="user", event_time="day", stored="int8", int8_scale="corpus")
    for rows in (4, 3, 2):
        pq.write_table(reviews().slice(0, rows), job.file)
        job.embed()
        job.features()
    return job


def store_of(job: Job) -> Store:
    return Store(str(job.file.parents[1] / "table"))


def test_the_newest_tables_and_every_fit_stay(job: Job) -> None:
    store = store_of(job)
    fits = store.files("_meta/transforms")
    would = expire_tables(store, 2, math.inf, is_dry_run=True)
    assert table_numbers(store) == [1, 2, 3]
    expiry = expire_tables(store, 2, math.inf, is_dry_run=False)
    assert would == expiry
    assert (expiry.kept, [removal.name for removal in expiry.removals]) == ((2, 3), ["feature table 1"])
    assert table_numbers(store) == [2, 3]
    assert load_feature_table(store, 1) is None
    assert [name[:8] for name in store.folders("tables")] == ["00000002", "00000003"]
    assert rows_of(job.features()).num_rows == 2
    assert store.files("_meta/transforms") == fits != {}


def test_numbers_go_on_after_an_expiry_and_what_is_young_stays(job: Job) -> None:
    store = store_of(job)
    assert expire_tables(store, 1, 0.0, is_dry_run=False).removals == ()
    expire_tables(store, 1, math.inf, is_dry_run=False)
    assert job.features("features.dimensions=8").table.record.number == 4
    assert open_feature_table(store.uri).record.number == 4


def test_what_dead_runs_have_left_goes_and_what_is_not_ours_stays(job: Job) -> None:
    store = store_of(job)
    left, mine = f"tables/00000002-{'a' * 32}/00000.parquet", "tables/notes.txt"
    for key in (left, mine, "_meta/tmp/0123"):
        store.put(key, b"x")
    expire_tables(store, 3, math.inf, is_dry_run=False)
    assert (store.read(left), store.read("_meta/tmp/0123"), store.read(mine)) == (None, None, b"x")
    assert table_numbers(store) == [1, 2, 3]


def test_old_files_that_a_run_may_still_adopt_stay_until_their_number_has_passed(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(job)

    def dying(*_: object) -> None:
        raise StorageError("dead")

    with monkeypatch.context() as patch:
        patch.setattr(feature_table, "publish_feature_table", dying)
        for dimensions in (8, 4):
            with pytest.raises(StorageError, match="dead"):
                job.features(f"features.dimensions={dimensions}")
    left = {name for name in store.folders("tables") if name.startswith("00000004-")}
    assert expire_tables(store, 3, math.inf, is_dry_run=False).removals == ()
    finished = job.features("features.dimensions=8").table
    assert rows_of(job.features("features.dimensions=8")).num_rows == 2
    expiry = expire_tables(store, 4, math.inf, is_dry_run=False)
    assert {removal.name for removal in expiry.removals} == left - {finished.record.folder}
    assert len(left) == 2


@pytest.mark.parametrize("deaths", [0, 1])
def test_an_expiry_that_dies_leaves_whole_tables_and_the_next_one_finishes(
    job: Job, monkeypatch: pytest.MonkeyPatch, deaths: int
) -> None:
    store, left = store_of(job), iter(range(deaths))
    delete = store.delete

    def dying(key: str) -> None:
        if next(left, None) is None:
            raise StorageError("dead")
        delete(key)

    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", dying)
        with pytest.raises(StorageError, match="dead"):
            expire_tables(store, 1, math.inf, is_dry_run=False)
    for number in table_numbers(store):
        table = load_feature_table(store, number)
        assert table is not None
        assert table.dataset().count_rows() == table.record.totals["rows"]
    expire_tables(store, 1, math.inf, is_dry_run=False)
    assert [name[:8] for name in store.folders("tables")] == ["00000003"]


def test_the_command_expires_snapshots_and_tables_of_a_config_and_tables_of_an_address(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*arguments: str) -> Any:
        assert main(["expire", *arguments, "--grace-hours", "0", "--json"]) == 0
        return orjson.loads(capsys.readouterr().out)

    facts = told(job.path, "features.keep_tables=2", "output.keep_snapshots=1")
    assert (facts["kept"], facts["features"]["kept"]) == ([3], [2, 3])
    assert told(store_of(job).uri, "--keep", "1")["kept"] == [3]
    assert main(["expire", store_of(job).uri]) == 0
    assert "1 feature table kept: 3" in capsys.readouterr().out
