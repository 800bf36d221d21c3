"""`expire`: what no kept snapshot needs goes, and nothing else; whatever it is interrupted by."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from pipeline import open_snapshot
from pipeline.config import JobConfig
from pipeline.errors import ReconciliationError, SnapshotConflict, StorageError
from pipeline.execution import run as execution
from pipeline.execution.planning.plan import Plan, make_plan
from pipeline.execution.verification.verify import verify
from pipeline.storage import expiry as expiring
from pipeline.storage import rollback
from pipeline.storage.claim import Claim
from pipeline.storage.expiry import Expiry, expire, find_removals, sweep
from pipeline.storage.filesystem import Store
from pipeline.storage.journal import condemn_run
from pipeline.storage.parquet import part_key
from pipeline.storage.rollback import roll_back
from pipeline.storage.snapshots import (
    load_snapshot,
    publish_snapshot,
    snapshot_key,
    snapshot_numbers,
    withdraw_snapshot,
)
from tests import inline
from tests.inline import FRAIL, run_inline
from tests.running import jobs, written_config

FILES = 3


def write(corpus: Path, file: int, day: int, frail: int = 0) -> None:
    """Write a file of five rows; another day gives other texts."""
    corpus.mkdir(exist_ok=True)
    rows = [{"id": f"{file}-{row}", "text": f"{FRAIL * (row < frail)}day {day} " + "x" * 300} for row in range(5)]
    path = corpus / f"{file}.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    os.utime(path, ns=(day * 10**9, day * 10**9))


def config_of(corpus: Path, output: str, **runtime: Any) -> JobConfig:
    return JobConfig.model_validate(
        {
            "source": {"uri": str(corpus)},
            "recipe": {"model": "hashing://8"},
            "output": {"uri": output, "rows_per_part": 3, "carry": runtime.pop("carry", "copy")},
            "runtime": runtime,
        }
    )


def published(corpus: Path, store: Store, days: int, **options: Any) -> None:
    """Publish a snapshot a day; every day one file is another."""
    for file in range(FILES):
        write(corpus, file, 1)
    for day in range(1, days + 1):
        write(corpus, day % FILES, day)
        assert run_inline(config_of(corpus, store.uri, **options)).snapshot == day


def removed(expiry: Expiry) -> list[str]:
    return [removal.name for removal in expiry.removals]


def parts_of(store: Store) -> set[str]:
    return store.files("snapshots").keys() | store.files("quarantine").keys()


def swept(store: Store, keep: int = 2) -> Expiry:
    """Expire as if everything were older than any grace."""
    return expire(store, keep, math.inf, is_dry_run=False)


def test_the_newest_snapshots_stay_whole_and_nothing_is_left_of_the_others(tmp_path: Path, store: Store) -> None:
    published(tmp_path / "corpus", store, days=4)
    before = [open_snapshot(store.uri, number).to_table().sort_by("id") for number in (3, 4)]
    gone = [f"run {load_snapshot(store, number).record.run_key}" for number in (1, 2)]  # type: ignore[union-attr]
    expiry = swept(store)
    assert (expiry.kept, expiry.is_partial) == ((3, 4), False)
    assert removed(expiry)[:2] == ["snapshot 1", "snapshot 2"]
    assert snapshot_numbers(store) == [3, 4]
    for number, rows in zip((3, 4), before, strict=True):
        snapshot = open_snapshot(store.uri, number)
        assert snapshot.to_table().sort_by("id").equals(rows)
        assert verify(snapshot).is_sound
    everything = store.files("_meta").keys() | parts_of(store) | store.files("reports").keys()
    assert not [key for key in everything for run in gone if run.removeprefix("run ") in key]
    with pytest.raises(StorageError, match="snapshot 1 is not published"):
        open_snapshot(store.uri, 1)


def test_numbers_go_on_after_an_expiry(tmp_path: Path, store: Store) -> None:
    published(tmp_path / "corpus", store, days=3)
    swept(store, keep=1)
    assert run_inline(config_of(tmp_path / "corpus", store.uri)).outcome == "nothing_to_do"
    write(tmp_path / "corpus", 0, 9)
    report = run_inline(config_of(tmp_path / "corpus", store.uri))
    assert (report.snapshot, report.embedded, report.reused) == (4, 5, 10)


def test_a_withdrawn_number_cannot_be_published_again(tmp_path: Path, store: Store) -> None:
    published(tmp_path / "corpus", store, days=2)
    first = load_snapshot(store, 1)
    assert first is not None
    withdraw_snapshot(store, 1)
    with pytest.raises(SnapshotConflict, match="snapshot 1"):
        publish_snapshot(store, first.record, [], [])
    assert snapshot_numbers(store) == [2]


def test_what_is_younger_than_the_grace_stays(tmp_path: Path, store: Store) -> None:
    published(tmp_path / "corpus", store, days=2)
    before = store.files("_meta").keys()
    expiry = expire(store, 1, older_than=0.0, is_dry_run=False)
    assert (expiry.kept, expiry.removals) == ((1, 2), ())
    assert before <= store.files("_meta").keys()


def test_snapshots_are_kept_for_a_time_by_the_grace_alone(tmp_path: Path, local: Store) -> None:
    published(tmp_path / "corpus", local, days=4)
    day = 24 * 3600
    for number, age in ((1, 40), (2, 31), (3, 29)):
        os.utime(Path(local.uri, snapshot_key(number)), (time.time() - age * day,) * 2)
    older_than = time.time() - 30 * day  # --keep 1 --grace-hours 720
    assert expire(local, 1, older_than, is_dry_run=False).kept == (3, 4)
    for number in (3, 4):
        assert verify(open_snapshot(local.uri, number)).is_sound


def test_a_dry_run_says_what_would_go_and_touches_nothing(tmp_path: Path, store: Store) -> None:
    published(tmp_path / "corpus", store, days=3)
    before = [store.files(top) for top in ("_meta", "snapshots", "reports")]
    expiry = expire(store, 1, math.inf, is_dry_run=True)
    assert [store.files(top) for top in ("_meta", "snapshots", "reports")] == before
    assert expiry.removals == swept(store, keep=1).removals
    assert all(removal.files and removal.size_bytes for removal in expiry.removals)
    keys = [key for removal in expiry.removals for key in (*removal.first, *removal.rest)]
    assert len(keys) == len(set(keys))


def test_parts_that_a_kept_snapshot_refers_to_stay_and_their_neighbours_go(tmp_path: Path, local: Store) -> None:
    published(tmp_path / "corpus", local, days=3, carry="reference")
    first, newest = open_snapshot(local.uri, 1), open_snapshot(local.uri)
    parts = first.parts.num_rows
    swept(local, keep=1)
    assert verify(newest).is_sound
    left = {path for path in parts_of(local) if first.record.folder in path}
    assert 0 < len(left) < parts
    assert newest.to_table().num_rows == 5 * FILES


def dead_run(corpus: Path, output: str) -> None:
    """Leave what a run leaves that may not publish."""
    write(corpus, 0, 99, frail=1)
    with pytest.raises(ReconciliationError):
        run_inline(config_of(corpus, output, max_quarantined_fraction=0.0), is_sick=True)


def test_what_dead_runs_have_left_goes(tmp_path: Path, store: Store) -> None:
    published(tmp_path / "corpus", store, days=1)
    before = parts_of(store) | store.files("_meta/runs").keys()
    dead_run(tmp_path / "corpus", store.uri)
    assert parts_of(store) - before
    swept(store)
    assert parts_of(store) | store.files("_meta/runs").keys() == before


def test_what_unfinished_runs_have_left_stays_while_a_run_holds_the_output(tmp_path: Path, local: Store) -> None:
    published(tmp_path / "corpus", local, days=2)
    dead_run(tmp_path / "corpus", local.uri)
    with Claim(local, 3):
        expiry = swept(local, keep=1)
    assert (removed(expiry), expiry.is_partial) == (["snapshot 1"], True)
    assert run_inline(config_of(tmp_path / "corpus", local.uri, max_quarantined_fraction=1.0)).reused == 14


def test_an_expiry_that_slept_takes_nothing_from_a_run_that_went_on_meanwhile(tmp_path: Path, local: Store) -> None:
    """The state machine found this: the run was published, and then its Parts were removed as those of a dead one."""
    for file in range(FILES):
        write(tmp_path / "corpus", file, 1)
    config = config_of(tmp_path / "corpus", local.uri)
    with pytest.raises(inline.Killed):
        run_inline(config, dies_after_blocks=2)
    seen_before_sleep = find_removals(local, 1, math.inf, with_leftovers=True)
    assert run_inline(config).reused > 0
    sweep(local, seen_before_sleep)
    assert verify(open_snapshot(local.uri)).is_sound


def test_an_expiry_that_slept_takes_nothing_from_a_rollback_meanwhile(tmp_path: Path, local: Store) -> None:
    published(tmp_path / "corpus", local, days=3, carry="reference")
    rows = open_snapshot(local.uri, 2).to_table()
    seen_before_sleep = find_removals(local, 1, math.inf, with_leftovers=True)
    roll_back(local, 2)
    with pytest.raises(SnapshotConflict, match="a rollback goes back to snapshot 2"):
        sweep(local, seen_before_sleep)
    assert verify(open_snapshot(local.uri)).is_sound
    assert removed(swept(local, keep=1))[0] == "snapshot 3"
    assert open_snapshot(local.uri).to_table().equals(rows)


def test_no_expiry_removes_the_parts_of_a_rollback_that_stands_still(tmp_path: Path, local: Store) -> None:
    published(tmp_path / "corpus", local, days=3)
    parts = [part_key(part.kind, folder, part.path) for folder, part in open_snapshot(local.uri, 2).placed_parts()]
    marker, soon = f"_meta/claims/00000004/{'0' * 32}.back-to-00000002", time.time() + 60
    local.put(marker, b"")
    os.utime(local.path_of(marker), (soon + 1, soon + 1))
    for _ in range(2):  # the second one takes them for Parts of a dead run
        with pytest.raises(SnapshotConflict, match="a rollback goes back to snapshot 2"):
            sweep(local, find_removals(local, 1, soon, with_leftovers=True))
        assert snapshot_numbers(local) == [3]
    assert all(local.stat(key) for key in parts)


def test_a_rollback_to_what_expires_meanwhile_publishes_nothing_and_leaves_nothing(
    tmp_path: Path, local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(tmp_path / "corpus", local, days=3)

    def claimed(*arguments: Any) -> Claim:
        sweep(local, find_removals(local, 1, math.inf, with_leftovers=False))
        return Claim(*arguments)

    monkeypatch.setattr(rollback, "Claim", claimed)
    with pytest.raises(SnapshotConflict, match="snapshot 2 has expired meanwhile"):
        roll_back(local, 2)
    assert snapshot_numbers(local) == [3]
    swept(local, keep=1)
    assert not [key for key in local.files("_meta/claims") if "back-to" in key]
    assert verify(open_snapshot(local.uri)).is_sound


def test_a_run_does_not_go_on_where_an_expiry_is_at_work(tmp_path: Path, local: Store) -> None:
    for file in range(FILES):
        write(tmp_path / "corpus", file, 1)
    config = config_of(tmp_path / "corpus", local.uri)
    with pytest.raises(inline.Killed):
        run_inline(config, dies_after_blocks=2)
    (dead,) = local.folders("_meta/runs")
    condemn_run(local, dead)
    report = run_inline(config)
    assert (report.reused, report.embedded, report.snapshot) == (0, 5 * FILES, 1)
    assert report.run_key != dead
    assert dead not in open_snapshot(local.uri).folder


def test_an_expiry_between_plan_and_claim_has_the_run_plan_again(
    tmp_path: Path, local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(tmp_path / "corpus", local, days=1)
    dead_run(tmp_path / "corpus", local.uri)
    write(tmp_path / "corpus", 1, 50)  # another run than the dead one, which takes over a whole Shard of it
    config = config_of(tmp_path / "corpus", local.uri, max_quarantined_fraction=1.0)
    plans: list[Plan] = []

    def planned(*arguments: Any) -> Plan:
        plans.append(make_plan(*arguments))
        if len(plans) == 1:
            assert any(removal.dead_run for removal in swept(local).removals)
        return plans[-1]

    monkeypatch.setattr(execution, "make_plan", planned)
    report = run_inline(config)
    assert [len(plan.embed) for plan in plans] == [1, 2]
    assert (report.snapshot, report.embedded, report.reused) == (2, 10, 5)
    assert verify(open_snapshot(local.uri)).is_sound


def test_what_is_not_of_this_pipelines_making_stays(tmp_path: Path, store: Store) -> None:
    published(tmp_path / "corpus", store, days=1)
    strangers = ["snapshots/notes.txt", "snapshots/mine/a.parquet", "_meta/other/b", "reports/weekly.html"]
    for key in strangers:
        store.put(key, b"mine")
    swept(store)
    assert all(store.read(key) == b"mine" for key in strangers)


IN_USE, SUPERSEDED, UNNAMED = "a" * 32, "b" * 32, "c" * 32
OF_CALIBRATION_IN_USE = {f"_meta/calibrations/{IN_USE}/model.xml", f"_meta/calibrations/{'1' * 32}.json"}


def with_calibrations(corpus: Path, store: Store) -> None:
    """Publish a snapshot that was made with one calibration; another recipe has had one, and one has lost a race."""
    published(corpus, store, days=1)
    first = load_snapshot(store, 1)
    assert first is not None
    recipe = first.recipe | {"calibration_identity": IN_USE}
    publish_snapshot(store, replace(first.record, number=2, recipe=recipe), [], [])
    for identity in (IN_USE, SUPERSEDED, UNNAMED):
        store.put(f"_meta/calibrations/{identity}/model.xml", b"quantised")
    for recipe_key, identity in (("1" * 32, IN_USE), ("2" * 32, SUPERSEDED)):
        store.put(f"_meta/calibrations/{recipe_key}.json", orjson.dumps({"identity": identity}))


def test_a_calibration_goes_that_no_kept_snapshot_was_made_with(tmp_path: Path, store: Store) -> None:
    with_calibrations(tmp_path / "corpus", store)
    assert not [name for name in removed(expire(store, 1, 0.0, is_dry_run=True)) if "calibration" in name]
    would = expire(store, 1, math.inf, is_dry_run=True)
    assert [name for name in removed(would) if "calibration" in name] == [
        f"calibration {SUPERSEDED}",
        f"calibration {UNNAMED}",
    ]
    assert swept(store, keep=1).removals == would.removals
    assert store.files("_meta/calibrations").keys() == OF_CALIBRATION_IN_USE


def test_calibrations_stay_while_a_run_may_use_them(tmp_path: Path, local: Store) -> None:
    with_calibrations(tmp_path / "corpus", local)
    before = local.files("_meta/calibrations")
    with Claim(local, 3):
        swept(local, keep=1)
    assert local.files("_meta/calibrations") == before
    plan = "_meta/runs/" + "d" * 32 + "/plan.parquet"
    local.put(plan, b"of a run that has died and may be resumed")
    os.utime(Path(local.uri, plan), (2**31, 2**31))
    expire(local, 1, 2**31 - 1, is_dry_run=False)
    assert local.files("_meta/calibrations") == before


def test_what_names_a_calibration_goes_before_its_files(
    tmp_path: Path, local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_calibrations(tmp_path / "corpus", local)
    order: list[str] = []
    monkeypatch.setattr(local, "delete", order.append)
    swept(local, keep=1)
    of_superseded = [key for key in order if SUPERSEDED in key or "2" * 32 in key]
    assert of_superseded == [f"_meta/calibrations/{'2' * 32}.json", f"_meta/calibrations/{SUPERSEDED}/model.xml"]


def test_temporary_files_of_writers_that_died_go(tmp_path: Path, local: Store) -> None:
    published(tmp_path / "corpus", local, days=1)
    local.put("_meta/tmp/0123", b"half a part")
    assert "_meta/tmp/0123" in removed(swept(local))
    assert local.files("_meta/tmp") == {}


class Killed(BaseException):
    """The process is dead."""


def dying_after(operation: Callable[..., None], calls: int) -> Callable[..., None]:
    """Return the operation, as of a process that dies when it has been called so often."""
    left = iter(range(calls))

    def called(*arguments: Any) -> None:
        if next(left, None) is None:
            raise Killed
        operation(*arguments)

    return called


@pytest.mark.parametrize("calls", [0, 1, 2, 3, 5, 8, 13])
def test_an_expiry_that_dies_leaves_every_snapshot_whole_and_the_next_one_finishes(
    tmp_path: Path, local: Store, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    published(tmp_path / "corpus", local, days=3)
    with monkeypatch.context() as patch:
        patch.setattr(expiring, "REMOVERS", 1)
        patch.setattr(local, "delete", dying_after(local.delete, calls))
        with pytest.raises(Killed):
            swept(local, keep=1)
    for number in snapshot_numbers(local):
        assert verify(open_snapshot(local.uri, number)).is_sound
    assert run_inline(config_of(tmp_path / "corpus", local.uri)).outcome == "nothing_to_do"
    swept(local, keep=1)
    newest = open_snapshot(local.uri)
    assert parts_of(local) == {f"snapshots/{newest.record.folder}/{path}" for path in newest.parts["path"].to_pylist()}
    assert local.folders("_meta/runs") == [newest.record.run_key]
    assert local.folders("snapshots") == [newest.record.folder]


def test_a_snapshot_whose_parts_others_refer_to_keeps_them_until_these_are_withdrawn_too(
    tmp_path: Path, local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(tmp_path / "corpus", local, days=3, carry="reference")
    monkeypatch.setattr(expiring, "withdraw_snapshot", dying_after(withdraw_snapshot, 1))
    with pytest.raises(Killed):
        swept(local, keep=1)
    assert snapshot_numbers(local) == [2, 3]
    assert verify(open_snapshot(local.uri, 2)).is_sound


def test_the_command_says_what_goes_and_keeps_what_the_config_says(tmp_path: Path, local: Store) -> None:
    published(tmp_path / "corpus", local, days=3)
    output = {"uri": local.uri, "keep_snapshots": 2}
    recipe = {"model": "hashing://8"}
    path = written_config(tmp_path / "job.yaml", source={"uri": str(tmp_path / "corpus")}, recipe=recipe, output=output)
    would = jobs("expire", path, "--dry-run", "--grace-hours", "0", "--json")
    assert (would.code, would.report["kept"], would.report["dry_run"]) == (0, [2, 3], True)
    assert would.report["removed"][0]["name"] == "snapshot 1"
    assert snapshot_numbers(local) == [1, 2, 3]
    assert "0 files" in jobs("expire", path).stdout  # all of it is younger than a day
    done = jobs("expire", local.uri, "--keep", "1", "--grace-hours", "0")
    assert done.code == 0
    assert "removed\n  snapshot 1: " in done.stdout
    assert "1 snapshot kept: 3" in done.stdout
    assert snapshot_numbers(local) == [3]


def test_the_newest_snapshot_cannot_be_asked_away(tmp_path: Path) -> None:
    finished = jobs("expire", str(tmp_path), "--keep", "0")
    assert finished.code == 2
    assert "the newest snapshot always stays" in finished.stderr
