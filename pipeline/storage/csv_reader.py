"""CSV with a header row, quoted as RFC 4180 says: quotes doubled, line breaks allowed within quotes.

A row's number counts the records after the header from 0; blank lines are no rows. Where a record cannot be
parsed (an open quote, text after a closing one), its first line alone goes to quarantine and reading goes on
at the next line, so that one stray quote cannot swallow the rows behind it. Where the stream breaks off within quotes,
the whole record is part of what is missing: its lines could look like rows and be none.
"""

import csv
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline import schemas
from pipeline.records import Reason, SourceFile
from pipeline.storage.arrow_types import is_utf8
from pipeline.storage.conversion import csv_column
from pipeline.storage.decompression import CHUNK_BYTES, read_chunks
from pipeline.storage.line_reader import split_lines
from pipeline.storage.rows import Bad, BadFile, Candidates, OpenFile, ReadColumns, missing_column

ROWS_PER_BATCH = 4096


class _Line(NamedTuple):
    content: bytes
    text: str
    byte_offset: int
    bad: Bad | None
    """That it is too long, no UTF-8, or where the stream broke off."""

    @property
    def is_cut(self) -> bool:
        """Whether only its beginning is here."""
        return self.bad is not None and self.bad.reason != Reason.INVALID_UTF8

    @property
    def is_end(self) -> bool:
        """Whether the stream broke off in it."""
        return self.bad is not None and self.bad.unreadable_bytes is not None


class _Record(NamedTuple):
    """One record: its fields, or why it has none; and the lines it was read from."""

    fields: list[str]
    lines: list[_Line]
    bad: Bad | None = None


@dataclass(slots=True)
class _Batch:
    """Consecutive records by column: a Python object per record would keep the garbage collector busy."""

    first_row: int
    values: list[list[str | None]]
    """One list per column read."""
    raw: list[bytes] = field(default_factory=list)
    byte_offset: list[int] = field(default_factory=list)
    bad: dict[int, Bad] = field(default_factory=dict)
    size_bytes: int = 0


def read_csv(file: SourceFile, columns: ReadColumns, open_file: OpenFile) -> Iterator[Candidates]:
    """Yield the records of a CSV file.

    Raises:
        BadFile: the header is unreadable or lacks a column.
        SourceError: the bytes are not those of the plan.
    """
    records = _records(_lines(file, open_file, columns.max_line_bytes), columns.max_line_bytes)
    header = _header(file, records)
    if header is None:
        return
    names = (columns.id_column, columns.text_column, *columns.keep_columns)
    indices = [_index_of(file, header, name) for name in names]
    batch = _Batch(0, [[] for _ in indices])
    for record in records:
        _add(batch, record, indices, len(header))
        if len(batch.raw) == ROWS_PER_BATCH or batch.size_bytes >= CHUNK_BYTES:
            yield _candidates(batch, columns)
            batch = _Batch(batch.first_row + len(batch.raw), [[] for _ in indices])
    if batch.raw:
        yield _candidates(batch, columns)


def read_csv_schema(
    file: SourceFile, id_column: str, text_column: str, keep_columns: tuple[str, ...], open_file: OpenFile
) -> pa.Schema | None:
    """Return the document schema of a CSV file: strings; None if it has no header.

    Raises:
        BadFile: the header is unreadable or lacks a column.
    """
    header = _header(file, _records(_lines(file, open_file, CHUNK_BYTES), CHUNK_BYTES))
    if header is None:
        return None
    for column in (id_column, text_column, *keep_columns):
        _index_of(file, header, column)
    return schemas.document_schema(pa.string(), [pa.field(name, pa.string()) for name in keep_columns])


def _lines(file: SourceFile, open_file: OpenFile, max_line_bytes: int) -> Iterator[_Line]:
    no_text = Bad(Reason.INVALID_UTF8, "the record is not valid UTF-8")
    for batch in split_lines(read_chunks(file, open_file), max_line_bytes, file.size_bytes):
        bad: Sequence[Bad | None] = [None] * len(batch.lines)
        try:
            texts = b"\n".join(batch.lines).decode().split("\n")
        except UnicodeDecodeError:
            texts = [line.decode("utf-8", "replace") for line in batch.lines]
            bad = [None if is_utf8(line) else no_text for line in batch.lines]
        if batch.bad:
            bad = [batch.bad.get(position, why) for position, why in enumerate(bad)]
        yield from map(_Line, batch.lines, texts, batch.byte_offset_N.tolist(), bad)


