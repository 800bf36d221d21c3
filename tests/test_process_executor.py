"""Runs without Ray: they give what a run on Ray gives, and who is killed in one loses and doubles no row."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

from pipeline import open_snapshot
from pipeline.config import JobConfig
from pipeline.config_file import load_config
from pipeline.errors import EncoderError, PipelineError, Stopped
from pipeline.execution.attempts import Attempts
from pipeline.execution.executors import process_worker
from pipeline.execution.executors.choice import needs_ray
from pipeline.execution.executors.process_executor import ProcessExecutor, Worker, WorkerDied
from pipeline.execution.planning.plan import make_plan
from pipeline.execution.verification.verify import verify
from pipeline.schemas import part_schema
from pipeline.storage.filesystem import Store
from tests.running import ROOT, Finished, embed, ended, started, written_config
from tests.watching import command_line, family_of

FILES, ROWS, ROWS_PER_PART = 4, 120, 4
BLOCKS = FILES * ROWS // ROWS_PER_PART
PART_SCHEMA = part_schema(pa.string(), [], 8, "float32", chunked=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """480 texts, some of them twice, and a line that is none."""
    folder = tmp_path_factory.mktemp("corpus")
    for file in range(FILES):
        rows = [{"id": f"{file}-{row}", "text": f"text {file} {row % 110} " + "x" * 200} for row in range(ROWS)]
        lines = b"".join(orjson.dumps(row) + b"\n" for row in rows)
        (folder / f"{file}.jsonl").write_bytes(lines + (b'{"id": \n' if file == 2 else b""))
    return folder


def config_of(folder: Path, corpus: Path, rows_per_part: int = ROWS_PER_PART, **runtime: Any) -> str:
    return written_config(
        folder / "job.yaml",
        source={"uri": str(corpus)},
        recipe={"model": "hashing://512"},
        output={"uri": str(folder / "out"), "rows_per_part": rows_per_part},
        runtime={"look_for_repeats": True} | runtime,
    )


def rows_of(folder: Path) -> pa.Table:
    rows = open_snapshot(str(folder / "out")).to_table().drop_columns(["created_timestamp", "event_timestamp"])
    return rows.sort_by("id").combine_chunks()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> tuple[Path, Finished]:
    """A run without Ray that nobody has disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finished = embed(config_of(folder, corpus))
    assert finished.code == 0, finished.stderr[-3000:]
    return folder, finished


