"""A driver that dies, and two drivers on one output: the next run finishes with the rows of an undisturbed one."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

from pipeline import open_snapshot
from pipeline.storage.filesystem import Store
from pipeline.storage.journal import read_journal
from tests.running import Finished, embed, ended, started, written_config

FILES, ROWS = 240, 32  # enough work that a run is in its middle when the Journal has its first receipts

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 files of 32 rows, each a Shard: enough work to be interrupted."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(FILES):
        rows = ({"id": f"{number}-{row}", "text": f"{number}-{row} " * 60} for row in range(ROWS))
        (folder / f"{number:03d}.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return folder


def config(folder: Path, corpus: Path, output: str, **sections: dict[str, Any]) -> str:
    shape = {"uri": output, "rows_per_part": 32}
    recipe = {"model": "hashing://1024", "max_tokens": 256}
    source, runtime = {"uri": str(corpus)}, {"without_ray_bytes": 0}
    path = folder / "job.yaml"
    return written_config(path, source=source, recipe=recipe, output=shape, runtime=runtime, **sections)


def wait_until(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Wait until something has happened; the process must still be running then."""
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, f"ended before it could be disturbed: {ended(process).stderr[-2000:]}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rows_of(output: str) -> pa.Table:
    rows = open_snapshot(output).to_table().drop_columns(["created_timestamp", "event_timestamp"])
    return rows.sort_by("id").combine_chunks()


def run_key_of(output: str) -> str:
    (run_key,) = Store(output).folders("_meta/runs")
    return run_key


@pytest.fixture(scope="module")
def two_drivers(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> tuple[str, Finished, Finished]:
    """Two drivers with the same output, the second started while the first works; and what became of them."""
    folder = tmp_path_factory.mktemp("two")
    path = config(folder, corpus, str(folder / "out"))
    first = started("embed", path, "--json")
    wait_until(lambda: any(folder.glob("out/_meta/claims/*/00000000.json")), first)
    second = embed(path, seconds=40)
    return str(folder / "out"), ended(first), second


def test_of_two_drivers_on_one_output_one_goes_on_and_the_other_stops(
    two_drivers: tuple[str, Finished, Finished],
) -> None:
    output, first, second = two_drivers
    assert (first.code, second.code) == (0, 3), first.stderr[-2000:] + second.stderr[-2000:]
    assert len(second.errors) == 1
    assert "another run" in second.errors[0]
    assert "Traceback" not in second.stderr
    assert first.report["embedded"] == rows_of(output).num_rows == FILES * ROWS


def test_the_driver_that_stopped_leaves_no_report_in_place_of_the_others(
    two_drivers: tuple[str, Finished, Finished],
) -> None:
    output, first, _ = two_drivers
    kept = orjson.loads(Path(output, "reports", f"{first.report['run_key']}.json").read_bytes())
    assert (kept["outcome"], kept["error"]) == ("published", None)


def disturbed(path: str, output: str, how: signal.Signals) -> tuple[Finished, int]:
    """End a run with a signal once its Journal has an entry; return it and the rows that were journalled then."""
    driver = started("embed", path, "--json")
    wait_until(lambda: len([*Path(output).glob("_meta/runs/*/journal/*.json")]) > 1, driver)  # the first is the fence
    driver.send_signal(how)
    finished = ended(driver)
    journal = read_journal(Store(output), run_key_of(output))
    assert journal.next_number >= 2
    return finished, sum(receipt.rows_read for _, receipt in journal.receipts)


def test_a_run_whose_driver_was_killed_goes_on_where_its_journal_ends(
    tmp_path: Path, corpus: Path, two_drivers: tuple[str, Finished, Finished]
) -> None:
    output = str(tmp_path / "out")
    path = config(tmp_path, corpus, output)
    killed, journalled = disturbed(path, output, signal.SIGKILL)
    assert killed.code == -signal.SIGKILL
    assert 0 < journalled < FILES * ROWS
    assert not Path(output, "_meta", "snapshots").exists()

    finished = embed(path)
    assert finished.code == 0, finished.stderr
    report = finished.report
    assert report["reused"] == journalled
    assert report["embedded"] == FILES * ROWS - journalled
    assert rows_of(output).equals(rows_of(two_drivers[0]))
    names = {path.name for path in Path(open_snapshot(output).folder).iterdir()}
    assert names == {path.name for path in Path(open_snapshot(two_drivers[0]).folder).iterdir()}


def test_a_run_over_a_changed_source_takes_over_what_a_stopped_one_has_done(tmp_path: Path, corpus: Path) -> None:
    output = str(tmp_path / "out")
    path = config(tmp_path, corpus, output)
    stopped, journalled = disturbed(path, output, signal.SIGTERM)
    assert (stopped.code, stopped.errors) == (
        1,
        ["error: stopped by SIGTERM; what was encoded is kept, run again to go on"],
    )
    fresh = corpus / "new.jsonl"
    fresh.write_bytes(b'{"id": "new", "text": "new"}\n')
    try:
        finished = embed(path)
        assert finished.code == 0, finished.stderr
        assert finished.report["reused"] >= journalled - ROWS  # the new file may join the Shard of a small neighbour
        assert rows_of(output)["id"].to_pylist().count("new") == 1
        assert rows_of(output).num_rows == FILES * ROWS + 1
    finally:
        fresh.unlink()
