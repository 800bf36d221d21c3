"""Blocks on their way: as rows of Ray Data, and what any stage may do to one.

A Ray Data row is a whole Block: its tables travel as Arrow IPC, so that schemas arrive as they were sent and one call
of a stage is exactly one Block, whatever Ray would make of its size.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import Block, Reason, Shard
from pipeline.schemas import BYTE_OFFSET, ROW, SPAN, SPANS_PER_SHARD, TEXT
from pipeline.storage.rows import Bad, Entry, quarantine_of


def to_row(shard: Shard, block: Block) -> pa.Table:
    """Return a Block as one Ray Data row."""
    head = {"number": block.number, "rows_read": block.rows_read, "is_last": block.is_last, "metrics": block.metrics}
    return pa.table(
        {
            "shard": pa.array([orjson.dumps(shard.to_json())], pa.binary()),
            "head": pa.array([orjson.dumps(head)], pa.binary()),
            "documents": _to_ipc(block.documents),
            "quarantine": _to_ipc(block.quarantine),
        }
    )


def from_rows(batch: pa.Table) -> Iterator[tuple[Shard, Block]]:
    """Yield the Blocks of Ray Data rows; their tables are views of the row's memory."""
    for row in range(batch.num_rows):
        shard = Shard.from_json(orjson.loads(batch["shard"][row].as_py()))
        head = orjson.loads(batch["head"][row].as_py())
        documents, quarantine = (
            pa.ipc.open_stream(batch[name][row].as_buffer()).read_all() for name in ("documents", "quarantine")
        )
        yield shard, Block(shard.shard_id, documents=documents, quarantine=quarantine, **head)


def _to_ipc(table: pa.Table) -> pa.Array:
    """Return a table as one large_binary value, without copying what is serialised."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue()
    offsets = pa.py_buffer(np.array([0, content.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, content])


def positions(documents: pa.Table) -> pa.Array:
    """Return one number per row that is equal for the chunks of one document only."""
    row, span = documents[ROW].cast(pa.int64()), documents[SPAN].cast(pa.int64())
    return pc.add(pc.multiply(row, pa.scalar(SPANS_PER_SHARD, pa.int64())), span)


def quarantined(shard: Shard, block: Block, documents: pa.Table, reason: Reason, error: str) -> Block:
    """Return the Block with these documents added to its quarantine.

    Of a document in chunks the first one stands there, which does not tell size and hash of the whole.
    """
    is_whole = "chunk" not in documents.column_names
    if not is_whole:
        documents = documents.filter(pc.equal(documents["chunk"], 0))
    why = Bad(reason, error)
    columns = (documents[name] for name in (SPAN, ROW, BYTE_OFFSET, "id", TEXT))
    entries = [
        Entry(shard.spans[span].file.uri, row, byte_offset, str(id), text.encode(), why)
        for span, row, byte_offset, id, text in zip(*(column.to_pylist() for column in columns), strict=True)
    ]
    added = pa.Table.from_batches([quarantine_of(entries)])
    for name in () if is_whole else ("raw_bytes", "raw_hash"):
        index = added.schema.get_field_index(name)
        field = added.schema.field(index)
        added = added.set_column(index, field, pa.nulls(len(entries), field.type))
    return replace(block, quarantine=pa.concat_tables([block.quarantine, added]))
