"""What a reader is asked for (ReadColumns), and how what it finds becomes documents and quarantine (Rows)."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import BinaryIO, Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import schemas
from pipeline.arrow import utf8_view
from pipeline.errors import SourceError
from pipeline.records import Reason, SourceFile
from pipeline.storage.arrow_types import invalid_utf8, is_string_kind, is_utf8

STARTS_A_SPACE = np.zeros(256, np.bool_)
"""First bytes, in UTF-8, of the characters that are whitespace: few other texts begin with one, and are looked at."""
STARTS_A_SPACE[[chr(code).encode()[0] for code in range(0x3001) if chr(code).isspace()]] = True


NOTHING_BAD = pa.RecordBatch.from_pylist([], schema=schemas.QUARANTINE)


class OpenFile(Protocol):
    """Opens a source file for reading: seekable, at the planned version and no other."""

    def __call__(self, file: SourceFile) -> AbstractContextManager[BinaryIO]: ...


@dataclass(frozen=True, slots=True)
class ReadColumns:
    """Which columns are read, and as what."""

    id_column: str
    text_column: str
    keep_columns: tuple[str, ...]
    schema: pa.Schema
    """`schemas.document_schema`: what every file of the run must give."""
    empty_text: Literal["quarantine", "zero", "embed"] = "quarantine"
    """What becomes of a text that is empty or only whitespace; all but quarantine make it a document."""
    max_line_bytes: int = 16 * 2**20
    """A line, a CSV record or a text beyond this goes to quarantine; a line that is, is never held in memory."""

    @property
    def id_type(self) -> pa.DataType:
        return self.schema.field("id").type

    @property
    def kept_fields(self) -> list[pa.Field]:
        """The kept columns, in the order of `keep_columns`."""
        return [self.schema.field(index) for index in range(1, 1 + len(self.keep_columns))]


class BadFile(SourceError):
    """The content of a file, and not its store, is why it gives no rows, or none from some place on.

    Planning passes over such a file; reading turns it into a stretch in quarantine.
    """

    def __init__(self, message: str, reason: Reason = Reason.UNREADABLE_FILE) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Bad:
    """Why one row, or a stretch of rows, cannot be embedded; the error never holds their content."""

    reason: Reason
    error: str
    rows: int | None = 1
    """How many rows it is about; None = unknown."""
    unreadable_bytes: int | None = None
    """Of the file, for a stretch."""
    raw_bytes: int | None = None
    """Size of a row of which the reader kept only the beginning."""
    raw_hash: str | None = None
    """SHA-256 of such a row."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive rows of a file of which nothing is known but where they begin."""

    row: int
    why: Bad


class Entry(NamedTuple):
    """One entry of quarantine, before it is one."""

    source_uri: str
    row: int
    byte_offset: int | None
    id: str | None
    raw: bytes | None
    """All of the row as found, or its beginning where `why` knows size and hash of the whole."""
    why: Bad


@dataclass(frozen=True, slots=True)
class Candidates:
    """N consecutive rows of a file as found: typed, but not yet known to be good."""

    ids: pa.Array
    texts: pa.Array
    """string, possibly with bytes that are no UTF-8."""
    kept: Sequence[pa.Array]
    row_N: NDArray[np.int64]
    raw: Callable[[int], bytes | None]
    """The row at a position as found, for quarantine."""
    byte_offset_N: NDArray[np.int64] | None = None
    bad: dict[int, Bad] = field(default_factory=dict)
    """What the reader found wrong, by position 0 … N-1."""


@dataclass(frozen=True, slots=True)
class Rows:
    """N consecutive source rows, each either a document or in quarantine; a stretch of bad rows stands as one."""

    documents: pa.RecordBatch
    quarantine: pa.RecordBatch
    is_document_N: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.is_document_N)


def sort_rows(found: Candidates, columns: ReadColumns, file: SourceFile, span: int) -> Rows:
    """Return the rows, the good ones as documents, the others as quarantine with the first reason that holds.

    Args:
        found: rows of `file`.
        columns: their schema, and the policy on empty text.
        file: named in quarantine.
        span: index of the Span within its Shard.
    """
    bad = dict(found.bad)
    for position, why in _faults(found, columns):
        bad.setdefault(position, why)
    size = len(found.row_N)
    is_document_N = np.ones(size, np.bool_)
    is_document_N[list(bad)] = False
    documents = pa.RecordBatch.from_arrays(
        [
            found.ids,
            *found.kept,
            found.texts,
            pa.array(np.full(size, span, np.int32)),
            pa.array(found.row_N),
            pa.nulls(size, pa.int64()) if found.byte_offset_N is None else pa.array(found.byte_offset_N),
        ],
        schema=columns.schema,
    )
    if bad:
        documents = documents.filter(pa.array(is_document_N))
    return Rows(documents, _quarantine(found, dict(sorted(bad.items())), file), is_document_N)


def stretch_as_rows(stretch: Stretch, columns: ReadColumns, file: SourceFile) -> Rows:
    """Return a stretch of bad rows as one entry of quarantine."""
    entry = quarantine_of([Entry(file.uri, stretch.row, None, None, None, stretch.why)])
    return Rows(pa.RecordBatch.from_pylist([], schema=columns.schema), entry, np.zeros(1, np.bool_))


