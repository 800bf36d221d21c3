"""What stands in an output now: published Snapshots with what their runs took, and runs that have not ended."""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.execution.planning.have import find_have, is_complete
from pipeline.records import BlockReceipt, Shard
from pipeline.storage.claim import Holder, holder_of
from pipeline.storage.filesystem import Store
from pipeline.storage.journal import READERS, Entry, condemned_runs, read_entries
from pipeline.storage.snapshots import Snapshot, load_snapshot, snapshot_numbers


@dataclass(frozen=True, slots=True)
class Published:
    """A Snapshot, and what the report of its run says of the work."""

    snapshot: Snapshot
    seconds: float | None
    """Of the whole run; None without a report."""
    encoder_hours: float | None
    """Encoders times the hours that they were held."""
    price_per_hour: float | None
    """Of an encoder, where an estimate was made with one."""
    quarantined: dict[str, int]
    """Rows by reason."""


@dataclass(frozen=True, slots=True)
class Step:
    """How far a run was when it wrote an entry of its Journal; everything since its first."""

    at_seconds: float
    """Since the epoch, on the clock of the store."""
    rows: int
    tokens: int
    fraction: float
    """By bytes of the Shards that it had to do, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A run that has published nothing so far: it works, or it has died."""

    run_key: str
    number: int
    """Of the Snapshot it is for."""
    holder: Holder | None
    """Who works on it; None if nobody does."""
    shards: int
    shards_done: int
    steps: tuple[Step, ...]
    """One per entry of the Journal, of this driver alone while there is one."""
    quarantined: dict[str, int]
    parts: int
    bytes_written: int

    @property
    def is_alive(self) -> bool:
        return self.holder is not None and self.holder.is_alive


@dataclass(frozen=True, slots=True)
class Standing:
    """All that an output says of itself."""

    published: tuple[Published, ...]
    """Ascending by number."""
    unfinished: tuple[Unfinished, ...]


def read_standing(store: Store) -> Standing:
    """Read what stands in an output; nothing is written, no Part is opened.

    Raises:
        StorageError: the output cannot be read.
    """
    numbers = snapshot_numbers(store)
    with ThreadPoolExecutor(READERS) as pool:
        snapshots = [
            snapshot for snapshot in pool.map(lambda number: load_snapshot(store, number), numbers) if snapshot
        ]
        published = tuple(pool.map(lambda snapshot: _published(store, snapshot), snapshots))
    parent = snapshots[-1] if snapshots else None
    barred = {snapshot.record.run_key for snapshot in snapshots} | condemned_runs(store)
    keys = [key for key in store.folders("_meta/runs") if key not in barred]
    number = parent.number + 1 if parent else 1
    holder = holder_of(store, number) if keys else None
    found = (_unfinished(store, key, number, parent, holder) for key in keys)
    return Standing(published, tuple(run for run in found if run))


def _published(store: Store, snapshot: Snapshot) -> Published:
    report: dict[str, Any] = orjson.loads(store.read(f"reports/{snapshot.record.run_key}.json") or b"{}")
    if report.get("outcome") != "published":
        report = {}
    seconds: dict[str, float] = report.get("seconds", {})
    held = seconds.get("start", 0.0) + seconds.get("run", 0.0)
    reasons = (orjson.loads(text) for text in snapshot.shards["reasons"].to_pylist())
    return Published(
        snapshot,
        seconds.get("total"),
        report["encoders"] * held / 3600 if report else None,
        (report.get("estimate") or {}).get("price_per_hour"),
        _summed(reasons),
    )


def _unfinished(
    store: Store, run_key: str, number: int, parent: Snapshot | None, holder: Holder | None
) -> Unfinished | None:
    """Return a run by its Journal and plan; None if it has written no plan, or is for a Snapshot that stands."""
    content = store.read(f"_meta/runs/{run_key}/plan.parquet")
    entries = read_entries(store, run_key)
    if content is None or not entries or int(entries[-1].folder.partition("-")[0]) != number:
        return None
    mine = holder if holder and holder.driver == entries[-1].driver else None
    sizes = _to_do(store, run_key, content, parent, entries)
    receipts = [receipt for entry in entries for receipt in entry.receipts]
    done = _done_shards(receipts)
    return Unfinished(
        run_key,
        number,
        mine,
        len(sizes),
        len(done & sizes.keys()),
        _steps(entries, sizes, mine),
        _summed(receipt.reasons for receipt in receipts),
        sum(part.kind == "embeddings" for receipt in receipts for part in receipt.parts),
        sum(part.size_bytes for receipt in receipts for part in receipt.parts),
    )


def _to_do(
    store: Store, run_key: str, plan: bytes, parent: Snapshot | None, entries: Sequence[Entry]
) -> dict[str, int]:
    """Return the Shards that the run has to do, or has done itself, with their bytes."""
    rows = pq.read_table(pa.BufferReader(plan)).to_pylist()
    shards = [Shard.from_json({"shard_id": row["shard_id"], "spans": orjson.loads(row["spans"])}) for row in rows]
    redone = {row["shard_id"]: run_key for row in rows if row["redo"] is not None}
    have = find_have(store, parent, {shard.shard_id for shard in shards}, run_key, redone)
    own = {receipt.shard_id for entry in entries for receipt in entry.receipts}
    return {
        shard.shard_id: shard.size_bytes
        for shard in shards
        if shard.shard_id in own or not is_complete(have.get(shard.shard_id, ()))
    }


def _done_shards(receipts: Sequence[BlockReceipt]) -> set[str]:
    """Return the Shards of which every Block has a receipt."""
    blocks = Counter(receipt.shard_id for receipt in receipts)
    return {receipt.shard_id for receipt in receipts if receipt.is_last and blocks[receipt.shard_id] > receipt.block}


def _steps(entries: Sequence[Entry], sizes: dict[str, int], holder: Holder | None) -> tuple[Step, ...]:
    """Return how far the run was at each entry; a living driver's entries are timed alone."""
    total = sum(sizes.values()) or 1
    done = dict.fromkeys(sizes, 0.0)
    rows = tokens = 0
    steps = []
    for entry in entries:
        for receipt in entry.receipts:
            rows += receipt.rows_read
            tokens += int(receipt.metrics.get("tokens", 0))
            size = sizes.get(receipt.shard_id, 0)
            behind = done.get(receipt.shard_id, 0.0) + receipt.metrics.get("source_bytes", 0.0)
            done[receipt.shard_id] = size if receipt.is_last else min(behind, 0.99 * size)
        if holder is None or entry.driver == holder.driver:
            steps.append(Step(entry.written_at, rows, tokens, min(1.0, sum(done.values()) / total)))
    return tuple(steps)


def _summed(reasons: Iterable[dict[str, int]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for one in reasons:
        counts.update(one)
    return dict(counts.most_common())