def _records(lines: Iterator[_Line], max_record_bytes: int) -> Iterator[_Record]:
    """Yield the records, each with the lines it was read from; blank lines give none."""
    # The limit is the csv module's only one and global; its default of 128 KiB refuses legitimate texts.
    csv.field_size_limit(max(csv.field_size_limit(), max_record_bytes))
    again: deque[_Line] = deque()
    taken: list[_Line] = []

    def feed() -> Iterator[str]:
        size_bytes = 0
        while line := again.popleft() if again else next(lines, None):
            size_bytes = len(line.content) + (size_bytes if taken else 0)
            if taken and not line.is_end and (line.is_cut or size_bytes > max_record_bytes):
                again.appendleft(line)
                raise csv.Error("a quote is not closed within the bytes allowed for a record")
            taken.append(line)
            if line.is_cut:
                raise csv.Error
            yield line.text + "\n"

    reader = csv.reader(feed(), strict=True)
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            end = taken[-1] if taken[-1].is_end else taken[0]
            why = end.bad or Bad(Reason.INVALID_CSV, f"the record is not valid CSV: {error}")
            lost = taken if end.is_end else taken[:1]
            again.extendleft(reversed(taken[len(lost) :]))
            yield _Record([], lost, why)
            reader = csv.reader(feed(), strict=True)
        else:
            if len(taken) > 1 or taken[0].content.strip():
                yield _Record(fields, taken)
        taken = []


def _header(file: SourceFile, records: Iterator[_Record]) -> list[str] | None:
    header = next(records, None)
    if header is None:
        return None
    bad = _fault(header, len(header.fields))
    if bad:
        raise BadFile(f"the header of {file.uri} cannot be read: {bad.error}; expected a row of column names")
    return header.fields


def _index_of(file: SourceFile, header: list[str], column: str) -> int:
    if column not in header:
        raise missing_column(file, column, header)
    if header.count(column) > 1:
        message = f"{file.uri} has {header.count(column)} columns {column!r}; rename all but one"
        raise BadFile(message, Reason.AMBIGUOUS_COLUMN)
    return header.index(column)


def _add(batch: _Batch, record: _Record, indices: list[int], width: int) -> None:
    """Append a record to its batch, with nulls for values where it is bad."""
    first = record.lines[0]
    raw = first.content if len(record.lines) == 1 else b"\n".join([line.content for line in record.lines])
    bad = _fault(record, width)
    if bad:
        batch.bad[len(batch.raw)] = bad
    for values, index in zip(batch.values, indices, strict=True):
        values.append(None if bad else record.fields[index])
    batch.raw.append(raw)
    batch.byte_offset.append(first.byte_offset)
    batch.size_bytes += len(raw)


def _fault(record: _Record, width: int) -> Bad | None:
    """Return why a record cannot be used, or None."""
    if record.bad:
        return record.bad
    for line in record.lines:
        if line.bad:
            return line.bad
    if len(record.fields) == width:
        return None
    return Bad(Reason.INVALID_CSV, f"expected {width} fields, found {len(record.fields)}")


def _candidates(batch: _Batch, columns: ReadColumns) -> Candidates:
    """Return the records as columns of the expected types; an empty id is a missing one."""

    def column(values: list[str | None], name: str, expected: pa.DataType) -> pa.Array:
        array, wrong = csv_column(values, expected)
        for row, found in wrong.items():
            bad = Bad(Reason.WRONG_TYPE, f"column {name!r}: expected {expected}, found {found}")
            batch.bad.setdefault(row, bad)
        return array

    ids, texts, *kept = batch.values
    return Candidates(
        column([value or None for value in ids], columns.id_column, columns.id_type),
        column(texts, columns.text_column, pa.string()),
        [
            column(values, kept_field.name, kept_field.type)
            for values, kept_field in zip(kept, columns.kept_fields, strict=True)
        ],
        np.arange(batch.first_row, batch.first_row + len(batch.raw), dtype=np.int64),
        batch.raw.__getitem__,
        np.array(batch.byte_offset, np.int64),
        batch.bad,
    )
