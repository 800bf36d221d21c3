"""Parquet by row groups: only the columns asked for, in batches, however large a row group is.

A row's number is its position in the file, the row groups before the Span included.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schemas
from pipeline.errors import SourceError
from pipeline.records import SourceFile, Span
from pipeline.storage.arrow_types import as_utf8, is_string_kind, is_text_kind, same_kind
from pipeline.storage.decompression import WatchedFile
from pipeline.storage.rows import Candidates, OpenFile, ReadColumns, missing_column

ROWS_PER_BATCH = 1024
BYTES_PER_BATCH = 8 * 2**20
"""Upper bounds of a batch. The second goes by the mean row of a row group, so the first must hold where all
long texts stand together."""

BUFFER_BYTES = 2 * 2**20
"""One read per column chunk: pages are streamed, a column chunk is never held whole."""


def read_parquet(span: Span, columns: ReadColumns, open_file: OpenFile) -> Iterator[Candidates]:
    """Yield the rows of a span of row groups.

    Raises:
        SourceError: the file is corrupt or not as planned, or a column is absent or of another type.
    """
    with _opened(span.file, open_file) as (parquet, watched):
        names = (columns.id_column, columns.text_column, *columns.keep_columns)
        tops = [_index_of(span.file, parquet.schema_arrow, name) for name in names]
        _check_text(span.file, parquet.schema_arrow.field(tops[1]))
        groups = _row_groups(span, parquet.metadata)
        first_row = row = _rows_in(parquet.metadata, range(groups.start))
        end = first_row + _rows_in(parquet.metadata, groups)
        order = sorted(set(tops))
        for batch in _batches(parquet, watched, span.file, groups, order):
            found = [batch.column(order.index(top)) for top in tops]
            yield _candidates(found, row, columns, span.file)
            row += batch.num_rows
        if row != end:
            raise SourceError(
                f"{span.file.uri} gave {row - first_row:,} rows of {span.position}; its footer says "
                f"{end - first_row:,}; write it again"
            )


def read_parquet_schema(
    file: SourceFile, id_column: str, text_column: str, keep_columns: tuple[str, ...], open_file: OpenFile
) -> pa.Schema:
    """Return the document schema as the footer gives it; every kept column nullable and without metadata.

    Raises:
        SourceError: the file is no Parquet, or a column is absent or of a type that cannot be used.
    """
    with _opened(file, open_file) as (parquet, _):
        found = parquet.schema_arrow
    ids, texts, *kept = [found.field(_index_of(file, found, name)) for name in (id_column, text_column, *keep_columns)]
    _check_text(file, texts)
    if is_string_kind(ids.type) or pa.types.is_null(ids.type):
        id_type = pa.string()
    elif pa.types.is_integer(ids.type):
        id_type = ids.type
    else:
        raise _wrong_type(file, id_column, ids.type, "string or integer")
    return schemas.document_schema(id_type, [pa.field(kept_field.name, kept_field.type) for kept_field in kept])


def parquet_row_groups(file: SourceFile, open_file: OpenFile) -> list[tuple[int, int]]:
    """Return rows and compressed bytes (of all columns) of each row group; reads the footer only.

    Raises:
        SourceError: the file is no Parquet.
    """
    with _opened(file, open_file) as (parquet, _):
        groups = [parquet.metadata.row_group(index) for index in range(parquet.num_row_groups)]
        return [
            (
                group.num_rows,
                sum(group.column(leaf).total_compressed_size for leaf in range(group.num_columns)),
            )
            for group in groups
        ]


@contextmanager
def _opened(file: SourceFile, open_file: OpenFile) -> Iterator[tuple[pq.ParquetFile, WatchedFile]]:
    with open_file(file) as stream:
        watched = WatchedFile(stream)
        try:
            parquet = pq.ParquetFile(
                watched, pre_buffer=False, buffer_size=BUFFER_BYTES, page_checksum_verification=True
            )
        except (OSError, pa.ArrowException) as error:
            watched.raise_fault()
            raise SourceError(f"{file.uri} is not a whole Parquet file: {_one_line(error)}; write it again") from error
        yield parquet, watched


def _batches(
    parquet: pq.ParquetFile, watched: WatchedFile, file: SourceFile, groups: range, tops: list[int]
) -> Iterator[pa.RecordBatch]:
    """Yield batches of the top-level columns `tops`, ascending, over these row groups."""
    leaves = _leaves_of(file, parquet, tops)
    # By leaf index, not by name: a name with dots or a name that stands twice would select other columns.
    batches = parquet.reader.iter_batches(
        _rows_per_batch(parquet.metadata, groups, leaves),
        row_groups=list(groups),
        column_indices=leaves,
        use_threads=False,
    )
    rows = 0
    while True:
        try:
            batch = next(batches, None)
        except (OSError, pa.ArrowException) as error:
            watched.raise_fault()
            raise SourceError(
                f"{file.uri} is corrupt in row groups {groups.start} to {groups.stop - 1}, "
                f"after {rows:,} readable rows of them: {_one_line(error)}; write it again"
            ) from error
        if batch is None:
            return
        rows += batch.num_rows
        yield batch


def _rows_per_batch(metadata: pq.FileMetaData, groups: range, leaves: list[int]) -> int:
    rows = ROWS_PER_BATCH
    for group in map(metadata.row_group, groups):
        size_bytes = sum(group.column(leaf).total_uncompressed_size for leaf in leaves)
        rows = min(rows, BYTES_PER_BATCH * group.num_rows // max(size_bytes, 1)) if group.num_rows else rows
    return max(rows, 1)


def _leaves_of(file: SourceFile, parquet: pq.ParquetFile, tops: list[int]) -> list[int]:
    """Return the indices of the Parquet columns below these top-level fields."""
    counts = [_leaf_count(column.type) for column in parquet.schema_arrow]
    if sum(counts) != parquet.metadata.num_columns:
        raise SourceError(
            f"{file.uri} has {parquet.metadata.num_columns} Parquet columns where its schema says "
            f"{sum(counts)}; write it again with a common Parquet writer"
        )
    starts = np.cumsum([0, *counts]).tolist()
    return [leaf for top in tops for leaf in range(starts[top], starts[top + 1])]


def _leaf_count(found: pa.DataType) -> int:
    if isinstance(found, pa.BaseExtensionType):
        return _leaf_count(found.storage_type)
    return sum(_leaf_count(found.field(child).type) for child in range(found.num_fields)) or 1


def _index_of(file: SourceFile, found: pa.Schema, column: str) -> int:
    indices = found.get_all_field_indices(column)
    if not indices:
        raise missing_column(file, column, found.names)
    if len(indices) > 1:
        raise SourceError(f"{file.uri} has {Counter(found.names)[column]} columns {column!r}; rename all but one")
    return int(indices[0])


def _row_groups(span: Span, metadata: pq.FileMetaData) -> range:
    start = span.first_row_group or 0
    stop = metadata.num_row_groups if span.row_groups is None else start + span.row_groups
    if stop > metadata.num_row_groups:
        raise SourceError(f"{span.file.uri} has {metadata.num_row_groups} row groups; the plan saw {stop}; run again")
    rows = _rows_in(metadata, range(start, stop))
    if span.rows not in (None, rows):
        raise SourceError(
            f"{span.file.uri} has {rows:,} rows in {span.position}; the plan saw {span.rows:,}; run again"
        )
    return range(start, stop)


def _rows_in(metadata: pq.FileMetaData, groups: range) -> int:
    return sum(metadata.row_group(group).num_rows for group in groups)


def _check_text(file: SourceFile, column: pa.Field) -> None:
    if not (is_text_kind(column.type) or pa.types.is_null(column.type)):
        raise _wrong_type(file, column.name, column.type, "string (or binary that holds UTF-8)")


def _candidates(found: list[pa.Array], row: int, columns: ReadColumns, file: SourceFile) -> Candidates:
    """Return a batch as columns of the expected types."""
    ids, texts, *kept = found
    if pa.types.is_string(columns.id_type) != (is_string_kind(ids.type) or pa.types.is_null(ids.type)):
        raise _wrong_type(file, columns.id_column, ids.type, str(columns.id_type))
    texts = as_utf8(texts)
    return Candidates(
        as_utf8(ids) if pa.types.is_string(columns.id_type) else _cast(ids, columns.id_type, columns.id_column, file),
        texts,
        [_cast(array, kept.type, kept.name, file) for array, kept in zip(kept, columns.kept_fields, strict=True)],
        np.arange(row, row + len(texts), dtype=np.int64),
        _raw_texts(texts),
    )


def _raw_texts(texts: pa.Array) -> Callable[[int], bytes | None]:
    """Return the evidence for quarantine: the bytes of a row's text, which is what can be wrong with it."""
    return lambda position: bytes(texts[position].as_buffer()) if texts[position].is_valid else None


def _cast(array: pa.Array, expected: pa.DataType, column: str, file: SourceFile) -> pa.Array:
    """Return the array unchanged where it has the expected type, else safely cast within its kind."""
    if array.type == expected:
        return array
    if pa.types.is_string(expected) and is_text_kind(array.type):
        return as_utf8(array)
    if not same_kind(array.type, expected):
        raise _wrong_type(file, column, array.type, str(expected))
    try:
        return array.cast(expected, safe=True)
    except pa.ArrowException:
        raise _wrong_type(file, column, array.type, str(expected)) from None


def _wrong_type(file: SourceFile, column: str, found: pa.DataType, expected: str) -> SourceError:
    return SourceError(
        f"column {column!r} of {file.uri} is {found}; expected {expected}. Write the file with that type, "
        "or leave it out of source.uri"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")
