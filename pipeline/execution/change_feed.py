"""The feed of a Snapshot, derived from it and from the one before when both stand: what was changed, row by row."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import pipeline
from pipeline.errors import ConfigError, PipelineError, StorageError
from pipeline.execution.proof.difference import AFTER, ComparedPart, kinds_of, parts_of
from pipeline.execution.proof.duplicates import id_hashes
from pipeline.fingerprint import fingerprint
from pipeline.parallel import in_order
from pipeline.storage.changes import (
    FROM_NOTHING,
    ChangeFeed,
    FeedRecord,
    Op,
    feed_numbers,
    publish_feed,
)
from pipeline.storage.faults import told_as
from pipeline.storage.filesystem import Store
from pipeline.storage.parquet import put_or_adopt, read_columns
from pipeline.storage.snapshots import Snapshot, encode_schema, load_snapshot, snapshot_numbers
from pipeline.storage.text_index import leading_halves
from pipeline.storage.uniqueness import ordered, placed

READERS = 16
"""Parts read at once, of each a few small columns."""

VECTOR_READERS = 2
"""Parts of which the vectors are read ahead."""

FILE_BYTES = 64 * 2**20
"""Of rows in one file of a feed, before compression; and those of one Part more."""

MIXER = np.uint64(0x9E3779B97F4A7C15)
"""Spreads a time over 64 bits: 2^64 divided by the golden ratio."""

OPS: dict[str, Op] = {"added": "insert", "changed": "update", "removed": "delete"}
NUMBER_OF = {kind: number for number, kind in enumerate(OPS)}
UNCHANGED = len(OPS)


@dataclass(frozen=True, slots=True)
class Step:
    """From one Snapshot to another."""

    before: Snapshot | None
    """None = from nothing."""
    after: Snapshot

    @property
    def is_same_recipe(self) -> bool:
        return self.before is not None and self.before.record.fingerprint == self.after.record.fingerprint

    @property
    def keys(self) -> list[str]:
        """Columns that name a row."""
        return [name for name in ("id", "chunk") if name in self.after.schema.names]

    @property
    def schema(self) -> pa.Schema:
        """Of the feed."""
        schema = self.after.schema
        vector = [schema.field(name).with_nullable(True) for name in ("embedding", "scale") if name in schema.names]
        timestamp = pa.field("timestamp", pa.timestamp("us", tz="UTC"), nullable=False)
        keys = [schema.field(name) for name in self.keys]
        return pa.schema(
            [pa.field("op", pa.string(), nullable=False), *keys, schema.field("text_hash"), timestamp, *vector]
        )


class _Ops:
    """What becomes of each changed row, by the hash of its id: sorted arrays in files, searched where they lie."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: dict[str, int] = dict.fromkeys(OPS.values(), 0)

    def write(self, step: Step, old: Sequence[ComparedPart], new: Sequence[ComparedPart]) -> None:
        """Compare the rows of Parts that only one side has."""
        paths = {name: self.folder / name for name in ("high", "low", "op")}
        with paths["high"].open("wb") as high, paths["low"].open("wb") as low, paths["op"].open("wb") as op:
            for rows in ordered(_versions(step, old, new)):
                kind_N = np.full(len(rows), UNCHANGED, np.uint8)
                for kind, first_G in kinds_of(rows).items():
                    if kind in OPS:
                        kind_N[first_G] = NUMBER_OF[kind]
                        self.counts[OPS[kind]] += len(first_G)
                changed_K = np.flatnonzero(kind_N != UNCHANGED)
                rows["high"][changed_K].tofile(high)
                rows["low"][changed_K].tofile(low)
                kind_N[changed_K].tofile(op)
        if not sum(self.counts.values()):
            self.high_K, self.low_K, self.kind_K = np.empty(0, "<u8"), np.empty(0, "<u8"), np.empty(0, np.uint8)
            return
        self.high_K, self.low_K = (np.memmap(paths[name], "<u8", "r") for name in ("high", "low"))
        self.kind_K = np.memmap(paths["op"], np.uint8, "r")

    def of(self, rows: pa.Table) -> NDArray[np.uint8]:
        """Return the kind of each row, UNCHANGED where it is that."""
        halves_N2 = id_hashes(rows).view("<u8").reshape(-1, 2)
        kind_N, at_N = np.full(rows.num_rows, UNCHANGED, np.uint8), np.searchsorted(self.high_K, halves_N2[:, 0])
        open_M = np.flatnonzero(at_N < len(self.high_K))
        while len(open_M):  # more than once only for different ids of which the leading 64 bits are the same
            is_near_M = self.high_K[at_N[open_M]] == halves_N2[open_M, 0]
            is_hit_M = is_near_M & (self.low_K[at_N[open_M]] == halves_N2[open_M, 1])
            kind_N[open_M[is_hit_M]] = self.kind_K[at_N[open_M[is_hit_M]]]
            open_M = open_M[is_near_M & ~is_hit_M]
            at_N[open_M] += 1
            open_M = open_M[at_N[open_M] < len(self.high_K)]
        return kind_N


