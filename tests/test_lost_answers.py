"""Neither a lost answer nor a wrong clock fences the rightful driver: what it wrote itself is known as its own."""

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import SnapshotConflict, StorageError
from pipeline.storage import claim as claims
from pipeline.storage.claim import Claim
from pipeline.storage.filesystem import Store
from pipeline.storage.journal import Journal, read_journal
from pipeline.storage.parquet import publish_part
from pipeline.storage.snapshots import open_snapshot, publish_snapshot
from tests.test_claim import beat, on_another_machine
from tests.test_storage import METADATA, NAME, receipt, record, rows

HOURS = 3600.0


@pytest.fixture
def lossy(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An output of which every answer to a write is lost: the client tries again by itself and is refused."""
    create = store._create

    def create_twice(path: str, content: bytes) -> None:
        create(path, content)
        create(path, content)

    monkeypatch.setattr(store, "_create", create_twice)
    return store


def test_a_lossy_store_refuses_the_second_try(lossy: Store) -> None:
    with pytest.raises(OSError, match=r"File exists|pre-?condition"):
        lossy._create(lossy.path_of("key"), b"content")


def test_a_key_is_known_as_ones_own_and_that_of_another_is_not(lossy: Store) -> None:
    assert lossy.put_new("key", b"mine") is None
    assert lossy.put_new("key", b"another's") == b"mine"


def test_a_part_is_known_as_ones_own(lossy: Store) -> None:
    part = publish_part(lossy, NAME, rows(), METADATA)
    assert publish_part(lossy, NAME, rows(), METADATA) == part


def test_a_journal_goes_on_after_entries_whose_answer_was_lost(lossy: Store) -> None:
    journal = Journal(lossy, "run", "folder", "driver", 0)
    for block in range(3):
        journal.append([receipt(block)])
    assert [one.block for _, one in read_journal(lossy, "run").receipts] == [0, 1, 2]
    with pytest.raises(SnapshotConflict, match="taken over"):
        Journal(lossy, "run", "folder", "another driver", 2).append([receipt(2)])


def test_a_claim_is_held_though_its_answer_was_lost(lossy: Store) -> None:
    with Claim(lossy, 1) as mine:
        assert (mine.epoch, mine.is_lost()) == (0, False)
        with pytest.raises(SnapshotConflict):
            Claim(lossy, 1)


def test_a_snapshot_whose_answer_was_lost_is_published_and_belongs_to_its_driver(lossy: Store) -> None:
    part = publish_part(lossy, NAME, rows(), METADATA)
    publish_snapshot(lossy, record(), [("00000001-run", part)], [])
    found = open_snapshot(lossy.uri)
    assert (found.record.driver, found.parts.num_rows, lossy.read("LATEST")) == ("me", 1, b"00000001-run\n")
    with pytest.raises(SnapshotConflict, match="published by another run"):
        publish_snapshot(lossy, record(run_key="late"), [], [])


def test_the_probe_is_not_deceived_by_lost_answers(lossy: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lossy.check_writable()
    monkeypatch.setattr(lossy, "_create", lambda path, content: lossy.filesystem.pipe_file(path, content))
    with pytest.raises(StorageError, match="does not enforce put-if-absent"):
        lossy.check_writable()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let hearts beat five times a second."""
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.2)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("hours", [-30.0, 30.0])
def test_a_clock_that_is_wrong_by_hours_takes_no_claim_from_a_driver_that_beats(
    local: Store, monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    on_another_machine(local)
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + hours * HOURS)
    assert is_taken_while(local, lambda number: beat(local, "them", number)) is False


@pytest.mark.usefixtures("hurried")
def test_a_clock_that_jumps_while_the_claim_is_held_changes_nothing(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = time.time
    with Claim(local, 1) as mine:
        for hours in (-30.0, 30.0):
            monkeypatch.setattr(time, "time", lambda hours=hours: right() + hours * HOURS)
            with pytest.raises(SnapshotConflict):
                Claim(local, 1)
            assert not mine.is_lost()


@pytest.mark.usefixtures("hurried")
def test_a_driver_that_a_store_out_of_reach_kept_from_beating_is_not_taken_for_dead(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_another_machine(local)
    read, looks, is_back = local.read, itertools.count(), threading.Event()

    def out_of_reach_once(key: str) -> bytes | None:
        content = read(key)
        if key.endswith(".beat") and next(looks) == 2:
            time.sleep(1.5 * claims.BEAT_SECONDS * claims.PATIENCE_BEATS)
            is_back.set()
        return content

    monkeypatch.setattr(local, "read", out_of_reach_once)
    with ThreadPoolExecutor(1) as pool:
        mine = pool.submit(Claim, local, 1)
        assert is_back.wait(30)
        beat(local, "them", 2)
        with pytest.raises(SnapshotConflict, match="on far"):
            mine.result()


def is_taken_while(store: Store, act: Callable[[int], None]) -> bool:
    """Return whether the claim can be taken while something happens again and again."""
    with ThreadPoolExecutor(1) as pool:
        mine = pool.submit(Claim, store, 1)
        for number in range(2, 500):
            if mine.done():
                break
            act(number)
            time.sleep(0.02)
        return not isinstance(mine.exception(), SnapshotConflict)
