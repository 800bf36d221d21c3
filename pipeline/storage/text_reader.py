"""Plain text: one document per line, named by its file and line.

Offers two columns: `id`, the string `<file name>#<line>`, and `text`. A row's number is its line number from
0, blank lines included; blank lines are no rows.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline import schemas
from pipeline.records import Reason, SourceFile
from pipeline.storage.decompression import read_chunks
from pipeline.storage.line_reader import LineBatch, split_lines
from pipeline.storage.rows import BadFile, Candidates, OpenFile, ReadColumns

COLUMNS = ("id", "text")


def read_text(file: SourceFile, columns: ReadColumns, open_file: OpenFile) -> Iterator[Candidates]:
    """Yield the lines of a text file that are not blank.

    Raises:
        BadFile: other columns are asked for than `id` and `text`, or integer ids.
        SourceError: the bytes are not those of the plan.
    """
    _check_columns(file, columns.id_column, columns.text_column, columns.keep_columns)
    if not pa.types.is_string(columns.id_type):
        message = f"{file.uri} is plain text, its ids are strings; expected {columns.id_type} ids"
        raise BadFile(message, Reason.WRONG_TYPE)
    name = file.uri.rsplit("/", 1)[-1]
    for batch in split_lines(read_chunks(file, open_file), columns.max_line_bytes, file.size_bytes):
        found = _candidates(batch, name, len(columns.keep_columns))
        if len(found.row_N):
            yield found


def read_text_schema(file: SourceFile, id_column: str, text_column: str, keep_columns: tuple[str, ...]) -> pa.Schema:
    """Return the document schema of a text file: strings.

    Raises:
        BadFile: other columns are asked for than `id` and `text`.
    """
    _check_columns(file, id_column, text_column, keep_columns)
    return schemas.document_schema(pa.string(), [pa.field(name, pa.string()) for name in keep_columns])


def _check_columns(file: SourceFile, id_column: str, text_column: str, keep_columns: tuple[str, ...]) -> None:
    """Refuse columns that plain text does not have.

    Raises:
        BadFile: naming the column.
    """
    wrong = [name for name, offered in zip((id_column, text_column), COLUMNS, strict=True) if name != offered]
    wrong += [name for name in keep_columns if name != "text"]
    if wrong:
        raise BadFile(
            f"{file.uri} is plain text: its columns are 'id' (file name, line) and 'text', not {wrong[0]!r}. "
            "Set source.id_column: id and source.text_column: text, and keep no others",
            Reason.MISSING_COLUMN,
        )


def _candidates(batch: LineBatch, name: str, copies: int) -> Candidates:
    positions = [position for position, line in enumerate(batch.lines) if line.strip() or position in batch.bad]
    lines = [batch.lines[position].removesuffix(b"\r") for position in positions]
    bad = {row: batch.bad[position] for row, position in enumerate(positions) if position in batch.bad}
    positions_N = np.array(positions, np.int64)
    row_N = batch.first_line + positions_N
    texts = pa.array(lines, pa.binary()).view(pa.string())
    ids = pa.array([f"{name}#{row}" for row in row_N.tolist()], pa.string())
    byte_offset_N = batch.byte_offset_N[positions_N]
    return Candidates(ids, texts, [texts] * copies, row_N, lines.__getitem__, byte_offset_N, bad)
