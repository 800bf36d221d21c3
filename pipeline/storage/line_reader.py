"""Lines of any length out of a stream of bytes, none of them held beyond a limit."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.records import Reason
from pipeline.schemas import RAW_BYTES
from pipeline.storage.rows import Bad

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class LineBatch:
    """N consecutive lines, split at `\\n` only and without it; a `\\r` before it is still there."""

    lines: list[bytes]
    first_line: int
    """Number of the first line, from 0 in the file."""
    byte_offset_N: NDArray[np.int64]
    """Where each line begins in the decompressed stream."""
    too_long: dict[int, Bad]
    """Positions of lines beyond the limit; only their first RAW_BYTES are in `lines`."""


@dataclass(slots=True)
class _Unfinished:
    """The line whose end has not come yet."""

    pieces: list[bytes] = field(default_factory=list)
    size_bytes: int = 0

    def add(self, piece: bytes, max_line_bytes: int) -> None:
        self.size_bytes += len(piece)
        if self.size_bytes > max_line_bytes:
            self.pieces = [b"".join([*self.pieces, piece[:RAW_BYTES]])[:RAW_BYTES]]
        else:
            self.pieces.append(piece)


def split_lines(chunks: Iterable[bytes], max_line_bytes: int) -> Iterator[LineBatch]:
    """Yield the lines of a stream, as many at a time as end in one chunk.

    A byte order mark at the start is left out. What follows the last `\\n` is a line unless it is empty.
    """
    unfinished = _Unfinished()
    number, offset = 0, 0
    for chunk in chunks:
        lines = chunk.split(b"\n")
        rest = lines.pop()
        if lines:
            unfinished.add(lines[0], max_line_bytes)
            lines[0] = b"".join(unfinished.pieces)
            batch, size_bytes = _batch(lines, number, offset, unfinished.size_bytes, max_line_bytes)
            number, offset = number + len(lines), offset + size_bytes
            unfinished = _Unfinished()
            yield batch
        unfinished.add(rest, max_line_bytes)
    if unfinished.size_bytes:
        lines = [b"".join(unfinished.pieces)]
        yield _batch(lines, number, offset, unfinished.size_bytes, max_line_bytes)[0]


def _batch(
    lines: list[bytes], number: int, offset: int, first_size_bytes: int, max_line_bytes: int
) -> tuple[LineBatch, int]:
    """Return the lines with their offsets, and the bytes they take in the stream."""
    size_bytes_N = np.fromiter(map(len, lines), np.int64, len(lines))
    size_bytes_N[0] = first_size_bytes
    byte_offset_N = offset + np.cumsum(size_bytes_N + 1) - size_bytes_N - 1
    too_long = {}
    for position in np.nonzero(size_bytes_N > max_line_bytes)[0].tolist():
        error = f"the line has {size_bytes_N[position]:,} bytes; at most {max_line_bytes:,} are read"
        too_long[position] = Bad(Reason.LINE_TOO_LONG, error)
        lines[position] = lines[position][:RAW_BYTES]
    if number == 0 and lines[0].startswith(BYTE_ORDER_MARK):
        lines[0] = lines[0].removeprefix(BYTE_ORDER_MARK)
        byte_offset_N[0] += len(BYTE_ORDER_MARK)
    return LineBatch(lines, number, byte_offset_N, too_long), int(np.sum(size_bytes_N + 1))
