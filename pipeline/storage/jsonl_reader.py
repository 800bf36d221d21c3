"""JSON lines: one object per line; a bad line is one row in quarantine and never more than itself.

A row's number is its line number from 0, blank lines included; blank lines are no rows and are not counted as
read. Of a key that stands twice in an object the last one holds.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from pipeline import schemas
from pipeline.records import Reason, SourceFile
from pipeline.storage.arrow_types import is_utf8
from pipeline.storage.conversion import json_column, json_type
from pipeline.storage.decompression import CHUNK_BYTES, read_chunks
from pipeline.storage.line_reader import LineBatch, split_lines
from pipeline.storage.rows import Bad, BadFile, Candidates, OpenFile, ReadColumns, missing_column

SAMPLE_ROWS = 1000
"""Rows that tell the columns of a file, and their types."""

SAMPLE_BYTES = 4 * 2**20


def read_jsonl(file: SourceFile, columns: ReadColumns, open_file: OpenFile) -> Iterator[Candidates]:
    """Yield the rows of a JSON-lines file; each line tells its own columns.

    What holds no row at all, as an error page or one document over many lines, is no file of bad rows: which ids stood
    there is unknown. Up to the first row no more is held than one line may take; behind that every line is a row.

    Raises:
        BadFile: no line of it is an object with the text column.
        SourceError: the bytes are not those of the plan.
    """
    held: list[Candidates] = []
    held_bytes, keys, is_decided = 0, set[str](), False
    for batch in split_lines(read_chunks(file, open_file), columns.max_line_bytes, file.size_bytes):
        parsed = _parse(batch)
        if not parsed.objects:
            continue
        held.append(_typed(parsed, columns, batch))
        if not is_decided:
            held_bytes += sum(map(len, batch.lines))
            keys.update(*parsed.objects)
            breaks_off = any(why.unreadable_bytes is not None for why in batch.bad.values())
            is_decided = columns.text_column in keys or breaks_off or held_bytes > columns.max_line_bytes
        if is_decided:
            yield from held
            held.clear()
    if held and keys:
        raise missing_column(file, columns.text_column, sorted(keys))
    if held:
        raise BadFile(f"no line of {file.uri} is a JSON object; expected one per row; write it again")


def read_jsonl_schema(
    file: SourceFile, id_column: str, text_column: str, keep_columns: tuple[str, ...], open_file: OpenFile
) -> pa.Schema | None:
    """Return the document schema as the first rows of a JSON-lines file give it; None if none of them is good.

    Raises:
        BadFile: none of these rows has a column asked for, or it has no usable type.
    """
    chunks = islice(read_chunks(file, open_file), SAMPLE_BYTES // CHUNK_BYTES)
    parsed = (_parse(batch) for batch in split_lines(chunks, SAMPLE_BYTES))
    sample = list(islice((found for rows in parsed for found in rows.objects if found), SAMPLE_ROWS))
    if not sample:
        return None
    for column in (id_column, text_column, *keep_columns):
        if not any(column in found for found in sample):
            raise missing_column(file, column, (key for found in sample for key in found))
    texts = _type_in_sample(file, text_column, sample)
    if not pa.types.is_string(texts):
        raise _wrong_type(file, text_column, str(texts), "string")
    possible = [found for found in sample if type(found.get(id_column)) in (str, int)]
    ids = _type_in_sample(file, id_column, possible or sample)
    if not (pa.types.is_string(ids) or pa.types.is_integer(ids)):
        raise _wrong_type(file, id_column, str(ids), "string or integer ids")
    kept = [pa.field(name, _type_in_sample(file, name, sample)) for name in keep_columns]
    return schemas.document_schema(ids, kept)


@dataclass(frozen=True, slots=True)
class _Parsed:
    """The N rows of a batch of lines: an object per row (empty where it is bad), and its line's position."""

    objects: list[dict[str, Any]] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    bad: dict[int, Bad] = field(default_factory=dict)


def _parse(batch: LineBatch) -> _Parsed:
    parsed = _Parsed()
    for position, line in enumerate(batch.lines):
        why: Bad | None = None
        try:
            value = orjson.loads(line)
            if type(value) is not dict:
                why = Bad(Reason.NOT_AN_OBJECT, "the line is JSON, but no object")
        except orjson.JSONDecodeError:
            if not line.strip() and position not in batch.bad:
                continue
            why = _why_no_json(line)
        why = batch.bad.get(position, why)
        if why:
            parsed.bad[len(parsed.objects)] = why
            value = {}
        parsed.objects.append(value)
        parsed.positions.append(position)
    return parsed


def _why_no_json(line: bytes) -> Bad:
    """Tell bytes that are no text, escapes that are no text, and lines that are no JSON apart."""
    if not is_utf8(line):
        return Bad(Reason.INVALID_UTF8, "the line is not valid UTF-8")
    try:
        json.dumps(json.loads(line), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Bad(Reason.INVALID_UNICODE, "the line has an escape of half a surrogate pair")
    except (ValueError, RecursionError):
        pass
    return Bad(Reason.INVALID_JSON, "the line is not valid JSON")


def _typed(parsed: _Parsed, columns: ReadColumns, batch: LineBatch) -> Candidates:
    """Return the rows as columns of the expected types."""
    bad = dict(parsed.bad)

    def column(name: str, expected: pa.DataType) -> pa.Array:
        array, wrong = json_column([found.get(name) for found in parsed.objects], expected)
        for row, found in wrong.items():
            bad.setdefault(row, Bad(Reason.WRONG_TYPE, f"column {name!r}: expected {expected}, found {found}"))
        return array

    ids = column(columns.id_column, columns.id_type)
    texts = column(columns.text_column, pa.string())
    if texts.null_count:
        absent = Bad(Reason.MISSING_COLUMN, f"the line has no key {columns.text_column!r}")
        for row, found in enumerate(parsed.objects):
            if columns.text_column not in found:
                bad.setdefault(row, absent)
    kept = [column(kept.name, kept.type) for kept in columns.kept_fields]
    positions_N = np.array(parsed.positions, np.int64)
    return Candidates(
        ids,
        texts,
        kept,
        batch.first_line + positions_N,
        lambda row: batch.lines[parsed.positions[row]],
        batch.byte_offset_N[positions_N],
        bad,
    )


def _type_in_sample(file: SourceFile, column: str, sample: list[dict[str, Any]]) -> pa.DataType:
    try:
        return json_type([found.get(column) for found in sample])
    except ValueError as error:
        raise _wrong_type(file, column, str(error), "one type") from None


def _wrong_type(file: SourceFile, column: str, found: str, expected: str) -> BadFile:
    return BadFile(f"column {column!r} of {file.uri} holds {found}; expected {expected}", Reason.WRONG_TYPE)
