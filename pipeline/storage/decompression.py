"""The bytes of a source file, decompressed by suffix, in bounded pieces and never silently short."""

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.records import SourceFile
from pipeline.storage.rows import OpenFile

CHUNK_BYTES = 512 * 2**10
"""One read; also the grain of line batches. 256 KiB to 1 MiB read equally fast (2026-11)."""

CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
"""Arrow's decoders: bounded whatever the ratio, they take several members or frames in a row, and refuse a
stream that ends early, which zstandard's own stream reader passes as the end (2026-11)."""


class WatchedFile:
    """A source file that remembers a fault of its store, which must not pass for a fault of its content."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.fault: Exception | None = None
        self.bytes_read = 0

    def read(self, size: int = -1) -> bytes:
        try:
            piece = self._stream.read(size)
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


def read_chunks(file: SourceFile, open_file: OpenFile) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file in pieces of at most CHUNK_BYTES.

    Raises:
        SourceError: the compressed stream ends early, fails its checksum or is followed by something else, or
            fewer or more bytes came than the plan saw. Errors of the store itself pass unchanged.
    """
    codec = next((codec for suffix, codec in CODECS.items() if file.uri.lower().endswith(suffix)), None)
    with open_file(file) as stream:
        watched = WatchedFile(stream)
        source = pa.CompressedInputStream(pa.PythonFile(watched, mode="r"), codec) if codec else watched
        position = 0
        while True:
            try:
                chunk: bytes = source.read(CHUNK_BYTES)
            except (OSError, pa.ArrowException) as error:
                watched.raise_fault()
                raise SourceError(
                    f"{file.uri} is not a whole {codec} stream: {error}, after {position:,} decoded bytes, "
                    f"in the first {watched.bytes_read:,} of its {file.size_bytes:,}; write it again"
                ) from error
            if not chunk:
                break
            position += len(chunk)
            yield chunk
        _check_size(file, watched.bytes_read, codec)


def _check_size(file: SourceFile, bytes_read: int, codec: str | None) -> None:
    if bytes_read != file.size_bytes:
        raise SourceError(
            f"{file.uri} gave {bytes_read:,} bytes, the plan saw {file.size_bytes:,}; run again to plan anew"
        )
    if codec and not bytes_read:
        raise SourceError(f"{file.uri} is empty: not even the header of a {codec} stream; write it again")