def write_feeds(store: Store, with_newest: bool = False) -> list[ChangeFeed]:
    """Write the feed of every published Snapshot that shall have one and has none yet, the oldest first.

    A feed is derived from published Snapshots only, so that it does not matter when it is written, how often it was
    begun, or by how many processes at once.

    Args:
        with_newest: also that of the newest Snapshot, though it was published without.

    Returns:
        The feeds that were missing.

    Raises:
        ConfigError: an id may stand twice in a Snapshot.
        StorageError: a Part cannot be read, the feed not be written, or $TMPDIR is full.
    """
    numbers, fed = snapshot_numbers(store), set(feed_numbers(store))
    written: list[ChangeFeed] = []
    for number in (number for number in numbers if number > max(fed, default=0)):
        snapshot = load_snapshot(store, number)
        if snapshot is None or not (snapshot.record.has_changes or (with_newest and number == numbers[-1])):
            continue
        last = max(fed, default=FROM_NOTHING)
        before = load_snapshot(store, last) if last in numbers else None
        before = before if before and _is_followed(before, snapshot) else None
        written.append(_write_feed(store, Step(before, snapshot)))
        fed.add(number)
    return written


def try_to_write_feeds(store: Store, with_newest: bool = False) -> list[str]:
    """Write the feeds that are missing, as `write_feeds` does, and return what hinders it as a warning, if anything."""
    try:
        write_feeds(store, with_newest)
    except PipelineError as error:
        return [f"a feed of changes is not written yet, the next run or `changes` does it: {error}"]
    return []


def _is_followed(before: Snapshot, after: Snapshot) -> bool:
    """Whether rows of both are named in the same way."""
    names = [[(name, s.schema.field(name).type) for name in Step(None, s).keys] for s in (before, after)]
    return names[0] == names[1]


def _write_feed(store: Store, step: Step) -> ChangeFeed:
    number, since = step.after.number, step.before.number if step.before else FROM_NOTHING
    if step.after.record.duplicate_ids == "allow":
        raise ConfigError(
            f"snapshot {number} of {store.uri} may hold an id twice (source.duplicate_ids: allow); a feed of changes "
            "needs ids that name one row"
        )
    folder = f"{number:08d}-{_identity(step)}"
    sides = [_parts(snapshot) for snapshot in (step.before, step.after)]
    in_both = {part.name for part in sides[0]} & {part.name for part in sides[1]} if step.is_same_recipe else set()
    old, new = ([part for part in parts if part.name not in in_both] for parts in sides)
    files = []
    with tempfile.TemporaryDirectory(prefix="changes-") as temporary:
        ops = _Ops(Path(temporary))
        with told_as(StorageError, "compare snapshots in", temporary):
            ops.write(step, old, new)
        for index, rows in enumerate(_files(step, ops, old, new)):
            path = f"{index:05d}.parquet"
            metadata = {"feed": folder, "since": since, "fingerprint": step.after.record.fingerprint}
            put_or_adopt(store, f"changes/{folder}/{path}", rows, metadata)
            files.append({"path": path, "rows": rows.num_rows})
    record = FeedRecord(number, since, folder, files, ops.counts, encode_schema(step.schema), pipeline.__version__)
    return publish_feed(store, record)


