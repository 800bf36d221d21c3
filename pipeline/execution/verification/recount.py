"""The rows of the source, counted again at the version a Snapshot was made of."""

from typing import Any

import orjson

from pipeline.errors import SourceError
from pipeline.execution.planning.plan import read_columns_of
from pipeline.execution.verification.findings import Finding, Recount, Verification
from pipeline.parallel import in_order
from pipeline.records import Shard, SourceFile, Span
from pipeline.storage.filesystem import open_source
from pipeline.storage.readers import BadFile, parquet_row_groups, read_shard
from pipeline.storage.snapshots import Snapshot

READERS = 4
"""Shards counted at once."""


def recount(snapshot: Snapshot, result: Verification) -> None:
    """Count the rows of every Shard in its source and compare; what was changed since is counted, not blamed."""
    rows = not_compared = shards = 0
    why = ""
    entries = snapshot.shards.to_pylist()
    for entry, found in zip(entries, in_order(lambda e: _rows_of(snapshot, e), entries, READERS), strict=True):
        if isinstance(found, SourceError):
            not_compared += 1
            why = why or str(found)
            continue
        shards, rows = shards + 1, rows + found
        if found != entry["rows_read"]:
            detail = f"{found} rows in the source, {entry['rows_read']} read for Shard {entry['shard_id']}"
            result.add(Finding("source", shard_of(entry).spans[0].file.uri, detail))
    result.recount = Recount(shards, rows, not_compared, why)


def shard_of(entry: dict[str, Any]) -> Shard:
    """Return the Shard that a row of `snapshots.SHARDS` tells of.

    Raises:
        SourceError: the row is of a version of this pipeline that did not write down format and size.
    """
    spans = []
    for source in orjson.loads(entry["sources"]):
        if len(source) < 5:
            raise SourceError(f"{source[0]}: the snapshot is of an older version and does not say its format and size")
        uri, version, position, format, size_bytes = source
        file = SourceFile(uri, version, size_bytes, format)
        first, _, count = position.removeprefix("g").partition("+")
        spans.append(Span(file) if position == "all" else Span(file, int(first), int(count)))
    return Shard(entry["shard_id"], tuple(spans))


def _rows_of(snapshot: Snapshot, entry: dict[str, Any]) -> int | SourceError:
    """Return the rows that the source has now, by the footer of Parquet files and by reading others."""
    layout = snapshot.record.layout
    try:
        shard = shard_of(entry)
        if all(span.file.format == "parquet" for span in shard.spans):
            return sum(_rows_by_footer(span) for span in shard.spans)
        blocks = read_shard(shard, read_columns_of(layout), layout["rows_per_part"], open_source)
        return sum(block.rows_read for block in blocks)
    except SourceError as error:
        return error


def _rows_by_footer(span: Span) -> int:
    try:
        groups = parquet_row_groups(span.file, open_source)
    except BadFile:
        return 1  # as what it stands in quarantine
    first = span.first_row_group or 0
    last = len(groups) if span.row_groups is None else first + span.row_groups
    return sum(rows for rows, _ in groups[first:last])
