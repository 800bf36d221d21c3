"""The Journal: numbered entries of what a run has written, put-if-absent, so that it can be resumed and fenced."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import orjson

from pipeline.errors import SnapshotConflict, StorageError
from pipeline.records import BlockReceipt
from pipeline.storage.filesystem import Store

READERS = 16
"""Entries read at once; each is one small request."""


@dataclass(frozen=True, slots=True)
class JournalRead:
    """What a Journal says so far."""

    receipts: list[tuple[str, BlockReceipt]]
    """Each with the snapshot folder that its Parts lie in."""
    next_number: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a Journal."""

    driver: str
    folder: str
    receipts: tuple[BlockReceipt, ...]
    written_at: float
    """Seconds since the epoch, on the clock of the store."""


def read_journal(store: Store, run_key: str) -> JournalRead:
    """Return the receipts a run has journalled so far, and the number its next entry gets."""
    entries = read_entries(store, run_key)
    receipts = [(entry.folder, receipt) for entry in entries for receipt in entry.receipts]
    return JournalRead(receipts, len(entries))


def read_entries(store: Store, run_key: str) -> list[Entry]:
    """Return the entries of a run's Journal, in their order."""
    prefix = f"_meta/runs/{run_key}/journal"
    pattern = re.compile(re.escape(prefix) + r"/\d{8}\.json")
    found = {key: stat for key, stat in sorted(store.files(prefix).items()) if pattern.fullmatch(key)}
    with ThreadPoolExecutor(READERS) as pool:
        contents = list(pool.map(store.read, found))
    entries = []
    for (key, stat), read in zip(found.items(), contents, strict=True):
        if read is None:
            raise StorageError(f"{store.uri_of(key)} was listed and is gone: something else deletes in this output")
        content = orjson.loads(read)
        receipts = tuple(BlockReceipt.from_json(receipt) for receipt in content["receipts"])
        entries.append(Entry(content["driver"], content["folder"], receipts, stat.modified_at))
    return entries


class Journal:
    """Writes the entries of one run; every number is written once, by one driver.

    Args:
        folder: the snapshot folder the run writes to.
        driver: names this driver process; stands in every entry.
        next_number: as `read_journal` gave it.
    """

    def __init__(self, store: Store, run_key: str, folder: str, driver: str, next_number: int) -> None:
        self.store, self.run_key, self.folder, self.driver = store, run_key, folder, driver
        self.next_number = next_number

    def append(self, receipts: Sequence[BlockReceipt]) -> None:
        """Write the next entry.

        Raises:
            SnapshotConflict: another driver has written this number; it owns the run now.
        """
        entry = {
            "number": self.next_number,
            "driver": self.driver,
            "folder": self.folder,
            "receipts": [receipt.to_json() for receipt in receipts],
        }
        key = f"_meta/runs/{self.run_key}/journal/{self.next_number:08d}.json"
        if self.store.put_new(key, orjson.dumps(entry)) is not None:
            raise SnapshotConflict(
                f"another driver has taken over this run ({self.store.uri_of(key)}); it goes on, this one stops"
            )
        self.next_number += 1


def condemned_runs(store: Store) -> set[str]:
    """Return the run_keys under which nothing may be written any more, because an expiry removes what is there."""
    return {key.rpartition("/")[2] for key in store.files("_meta/condemned")}


def condemn_run(store: Store, run_key: str) -> None:
    """Let no run have this key from now on.

    Who begins a run writes to its Journal and then looks whether it is condemned; who removes one condemns it and then
    looks whether its Journal has grown. So at least one of them sees the other, however long either stands still.
    """
    store.put_new(f"_meta/condemned/{run_key}", b"")


def is_condemned(store: Store, run_key: str) -> bool:
    """Whether a run of this key must not go on."""
    return store.stat(f"_meta/condemned/{run_key}") is not None
