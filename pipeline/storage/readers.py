"""From a Shard to its Blocks: every source row once, in order, as a document or in quarantine."""

from collections.abc import Callable, Iterator

import pyarrow as pa

from pipeline.records import Block, Shard, SourceFile, Span
from pipeline.storage.blocks import BlockLimits, cut_blocks
from pipeline.storage.csv_reader import read_csv, read_csv_schema
from pipeline.storage.jsonl_reader import read_jsonl, read_jsonl_schema
from pipeline.storage.parquet_reader import parquet_row_groups, read_parquet, read_parquet_schema
from pipeline.storage.rows import (
    Bad,
    BadFile,
    Candidates,
    OpenFile,
    ReadColumns,
    Rows,
    Stretch,
    sort_rows,
    stretch_as_rows,
)
from pipeline.storage.text_reader import read_text, read_text_schema

__all__ = ["BadFile", "OpenFile", "ReadColumns", "parquet_row_groups", "read_shard", "read_source_schema", "read_span"]

RowsOf = Callable[[Shard, ReadColumns, OpenFile], Iterator[Rows]]
"""Gives all source rows of a Shard, in order."""


def read_source_schema(
    file: SourceFile, id_column: str, text_column: str, keep_columns: tuple[str, ...], open_file: OpenFile
) -> pa.Schema | None:
    """Return the document schema as one file gives it: from the footer, the first rows or the header.

    Returns:
        None where the file says nothing of its columns: no good row among its first ones, or no header.

    Raises:
        BadFile: a column is absent or of a type that cannot be used, or the file cannot be decoded.
        SourceError: the store does not give the file.
    """
    match file.format:
        case "parquet":
            return read_parquet_schema(file, id_column, text_column, keep_columns, open_file)
        case "jsonl":
            return read_jsonl_schema(file, id_column, text_column, keep_columns, open_file)
        case "csv":
            return read_csv_schema(file, id_column, text_column, keep_columns, open_file)
        case "text":
            return read_text_schema(file, id_column, text_column, keep_columns)


def read_shard(
    shard: Shard,
    columns: ReadColumns,
    rows_per_block: int,
    open_file: OpenFile,
    skip_blocks: frozenset[int] = frozenset(),
    max_text_bytes: int = 64 * 2**20,
    rows_of: RowsOf | None = None,
) -> Iterator[Block]:
    """Yield the Blocks of a Shard, numbered from 0 over all its Spans; exactly one is the last, be it empty.

    Every source row is in exactly one Block, as a document or in quarantine, in the order of the files; a stretch
    that cannot be read is one entry of quarantine. Only a batch of rows and the Block being filled are held, however
    large the file or its row groups.

    Args:
        shard: its Spans are read one after the other; `_span` says which one a row is of.
        columns: what to read, and as what.
        rows_per_block: source rows per Block, quarantined ones included.
        open_file: opens a source file at its planned version.
        skip_blocks: Blocks that an earlier attempt has written: counted, not yielded.
        max_text_bytes: a Block ends early with the row whose text reaches this.
        rows_of: what reads the rows; None = this process.

    Raises:
        SourceError: the store does not give a file, or not as planned. What is wrong within a file raises nothing.
    """
    limits = BlockLimits(rows_per_block, max_text_bytes)
    rows = (rows_of or _rows_here)(shard, columns, open_file)
    return cut_blocks(shard.shard_id, columns.schema, rows, limits, skip_blocks)


def _rows_here(shard: Shard, columns: ReadColumns, open_file: OpenFile) -> Iterator[Rows]:
    for index, span in enumerate(shard.spans):
        yield from read_span(span, index, columns, open_file)


def read_span(span: Span, index: int, columns: ReadColumns, open_file: OpenFile) -> Iterator[Rows]:
    """Yield the rows of one Span, in order, as they come.

    Args:
        index: of the Span in its Shard.
        others: as for `read_shard`, and it raises the same.
    """
    found_in_span = read_parquet if span.file.format == "parquet" else _read_lines
    for found in found_in_span(span, columns, open_file):
        if isinstance(found, Stretch):
            yield stretch_as_rows(found, columns, span.file)
        else:
            yield sort_rows(found, columns, span.file, index)


def _read_lines(span: Span, columns: ReadColumns, open_file: OpenFile) -> Iterator[Candidates | Stretch]:
    """Yield the rows of a line file, or all of it as one stretch; which of both is known before its first row."""
    file = span.file
    readers = {"jsonl": read_jsonl, "csv": read_csv, "text": read_text}
    try:
        yield from readers[file.format](file, columns, open_file)
    except BadFile as error:
        with open_file(file):  # still there at its planned version, so it is the file that is bad
            yield Stretch(0, Bad(error.reason, str(error), rows=None, unreadable_bytes=file.size_bytes))
