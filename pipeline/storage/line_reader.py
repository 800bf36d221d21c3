"""Lines of any length out of a stream of bytes, none of them held beyond a limit."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.records import Reason
from pipeline.schemas import RAW_BYTES
from pipeline.storage.rows import Bad, BadFile

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class LineBatch:
    """N consecutive lines, split at `\\n` only and without it; a `\\r` before it is still there."""

    lines: list[bytes]
    first_line: int
    """Number of the first line, from 0 in the file."""
    byte_offset_N: NDArray[np.int64]
    """Where each line begins in the decompressed stream."""
    bad: dict[int, Bad]
    """Positions of lines of which only the beginning is in `lines`: those beyond the limit, and the one in which the
    stream broke off, which stands for all behind it."""


@dataclass(slots=True)
class _Unfinished:
    """The line whose end has not come yet."""

    pieces: list[bytes] = field(default_factory=list)
    size_bytes: int = 0
    hash: Any = None
    """Of a line beyond the limit, as far as it has come."""

    def add(self, piece: bytes, max_line_bytes: int) -> None:
        self.size_bytes += len(piece)
        if self.hash is None and self.size_bytes > max_line_bytes:
            self.hash = hashlib.sha256()
            for held in self.pieces:
                self.hash.update(held)
        if self.hash is None:
            self.pieces.append(piece)
        else:
            self.hash.update(piece)
            self.pieces = [b"".join([*self.pieces, piece[:RAW_BYTES]])[:RAW_BYTES]]


def split_lines(chunks: Iterable[bytes], max_line_bytes: int, size_bytes: int = 0) -> Iterator[LineBatch]:
    """Yield the lines of a stream, as many at a time as end in one chunk.

    A byte order mark at the start is left out. What follows the last `\\n` is a line unless it is empty. Where the
    stream breaks off, the line at that place is bad, be it empty or whole: nobody knows what would have followed.

    Args:
        chunks: the stream; may raise BadFile.
        max_line_bytes: a longer line is bad and only its beginning is kept.
        size_bytes: of the file, all of which counts as unreadable if the stream breaks off: a checksum stands at its
            end, and how much is missing does not stand anywhere.
    """
    unfinished = _Unfinished()
    number, offset = 0, 0
    why: Bad | None = None
    try:
        for chunk in chunks:
            lines = chunk.split(b"\n")
            rest = lines.pop()
            if lines:
                unfinished.add(lines[0], max_line_bytes)
                lines[0] = b"".join(unfinished.pieces)
                batch, batch_bytes = _batch(lines, number, offset, unfinished, max_line_bytes)
                number, offset = number + len(lines), offset + batch_bytes
                unfinished = _Unfinished()
                yield batch
            unfinished.add(rest, max_line_bytes)
    except BadFile as error:
        why = Bad(error.reason, str(error), rows=None, unreadable_bytes=size_bytes)
    if unfinished.size_bytes or why:
        lines = [b"".join(unfinished.pieces)]
        batch, _ = _batch(lines, number, offset, unfinished, max_line_bytes)
        if why:
            batch.bad[0] = why
        yield batch


def _batch(
    lines: list[bytes], number: int, offset: int, first: _Unfinished, max_line_bytes: int
) -> tuple[LineBatch, int]:
    """Return the lines with their offsets, and the bytes they take in the stream."""
    size_bytes_N = np.fromiter(map(len, lines), np.int64, len(lines))
    size_bytes_N[0] = first.size_bytes
    byte_offset_N = offset + np.cumsum(size_bytes_N + 1) - size_bytes_N - 1
    too_long = {}
    for position in np.nonzero(size_bytes_N > max_line_bytes)[0].tolist():
        size_bytes = int(size_bytes_N[position])
        hash = first.hash if position == 0 else hashlib.sha256(lines[position])
        error = f"the line has {size_bytes:,} bytes; at most {max_line_bytes:,} are read"
        too_long[position] = Bad(Reason.LINE_TOO_LONG, error, raw_bytes=size_bytes, raw_hash=hash.hexdigest())
        lines[position] = lines[position][:RAW_BYTES]
    if number == 0 and lines[0].startswith(BYTE_ORDER_MARK):
        lines[0] = lines[0].removeprefix(BYTE_ORDER_MARK)
        byte_offset_N[0] += len(BYTE_ORDER_MARK)
    return LineBatch(lines, number, byte_offset_N, too_long), int(np.sum(size_bytes_N + 1))
