"""Folders and files on any fsspec store: put-if-absent, read at a version, list, copy, delete."""

import math
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar, cast

from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import SourceError, StorageError
from pipeline.records import SourceFile
from pipeline.storage.connection import check_endpoint, open_filesystem
from pipeline.storage.faults import is_precondition_failure, patiently, told_as
from pipeline.storage.resuming import ResumingStream

T = TypeVar("T")

SINGLE_PUT_BYTES = 5 * 2**30
"""S3's limit for one PUT; below it s3fs would cut from 100 MiB on, and the condition would hold for the last piece."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What a listing says of one file."""

    size_bytes: int
    version: str
    modified_at: float = field(default=math.inf, compare=False)
    """Seconds since the epoch, by the store's clock; of a store that does not say, later than any time."""


def stat_of(details: dict[str, Any]) -> Stat:
    """Return size and version from an fsspec listing entry: the ETag, or size and mtime of a local file."""
    size = int(details["size"] or 0)
    stamp = next((details[key] for key in ("mtime", "LastModified", "updated", "created") if details.get(key)), None)
    modified = stamp.timestamp() if isinstance(stamp, datetime) else stamp
    modified_at = modified if isinstance(modified, int | float) else math.inf
    for key in ("ETag", "etag", "generation", "version_id"):
        if details.get(key):
            return Stat(size, str(details[key]).strip('"'), modified_at)
    if details.get("mtime") is not None and details.get("ino") is not None:
        return Stat(size, f"{size}-{os.stat(details['name']).st_mtime_ns}", modified_at)
    return Stat(size, f"{size}-{stamp or ''}", modified_at)


@contextmanager
def open_source(file: SourceFile) -> Iterator[BinaryIO]:
    """Open a source file for reading, at the version that was planned and no other.

    Yields:
        A seekable binary stream that reads ahead in steps of some MiB; on S3 every read carries If-Match.

    Raises:
        SourceError: the file is gone, was changed since the plan, or cannot be read.
    """
    with told_as(SourceError, "read", file.uri):
        filesystem, path = open_filesystem(file.uri)
        # Parquet readers know what they want; reading ahead of them fetched everything twice (2026-11)
        cache = "none" if file.format == "parquet" else "readahead"
        with patiently(lambda: filesystem.open(path, "rb", cache_type=cache), filesystem) as stream:
            details = getattr(stream, "details", None)  # of the object that S3 reads are pinned to by If-Match
            details = details or patiently(lambda: filesystem.info(path), filesystem)
            _check_version(file, stat_of(details).version)
            if isinstance(filesystem, LocalFileSystem):
                yield cast(BinaryIO, stream)
                _check_version(file, stat_of(filesystem.info(path)).version)
                return
            try:
                yield cast(BinaryIO, ResumingStream(stream, filesystem, file.size_bytes))
            except OSError as error:
                if is_precondition_failure(error):
                    _check_version(file, "another")
                raise


def _check_version(file: SourceFile, found: str) -> None:
    if found != file.version:
        raise SourceError(
            f"{file.uri} was changed between plan and read (planned version {file.version}, found {found}); "
            "run again to plan with the new version"
        )


