"""What a reader sees of a Snapshot, and that it stays as it was."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import time

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.fingerprint import content_hash
from pipeline.storage.filesystem import Store
from pipeline.storage.parquet import part_key
from pipeline.storage.snapshots import load_snapshot

State = frozenset[tuple[str, bytes, bool]]
"""What the source holds: id, hash of the text, and whether it is frail, of every row."""


class Published:
    """A Snapshot as it was when it was first seen.

    Args:
        state: index of the source's State at that moment.
    """

    def __init__(self, store: Store, number: int, state: int) -> None:
        self.store, self.number, self.state = store, number, state
        self.seen_at = time()
        snapshot = load_snapshot(store, number)
        assert snapshot is not None
        self.record, self.parts = snapshot.record, snapshot.parts.to_pylist()
        assert self.record.number == number
        assert (self.record.parent or 0) == number - 1, "built upon another snapshot than the one before it"
        self.keys = {part_key(part["kind"], part["folder"], part["path"]): part for part in self.parts}
        self.meta = {
            key: store.read(key) for key in (f"_meta/snapshots/{number:08d}.json", *self.record.tables.values())
        }
        self.files = self._files()

    def _files(self) -> dict[str, tuple[int, int, int]]:
        """Return what stands where the Parts are to lie, and all else that lies in the Snapshot's own folders."""
        root = Path(self.store.root)
        own = [root / kind / self.record.folder for kind in ("snapshots", "quarantine")]
        paths = {path for folder in own for path in folder.rglob("*") if path.is_file()}
        paths |= {path for key in self.keys if (path := root / key).is_file()}
        stats = {path.relative_to(root).as_posix(): path.stat() for path in paths}
        return {key: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for key, stat in stats.items()}

    def is_twin_of(self, other: "Published") -> bool:
        """Whether both are of one run: itself, or one the rollback to the other."""
        return bool(self.record.run_key == other.record.run_key)

    def check_rows(self, states: Sequence[State]) -> None:
        """Compare the rows with the source: they are those of one moment since the Snapshot before."""
        assert self.files.keys() == self.keys.keys(), "the folder is not what the snapshot says"
        embedded: Counter[tuple[str, bytes]] = Counter()
        quarantined: Counter[str] = Counter()
        for key, part in self.keys.items():
            content = self.store.read(key)
            assert content is not None
            assert content_hash(content) == part["file_hash"], f"{key} is not the file that was counted"
            rows = pq.read_table(pa.BufferReader(content)).to_pylist()
            if part["kind"] == "embeddings":
                embedded.update((row["id"], row["text_hash"]) for row in rows)
            else:
                quarantined.update(row["id"] for row in rows)
        assert any(agrees(state, embedded, quarantined) for state in states), (
            f"snapshot {self.number}: {sorted(embedded)} and {sorted(quarantined)} are the rows of no moment since"
        )

    def check_unchanged(self) -> None:
        """Compare every file with what it was at first sight."""
        now = self._files()
        changed = sorted(dict(now.items() ^ self.files.items()))
        assert not changed, f"snapshot {self.number} has changed after it was published: {changed}"
        for key, content in self.meta.items():
            assert self.store.read(key) == content, f"{key} has changed after it was published"

    def check_nothing_else_is_left(self) -> None:
        """See that an expiry that keeps one Snapshot has left of Parts and runs only this one's."""
        parts = {key for top in ("snapshots", "quarantine") for key in self.store.files(top)}
        assert parts == self.keys.keys(), f"left or missing: {sorted(parts ^ self.keys.keys())}"
        assert self.store.folders("_meta/runs") == [self.record.run_key], "a run was left"
        indexes = {key.split("/")[2] for key in self.store.files("_meta/snapshots") if ".index/" in key}
        assert indexes <= {f"{self.number:08d}.index"}, "an index was left"
        used = {part["folder"] for part in self.parts}
        assert set(self.store.folders("snapshots")) <= used, "a folder was left"


def agrees(state: State, embedded: Counter[tuple[str, bytes]], quarantined: Counter[str]) -> bool:
    """Whether each row of a State is embedded or, if it is frail, in quarantine: once, and no row besides."""
    frail = {id for id, _, is_frail in state if is_frail}
    expected = Counter((id, hash) for id, hash, _ in state if id not in quarantined)
    return embedded == expected and set(quarantined) <= frail and set(quarantined.values()) <= {1}
