"""Rows of any sizes, cut into Blocks that do not depend on how the rows came."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import schemas
from pipeline.records import Block
from pipeline.storage.rows import Rows


@dataclass(frozen=True, slots=True)
class BlockLimits:
    """Where a Block ends; the same rows under the same limits give the same Blocks."""

    rows: int
    """A Block ends with the row that reaches this; only a stretch of bad rows, which is never cut, can exceed it."""
    text_bytes: int
    """A Block ends with the row whose text reaches this, so it can exceed it by one text."""


@dataclass(slots=True)
class _Growing:
    """The Block that is being filled."""

    number: int
    rows: int = 0
    text_bytes: int = 0
    documents: list[pa.RecordBatch] = field(default_factory=list)
    quarantine: list[pa.RecordBatch] = field(default_factory=list)


def cut_blocks(
    shard_id: str,
    document_schema: pa.Schema,
    rows: Iterable[Rows],
    limits: BlockLimits,
    skip_blocks: frozenset[int] = frozenset(),
) -> Iterator[Block]:
    """Yield the Blocks of a Shard, numbered from 0; the last one, and only it, has `is_last`, be it empty.

    Args:
        shard_id: the Shard's name.
        document_schema: of the documents, needed where there are none.
        rows: all source rows of the Shard, in order, in pieces of any size.
        limits: where a Block ends.
        skip_blocks: numbers of Blocks that are counted but not built.
    """
    block = _Growing(0)
    started = perf_counter()
    for piece in rows:
        position = 0
        extent = _Extent(piece)
        while position < len(piece):
            if block.rows >= limits.rows or block.text_bytes >= limits.text_bytes:
                if block.number not in skip_blocks:
                    yield _built(shard_id, document_schema, block, is_last=False, started=started)
                    started = perf_counter()
                block = _Growing(block.number + 1)
            end = extent.end_within(position, limits.rows - block.rows, limits.text_bytes - block.text_bytes)
            block.rows += extent.rows(position, end)
            block.text_bytes += extent.text_bytes(position, end)
            if block.number not in skip_blocks:
                block.documents.append(extent.documents(position, end))
                block.quarantine.append(extent.quarantine(position, end))
            position = end
    if block.number not in skip_blocks:
        yield _built(shard_id, document_schema, block, is_last=True, started=started)


class _Extent:
    """Running totals over N rows, so that any stretch of them is cut without looking at a row."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._counts_N1: NDArray[np.int64] = np.arange(len(rows) + 1)
        if rows.quarantine.num_rows:
            counts_N = np.ones(len(rows), np.int64)
            counts_N[~rows.is_document_N] = schemas.rows_counted(rows.quarantine).to_numpy(zero_copy_only=False)
            self._counts_N1 = _running_total(counts_N)
        text_bytes_N = np.zeros(len(rows), np.int64)
        text_bytes_N[rows.is_document_N] = pc.binary_length(rows.documents.column(schemas.TEXT)).to_numpy()
        self._text_bytes_N1 = _running_total(text_bytes_N)
        self._documents_N1 = _running_total(rows.is_document_N)

    def end_within(self, start: int, rows: int, text_bytes: int) -> int:
        """Return where a stretch from `start` reaches the first of both limits, or the end."""
        by_rows = int(np.searchsorted(self._counts_N1, self._counts_N1[start] + rows))
        by_bytes = int(np.searchsorted(self._text_bytes_N1, self._text_bytes_N1[start] + text_bytes))
        return min(by_rows, by_bytes, len(self._rows))

    def rows(self, start: int, end: int) -> int:
        return int(self._counts_N1[end] - self._counts_N1[start])

    def text_bytes(self, start: int, end: int) -> int:
        return int(self._text_bytes_N1[end] - self._text_bytes_N1[start])

    def documents(self, start: int, end: int) -> pa.RecordBatch:
        first, stop = int(self._documents_N1[start]), int(self._documents_N1[end])
        return self._rows.documents.slice(first, stop - first)

    def quarantine(self, start: int, end: int) -> pa.RecordBatch:
        first, stop = start - int(self._documents_N1[start]), end - int(self._documents_N1[end])
        return self._rows.quarantine.slice(first, stop - first)


def _running_total(values_N: NDArray[np.int64] | NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(values_N, dtype=np.int64)])


def _built(shard_id: str, document_schema: pa.Schema, block: _Growing, *, is_last: bool, started: float) -> Block:
    documents = _compact(pa.Table.from_batches(block.documents, document_schema))
    quarantine = _compact(pa.Table.from_batches(block.quarantine, schemas.QUARANTINE))
    block.documents.clear()  # its consumer takes its time, and should not keep the rows in memory twice
    block.quarantine.clear()
    metrics = {"read_seconds": perf_counter() - started, "text_bytes": float(block.text_bytes)}
    if unreadable := pc.sum(quarantine["unreadable_bytes"]).as_py():
        metrics["unreadable_bytes"] = float(unreadable)
    return Block(shard_id, block.number, block.rows, is_last, documents, quarantine, metrics)


def _compact(table: pa.Table) -> pa.Table:
    """Return the table in one piece and without the rows around it, which a slice would hold and pickle."""
    table = table.combine_chunks()
    if table.get_total_buffer_size() <= 2 * table.nbytes:
        return table
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()