def test_a_run_without_ray_publishes_what_one_on_ray_does(tmp_path: Path, corpus: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    runs = []
    for folder, without_ray_bytes in ((here, 2**30), (there, 0)):
        folder.mkdir()
        runs.append(embed(config_of(folder, corpus, 60, without_ray_bytes=without_ray_bytes)))
        assert runs[-1].code == 0, runs[-1].stderr[-3000:]
    assert rows_of(here).equals(rows_of(there))
    counts = ("rows_read", "embedded", "quarantined", "reasons", "parts", "encoded_texts", "repeated_texts", "tokens")
    assert [runs[0].report[name] for name in counts] == [runs[1].report[name] for name in counts]
    assert runs[0].report["quarantined"] == 1
    assert runs[0].report["repeated_texts"] == FILES * 10
    assert verify(open_snapshot(str(here / "out"))).is_sound


def workers_of(driver: int) -> list[int]:
    """Return the worker processes of a driver."""
    return [pid for pid in family_of(driver) if process_worker.__name__ in command_line(pid)]


def parts_in(folder: Path) -> int:
    return len(list(folder.glob("out/snapshots/*/*.parquet")))


def has_parts(folder: Path, parts: int, driver: "subprocess.Popen[str]") -> bool:
    """Wait until a run has written so many Parts; false if it has ended before."""
    while parts_in(folder) < parts:
        if driver.poll() is not None:
            return False
        time.sleep(0.005)
    return True


def wait_for_end_of(pid: int) -> None:
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_worker_that_is_killed_again_and_again_loses_and_doubles_no_row(
    tmp_path: Path, corpus: Path, undisturbed: tuple[Path, Finished]
) -> None:
    driver = started("embed", config_of(tmp_path, corpus), "--json")
    kills = []
    for parts in range(10, BLOCKS, 25):
        if not has_parts(tmp_path, parts, driver):
            break
        for pid in workers_of(driver.pid):
            os.kill(pid, signal.SIGKILL)
            kills.append(pid)
    finished = ended(driver)
    assert finished.code == 0, finished.stderr[-3000:]
    assert len(set(kills)) >= 3, "the run was over before it was disturbed"
    assert rows_of(tmp_path).equals(rows_of(undisturbed[0]))
    assert finished.report["parts"] == undisturbed[1].report["parts"]
    assert finished.stderr.count("event=worker_died") == len(set(kills))
    assert verify(open_snapshot(str(tmp_path / "out"))).is_sound


def test_a_driver_that_is_killed_takes_its_worker_along_and_the_same_command_finishes(
    tmp_path: Path, corpus: Path, undisturbed: tuple[Path, Finished]
) -> None:
    config, commits = config_of(tmp_path, corpus), 0
    for parts in (20, 60):
        driver = started("embed", config, "--json")
        assert has_parts(tmp_path, parts, driver)
        (worker,) = workers_of(driver.pid)
        driver.kill()
        assert ended(driver).code == -signal.SIGKILL
        wait_for_end_of(worker)
        commits += len(list(tmp_path.glob("out/_meta/snapshots/*.json")))
    assert commits == 0
    finished = embed(config)
    assert finished.code == 0, finished.stderr[-3000:]
    assert rows_of(tmp_path).equals(rows_of(undisturbed[0]))
    assert len(list(tmp_path.glob("out/_meta/snapshots/*.json"))) == 1
    assert parts_in(tmp_path) == BLOCKS


def test_a_run_that_is_asked_to_end_says_so_and_keeps_what_it_has(
    tmp_path: Path, corpus: Path, undisturbed: tuple[Path, Finished]
) -> None:
    config = config_of(tmp_path, corpus)
    driver = started("embed", config, "--json")
    assert has_parts(tmp_path, 30, driver)
    driver.terminate()
    stopped = ended(driver)
    assert stopped.code == 1
    assert stopped.errors == ["error: stopped by SIGTERM; what was encoded is kept, run again to go on"]
    assert stopped.report["outcome"] == "failed"
    finished = embed(config)
    assert finished.code == 0, finished.stderr[-3000:]
    assert finished.report["shards_reused"] + finished.report["reused"] > 0
    assert rows_of(tmp_path).equals(rows_of(undisturbed[0]))


def test_what_a_stage_raises_ends_the_run_with_its_message(tmp_path: Path, corpus: Path) -> None:
    config = config_of(tmp_path, corpus)
    Path(tmp_path, "out", "snapshots").mkdir(parents=True)
    plan = make_plan(load_config(config, ()), Store(str(tmp_path / "out")))
    Path(tmp_path, "out", "snapshots", plan.folder).write_bytes(b"a file where a folder is to be")
    finished = embed(config)
    assert finished.code == 1
    (error,) = finished.errors
    assert plan.folder in error
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ({}, False),
        ({"without_ray_bytes": 0}, True),
        ({"without_ray_bytes": 1000}, True),
        ({"encoders": 2}, True),
        ({"encoders": 1}, False),
        ({"encoder_resources": {"accelerator": 1}}, True),
        ({"ray_address": "auto"}, True),
    ],
)
def test_ray_is_used_for_much_work_for_a_cluster_and_for_several_encoders(
    tmp_path: Path, corpus: Path, runtime: dict[str, Any], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("pipeline.execution.early_encoder.GPU_DRIVERS", ())
    config: JobConfig = load_config(config_of(tmp_path, corpus, **runtime), ())
    assert needs_ray(config, make_plan(config, Store(config.output.uri))) == expected


def raising() -> list[int]:
    raise EncoderError("no such model")


def failing() -> list[int]:
    return [1 // len([])]


def sleeping() -> list[int]:
    time.sleep(60)
    return []


def ending() -> list[int]:
    os._exit(7)


class Unreadable:
    """Raises an error in whoever receives it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return failing, ()


def test_a_worker_gives_results_and_errors_as_they_are_and_tells_its_exit_code() -> None:
    worker = Worker(Attempts())
    try:
        assert list(worker.results(sorted, [3, 1, 2])) == [1, 2, 3]
        schemas: list[pa.Schema] = list(worker.results(list, [PART_SCHEMA]))
        assert schemas == [PART_SCHEMA]
        with pytest.raises(EncoderError, match="no such model"):
            list(worker.results(raising))
        with pytest.raises(PipelineError, match="ZeroDivisionError"):
            list(worker.results(failing))
        with pytest.raises(TimeoutError):
            list(worker.results(sleeping, patience_seconds=0.1))
    finally:
        worker.close()
    with pytest.raises(WorkerDied, match="exit code 7"):
        list(Worker(Attempts()).results(ending))
    with pytest.raises(WorkerDied, match=r"exit code 1$"):  # by its own exit, not by a signal
        list(Worker(Attempts()).results(list, Unreadable()))


def test_who_is_asked_to_end_while_texts_are_looked_through_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked_to_end(*_: Any, **__: Any) -> None:
        raise Stopped("stopped by SIGTERM")

    monkeypatch.setattr(Worker, "results", asked_to_end)
    executor = ProcessExecutor(1, None)
    todo: Any = [None]
    settings: Any = None
    try:
        with pytest.raises(Stopped):
            list(executor.look_through(todo, settings, 1.0))
    finally:
        executor.close()


def test_a_worker_that_never_begins_anything_ends_the_run(tmp_path: Path, corpus: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    name = process_worker.__name__.rpartition(".")[2]
    dies = f"import os, sys\nif any('{name}' in one for one in sys.orig_argv):\n    os._exit(9)\n"
    (site / "sitecustomize.py").write_text(dies, encoding="utf-8")
    environment = {"PYTHONPATH": f"{site}:{ROOT}"}
    finished = embed(config_of(tmp_path, corpus), environment=environment)
    assert finished.code == 1
    assert finished.errors == [
        "error: the worker process ended with exit code 9, 3 times before it had begun a Block; what was encoded is "
        "kept, run again to go on"
    ]
