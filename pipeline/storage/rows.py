"""What a reader is asked for (ReadColumns), and how rows as found become documents and quarantine (Rows)."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import schemas
from pipeline.errors import SourceError
from pipeline.records import Reason, SourceFile
from pipeline.storage.arrow_types import invalid_utf8, is_string_kind, is_utf8


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
    empty_text: Literal["embed", "quarantine"] = "embed"
    """What becomes of a text that is empty or only whitespace."""
    max_line_bytes: int = 16 * 2**20
    """A line or a CSV record beyond this is never held in memory; it goes to quarantine."""

    @property
    def id_type(self) -> pa.DataType:
        return self.schema.field("id").type

    @property
    def kept_fields(self) -> list[pa.Field]:
        """The kept columns, in the order of `keep_columns`."""
        return [self.schema.field(index) for index in range(1, 1 + len(self.keep_columns))]


@dataclass(frozen=True, slots=True)
class Bad:
    """Why one row cannot be embedded; the error never holds the row's content."""

    reason: Reason
    error: str


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
    """N consecutive source rows, each either a document or in quarantine."""

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


def missing_column(file: SourceFile, column: str, available: Iterable[str]) -> SourceError:
    """Return the error for a column that a file does not have, with the nearest name that it has."""
    names = list(dict.fromkeys(available))
    nearest = difflib.get_close_matches(column, names, n=1)
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return SourceError(f"{file.uri} has no column {column!r}; {hint}It has: {shown or 'no columns at all'}")


def _faults(found: Candidates, columns: ReadColumns) -> Iterable[tuple[int, Bad]]:
    """Yield what is wrong by position: the id first, then the text, then the kept columns."""
    yield from _each(_nulls(found.ids), Reason.MISSING_ID, "the id is null or absent; expected a value")
    if pa.types.is_string(found.ids.type):
        yield from _each(invalid_utf8(found.ids), Reason.INVALID_UTF8, "the id is not valid UTF-8")
    yield from _each(_nulls(found.texts), Reason.NULL_TEXT, "the text is null; expected a string")
    broken = invalid_utf8(found.texts)
    yield from _each(broken, Reason.INVALID_UTF8, "the text is not valid UTF-8")
    if columns.empty_text == "quarantine":
        empty = _empty(found.texts, broken)
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


def _empty(texts: pa.Array, broken: Sequence[int]) -> list[int]:
    """Return the positions of texts of Unicode whitespace alone, as Arrow (utf8proc) defines it."""
    if broken:
        is_good_N = np.ones(len(texts), np.bool_)
        is_good_N[list(broken)] = False
        texts = pc.if_else(pa.array(is_good_N), texts, None)
    lengths = pc.binary_length(pc.utf8_ltrim_whitespace(texts))
    found: list[int] = pc.indices_nonzero(pc.fill_null(pc.equal(lengths, 0), False)).to_pylist()
    return found


def _quarantine(found: Candidates, bad: dict[int, Bad], file: SourceFile) -> pa.RecordBatch:
    raws = (found.raw(position) for position in bad)
    offsets = found.byte_offset_N
    values: list[list[Any]] = [
        [file.uri] * len(bad),
        [int(found.row_N[position]) for position in bad],
        [None if offsets is None else int(offsets[position]) for position in bad],
        [_id_text(found.ids[position]) for position in bad],
        [str(why.reason) for why in bad.values()],
        [why.error for why in bad.values()],
        [None if raw is None else raw[: schemas.RAW_BYTES] for raw in raws],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(values, schemas.QUARANTINE, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schemas.QUARANTINE)


def _id_text(scalar: pa.Scalar) -> str | None:
    """Return an id as quarantine shows it: its digits or its text; None where it is unknown or no UTF-8."""
    if not scalar.is_valid:
        return None
    if not pa.types.is_string(scalar.type):
        return str(scalar.as_py())
    content = bytes(scalar.as_buffer())
    return content.decode() if is_utf8(content) else None