class Store:
    """The output folder: keys below one URI, with the few operations the commit protocol needs.

    Raises from every method:
        StorageError: with what was tried, where, and what to do.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        with told_as(StorageError, "open the output", self.uri):
            self.filesystem, self.root = open_filesystem(self.uri)
            self.root = self.root.rstrip("/")
        self.is_local = isinstance(self.filesystem, LocalFileSystem)

    def uri_of(self, key: str) -> str:
        """Return the full address of a key."""
        return f"{self.uri}/{key}"

    def path_of(self, key: str) -> str:
        """Return the path of a key in the filesystem.

        Raises:
            StorageError: it would lie outside the output. Keys are built from names that cannot do that; this is
                what stands behind them.
        """
        parts = key.split("/")
        if not key or {"", ".", ".."} & set(parts) or "\\" in key or "\0" in key:
            raise StorageError(f"{self.uri}: refused to touch {key!r}, which does not name a file below this output")
        return f"{self.root}/{key}"

    def read(self, key: str) -> bytes | None:
        """Return the content of a key, or None if there is none."""
        with told_as(StorageError, "read", self.uri_of(key)):
            try:
                path = self.path_of(key)
                return cast(bytes, self._patiently(lambda: self.filesystem.cat_file(path)))
            except FileNotFoundError:
                return None

    def stat(self, key: str) -> Stat | None:
        """Return size and version of a key, or None if there is none."""
        with told_as(StorageError, "look at", self.uri_of(key)):
            try:
                path = self.path_of(key)
                return stat_of(self._patiently(lambda: self.filesystem.info(path)))
            except FileNotFoundError:
                return None

    def files(self, prefix: str) -> dict[str, Stat]:
        """Return every key below `prefix/` (all, if it is empty) with its size and version; the order means nothing."""
        with told_as(StorageError, "list", self.uri_of(prefix)):
            try:
                path = self.path_of(prefix) if prefix else self.root
                found = self._patiently(lambda: self.filesystem.find(path, detail=True, **self._fresh()))
            except FileNotFoundError:
                return {}
            stats: dict[str, Stat] = {}
            for name, details in found.items():
                if details.get("type") == "file" and not name.endswith("/"):
                    with suppress(FileNotFoundError):  # it went since it was listed
                        stats[name[len(self.root) + 1 :]] = stat_of(details)
        return stats

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders directly below `prefix/`."""
        with told_as(StorageError, "list", self.uri_of(prefix)):
            try:
                path = self.path_of(prefix) if prefix else self.root
                entries = self._patiently(lambda: self.filesystem.ls(path, detail=True, **self._fresh()))
            except FileNotFoundError:
                return []
        return sorted(PurePosixPath(entry["name"]).name for entry in entries if entry["type"] == "directory")

    def put_new(self, key: str, content: bytes) -> bytes | None:
        """Write a key whole, unless it is there already.

        Returns:
            None if this content stands there now, be it by an earlier attempt of ours whose answer was lost;
            else what does stand there.
        """
        with told_as(StorageError, "write", self.uri_of(key)):
            try:
                path = self.path_of(key)
                self._patiently(lambda: self._create(path, content))
                return None
            except OSError as error:
                if not is_precondition_failure(error):
                    raise
        found = self.read(key)
        if found is None:
            raise StorageError(f"{self.uri_of(key)} was there and is gone: something else deletes in this output")
        return None if found == content else found

    def put(self, key: str, content: bytes) -> None:
        """Write a key, over whatever stands there; for hints and reports, never for data."""
        with told_as(StorageError, "write", self.uri_of(key)):
            path = self.path_of(key)
            if not self.is_local:
                self._patiently(lambda: self.filesystem.pipe_file(path, content))
                return
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._staged(content).replace(target)

    def copy_new(self, source_key: str, key: str) -> bool:
        """Copy within the output without moving bytes through this process, unless the key is there already.

        Stores cannot copy on a condition: of two that copy to one key at the same time, the later one wins.

        Returns:
            Whether it was copied; False = something stands there, be it by an earlier attempt of ours.
        """
        source, target = self.path_of(source_key), self.path_of(key)
        with told_as(StorageError, "copy", self.uri_of(source_key)):
            if self.is_local:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(source, target)
                except FileExistsError:
                    return False
                return True
            if self.stat(key) is not None:
                return False
            self._patiently(lambda: self.filesystem.cp_file(source, target))
            return True

    def copy(self, source_key: str, key: str) -> None:
        """Copy within the output in one request, over whatever stands there: for keys that nobody else can write."""
        source, target = self.path_of(source_key), self.path_of(key)
        with told_as(StorageError, "copy", self.uri_of(source_key)):
            self._patiently(lambda: self.filesystem.cp_file(source, target))

    def delete(self, key: str) -> None:
        """Remove a key; nothing happens if there is none."""
        with told_as(StorageError, "delete", self.uri_of(key)), suppress(FileNotFoundError):
            path = self.path_of(key)
            self._patiently(lambda: self.filesystem.rm_file(path))

    def remove_empty_folders(self, prefix: str) -> None:
        """Remove the folders below `prefix/` that hold nothing; object storage has none."""
        for path, _, _ in os.walk(Path(self.root, prefix), topdown=False) if self.is_local else ():
            with suppress(OSError):  # something lies in it
                Path(path).rmdir()

    def check_reachable(self) -> None:
        """Ask the store one question, so that a wrong endpoint is told within seconds and not after all patience.

        Raises:
            StorageError: no answer, no such bucket, or no right to list.
        """
        with told_as(StorageError, "reach the output", self.uri):
            check_endpoint(self.uri)

    def check_writable(self) -> None:
        """Write, fail to write again, and remove one key: the rights and the atomicity the protocol stands on.

        Raises:
            StorageError: not writable, or the store lets a second put-if-absent win.
        """
        self.check_reachable()
        key = f"_meta/probe/{uuid.uuid4().hex}"
        self.put_new(key, b"first")
        try:
            if self.put_new(key, b"second") is None:
                raise StorageError(
                    f"{self.uri}: this store does not enforce put-if-absent (If-None-Match: *), which keeps two "
                    "runs from overwriting each other; use a store that does"
                )
        finally:
            with suppress(StorageError):  # the protocol itself deletes nothing and needs no right to
                self.delete(key)

    def _patiently(self, operation: Callable[[], T]) -> T:
        return patiently(operation, self.filesystem)

    def _create(self, path: str, content: bytes) -> None:
        if not self.is_local:
            whole = {"chunksize": SINGLE_PUT_BYTES} if "s3" in self.filesystem.protocol else {}
            self.filesystem.pipe_file(path, content, mode="create", **whole)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._staged(content)
        try:
            os.link(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name, too, must outlive a power loss
        finally:
            os.close(folder)

    def _staged(self, content: bytes) -> Path:
        """Write a temporary file on the same disk, outside every folder that tools read."""
        staging = Path(self.root, "_meta", "tmp")
        staging.mkdir(parents=True, exist_ok=True)
        temporary = staging / uuid.uuid4().hex
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        return temporary

    def _fresh(self) -> dict[str, bool]:
        return {"refresh": True} if "s3" in self.filesystem.protocol else {}
