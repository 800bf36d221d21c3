"""What a nightly run refuses to publish: a Snapshot that has lost what nobody meant to delete."""

from collections.abc import Sequence

import orjson

from pipeline.errors import DeletionRefused, SourceError
from pipeline.execution.planning.plan import Plan
from pipeline.execution.proof.difference import ComparedPart, difference, parts_of
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
    sources = (orjson.loads(sources) for sources in plan.parent.shards["sources"].to_pylist())
    emptied = sorted({uri for of_shard in sources for uri, *_, size_bytes in of_shard if uri in empty and size_bytes})
    if emptied:
        raise SourceError(
            f"{counted(len(emptied), 'file')} of 0 bytes held rows in snapshot {plan.parent.number}, for instance "
            f"{emptied[0]}; write again or remove what is empty, or, {ALLOW}"
        )


def check_deletes(plan: Plan, parts: Sequence[ComparedPart], unreadable_bytes: int, allowed: float) -> None:
    """See that not too many ids of the Snapshot before are gone, and none because its file cannot be read any more.

    Args:
        parts: of the coming Snapshot, where they lie now.
        unreadable_bytes: of the source, today.
        allowed: share of the ids that may go.

    Raises:
        DeletionRefused: it is otherwise; nothing was published.
        StorageError: a Part cannot be read.
    """
    if plan.parent is None:
        return
    before = sum(row.get("unreadable_bytes") or 0 for row in plan.parent.shards.to_pylist())
    found = difference(plan.parent.store, parts_of(plan.parent), parts)
    kept = f"Nothing was published, what was encoded is kept; {ALLOW}"
    if found.removed and unreadable_bytes > before:
        raise DeletionRefused(
            f"{byte_size(unreadable_bytes)} of the source cannot be read, {byte_size(before)} in snapshot "
            f"{plan.parent.number}, and {counted(found.removed, 'id')} of it would go. {kept}"
        )
    documents = plan.parent.totals["embedded"] + plan.parent.totals["reused"]  # its rows may be chunks of them
    if found.removed and found.removed / documents > allowed:
        raise DeletionRefused(
            f"{counted(found.removed, 'id')} of snapshot {plan.parent.number} would go "
            f"({percent(found.removed / documents)}, for instance {', '.join(found.examples['removed'])}), more than "
            f"output.max_deleted_fraction {allowed:g} allows. {kept}"
        )
