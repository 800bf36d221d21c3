"""What an export has found or made, and what it says when it cannot begin."""

from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.storage.snapshots import Snapshot


@dataclass(frozen=True, slots=True)
class Exported:
    """A Snapshot that stands in another format now."""

    to: str
    """delta | lance | faiss."""
    uri: str
    snapshot: int
    rows: int
    version: str
    """Of the table, or the folder of the index."""
    is_new: bool
    """False = it stood there already."""
    facts: dict[str, Any]
    """What else there is to tell."""
    failed_check: str = ""
    """What is not as good as it should be; empty if nothing is."""


def origin_of(snapshot: Snapshot) -> dict[str, str]:
    """Return what an export says of where its rows come from, as text by key."""
    record = snapshot.record
    return {
        "pipeline.output": snapshot.store.uri,
        "pipeline.snapshot": str(snapshot.number),
        "pipeline.folder": record.folder,
        "pipeline.fingerprint": record.fingerprint,
        "pipeline.recipe": orjson.dumps(record.recipe).decode(),
    }
