"""Ten nights in which files come, go and change at random: what was published stays, and what is told of it is so."""

import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from pipeline.execution.proof.difference import difference, parts_of
from pipeline.execution.verification.verify import verify
from pipeline.storage.expiry import expire
from pipeline.storage.filesystem import Store
from pipeline.storage.rollback import roll_back
from pipeline.storage.snapshots import open_snapshot, snapshot_numbers
from tests.running import written_config
from tests.without_ray import run_in_process

NIGHTS, KEPT = 10, 4

MEMORY = Path("/dev/shm")

Rows = dict[str, dict[str, str]]
"""id → text and label."""

Known = tuple[bytes, str, list[float], Any]
"""What a reader sees of a row: text hash, label, vector, and when that was computed."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory, where there is one: ten nights wait for a disk some thousand times."""
    with tempfile.TemporaryDirectory(prefix="nights-", dir=MEMORY if MEMORY.is_dir() else None) as name:
        yield Path(name)


class Nights:
    """A corpus that changes by chance, the job that embeds it, and what a reader saw of each snapshot at once."""

    def __init__(self, folder: Path, seed: int, **output: Any) -> None:
        self.folder, self.output, self.random = folder / "corpus", str(folder / "out"), random.Random(seed)
        self.folder.mkdir()
        self.store = Store(self.output)
        self.files: dict[str, Rows] = {}
        self.config = written_config(
            folder / "job.yaml",
            source={"uri": str(self.folder), "keep_columns": ["label"]},
            recipe={"model": "hashing://8"},
            output={"uri": self.output, "rows_per_part": 4} | output,
        )
        self.seen: dict[int, dict[str, Known]] = {}
        self.serial = 0
        for night in range(6):
            self.add(night)

    def new_rows(self, count: int) -> Rows:
        first, self.serial = self.serial, self.serial + count
        return {f"r{n}": {"text": f"text {n} {'x' * 60}", "label": f"l{n % 3}"} for n in range(first, self.serial)}

    def add(self, night: int) -> None:
        self.files[f"{night:02d}-{self.random.randrange(1000)}.jsonl"] = self.new_rows(self.random.randint(1, 9))

    def changes(self, night: int) -> None:
        """Let the source be another: some file comes, another may go, get another name, or have other rows."""
        self.add(night)
        name = self.random.choice(sorted(self.files))
        rows = self.files[name]
        match self.random.choice(["goes", "renamed", "changed", "changed", "longer", "moved"]):
            case "goes":
                del self.files[name]
            case "renamed":
                self.files[f"{self.random.randrange(10):02d}-renamed.jsonl"] = self.files.pop(name)
            case "changed":
                for id in self.random.sample(sorted(rows), (len(rows) + 1) // 2):
                    rows[id] = {"text": f"{rows[id]['text']}!", "label": rows[id]["label"]}
            case "longer":
                rows |= self.new_rows(3)
            case "moved":
                other = self.files[self.random.choice(sorted(self.files))]
                id = self.random.choice(sorted(rows))
                other[id] = rows.pop(id) if len(rows) > 1 else rows[id]
        self.written()

    def written(self) -> None:
        for path in self.folder.iterdir():
            if path.name not in self.files:
                path.unlink()
        for name, rows in self.files.items():
            content = b"".join(orjson.dumps({"id": id} | row) + b"\n" for id, row in rows.items())
            path = self.folder / name
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)

    @property
    def source(self) -> Rows:
        return {id: row for rows in self.files.values() for id, row in rows.items()}

    def read(self, number: int) -> dict[str, Known]:
        rows = open_snapshot(self.output, number).to_table().to_pylist()
        found = {
            row["id"]: (row["text_hash"], row["label"], row["embedding"], row["created_timestamp"]) for row in rows
        }
        assert len(found) == len(rows), f"an id stands twice in snapshot {number}"
        return found

    def brute_force(self, before: int, after: int) -> tuple[int, int, int, int]:
        """Return how many ids are as they were, changed, added and removed, by what was read when they were new."""
        old, new = self.seen[before], self.seen[after]
        both = old.keys() & new.keys()
        changed = sum(old[id][0] != new[id][0] for id in both)
        return len(both) - changed, changed, len(new.keys() - old.keys()), len(old.keys() - new.keys())

    def check(self) -> None:
        """Read every snapshot that stands as if for the first time, and compare each with the newest."""
        *numbers, newest = snapshot_numbers(self.store)
        parts = {number: parts_of(open_snapshot(self.output, number)) for number in (*numbers, newest)}
        for number in (*numbers, newest):
            assert self.read(number) == self.seen[number], f"snapshot {number} has changed"
            for before, after in ((number, newest), (newest, number)):
                found = difference(self.store, parts[before], parts[after])
                told = (found.carried + found.unchanged, found.changed, found.added, found.removed)
                assert told == self.brute_force(before, after), f"snapshots {before} and {after}"


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_ten_nights_of_churn_leave_every_kept_snapshot_as_it_was_and_every_difference_true(
    folder: Path, seed: int
) -> None:
    nights = Nights(folder, seed, carry=("copy", "reference")[seed], partition_by=[["label"], []][seed])
    for night in range(NIGHTS):
        nights.changes(night)
        known = nights.seen.get(max(nights.seen, default=0), {})
        report = run_in_process(nights.config)
        assert report.snapshot is not None
        nights.seen[report.snapshot] = read = nights.read(report.snapshot)
        assert read.keys() == nights.source.keys()
        hashes = {hash for hash, *_ in known.values()}
        assert report.encoded_texts == len({hash for hash, *_ in read.values()} - hashes)
        assert all(known[id] == row for id, row in read.items() if id in known and known[id][0] == row[0])
        if night % 4 == 3:
            old = nights.random.choice(snapshot_numbers(nights.store)[:-1])
            back = roll_back(nights.store, old).number
            nights.seen[back] = nights.seen[old]
        nights.check()
        if night % 3 == 2:
            newest = snapshot_numbers(nights.store)[-KEPT:]
            expire(nights.store, KEPT, time.time() + 1, is_dry_run=False)
            assert snapshot_numbers(nights.store) == newest
            nights.check()
    assert verify(open_snapshot(nights.output)).is_sound
    assert len(nights.seen) >= NIGHTS


def test_the_parts_after_ten_nights_are_those_of_a_run_from_scratch(folder: Path) -> None:
    nights = Nights(folder, seed=7, partition_by=["label"])  # as many Blocks as without, and of each a Part per value
    counts = []
    for night in range(NIGHTS):
        nights.changes(night)
        counts.append(run_in_process(nights.config).parts)
    scratch = run_in_process(nights.config, f"output.uri={folder / 'scratch'}")
    names = ["path", "rows", "content_hash"]
    grown, fresh = (
        open_snapshot(uri).parts.select(names).sort_by("path") for uri in (nights.output, scratch.output_uri)
    )
    assert grown.to_pylist() == fresh.to_pylist()
    assert counts[-1] <= scratch.parts
