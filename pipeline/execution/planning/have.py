"""What earlier runs have done of the wanted Shards: the last Snapshot, and the Journals of unfinished runs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import orjson

from pipeline.records import BlockReceipt, Part
from pipeline.storage.filesystem import Store
from pipeline.storage.journal import READERS, condemned_runs, read_journal
from pipeline.storage.snapshots import Snapshot, load_snapshot, snapshot_numbers


@dataclass(frozen=True, slots=True)
class Carried:
    """What an earlier run has written of a Shard: receipts, and the snapshot folder each of their Parts lies in."""

    receipt: BlockReceipt
    folders: tuple[str, ...]


def find_have(
    store: Store, parent: Snapshot | None, wanted: set[str], run_key: str, redone: Mapping[str, str]
) -> dict[str, tuple[Carried, ...]]:
    """Collect what earlier runs hold of the wanted Shards: the parent's word first, then this run's own.

    Of other unfinished runs only whole Shards count; of several the one with the fewest rows in quarantine.

    Args:
        run_key: of this run; what it has done of a Shard counts Block by Block.
        redone: Shard → run whose word alone counts, because it does that Shard anew.
    """
    have = _from_snapshot(parent, wanted - redone.keys()) if parent else {}
    barred = condemned_runs(store) | (_published_runs(store) if parent else set())
    runs = [key for key in store.folders("_meta/runs") if key not in barred]
    missing = wanted - have.keys()
    found = {key: _from_journal(store, key, missing) for key in runs} if missing else {}
    for shard_id in sorted(missing):
        keys = [redone[shard_id]] if shard_id in redone else runs
        held = {key: blocks for key in keys if (blocks := found.get(key, {}).get(shard_id))}
        whole = {key: blocks for key, blocks in held.items() if is_complete(blocks)}
        if run_key in held:
            have[shard_id] = held[run_key]
        elif whole:
            have[shard_id] = min(whole.values(), key=lambda blocks: sum(one.receipt.quarantined for one in blocks))
    return have


def _published_runs(store: Store) -> set[str]:
    with ThreadPoolExecutor(READERS) as pool:
        snapshots = pool.map(lambda number: load_snapshot(store, number), snapshot_numbers(store))
        return {snapshot.record.run_key for snapshot in snapshots if snapshot}


def _from_snapshot(parent: Snapshot, wanted: set[str]) -> dict[str, tuple[Carried, ...]]:
    parts: dict[str, list[tuple[str, Part]]] = defaultdict(list)
    for folder, part in parent.placed_parts():
        if part.shard_id in wanted:
            parts[part.shard_id].append((folder, part))
    have: dict[str, tuple[Carried, ...]] = {}
    for row in parent.shards.to_pylist():
        if row["shard_id"] not in wanted:
            continue
        mine = parts[row["shard_id"]]
        receipt = BlockReceipt(
            shard_id=row["shard_id"],
            block=row["blocks"] - 1,
            is_last=True,
            rows_read=row["rows_read"],
            embedded=row["embedded"],
            quarantined=row["quarantined"],
            parts=tuple(part for _, part in mine),
            reasons=orjson.loads(row["reasons"]),
            deduplicated=row.get("deduplicated", 0),
            metrics={"blocks": row["blocks"], "unreadable_bytes": row.get("unreadable_bytes") or 0},
            entries=row.get("entries"),
        )
        have[row["shard_id"]] = (Carried(receipt, tuple(folder for folder, _ in mine)),)
    return have


def _from_journal(store: Store, run_key: str, wanted: set[str]) -> dict[str, tuple[Carried, ...]]:
    journal = read_journal(store, run_key)
    blocks: dict[str, dict[int, Carried]] = defaultdict(dict)
    for folder, receipt in journal.receipts:
        if receipt.shard_id in wanted:
            blocks[receipt.shard_id][receipt.block] = Carried(receipt, (folder,) * len(receipt.parts))
    return {shard_id: tuple(found[number] for number in sorted(found)) for shard_id, found in blocks.items()}


def is_complete(carried: Sequence[Carried]) -> bool:
    """Whether these receipts stand for every Block of a Shard."""
    last = next((one.receipt for one in carried if one.receipt.is_last), None)
    if last is None:
        return False
    return sum(int(one.receipt.metrics.get("blocks", 1)) for one in carried) == last.block + 1
