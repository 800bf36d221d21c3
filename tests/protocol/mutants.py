"""Protocols that are wrong on purpose: each breaks one rule, and the state machine must notice."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from unittest.mock import patch

import orjson

from pipeline.errors import ReconciliationError
from pipeline.execution import publish, stages
from pipeline.execution.proof.reconcile import reconcile
from pipeline.records import BlockReceipt, Shard
from pipeline.storage import expiry
from pipeline.storage.expiry import Expiry
from pipeline.storage.filesystem import Store
from pipeline.storage.parquet import PartName
from pipeline.storage.snapshots import snapshot_key, withdraw_snapshot
from tests.inline import blocks_of
from tests.protocol import world
from tests.protocol.actors import SteppedStore
from tests.protocol.world import Mutant


def overwritten(prefix: str, suffix: str) -> list[AbstractContextManager[Any]]:
    """Let some keys be written over whatever stands there."""
    put_new = SteppedStore.put_new

    def put(store: SteppedStore, key: str, content: bytes) -> bytes | None:
        if key.startswith(prefix) and key.endswith(suffix):
            store.put(key, content)
            return None
        return put_new(store, key, content)

    return [patch.object(SteppedStore, "put_new", put)]


def named_at_random() -> list[AbstractContextManager[Any]]:
    """Let every attempt at a Block write a Part of its own."""
    numbers = itertools.count()

    def name(kind: Any, folder: str, partition: str, shard_id: str, block: int) -> PartName:
        return PartName(kind, folder, f"{partition}{next(numbers)}-", shard_id, block)

    return [patch.object(stages, "PartName", name)]


def published_early() -> list[AbstractContextManager[Any]]:
    """Leave the last Block of a Shard out, and publish without asking for it."""

    def without_last(*work: Any) -> Iterator[BlockReceipt]:
        return (receipt for receipt in blocks_of(*work) if not receipt.is_last)

    def asking_little(wanted: Sequence[Shard], receipts: Sequence[BlockReceipt], chunked: bool) -> list[dict[str, Any]]:
        rows = []
        for shard in wanted:
            try:
                rows += reconcile([shard], [one for one in receipts if one.shard_id == shard.shard_id], chunked)
            except ReconciliationError:
                continue
        return rows

    return [patch.object(world, "blocks_of", without_last), patch.object(publish, "reconcile", asking_little)]


def numbered_next_free() -> list[AbstractContextManager[Any]]:
    """Publish under the next free number if the own one is taken."""
    put_new = SteppedStore.put_new

    def put(store: SteppedStore, key: str, content: bytes) -> bytes | None:
        found = put_new(store, key, content)
        while found is not None and key.startswith("_meta/snapshots/") and key.endswith(".json"):
            record = orjson.loads(content)
            content = orjson.dumps(record | {"number": record["number"] + 1})
            key = snapshot_key(record["number"] + 1)
            found = put_new(store, key, content)
        return found

    return [patch.object(SteppedStore, "put_new", put)]


def expiring_parts_first() -> list[AbstractContextManager[Any]]:
    """Let an expiry remove Parts while their Snapshot is still published."""

    def sweep(store: Store, found: Expiry) -> None:
        for removal in found.removals:
            for key in (*removal.first, *removal.rest):
                store.delete(key)
            if removal.snapshot is not None:
                withdraw_snapshot(store, removal.snapshot)

    return [patch.object(expiry, "sweep", sweep)]


MUTANTS: dict[str, Mutant] = {
    "a part is written over": partial(overwritten, "snapshots/", ".parquet"),
    "a snapshot is written over": partial(overwritten, "_meta/snapshots/", ".json"),
    "parts have random names": named_at_random,
    "a snapshot is published before all is written": published_early,
    "a snapshot takes the next free number": numbered_next_free,
    "an expiry removes parts before their snapshot": expiring_parts_first,
}
