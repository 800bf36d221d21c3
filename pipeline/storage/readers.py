"""From a Shard to its Blocks: every source row once, in order, as a document or in quarantine."""

from collections.abc import Iterator

import pyarrow as pa

from pipeline.records import Block, Shard, SourceFile, Span
from pipeline.storage.blocks import BlockLimits, cut_blocks
from pipeline.storage.csv_reader import read_csv, read_csv_schema
from pipeline.storage.jsonl_reader import read_jsonl, read_jsonl_schema
from pipeline.storage.parquet_reader import parquet_row_groups, read_parquet, read_parquet_schema
from pipeline.storage.rows import Candidates, OpenFile, ReadColumns, Rows, sort_rows
from pipeline.storage.text_reader import read_text, read_text_schema

__all__ = ["OpenFile", "ReadColumns", "parquet_row_groups", "read_shard", "read_source_schema"]


def read_source_schema(
    file: SourceFile, id_column: str, text_column: str, keep_columns: tuple[str, ...], open_file: OpenFile
) -> pa.Schema:
    """Return the document schema as one file gives it: from the footer, the first rows or the header.

    A JSON-lines file without rows and a CSV file without a header say nothing: all their columns are strings.

    Raises:
        SourceError: a column is absent or of a type that cannot be used, or the file cannot be read.
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
) -> Iterator[Block]:
    """Yield the Blocks of a Shard, numbered from 0 over all its Spans; exactly one is the last, be it empty.

    Every source row is in exactly one Block, as a document or in quarantine, in the order of the files. Only
    a batch of rows and the Block being filled are held, however large the file or its row groups.

    Args:
        shard: its Spans are read one after the other; `_span` says which one a row is of.
        columns: what to read, and as what.
        rows_per_block: source rows per Block, quarantined ones included.
        open_file: opens a source file at its planned version.
        skip_blocks: Blocks that an earlier attempt has written: counted, not yielded.
        max_text_bytes: a Block ends early with the row whose text reaches this.

    Raises:
        SourceError: a file cannot be read, or its columns are not those of the run. Bad rows raise nothing.
    """
    limits = BlockLimits(rows_per_block, max_text_bytes)
    return cut_blocks(shard.shard_id, columns.schema, _rows_of(shard, columns, open_file), limits, skip_blocks)


def _rows_of(shard: Shard, columns: ReadColumns, open_file: OpenFile) -> Iterator[Rows]:
    for index, span in enumerate(shard.spans):
        for found in _candidates_of(span, columns, open_file):
            yield sort_rows(found, columns, span.file, index)


def _candidates_of(span: Span, columns: ReadColumns, open_file: OpenFile) -> Iterator[Candidates]:
    match span.file.format:
        case "parquet":
            return read_parquet(span, columns, open_file)
        case "jsonl":
            return read_jsonl(span.file, columns, open_file)
        case "csv":
            return read_csv(span.file, columns, open_file)
        case "text":
            return read_text(span.file, columns, open_file)
