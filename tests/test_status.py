"""`status`: what it reads of an output, of a run that works on it, and of one that has died."""

import os
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from jobs.status import cost_of, pace_of, status_text
from pipeline.config import JobConfig
from pipeline.config_file import load_config
from pipeline.execution.planning.standing import Step, Unfinished, read_standing
from pipeline.storage.claim import Claim
from pipeline.storage.filesystem import Store
from pipeline.storage.journal import Journal, read_journal
from tests.inline import Killed, run_inline
from tests.running import written_config


@pytest.fixture
def config_path(tmp_path: Path) -> str:
    """A corpus of 4 files with 50 rows each, of which the first of every file has no text."""
    (tmp_path / "in").mkdir()
    for number in range(4):
        rows = range(number * 50, number * 50 + 50)
        texts = ["some words of a text" if row % 50 else " " for row in rows]
        pq.write_table(pa.table({"id": list(rows), "text": texts}), tmp_path / "in" / f"{number}.parquet")
    return written_config(
        tmp_path / "job.yaml",
        source={"uri": str(tmp_path / "in")},
        recipe={"model": "hashing://8"},
        output={"uri": str(tmp_path / "out"), "rows_per_part": 20},
        runtime={"max_quarantined_fraction": 0.1},
    )


@pytest.fixture
def config(config_path: str) -> JobConfig:
    return load_config(config_path)


def left_by_a_dead_driver(config: JobConfig) -> Store:
    """Return an output in which a run has died after some Blocks."""
    with pytest.raises(Killed):
        run_inline(config, dies_after_blocks=5)
    return Store(config.output.uri)


def text_of(store: Store, price: float | None = None) -> str:
    return status_text(store, read_standing(store), price, 0.0)


def test_a_published_snapshot_is_shown_with_rows_size_recipe_duration_and_quarantine(config: JobConfig) -> None:
    report = run_inline(config)
    text = text_of(Store(config.output.uri))
    row = text.splitlines()[2].split()
    assert row[0] == "1"
    assert row[2] == "196"
    assert report.fingerprint[:12] in row
    assert "196 embedded, 0 reused, 4 quarantined" in text
    assert "quarantine  4 empty_text" in text


def test_the_cost_is_encoders_times_hours_times_price(config: JobConfig) -> None:
    run_inline(config)
    store = Store(config.output.uri)
    key = f"reports/{read_standing(store).published[0].snapshot.record.run_key}.json"
    report = orjson.loads(store.read(key) or b"")
    store.put(key, orjson.dumps(report | {"encoders": 4, "seconds": {"start": 600.0, "run": 3000.0, "total": 3700.0}}))
    published = read_standing(store).published[0]
    assert published.encoder_hours == pytest.approx(4.0)
    assert cost_of(published, 2.5) == pytest.approx(10.0)
    assert cost_of(published, None) is None
    assert "10.00" in text_of(store, 2.5)


def test_a_run_whose_driver_is_dead_is_told_as_one_to_go_on_with(config: JobConfig) -> None:
    store = left_by_a_dead_driver(config)
    (run,) = read_standing(store).unfinished
    receipts = read_journal(store, run.run_key).receipts
    assert not run.is_alive
    assert run.steps[-1].rows == sum(receipt.rows_read for _, receipt in receipts) > 0
    assert run.shards_done < run.shards
    assert run.steps[-1].fraction < 1
    assert sum(run.quarantined.values()) == sum(receipt.quarantined for _, receipt in receipts)
    assert "has ended without publishing; run the same command to go on" in text_of(store)


def test_a_run_whose_driver_lives_is_told_with_its_process(config: JobConfig) -> None:
    store = left_by_a_dead_driver(config)
    (dead,) = read_standing(store).unfinished
    with Claim(store, dead.number) as claim:
        folder, next_number = f"{dead.number:08d}-{dead.run_key}", read_journal(store, dead.run_key).next_number
        Journal(store, dead.run_key, folder, claim.driver, next_number).append([])
        (run,) = read_standing(store).unfinished
        assert run.is_alive
        assert len(run.steps) == 1, "what the driver before has done says nothing of the pace of this one"
        assert run.steps[0].rows == dead.steps[-1].rows
        assert f"works (process {os.getpid()} on " in text_of(store)
    assert not read_standing(store).unfinished[0].is_alive


def test_a_run_that_has_published_is_no_run_any_more(config: JobConfig) -> None:
    store = left_by_a_dead_driver(config)
    run_inline(config)
    standing = read_standing(store)
    assert standing.unfinished == ()
    assert [one.snapshot.number for one in standing.published] == [1]


def test_the_end_of_a_run_follows_from_its_journal() -> None:
    steps = tuple(Step(1000.0 + 10 * n, 100 * n, 5000 * n, n / 20) for n in range(11))
    run = Unfinished("key", 1, None, 20, 10, steps, {}, 0, 0)
    rate, end = pace_of(run, 1104.0)
    assert rate == pytest.approx(500)
    assert end == pytest.approx(1200)


def test_the_json_holds_snapshots_runs_and_what_a_run_now_would_do(
    config_path: str, config: JobConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run_inline(config)
    pq.write_table(pa.table({"id": [1000], "text": ["new"]}), Path(config.source.uri[0]) / "new.parquet")
    assert main(["status", config_path, "--json", "--price", "3"]) == 0
    facts = orjson.loads(capsys.readouterr().out)
    assert facts["snapshots"][0]["totals"]["rows"] == 196
    assert facts["snapshots"][0]["quarantined"] == {"empty_text": 4}
    assert facts["runs"] == []
    assert facts["plan"]["rows"] == 201
    assert facts["plan"]["shards_done"] < facts["plan"]["shards"]


def test_watching_an_output_on_which_nobody_works_ends_at_once(
    config_path: str, config: JobConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run_inline(config)
    assert main(["status", config_path, "--watch"]) == 0
    assert "1 snapshot, newest 1" in capsys.readouterr().err


def test_watching_waits_for_a_run_that_was_just_submitted_and_not_for_ever(
    config_path: str, config: JobConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.status.PATIENCE_SECONDS", 0.0)
    assert main(["status", config_path, "--watch"]) == 1
    assert "--watch for a run that was just submitted" in capsys.readouterr().err
    monkeypatch.setattr("jobs.status.PATIENCE_SECONDS", 60.0)
    monkeypatch.setattr("jobs.status.time.sleep", lambda seconds: run_inline(config))
    assert main(["status", config_path, "--watch"]) == 0
    assert "1 snapshot, newest 1" in capsys.readouterr().err
