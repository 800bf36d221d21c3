"""`requeue`: what went to quarantine is embedded anew once its cause was mended, and nothing else is."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from tokenizers import Tokenizer

from pipeline import open_snapshot
from pipeline.config import JobConfig
from pipeline.errors import ReconciliationError, StorageError
from pipeline.execution import reuse
from pipeline.execution.planning.plan import make_plan
from pipeline.execution.run import NOTHING_TO_RETRY
from pipeline.execution.verification.verify import verify
from pipeline.records import Reason
from pipeline.storage.filesystem import Store
from pipeline.storage.journal import read_journal
from tests.faulty_model import Faults, write_faulty_model
from tests.inline import FRAIL, Killed, run_inline
from tests.running import ended, jobs, started, written_config

ANY = frozenset(Reason)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four files of six rows, each a Shard of two Blocks; the second row of files 1 and 2 is frail."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for file in range(4):
        write(folder, file, frail=(1,) if file in (1, 2) else ())
    return folder


def write(folder: Path, file: int, frail: tuple[int, ...]) -> None:
    rows = [{"id": f"{file}-{n}", "text": f"{FRAIL * (n in frail)}text {n} " + "x" * 400} for n in range(6)]
    (folder / f"{file}.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))


def config_of(corpus: Path, limit: float = 1.0, output: str | None = None) -> JobConfig:
    return JobConfig.model_validate(
        {
            "source": {"uri": str(corpus)},
            "recipe": {"model": "hashing://8"},
            "output": {"uri": output or str(corpus.parent / "out"), "rows_per_part": 4},
            "runtime": {"max_quarantined_fraction": limit},
        }
    )


def counts(report: Any) -> tuple[int, int, int]:
    return report.embedded, report.reused, report.quarantined


def quarantined_rows(config: JobConfig) -> int:
    return int(open_snapshot(config.output.uri).totals["quarantined"])


def test_only_shards_with_quarantine_are_done_anew(corpus: Path) -> None:
    config = config_of(corpus)
    assert counts(run_inline(config, is_sick=True)) == (22, 0, 2)
    report = run_inline(config, ANY)
    assert (report.snapshot, counts(report), report.shards_redone, report.rows_retried) == (2, (2, 22, 0), 2, 2)
    assert verify(open_snapshot(config.output.uri)).is_sound
    assert open_snapshot(config.output.uri).to_table().num_rows == 24
    before = open_snapshot(config.output.uri, 1)
    assert (before.to_table().num_rows, verify(before).is_sound) == (22, True)


def test_a_run_that_published_nothing_because_of_its_quarantine_is_finished_by_a_requeue(corpus: Path) -> None:
    config = config_of(corpus, limit=0.0)
    with pytest.raises(ReconciliationError, match="max_quarantined_fraction"):
        run_inline(config, is_sick=True)
    report = run_inline(config, ANY)
    assert (report.snapshot, counts(report)) == (1, (12, 12, 0))
    assert run_inline(config).outcome == "nothing_to_do"


def test_a_requeue_on_s3_publishes_what_was_missing(corpus: Path, bucket: str) -> None:
    config = config_of(corpus, output=f"s3://{bucket}/out")
    run_inline(config, is_sick=True)
    assert counts(run_inline(config, ANY)) == (2, 22, 0)
    assert verify(open_snapshot(config.output.uri)).is_sound


def test_with_nothing_in_quarantine_nothing_is_done(corpus: Path) -> None:
    config = config_of(corpus)
    run_inline(config)
    report = run_inline(config, ANY)
    assert (report.outcome, report.snapshot, report.warnings) == ("nothing_to_do", 1, [NOTHING_TO_RETRY])


def test_nothing_is_done_either_before_anything_was_run(corpus: Path) -> None:
    report = run_inline(config_of(corpus), ANY)
    assert (report.outcome, report.snapshot) == ("nothing_to_do", None)


def test_only_the_reasons_asked_for_are_tried_again(corpus: Path) -> None:
    with (corpus / "0.jsonl").open("ab") as file:
        file.write(b'{"id": "broken"\n')
    config = config_of(corpus)
    assert run_inline(config, is_sick=True).quarantined == 3
    plan = make_plan(config, Store(config.output.uri), {Reason.INVALID_JSON})
    assert [shard.spans[0].file.uri[-7:] for shard in plan.embed] == ["0.jsonl"]
    report = run_inline(config, {Reason.NOT_FINITE})
    assert (report.shards_redone, report.quarantined) == (2, 1)
    assert run_inline(config, {Reason.NOT_FINITE}).outcome == "nothing_to_do"


def test_a_requeue_that_died_goes_on_where_it_was(corpus: Path) -> None:
    config = config_of(corpus)
    run_inline(config, is_sick=True)
    with pytest.raises(Killed):
        run_inline(config, ANY, dies_after_blocks=3)
    begun = make_plan(config, Store(config.output.uri), ANY)
    report = run_inline(config, ANY)
    assert (report.run_key, report.shards_redone) == (begun.run_key, 2)
    assert counts(report) == (0, 24, 0)  # one Block of two rows was missing, whose texts are known


def test_embed_goes_on_with_a_requeue_that_died_before_anything_was_published(corpus: Path) -> None:
    config = config_of(corpus, limit=0.0)
    with pytest.raises(ReconciliationError):
        run_inline(config, is_sick=True)
    with pytest.raises(Killed):
        run_inline(config, ANY, dies_after_blocks=3)
    assert counts(run_inline(config)) == (2, 22, 0)


def test_a_requeue_that_was_in_vain_can_be_tried_again(corpus: Path) -> None:
    config = config_of(corpus, limit=0.0)
    for retry in ((), ANY, ANY):
        with pytest.raises(ReconciliationError):
            run_inline(config, retry, is_sick=True)
    assert counts(run_inline(config, ANY)) == (12, 12, 0)


def test_a_later_embed_keeps_what_a_requeue_has_mended(corpus: Path) -> None:
    config = config_of(corpus)
    run_inline(config, is_sick=True)
    run_inline(config, ANY)
    write(corpus, 3, frail=(0,))
    assert counts(run_inline(config)) == (1, 23, 0)
    assert run_inline(config).outcome == "nothing_to_do"


def test_a_requeue_on_a_sick_device_loses_no_vector_that_is_known(corpus: Path) -> None:
    with (corpus / "1.jsonl").open("ab") as file:
        file.write(b'{"id": "broken"\n')
    config = config_of(corpus)
    run_inline(config)
    assert counts(run_inline(config, ANY, is_sick=True)) == (0, 24, 1)
    assert verify(open_snapshot(config.output.uri)).is_sound


def test_a_requeue_that_would_lose_vectors_publishes_nothing(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise StorageError("the index is lost")

    monkeypatch.setattr(reuse, "write_index", lost)
    with (corpus / "1.jsonl").open("ab") as file:
        file.write(b'{"id": "broken"\n')
    config = config_of(corpus)
    run_inline(config)
    with pytest.raises(
        ReconciliationError, match="2 rows are in quarantine after the requeue, in snapshot 1 they were 1"
    ):
        run_inline(config, ANY, is_sick=True)
    assert quarantined_rows(config) == 1
    assert run_inline(config).outcome == "nothing_to_do"


def test_a_source_that_changed_meanwhile_is_embedded_with_it(corpus: Path) -> None:
    config = config_of(corpus)
    run_inline(config, is_sick=True)
    write(corpus, 0, frail=())
    os.utime(corpus / "0.jsonl", ns=(1, 1))
    assert counts(run_inline(config, ANY)) == (2, 22, 0)


def test_an_unknown_reason_is_told_with_the_nearest_one(corpus: Path) -> None:
    path = written_config(corpus.parent / "job.yaml", **config_of(corpus).model_dump(mode="json", exclude_none=True))
    finished = jobs("requeue", path, "--reason", "not_finit")
    assert (finished.code, len(finished.errors)) == (2, 1)
    assert "did you mean not_finite?" in finished.errors[0]


CURSE = "鑫"
"""A character with a token of its own."""


@pytest.fixture(scope="module")
def model(m3e_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faulty_model(m3e_small, tmp_path_factory.mktemp("models") / "faulty")


@pytest.fixture
def cursed(model: Path, tmp_path: Path) -> tuple[str, Store, int]:
    """A job over three files with a cursed row each; its config, its output and the token of the curse."""
    folder = tmp_path / "reviews"
    folder.mkdir()
    for file in range(3):
        rows = [{"id": f"{file}-{n}", "text": "很好的酒店" * (n + 1) + CURSE * (n == 13)} for n in range(16)]
        (folder / f"{file}.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    recipe = {"model": str(model), "compute": "float32", "trust_remote_code": True, "max_tokens": 128}
    output: dict[str, Any] = {"uri": str(tmp_path / "out"), "rows_per_part": 8}
    config = written_config(tmp_path / "job.yaml", source={"uri": str(folder)}, recipe=recipe, output=output)
    (token,) = Tokenizer.from_file(str(model / "tokenizer.json")).encode(CURSE, add_special_tokens=False).ids
    return config, Store(output["uri"]), token


def first_rows_journalled(store: Store, known_runs: set[str], driver: "subprocess.Popen[str]") -> int:
    """Wait until a new run has journalled something; return how many rows."""
    deadline = time.monotonic() + 120
    while driver.poll() is None and time.monotonic() < deadline:
        new = set(store.folders("_meta/runs")) - known_runs
        rows = sum(receipt.rows_read for key in new for _, receipt in read_journal(store, key).receipts)
        if rows:
            return rows
        time.sleep(0.2)
    raise AssertionError("nothing was journalled")


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.long
def test_a_device_that_recovered_a_requeue_that_was_killed_and_the_same_command_again(
    cursed: tuple[str, Store, int], tmp_path: Path
) -> None:
    config, store, token = cursed
    faults = Faults(tmp_path, nan=token)
    failed = jobs("embed", config, "--json", environment=faults.environment, seconds=280)
    assert failed.code == 1, failed.stderr[-2000:]
    assert failed.report["reasons"] == {"not_finite": 3}
    assert failed.report["snapshot"] is None

    would = jobs("requeue", config, "--dry-run", "--json", environment=faults.environment)
    assert (would.report["shards_redone"], would.report["rows_retried"]) == (3, 3)
    runs = set(store.folders("_meta/runs"))

    faults.set(sleeps=token)  # a first Block comes through, the next one waits for ever
    driver = started("requeue", config, "--json", environment=faults.environment)
    try:
        journalled = first_rows_journalled(store, runs, driver)
    finally:
        driver.send_signal(signal.SIGKILL)
        ended(driver)

    faults.set()
    finished = jobs("requeue", config, "--json", environment=faults.environment, seconds=280)
    assert finished.code == 0, finished.stderr[-2000:]
    report = finished.report
    assert (report["snapshot"], report["quarantined"], report["embedded"] + report["reused"]) == (1, 0, 48)
    assert {report["run_key"]} == set(store.folders("_meta/runs")) - runs
    assert report["reused"] >= journalled
    newest = open_snapshot(store.uri)
    assert verify(newest).is_sound
    assert sorted(newest.to_table(["id"])["id"].to_pylist()) == sorted(f"{f}-{n}" for f in range(3) for n in range(16))
