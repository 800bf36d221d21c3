"""The rows of a Snapshot as a stream of record batches, whatever their number."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipeline.storage.snapshots import Snapshot

BATCH_ROWS = 4096
"""Rows that travel at a time; a few batches of one Part are read ahead."""


def batches_of(snapshot: Snapshot, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Snapshot in the order of its Parts; the same order every time.

    Args:
        columns: which; None = all, those of the folders included.
    """
    names = list(columns) if columns is not None else None
    yield from snapshot.dataset().to_batches(
        columns=names, batch_size=BATCH_ROWS, batch_readahead=2, fragment_readahead=1
    )


def reader_of(snapshot: Snapshot, schema: pa.Schema) -> pa.RecordBatchReader:
    """Return the rows of a Snapshot, cast to a schema of the same columns, as writers take them."""
    cast = (batch.cast(schema) for batch in batches_of(snapshot, schema.names))
    return pa.RecordBatchReader.from_batches(schema, cast)
