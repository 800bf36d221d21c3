"""A source file on a store, read on from where it was after a fault."""

import io
from functools import partial
from typing import BinaryIO

import fsspec

from pipeline.storage.faults import patiently


class ResumingStream(io.RawIOBase):
    """Reads a file that fsspec has opened; a read that fails, stalls or ends early is taken up at its position.

    What it reads stays the version it was opened at: s3fs sends If-Match with every range.

    Args:
        stream: as the filesystem gave it; whoever opened it closes it.
        filesystem: that it lies on.
        size_bytes: of the whole file; an end before that is a fault.
    """

    def __init__(self, stream: BinaryIO, filesystem: fsspec.AbstractFileSystem, size_bytes: int) -> None:
        self._stream, self._filesystem, self._size_bytes = stream, filesystem, size_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        """Return exactly as many bytes as are asked for and left; all that are left if size is negative."""
        left = max(0, self._size_bytes - self._stream.tell())
        wanted = left if size is None or size < 0 else min(size, left)
        pieces: list[bytes] = []
        while wanted:
            pieces.append(patiently(partial(self._piece, wanted), self._filesystem))
            wanted -= len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, wanted: int) -> bytes:
        piece = self._stream.read(wanted)
        if not piece:
            raise ConnectionError(f"the answer ended {wanted} bytes too early")
        return piece

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
