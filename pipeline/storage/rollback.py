"""Rollback: an older Snapshot published anew under the next number, by naming its Parts where they lie."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pipeline
from pipeline.errors import ConfigError, SnapshotConflict, StorageError
from pipeline.records import Part
from pipeline.storage.claim import Claim
from pipeline.storage.filesystem import Store
from pipeline.storage.parquet import part_key
from pipeline.storage.snapshots import Snapshot, files_of, load_snapshot, publish_snapshot, snapshot_numbers


def roll_back(store: Store, number: int) -> Snapshot:
    """Publish an older Snapshot again, as the newest one; nothing is copied, and nothing of those between is lost.

    Args:
        store: the output.
        number: of a Snapshot that has not expired.

    Returns:
        The new Snapshot; the newest one as it stands if its Parts are those of `number` already.

    Raises:
        ConfigError: there is no such Snapshot.
        SnapshotConflict: a run holds the output, or has published meanwhile.
        StorageError: a Part of it is missing or of another size.
    """
    store.check_reachable()
    numbers = snapshot_numbers(store)
    old = load_snapshot(store, number) if number in numbers else None
    if old is None:
        there = ", ".join(map(str, numbers)) or "none"
        raise ConfigError(f"{store.uri} has no snapshot {number} to go back to; there are: {there}")
    newest = load_snapshot(store, numbers[-1])
    assert newest is not None
    if newest.parts.equals(old.parts) and newest.shards.equals(old.shards):
        return newest
    with Claim(store, newest.number + 1) as claim:
        if snapshot_numbers(store)[-1] != newest.number:
            raise SnapshotConflict(f"{store.uri}: another run has published meanwhile; look, and roll back again")
        parts = old.placed_parts()
        _check_parts(store, old, parts)
        record = replace(
            old.record,
            number=newest.number + 1,
            parent=newest.number,
            published_at=datetime.now(UTC).isoformat(timespec="seconds"),
            pipeline_version=pipeline.__version__,
            driver=claim.driver,
            has_changes=newest.record.has_changes,
        )
        return publish_snapshot(store, record, parts, old.shards.to_pylist())


def _check_parts(store: Store, snapshot: Snapshot, parts: Sequence[tuple[str, Part]]) -> None:
    """See that every Part lies where its Snapshot says."""
    found = files_of(store, {folder for folder, _ in parts})
    for folder, part in parts:
        key = part_key(part.kind, folder, part.path)
        if key not in found or found[key].size_bytes != part.size_bytes:
            raise StorageError(
                f"{store.uri_of(key)} is missing or of another size than snapshot {snapshot.number} says; it cannot be "
                "gone back to"
            )
