"""Parquet by row groups: only the columns asked for, in batches, however large a row group is.

A row's number is its position in the file, the row groups before the Span included.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schemas
from pipeline.errors import SourceError, in_a_line
from pipeline.records import Reason, SourceFile, Span
from pipeline.storage.arrow_types import as_utf8, is_string_kind, is_text_kind, lasting, same_kind
from pipeline.storage.decompression import WatchedFile
from pipeline.storage.rows import Bad, BadFile, Candidates, OpenFile, ReadColumns, Stretch, missing_column

ROWS_PER_BATCH = 1024
BYTES_PER_BATCH = 8 * 2**20
"""Upper bounds of a batch. The second goes by the mean row of a row group, so the first must hold where all
long texts stand together."""

BUFFER_BYTES = 2 * 2**20
"""One read per column chunk: pages are streamed, a column chunk is never held whole."""

FINE_BATCHES = 50_000
"""A row group that cannot be decoded is tried again in at most so many batches, single rows if it has no more."""

ATTEMPTS = 2

UNDECODABLE = (OSError, pa.ArrowException, ValueError)
"""What Arrow raises for bytes that are no Parquet; names that are no UTF-8 are ValueErrors."""


def read_parquet(span: Span, columns: ReadColumns, open_file: OpenFile) -> Iterator[Candidates | Stretch]:
    """Yield the rows of a span of row groups; of one that breaks off, the rows before it do and a stretch after them.

    Raises:
        SourceError: the file is not as planned, or its store does not give it.
    """
    with open_file(span.file) as stream:
        watched = WatchedFile(stream, span.file)
        try:
            parquet = _open(span.file, watched)
        except BadFile as error:
            yield _all_of(span, error, 0, None)
            return
        groups = _row_groups(span, parquet.metadata)
        first_row = _rows_in(parquet.metadata, range(groups.start))
        try:
            tops = _columns_of(span.file, parquet, columns)
        except BadFile as error:
            if rows := _rows_in(parquet.metadata, groups):
                yield _all_of(span, error, first_row, rows)
            return
        for group in groups:
            yield from _read_group(_Group(span.file, parquet, watched, group, first_row, tops), columns)
            first_row += parquet.metadata.row_group(group).num_rows


def read_parquet_schema(
    file: SourceFile, id_column: str, text_column: str, keep_columns: tuple[str, ...], open_file: OpenFile
) -> pa.Schema:
    """Return the document schema as the footer gives it; kept columns nullable, without metadata, lasting.

    Raises:
        BadFile: the file is no Parquet, or a column is absent or of a type that cannot be used.
    """
    with _opened(file, open_file) as parquet:
        found = parquet.schema_arrow
    ids, texts, *kept = [found.field(_index_of(file, found, name)) for name in (id_column, text_column, *keep_columns)]
    _check_text(file, texts)
    if is_string_kind(ids.type) or pa.types.is_null(ids.type):
        id_type = pa.string()
    elif pa.types.is_integer(ids.type):
        id_type = ids.type
    else:
        raise _wrong_type(file, id_column, ids.type, "string or integer")
    return schemas.document_schema(id_type, [pa.field(column.name, lasting(column.type)) for column in kept])


def parquet_row_groups(file: SourceFile, open_file: OpenFile) -> list[tuple[int, int]]:
    """Return rows and bytes of each row group, its share of the file; reads the footer only.

    Raises:
        BadFile: the file is no Parquet.
    """
    with _opened(file, open_file) as parquet:
        groups = [parquet.metadata.row_group(index) for index in range(parquet.num_row_groups)]
    whole = max(1, sum(group.total_byte_size for group in groups))
    return [(group.num_rows, file.size_bytes * group.total_byte_size // whole) for group in groups]


@contextmanager
def _opened(file: SourceFile, open_file: OpenFile) -> Iterator[pq.ParquetFile]:
    with open_file(file) as stream:
        yield _open(file, WatchedFile(stream, file))


def _open(file: SourceFile, watched: WatchedFile) -> pq.ParquetFile:
    """Read the footer; once more where it makes no sense, for it may have been damaged on its way."""
    for attempt in range(ATTEMPTS):
        try:
            parquet = pq.ParquetFile(
                watched, pre_buffer=False, buffer_size=BUFFER_BYTES, page_checksum_verification=True
            )
            _check_footer(parquet)
            return parquet
        except UNDECODABLE as error:
            watched.raise_fault()
            if attempt == ATTEMPTS - 1:
                raise BadFile(f"{file.uri} is not a whole Parquet file: {_one_line(error)}; write it again") from error
    raise AssertionError("unreachable")


def _check_footer(parquet: pq.ParquetFile) -> None:
    """Refuse a footer that contradicts itself: it has no checksum of its own.

    Raises:
        ValueError: saying in what.
    """
    metadata = parquet.metadata
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    if min([*rows, *sizes], default=0) < 0 or sum(rows) != metadata.num_rows:
        raise ValueError(f"its footer says {metadata.num_rows:,} rows, and {sum(rows):,} in its row groups")
    leaves = sum(_leaf_count(column.type) for column in parquet.schema_arrow)
    if leaves != metadata.num_columns:
        raise ValueError(f"its footer says {metadata.num_columns} columns, and {leaves} in its schema")


@dataclass(frozen=True, slots=True)
class _Group:
    """One row group, as it is read."""

    file: SourceFile
    parquet: pq.ParquetFile
    watched: WatchedFile
    number: int
    first_row: int
    """Where it begins in its file."""
    tops: list[int]
    """Top-level columns of the id, the text and the kept columns."""

    @property
    def metadata(self) -> pq.RowGroupMetaData:
        return self.parquet.metadata.row_group(self.number)


def _read_group(group: _Group, columns: ReadColumns) -> Iterator[Candidates | Stretch]:
    """Yield the rows of a row group as far as they can be decoded, and the rest of it as one stretch.

    What cannot be decoded is tried again in smaller batches: a batch that fails gives none of its rows, and what was
    damaged on its way here comes whole the second time.
    """
    rows = group.metadata.num_rows
    order = sorted(set(group.tops))
    leaves = _leaves_of(group.parquet, order)
    given, fault = 0, ""
    for batch_rows in (_rows_per_batch(group.metadata), max(1, rows // FINE_BATCHES)):
        try:
            for batch in _batches(group, batch_rows, leaves, given):
                found = [batch.column(order.index(top)) for top in group.tops]
                yield _candidates(found, group.first_row + given, columns)
                given += batch.num_rows
            fault = "it ends early"
        except BadFile as error:
            fault = str(error)
        if given == rows:
            return
    told = (
        f"{group.file.uri} is corrupt in row group {group.number}, after {given:,} of its {rows:,} rows: {fault}; "
        "write it again"
    )
    lost = rows - given
    size_bytes = group.file.size_bytes * lost // group.parquet.metadata.num_rows
    why = Bad(Reason.UNREADABLE_STRETCH, told, rows=lost, unreadable_bytes=size_bytes)
    yield Stretch(group.first_row + given, why)


def _batches(group: _Group, batch_rows: int, leaves: list[int], skip: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a row group behind its first `skip` ones.

    Raises:
        BadFile: the next batch cannot be decoded.
    """
    # By leaf index, not by name: a name with dots or a name that stands twice would select other columns.
    batches = group.parquet.reader.iter_batches(
        batch_rows, row_groups=[group.number], column_indices=leaves, use_threads=False
    )
    try:
        for batch in batches:
            if skip < batch.num_rows:
                yield batch.slice(skip)
            skip = max(0, skip - batch.num_rows)
    except UNDECODABLE as error:
        group.watched.raise_fault()
        raise BadFile(_one_line(error)) from error


