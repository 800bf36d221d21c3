"""Rollback: an older Snapshot published anew under the next number, by naming its Parts where they lie."""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pipeline
from pipeline.errors import ConfigError, PipelineError, SnapshotConflict, StorageError
from pipeline.records import Part
from pipeline.storage.claim import Claim
from pipeline.storage.filesystem import Store
from pipeline.storage.parquet import part_key
from pipeline.storage.snapshots import Snapshot, files_of, load_snapshot, publish_snapshot, snapshot_numbers

ROLLBACK_FILE = re.compile(r"_meta/claims/(\d{8})/[0-9a-f]{32}\.back-to-(\d{8})")
"""Says which Snapshot is to be published again, and under which number."""


def wanted_back(store: Store, newest: int) -> set[int]:
    """Return the Snapshots that rollbacks have begun to publish again, under numbers beyond the newest.

    Who goes back to a Snapshot writes that and then looks whether it is withdrawn; who removes one withdraws it and
    then looks whether that is written. So at least one of them sees the other, however long either stands still within
    the grace of the expiry, which takes what is older for that of a dead process.
    """
    found = (ROLLBACK_FILE.fullmatch(key) for key in store.files("_meta/claims"))
    return {int(match[2]) for match in found if match and int(match[1]) > newest}


def roll_back(store: Store, number: int) -> Snapshot:
    """Publish an older Snapshot again, as the newest one; nothing is copied, and nothing of those between is lost.

    Args:
        store: the output.
        number: of a Snapshot that has not expired.

    Returns:
        The new Snapshot; the newest one as it stands if its Parts are those of `number` already.

    Raises:
        ConfigError: there is no such Snapshot.
        SnapshotConflict: a run holds the output or has published meanwhile, or the Snapshot has expired.
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
        marker = f"{claim.folder}/{claim.driver}.back-to-{number:08d}"
        store.put(marker, b"")
        try:
            return _published_again(store, old, newest, claim.driver)
        except PipelineError:
            store.delete(marker)  # no expiry has to wait for what is given up
            raise


def _published_again(store: Store, old: Snapshot, newest: Snapshot, driver: str) -> Snapshot:
    numbers = snapshot_numbers(store)
    if numbers[-1] != newest.number:
        raise SnapshotConflict(f"{store.uri}: another run has published meanwhile; look, and roll back again")
    if old.number not in numbers:
        raise SnapshotConflict(f"{store.uri}: snapshot {old.number} has expired meanwhile; go back to a newer one")
    parts = old.placed_parts()
    _check_parts(store, old, parts)
    record = replace(
        old.record,
        number=newest.number + 1,
        parent=newest.number,
        published_at=datetime.now(UTC).isoformat(timespec="seconds"),
        pipeline_version=pipeline.__version__,
        driver=driver,
        has_changes=newest.record.has_changes and old.record.duplicate_ids != "allow",
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