def _identity(step: Step) -> str:
    """Return the fingerprint of all that decides which rows lie in which file."""
    before = step.before.record.folder if step.before else None
    sides = [before, step.after.record.folder, step.after.number]
    return fingerprint({"sides": sides, "file_bytes": FILE_BYTES, "version": pipeline.__version__})


def _parts(snapshot: Snapshot | None) -> list[ComparedPart]:
    """Return the Parts of embeddings, each named by its bytes: what was encoded again may differ in the last bit."""
    if snapshot is None:
        return []
    named = zip(parts_of(snapshot), snapshot.placed_parts(), strict=True)
    parts = [replace(rows, name=f"{part.path} {part.file_hash}") for rows, (_, part) in named]
    return sorted((part for part in parts if part.kind == "embeddings"), key=lambda part: part.key)


def _versions(step: Step, old: Sequence[ComparedPart], new: Sequence[ComparedPart]) -> Iterator[NDArray[np.void]]:
    """Yield the hashes of the ids of both sides; `place` holds the side and which vector it is."""
    names = [*step.keys, "text_hash", "created_timestamp"]
    salt = np.uint64(0 if step.is_same_recipe else 1 << 62)
    for parts, mark in ((old, np.uint64(0)), (new, AFTER | salt)):
        for table in in_order(lambda part: read_columns(step.after.store, part.key, names), parts, READERS):
            rows = placed(id_hashes(table), 0)
            created_N = table["created_timestamp"].cast(pa.int64()).to_numpy().astype(np.uint64)
            version_N = (leading_halves(table["text_hash"]) + created_N * MIXER) >> np.uint64(2)
            rows["place"] = version_N | mark
            yield rows


def _files(step: Step, ops: _Ops, old: Sequence[ComparedPart], new: Sequence[ComparedPart]) -> Iterator[pa.Table]:
    """Yield the rows of the feed, the deleted ones first, in tables of about FILE_BYTES."""
    pending: list[pa.Table] = []
    pending_bytes = 0
    for rows in chain(_deleted(step, ops, old), _upserted(step, ops, new)):
        if not len(rows):
            continue
        pending.append(rows)
        pending_bytes += rows.nbytes
        if pending_bytes >= FILE_BYTES:
            yield pa.concat_tables(pending).combine_chunks()
            pending, pending_bytes = [], 0
    if pending:
        yield pa.concat_tables(pending).combine_chunks()


def _deleted(step: Step, ops: _Ops, old: Sequence[ComparedPart]) -> Iterator[pa.Table]:
    store, names = step.after.store, [*step.keys, "text_hash"]
    for rows in in_order(lambda part: read_columns(store, part.key, names), old, READERS):
        yield _feed_rows(step, rows, ops.of(rows), [NUMBER_OF["removed"]])


def _upserted(step: Step, ops: _Ops, new: Sequence[ComparedPart]) -> Iterator[pa.Table]:
    def read(part: ComparedPart) -> pa.Table:
        """Read the vectors only where one is wanted."""
        kind_N = ops.of(read_columns(step.after.store, part.key, step.keys))
        names = [name for name in step.schema.names if name not in ("op", "timestamp")]
        rows = read_columns(step.after.store, part.key, names) if (kind_N != UNCHANGED).any() else None
        return rows if rows is None else _feed_rows(step, rows, kind_N, [NUMBER_OF["added"], NUMBER_OF["changed"]])

    yield from (rows for rows in in_order(read, new, VECTOR_READERS) if rows is not None)


def _feed_rows(step: Step, rows: pa.Table, kind_N: NDArray[np.uint8], wanted: Sequence[int]) -> pa.Table:
    """Return the wanted ones of N rows of a Part, in the schema of the feed."""
    chosen_K = np.flatnonzero(np.isin(kind_N, wanted))
    rows, names = rows.take(pa.array(chosen_K)), pa.array(OPS.values())
    at = pa.scalar(datetime.fromisoformat(step.after.record.published_at), step.schema.field("timestamp").type)
    columns = {
        "op": names.take(pa.array(kind_N[chosen_K])),
        "timestamp": pa.repeat(at, len(chosen_K)),
        **{name: rows[name] for name in rows.column_names},
    }
    fields = list(step.schema)
    filled = [columns.get(field.name, pa.nulls(len(chosen_K), field.type)) for field in fields]
    return pa.table(filled, schema=step.schema)
