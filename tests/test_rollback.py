"""Going back to an older snapshot: what is read afterwards, and what the next night does."""

from pathlib import Path

import orjson
import pytest

from jobs.__main__ import main
from pipeline import open_snapshot
from pipeline.config import JobConfig
from pipeline.errors import ConfigError, StorageError
from pipeline.execution.verification.verify import verify
from pipeline.storage.expiry import expire
from pipeline.storage.filesystem import Store
from pipeline.storage.rollback import roll_back
from pipeline.storage.snapshots import snapshot_numbers
from tests.inline import run_inline
from tests.running import written_config


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    """A job of which three nights are published, each with one more row, and one text changed."""
    (tmp_path / "corpus").mkdir()
    config = JobConfig.model_validate(
        {
            "source": {"uri": str(tmp_path / "corpus")},
            "recipe": {"model": "hashing://8"},
            "output": {"uri": str(tmp_path / "out"), "rows_per_part": 2},
        }
    )
    for night in (1, 2, 3):
        write(config, night)
        run_inline(config)
    return config


def write(config: JobConfig, night: int) -> None:
    rows = [{"id": str(number), "text": f"text {number}"} for number in range(night + 3)]
    rows[0]["text"] = f"text of night {night}"
    path = Path(config.source.uri[0], "a.jsonl")
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))


def rows_of(config: JobConfig, number: int | None = None) -> list[dict[str, object]]:
    table = open_snapshot(config.output.uri, number).to_table()
    return sorted(table.to_pylist(), key=lambda row: str(row["id"]))


def test_a_snapshot_gone_back_to_reads_as_it_did_and_verifies(config: JobConfig) -> None:
    store, before = Store(config.output.uri), rows_of(config, 1)
    files = store.files("snapshots")
    published = roll_back(store, 1)
    assert (published.number, published.record.parent) == (4, 3)
    assert rows_of(config) == before
    assert store.files("snapshots") == files
    assert store.read("LATEST") == f"{published.record.folder}\n".encode()
    assert verify(open_snapshot(config.output.uri)).is_sound


def test_the_night_after_a_rollback_publishes_the_source_as_it_is(config: JobConfig) -> None:
    tonight = rows_of(config)
    roll_back(Store(config.output.uri), 1)
    report = run_inline(config)
    assert (report.outcome, report.snapshot) == ("published", 5)
    names = ("id", "text_hash", "embedding")
    assert [[row[name] for name in names] for row in rows_of(config)] == [
        [row[name] for name in names] for row in tonight
    ]


def test_the_command_says_what_it_has_published(
    config: JobConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written_config(
        tmp_path / "job.yaml",
        **{name: config.model_dump(mode="json", exclude_unset=True)[name] for name in ("source", "recipe", "output")},
    )
    assert main(["nightly", path, "--rollback", "2", "--json"]) == 0
    said = orjson.loads(capsys.readouterr().out)
    assert (said["snapshot"], said["rolled_back_to"]) == (4, 2)
    assert said["folder"] == open_snapshot(config.output.uri, 2).folder
    assert main(["nightly", path, "--rollback", "9"]) == 2
    assert main(["nightly", path, "--rollback", "1", "--dry-run"]) == 2


def test_going_back_to_what_stands_publishes_nothing(config: JobConfig) -> None:
    store = Store(config.output.uri)
    assert roll_back(store, 3).number == 3
    first = roll_back(store, 2)
    assert roll_back(store, 2).number == first.number
    assert snapshot_numbers(store) == [1, 2, 3, 4]


def test_what_was_gone_back_to_outlives_the_snapshot_it_came_from(config: JobConfig) -> None:
    store, before = Store(config.output.uri), rows_of(config, 1)
    roll_back(store, 1)
    expire(store, keep=1, older_than=float("inf"), is_dry_run=False)
    assert snapshot_numbers(store) == [4]
    assert rows_of(config) == before
    assert verify(open_snapshot(config.output.uri)).is_sound
    assert len(store.folders("snapshots")) == 1


def test_a_snapshot_that_is_not_there_is_told_with_those_that_are(config: JobConfig) -> None:
    with pytest.raises(ConfigError, match=r"no snapshot 7 to go back to; there are: 1, 2, 3"):
        roll_back(Store(config.output.uri), 7)


def test_a_snapshot_that_has_lost_a_part_is_not_gone_back_to(config: JobConfig) -> None:
    store = Store(config.output.uri)
    key = next(iter(store.files(f"snapshots/{open_snapshot(store.uri, 1).record.folder}")))
    store.delete(key)
    with pytest.raises(StorageError, match="missing or of another size than snapshot 1 says"):
        roll_back(store, 1)
    assert snapshot_numbers(store) == [1, 2, 3]
