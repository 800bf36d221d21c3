"""Expiry of feature tables: the newest ones stay, older ones and what dead runs have left go."""

import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

from pipeline.errors import StorageError
from pipeline.storage.expiry import REMOVERS, TEMPORARY_FILE, Expiry, Removal
from pipeline.storage.feature_tables import load_feature_table, table_key_of, table_numbers
from pipeline.storage.filesystem import Store

TABLE_FILE = re.compile(r"tables/((\d{8})-[0-9a-f]{32})/")


def expire_tables(store: Store, keep: int, older_than: float, is_dry_run: bool) -> Expiry:
    """Remove feature tables beyond the newest ones; what was fitted stays, whoever used it.

    A table is withdrawn before its files go. If this ends in its middle, every published table is whole, and the next
    expiry goes on. What a dead run has left under a number that is still to be published stays, however old: the same
    command would adopt it. It goes once that number has passed.

    Args:
        keep: how many tables stay at least, 1 or more.
        older_than: seconds since the epoch; what was written later stays. Must be longer ago than a run can stand
            still and go on.
        is_dry_run: only say what would go.

    Raises:
        StorageError: a table cannot be read (then nothing was removed), or a file cannot be removed.
    """
    store.check_reachable()
    expiry = _found(store, keep, older_than)
    if not is_dry_run:
        with ThreadPoolExecutor(REMOVERS) as pool:
            for removal in expiry.removals:
                for key in removal.first:
                    store.put(key, b"")  # the number stays taken: nobody who slept can publish under it
                list(pool.map(store.delete, removal.rest))
        store.remove_empty_folders("tables")
    return expiry


def _found(store: Store, keep: int, older_than: float) -> Expiry:
    numbers, found = table_numbers(store), store.files("_meta") | store.files("tables")
    young = {key for key, stat in found.items() if stat.modified_at >= older_than}
    kept = [number for number in numbers if number in numbers[-keep:] or table_key_of(number) in young]
    groups: dict[str, list[str]] = defaultdict(list)
    for key in sorted(found):
        if match := TABLE_FILE.match(key):
            if int(match[2]) <= max(numbers, default=0):
                groups[match[1]].append(key)
        elif TEMPORARY_FILE.match(key):
            groups[key].append(key)
    removals = []
    for number in numbers:
        table = load_feature_table(store, number)
        if table is None:
            raise StorageError(f"{store.uri}: table {number} was listed and is gone: another expiry is at work")
        keys = groups.pop(table.record.folder, [])
        if number not in kept:
            size_bytes = sum(found[key].size_bytes for key in keys)
            name = f"feature table {number}"
            removals.append(Removal(name, None, None, (table_key_of(number),), tuple(keys), size_bytes))
    for name, keys in groups.items():
        if not young.intersection(keys):
            removals.append(Removal(name, None, None, (), tuple(keys), sum(found[key].size_bytes for key in keys)))
    return Expiry(tuple(kept), tuple(removals), False)
