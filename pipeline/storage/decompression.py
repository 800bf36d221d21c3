"""The bytes of a source file, decompressed by suffix, in bounded pieces and never silently short."""

from collections.abc import Iterator
from itertools import chain, repeat
from typing import BinaryIO, Protocol

import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.records import Reason, SourceFile
from pipeline.storage.rows import BadFile, OpenFile

CHUNK_BYTES = 512 * 2**10
"""One read; also the grain of line batches. 256 KiB to 1 MiB read equally fast (2026-11)."""

CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
"""Arrow's decoders: bounded whatever the ratio, they take several members or frames in a row, and refuse a
stream that ends early, which zstandard's own stream reader passes as the end (2026-11)."""

STEPS = (CHUNK_BYTES, 4096, 1)
"""A decoder that fails gives nothing of the piece it was asked for. So what cannot be decoded is tried again in smaller
pieces, until every byte before the fault has come; by then, what was only damaged on its way here has come as well."""

ENCODED_BYTES = 2 * 64 * 2**10
"""How far a decoder reads ahead at most: so far before a fault it is fed byte by byte when tried again."""


class WatchedFile:
    """A source file that remembers a fault of its store, which must not pass for a fault of its content.

    Args:
        stream: the open file.
        file: as planned; to end before its planned size is a fault of the store.
        slow: positions between which a read gives one byte at most.
    """

    def __init__(self, stream: BinaryIO, file: SourceFile, slow: range = range(0)) -> None:
        self._stream, self._file, self._slow = stream, file, slow
        self.fault: Exception | None = None
        self.bytes_read = 0

    def read(self, size: int = -1) -> bytes:
        if self.bytes_read in self._slow:
            size = min(size, 1)
        try:
            piece = self._stream.read(size)
            if 0 <= len(piece) < size and (end := self._stream.tell()) < self._file.size_bytes:
                raise _other_size(self._file, end)
        except Exception as error:
            self.fault = error
            raise
        self.bytes_read += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """Leave it open: whoever opened it closes it, and Arrow closes what it is done with."""

    @property
    def closed(self) -> bool:
        return self._stream.closed

    def raise_fault(self) -> None:
        """Raise the store's own error, if there was one."""
        if self.fault is not None:
            raise self.fault


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def read_chunks(file: SourceFile, open_file: OpenFile) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file in pieces of at most CHUNK_BYTES.

    Raises:
        BadFile: after all bytes that can be decoded: the compressed stream ends early, fails its checksum or is
            followed by something else.
        SourceError: fewer or more bytes came than the plan saw. Errors of the store itself pass unchanged.
    """
    codec = next((codec for suffix, codec in CODECS.items() if file.uri.lower().endswith(suffix)), None)
    position, slow, fault = 0, range(0), ""
    for step, coarser in zip(STEPS, (CHUNK_BYTES, *STEPS), strict=False):
        with open_file(file) as stream:
            watched = WatchedFile(stream, file, slow)
            source: _Readable = pa.CompressedInputStream(pa.PythonFile(watched, mode="r"), codec) if codec else watched
            try:
                for chunk in _decoded(source, position, step, coarser):
                    position += len(chunk)
                    yield chunk
            except (OSError, pa.ArrowException) as error:
                watched.raise_fault()
                fault = f"{error}, after {position:,} decoded bytes, in the first {watched.bytes_read:,} of its"
                slow = range(watched.bytes_read - ENCODED_BYTES, watched.bytes_read)
            else:
                _check_size(file, watched.bytes_read, codec)
                return
    reason = Reason.UNREADABLE_STRETCH if position else Reason.UNREADABLE_FILE
    raise BadFile(f"{file.uri} is not a whole {codec} stream: {fault} {file.size_bytes:,}; write it again", reason)


def _decoded(source: _Readable, start: int, step: int, coarser: int) -> Iterator[bytes]:
    """Yield what follows the first `start` decoded bytes, in small steps as far as the attempt before lost it."""
    while start:
        passed = len(source.read(min(start, CHUNK_BYTES)))
        if not passed:
            raise OSError("it decodes to fewer bytes when read again")
        start -= passed
    for size in chain(repeat(step, coarser // step), repeat(CHUNK_BYTES)):
        chunk = source.read(size)
        if not chunk:
            return
        yield chunk


def _check_size(file: SourceFile, bytes_read: int, codec: str | None) -> None:
    if bytes_read != file.size_bytes:
        raise _other_size(file, bytes_read)
    if codec and not bytes_read:
        raise BadFile(f"{file.uri} is empty: not even the header of a {codec} stream; write it again")


def _other_size(file: SourceFile, found_bytes: int) -> SourceError:
    return SourceError(
        f"{file.uri} gave {found_bytes:,} bytes, the plan saw {file.size_bytes:,}; run again to plan anew"
    )