def missing_column(file: SourceFile, column: str, available: Iterable[str]) -> BadFile:
    """Return the error for a column that a file does not have, with the nearest name that it has."""
    names = list(dict.fromkeys(available))
    nearest = difflib.get_close_matches(column, names, n=1)
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    found = f"It has: {shown or 'no columns at all'}"
    return BadFile(f"{file.uri} has no column {column!r}; {hint}{found}", Reason.MISSING_COLUMN)


def _faults(found: Candidates, columns: ReadColumns) -> Iterable[tuple[int, Bad]]:
    """Yield what is wrong by position: the id first, then the text, then the kept columns."""
    yield from _each(_nulls(found.ids), Reason.MISSING_ID, "the id is null or absent; expected a value")
    if pa.types.is_string(found.ids.type):
        yield from _each(invalid_utf8(found.ids), Reason.INVALID_UTF8, "the id is not valid UTF-8")
    yield from _each(_nulls(found.texts), Reason.NULL_TEXT, "the text is null; expected a string")
    too_long = Reason.LINE_TOO_LONG
    for position, size in _too_long(found.texts, columns.max_line_bytes):
        yield position, Bad(too_long, f"the text has {size:,} bytes; at most {columns.max_line_bytes:,} are read")
    broken = invalid_utf8(found.texts)
    yield from _each(broken, Reason.INVALID_UTF8, "the text is not valid UTF-8")
    if columns.empty_text == "quarantine":
        empty = empty_texts(found.texts, broken).tolist()
        yield from _each(empty, Reason.EMPTY_TEXT, "the text is empty or only whitespace")
    for column, array in zip(columns.kept_fields, found.kept, strict=True):
        if is_string_kind(array.type):
            error = f"the kept column {column.name!r} is not valid UTF-8"
            yield from _each(invalid_utf8(array), Reason.INVALID_UTF8, error)


def _each(positions: Iterable[int], reason: Reason, error: str) -> Iterable[tuple[int, Bad]]:
    bad = Bad(reason, error)
    return ((position, bad) for position in positions)


def _nulls(array: pa.Array) -> list[int]:
    if not array.null_count:
        return []
    found: list[int] = pc.indices_nonzero(array.is_null()).to_pylist()
    return found


def _too_long(texts: pa.Array, max_bytes: int) -> Iterable[tuple[int, int]]:
    """Yield position and size of the texts beyond the limit, which only Parquet gets past its reader."""
    if texts.nbytes > max_bytes:
        sizes_N = pc.fill_null(pc.binary_length(texts), 0).to_numpy(zero_copy_only=False)
        for position in np.flatnonzero(sizes_N > max_bytes).tolist():
            yield position, int(sizes_N[position])


def empty_texts(texts: pa.Array, broken: Sequence[int] = ()) -> NDArray[np.int64]:
    """Return the positions of texts of Unicode whitespace alone, as Arrow (utf8proc) defines it.

    Args:
        texts: strings, possibly with nulls.
        broken: positions of texts that are no UTF-8.
    """
    content, offsets_N1 = utf8_view(texts)
    is_possible_N = np.ones(len(texts), np.bool_)
    is_long_N = offsets_N1[1:] > offsets_N1[:-1]
    first_N = np.frombuffer(content, np.uint8)[offsets_N1[:-1][is_long_N]]
    is_possible_N[is_long_N] = STARTS_A_SPACE[first_N]
    is_possible_N[list(broken)] = False
    possible = np.flatnonzero(is_possible_N)
    if not len(possible):
        return possible
    lengths = pc.binary_length(pc.utf8_ltrim_whitespace(texts.take(pa.array(possible))))
    is_empty: NDArray[np.bool_] = pc.fill_null(pc.equal(lengths, 0), False).to_numpy(zero_copy_only=False)
    return np.asarray(possible[is_empty], np.int64)


def _quarantine(found: Candidates, bad: dict[int, Bad], file: SourceFile) -> pa.RecordBatch:
    if not bad:
        return NOTHING_BAD
    offsets = found.byte_offset_N
    return quarantine_of(
        [
            Entry(
                file.uri,
                int(found.row_N[position]),
                None if offsets is None else int(offsets[position]),
                _id_text(found.ids[position]),
                found.raw(position),
                why,
            )
            for position, why in bad.items()
        ]
    )


def quarantine_of(entries: Sequence[Entry]) -> pa.RecordBatch:
    """Return bad rows and stretches, at least one, as quarantine keeps them."""
    values = [
        (
            entry.source_uri,
            entry.row,
            entry.byte_offset,
            entry.id,
            str(entry.why.reason),
            entry.why.error,
            None if entry.raw is None else entry.raw[: schemas.RAW_BYTES],
            entry.why.rows,
            *_measured(entry),
            entry.why.unreadable_bytes,
        )
        for entry in entries
    ]
    columns = zip(*values, strict=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schemas.QUARANTINE, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schemas.QUARANTINE)


def _measured(entry: Entry) -> tuple[int | None, str | None]:
    """Return size and SHA-256 of a whole row; of a stretch there is none."""
    raw, why = entry.raw, entry.why
    if raw is None or why.unreadable_bytes is not None:
        return None, None
    return (len(raw), sha256(raw).hexdigest()) if why.raw_hash is None else (why.raw_bytes, why.raw_hash)


def _id_text(scalar: pa.Scalar) -> str | None:
    """Return an id as quarantine shows it: its digits or its text; None where it is unknown or no UTF-8."""
    if not scalar.is_valid:
        return None
    if not pa.types.is_string(scalar.type):
        return str(scalar.as_py())
    content = bytes(scalar.as_buffer())
    return content.decode() if is_utf8(content) else None