def _all_of(span: Span, error: BadFile, first_row: int, rows: int | None) -> Stretch:
    size_bytes = span.file.size_bytes if span.stretch_bytes is None else span.stretch_bytes
    return Stretch(first_row, Bad(error.reason, str(error), rows=rows, unreadable_bytes=size_bytes))


def _rows_per_batch(group: pq.RowGroupMetaData) -> int:
    # Of all columns, not of those that are read: pyarrow 26 ends the process over a column's metadata if it is corrupt.
    rows: int = BYTES_PER_BATCH * group.num_rows // max(group.total_byte_size, 1)
    return max(1, min(ROWS_PER_BATCH, rows))


def _leaves_of(parquet: pq.ParquetFile, tops: list[int]) -> list[int]:
    """Return the indices of the Parquet columns below these top-level fields."""
    counts = [_leaf_count(column.type) for column in parquet.schema_arrow]
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
        message = f"{file.uri} has {len(indices)} columns {column!r}; rename all but one"
        raise BadFile(message, Reason.AMBIGUOUS_COLUMN)
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


def _columns_of(file: SourceFile, parquet: pq.ParquetFile, columns: ReadColumns) -> list[int]:
    """Return the positions of the id, the text and the kept columns, once they are known to be of their kinds.

    Raises:
        BadFile: one is absent, stands twice, or is of another kind.
    """
    found = parquet.schema_arrow
    tops = [_index_of(file, found, name) for name in (columns.id_column, columns.text_column, *columns.keep_columns)]
    ids, texts, *kept = [found.field(top) for top in tops]
    _check_text(file, texts)
    if pa.types.is_string(columns.id_type) != (is_string_kind(ids.type) or pa.types.is_null(ids.type)):
        raise _wrong_type(file, columns.id_column, ids.type, str(columns.id_type))
    for column, expected in zip([ids, *kept], [columns.schema.field("id"), *columns.kept_fields], strict=True):
        if not (column.type == expected.type or _becomes(column.type, expected.type)):
            raise _wrong_type(file, column.name, column.type, str(expected.type))
    return tops


