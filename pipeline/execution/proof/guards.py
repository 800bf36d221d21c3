"""What a nightly run refuses to publish: a Snapshot that has lost what nobody meant to delete."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from pipeline.errors import DeletionRefused, SourceError
from pipeline.execution.planning.plan import Plan
from pipeline.execution.proof.difference import READERS, ComparedPart, difference, parts_of
from pipeline.parallel import in_order
from pipeline.records import Reason
from pipeline.storage.filesystem import Store
from pipeline.storage.parquet import read_columns
from pipeline.storage.snapshots import Snapshot
from pipeline.units import byte_size, counted, percent

ALLOW = "if this is meant, run again with --allow-deletes"


def check_sources(plan: Plan) -> None:
    """See that no file is empty that held something in the Snapshot before.

    Raises:
        SourceError: some are; the message names one.
    """
    empty = {file.uri for file in plan.files if file.size_bytes == 0}
    if plan.parent is None or not empty:
        return
    emptied = sorted({uri for uri, *_, size_bytes in _sources_of(plan.parent) if uri in empty and size_bytes})
    if emptied:
        raise SourceError(
            f"{counted(len(emptied), 'file')} of 0 bytes held rows in snapshot {plan.parent.number}, for instance "
            f"{emptied[0]}; write again or remove what is empty, or, {ALLOW}"
        )


def _sources_of(snapshot: Snapshot) -> Iterator[list[Any]]:
    """Yield [URI, version, …, size in bytes] of every file of every Shard."""
    for of_shard in snapshot.shards["sources"].to_pylist():
        yield from orjson.loads(of_shard)


def check_deletes(plan: Plan, parts: Sequence[ComparedPart], allowed: float) -> None:
    """See that not too many ids of the Snapshot before are gone, and none because its file cannot be read any more.

    Args:
        parts: of the coming Snapshot, where they lie now.
        allowed: share of the ids that may go.

    Raises:
        DeletionRefused: it is otherwise; nothing was published.
        StorageError: a Part cannot be read.
    """
    if plan.parent is None:
        return
    store, before = plan.parent.store, parts_of(plan.parent)
    found = difference(store, before, parts)
    if not found.removed:
        return
    gone, number = counted(found.removed, "id"), plan.parent.number
    kept = f"Nothing was published, what was encoded is kept; {ALLOW}"
    unreadable = _newly_unreadable(plan, plan.parent, before, parts)
    if unreadable:
        raise DeletionRefused(
            f"{byte_size(sum(unreadable.values()))} of the source cannot be read since snapshot {number} (in "
            f"{counted(len(unreadable), 'file')}, for instance {min(unreadable)}), and {gone} of it would go. {kept}"
        )
    documents = plan.parent.totals["embedded"] + plan.parent.totals["reused"]  # its rows may be chunks of them
    if found.removed / documents > allowed:
        raise DeletionRefused(
            f"{gone} of snapshot {number} would go ({percent(found.removed / documents)}, for instance "
            f"{', '.join(found.examples['removed'])}), more than output.max_deleted_fraction {allowed:g} allows. {kept}"
        )


def _newly_unreadable(
    plan: Plan, parent: Snapshot, before: Sequence[ComparedPart], after: Sequence[ComparedPart]
) -> dict[str, int]:
    """Return the bytes that cannot be read of each file of which that is more than in the Snapshot before.

    The files are compared one by one: what was mended in one says nothing of what was lost in another. Only files under
    new names are compared together with those that are gone: a corpus may be written anew every night.
    """
    in_both = {part.name for part in before} & {part.name for part in after}
    was, now = (
        _unreadable_bytes(
            parent.store, [part.key for part in parts if part.kind == "quarantine" and part.name not in in_both]
        )
        for parts in (before, after)
    )
    grown = {uri: size_bytes for uri, size_bytes in now.items() if size_bytes > was[uri]}
    known = {uri for uri, *_ in _sources_of(parent)}
    new, present = grown.keys() - known, {file.uri for file in plan.files}
    if sum(grown[uri] for uri in new) <= sum(size_bytes for uri, size_bytes in was.items() if uri not in present):
        return {uri: size_bytes for uri, size_bytes in grown.items() if uri not in new}
    return grown


def _unreadable_bytes(store: Store, keys: Sequence[str]) -> Counter[str]:
    """Return by source URI what these Parts of quarantine say; a line that is too long may have been many rows."""
    found: Counter[str] = Counter()
    names = ["source_uri", "byte_offset", "reason", "raw_bytes", "unreadable_bytes"]
    for entries in in_order(lambda key: read_columns(store, key, names), keys, READERS):
        for entry in entries.to_pylist():
            is_line = entry["byte_offset"] is not None  # and no text of Parquet, which is one row
            measure = "raw_bytes" if is_line and entry["reason"] == Reason.LINE_TOO_LONG else "unreadable_bytes"
            found[entry["source_uri"]] += entry[measure] or 0
    return found
