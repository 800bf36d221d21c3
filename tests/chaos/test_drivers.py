"""The driver under faults: two at once, one that is asked to end, one whose storage is away for a while."""

from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from jobs.demo.local_s3 import LocalS3
from pipeline.storage.filesystem import Store
from pipeline.storage.journal import JournalRead, read_journal
from tests.chaos.conftest import FIRST_FILES, MILD, Corpus
from tests.chaos.disturbed import FLIGHT_SECONDS, Driver, World
from tests.chaos.proxy import FaultProxy
from tests.chaos.rows import check_folder, check_same, folder_rows, journal_entries

UNTOLD = 4
"""Blocks."""

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(1800)]


def journal_of(output: str) -> JournalRead | None:
    """Return what the one run of an output has journalled, None before it has begun."""
    store = Store(output)
    runs = store.folders("_meta/runs")
    return read_journal(store, runs[0]) if runs else None


def journalled(output: str, driver: Driver) -> JournalRead:
    """Wait until a run has journalled its first receipts, and return its Journal then."""

    def look() -> JournalRead | None:
        journal = journal_of(output)
        return journal if journal and journal.receipts else None

    found = driver.is_seen(look, FLIGHT_SECONDS)
    assert found is not None, driver.said[-3000:]
    return found


def not_yet_journalled(output: str, driver: Driver) -> JournalRead:
    """Wait until some Blocks are written that stand in no entry yet, and return the Journal then."""

    def look() -> JournalRead | None:
        parts = len(Store(output).files("snapshots"))  # before the Journal, which only grows
        journal = journal_of(output)
        is_behind = journal and journal.receipts and parts >= len(journal.receipts) + UNTOLD
        return journal if is_behind else None

    found = driver.is_seen(look, FLIGHT_SECONDS)
    assert found is not None, driver.said[-3000:]
    return found


@pytest.mark.long
def test_of_two_drivers_that_start_together_under_faults_one_goes_on_and_the_other_writes_nothing(
    world: World, proxy: FaultProxy, corpus: Corpus, straight: LocalS3, tmp_path: Path
) -> None:
    path, output = corpus.config(tmp_path, "two", FIRST_FILES)
    before = proxy.hits.total()
    proxy.set_rules(MILD)
    try:
        drivers = [world.start_driver(path, tmp_path / f"{name}.log") for name in ("one", "two")]
        codes = [driver.wait() for driver in drivers]
    finally:
        proxy.set_rules([])
    assert sorted(codes) == [0, 3], drivers[0].said[-2000:] + drivers[1].said[-2000:]
    (error,) = drivers[codes.index(3)].errors
    assert "another run" in error
    check_same(folder_rows(output), corpus.first_files(), least_cosine=1.0)
    check_folder(output)
    store = Store(output)
    (run_key,) = store.folders("_meta/runs")
    keys = [*store.files(f"_meta/runs/{run_key}/journal"), *store.files("_meta/claims")]
    writers = {orjson.loads(store.read(key) or b"")["driver"] for key in keys}
    assert len(writers) == 1
    assert proxy.hits.total() > before


def test_a_driver_that_is_asked_to_end_writes_its_journal_first(
    world: World, corpus: Corpus, straight: LocalS3, tmp_path: Path
) -> None:
    path, output = corpus.config(tmp_path, "term", FIRST_FILES)
    driver = world.start_driver(path, tmp_path / "term.log")
    before = not_yet_journalled(output, driver)
    assert driver.goes_on(0.5)  # the driver hears of them
    world.tally.sigterm_seconds.append(driver.terminate())
    world.tally.kills["driver (SIGTERM)"] += 1
    assert driver.process.returncode == 1
    assert driver.errors == ["error: stopped by SIGTERM; what was encoded is kept, run again to go on"]
    after = journal_of(output)
    assert after is not None
    assert after.next_number > before.next_number
    assert len(after.receipts) > len(before.receipts)

    again = world.start_driver(path, tmp_path / "again.log")
    assert again.wait() == 0, again.said[-3000:]
    assert again.report["reused"] == sum(receipt.rows_read for _, receipt in after.receipts)
    check_same(folder_rows(output), corpus.first_files(), least_cosine=1.0)
    check_folder(output)


@pytest.mark.long
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_storage_that_is_away_for_twenty_seconds_is_waited_for(
    world: World, corpus: Corpus, straight: LocalS3, tmp_path: Path, how: str
) -> None:
    path, output = corpus.config(tmp_path, f"outage-{how}")
    driver = world.start_driver(path, tmp_path / "outage.log")
    before = journalled(output, driver)
    leave: dict[str, Callable[[], None]] = {"killed": world.s3.kill, "frozen": world.freeze_s3}
    come_back: dict[str, Callable[[], None]] = {"killed": world.s3.start, "frozen": world.thaw_s3}
    leave[how]()
    world.tally.kills["S3 server"] += how == "killed"
    try:
        assert driver.goes_on(20), driver.said[-3000:]
    finally:
        come_back[how]()
    assert driver.wait() == 0, driver.said[-3000:]
    assert journal_entries(output) > before.next_number
    check_same(folder_rows(output), corpus.undisturbed, least_cosine=1.0)
    check_folder(output)
