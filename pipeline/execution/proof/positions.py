"""Where some of the quarantined rows of a run lie in the source: file and row, never a text."""

from collections import defaultdict

from pipeline.storage.filesystem import Store
from pipeline.storage.parquet import read_columns

PARTS, SHOWN = 32, 3
"""Quarantine Parts that are opened, and positions per reason."""


def positions_of(store: Store, folder: str) -> dict[str, list[str]]:
    """Return the positions of some rows in the quarantine of one snapshot folder, by reason.

    Raises:
        StorageError: a Part of it cannot be read.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for key in sorted(key for key in store.files(f"quarantine/{folder}") if key.endswith(".parquet"))[:PARTS]:
        for entry in read_columns(store, key, ["source_uri", "row", "reason", "rows"]).to_pylist():
            if len(found[entry["reason"]]) < SHOWN:
                stretch = f" and {entry['rows'] - 1:,} rows after it" if (entry["rows"] or 1) > 1 else ""
                found[entry["reason"]].append(f"{entry['source_uri']}, row {entry['row']:,}{stretch}")
    return dict(found)