def _becomes(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether values of a type may be read as another; one that does not fit still costs its own row."""
    return (pa.types.is_string(expected) and is_text_kind(found)) or same_kind(found, expected)


def _check_text(file: SourceFile, column: pa.Field) -> None:
    if not (is_text_kind(column.type) or pa.types.is_null(column.type)):
        raise _wrong_type(file, column.name, column.type, "string (or binary that holds UTF-8)")


def _candidates(found: list[pa.Array], row: int, columns: ReadColumns) -> Candidates:
    """Return a batch as columns of the expected types."""
    ids, texts, *kept = found
    texts = as_utf8(texts)
    bad: dict[int, Bad] = {}
    return Candidates(
        _cast(ids, columns.id_type, columns.id_column, bad),
        texts,
        [_cast(array, kept.type, kept.name, bad) for array, kept in zip(kept, columns.kept_fields, strict=True)],
        np.arange(row, row + len(texts), dtype=np.int64),
        _raw_texts(texts),
        bad=bad,
    )


def _raw_texts(texts: pa.Array) -> Callable[[int], bytes | None]:
    """Return the evidence for quarantine: the bytes of a row's text, which is what can be wrong with it."""
    return lambda position: bytes(texts[position].as_buffer()) if texts[position].is_valid else None


def _cast(array: pa.Array, expected: pa.DataType, column: str, bad: dict[int, Bad]) -> pa.Array:
    """Return the array as the expected type; values that do not fit become null and are told in `bad`."""
    if array.type == expected:
        return array
    if pa.types.is_string(expected) and (is_text_kind(array.type) or pa.types.is_null(array.type)):
        return as_utf8(array)
    try:
        return array.cast(expected, safe=True)
    except pa.ArrowException:
        fits = [_fits(array.take([position]), expected) for position in range(len(array))]
    why = Bad(Reason.WRONG_TYPE, f"column {column!r}: expected {expected}, found a value of {array.type} beyond it")
    for position, is_fitting in enumerate(fits):
        if not is_fitting:
            bad.setdefault(position, why)
    return pc.if_else(pa.array(fits), array, pa.scalar(None, array.type)).cast(expected, safe=True)


def _fits(value: pa.Array, expected: pa.DataType) -> bool:
    try:
        value.cast(expected, safe=True)
        return True
    except pa.ArrowException:
        return False


def _wrong_type(file: SourceFile, column: str, found: pa.DataType, expected: str) -> BadFile:
    return BadFile(
        f"column {column!r} of {file.uri} is {found}; expected {expected}. Write the file with that type, "
        "or leave it out of source.uri",
        Reason.WRONG_TYPE,
    )


def _one_line(error: BaseException) -> str:
    return in_a_line(error).rstrip(".")
