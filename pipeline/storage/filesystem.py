"""Folders and files on any fsspec store: put-if-absent, read at a version, list, copy, delete."""

import math
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import SourceError, StorageError
from pipeline.records import SourceFile
from pipeline.storage.faults import is_precondition_failure, patiently, told_as

S3_OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,
    "default_block_size": 4 * 2**20,
    "config_kwargs": {
        "retries": {"mode": "standard", "total_max_attempts": 10},
        "connect_timeout": 5,
        "read_timeout": 30,
    },
}
"""Client defaults die on a burst of five 503s and serve stale listings; these survive eight (2026-11)."""

SINGLE_PUT_BYTES = 5 * 2**30
"""S3's limit for one PUT; below it s3fs would cut from 100 MiB on, and the condition would hold for the last piece."""

FIRST_CONTACT = {"retries": {"mode": "standard", "total_max_attempts": 3}, "connect_timeout": 3, "read_timeout": 15}
"""A wrong endpoint should be told within seconds, not after ten patient attempts."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What a listing says of one file."""

    size_bytes: int
    version: str
    modified_at: float = field(default=math.inf, compare=False)
    """Seconds since the epoch, by the store's clock; of a store that does not say, later than any time."""


def open_filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the filesystem of a URI and the path in it; credentials come from the environment alone.

    Raises:
        ImportError: the scheme needs a package that is not installed.
        ValueError: the scheme is unknown.
    """
    options = S3_OPTIONS if uri.startswith(("s3://", "s3a://")) else {}
    filesystem, path = fsspec.url_to_fs(uri, **options)
    return filesystem, cast(str, path)


def check_endpoint(uri: str) -> None:
    """Ask an S3 endpoint one question, so that a wrong address or key is told within seconds.

    Raises:
        OSError, botocore exceptions: as the store gives them; wrap in `told_as`.
    """
    if uri.startswith(("s3://", "s3a://")):
        hasty, path = fsspec.url_to_fs(uri, **{**S3_OPTIONS, "config_kwargs": FIRST_CONTACT})
        hasty.call_s3("list_objects_v2", Bucket=path.split("/", 1)[0], Prefix=path.partition("/")[2], MaxKeys=1)


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
        with patiently(lambda: filesystem.open(path, "rb", cache_type=cache)) as stream:
            details = getattr(stream, "details", None)  # of the object that S3 reads are pinned to by If-Match
            _check_version(file, details or patiently(lambda: filesystem.info(path)))
            yield cast(BinaryIO, stream)
        if isinstance(filesystem, LocalFileSystem):
            _check_version(file, filesystem.info(path))


def _check_version(file: SourceFile, details: dict[str, Any]) -> None:
    found = stat_of(details)
    if found.version != file.version:
        raise SourceError(
            f"{file.uri} was changed between plan and read (planned version {file.version}, found {found.version}); "
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

    def read(self, key: str) -> bytes | None:
        """Return the content of a key, or None if there is none."""
        with told_as(StorageError, "read", self.uri_of(key)):
            try:
                return cast(bytes, patiently(lambda: self.filesystem.cat_file(f"{self.root}/{key}")))
            except FileNotFoundError:
                return None

    def stat(self, key: str) -> Stat | None:
        """Return size and version of a key, or None if there is none."""
        with told_as(StorageError, "look at", self.uri_of(key)):
            try:
                return stat_of(patiently(lambda: self.filesystem.info(f"{self.root}/{key}")))
            except FileNotFoundError:
                return None

    def files(self, prefix: str) -> dict[str, Stat]:
        """Return every key below `prefix/` with its size and version; the order means nothing."""
        with told_as(StorageError, "list", self.uri_of(prefix)):
            try:
                found = patiently(lambda: self.filesystem.find(f"{self.root}/{prefix}", detail=True, **self._fresh()))
            except FileNotFoundError:
                return {}
        return {
            path[len(self.root) + 1 :]: stat_of(details)
            for path, details in found.items()
            if details.get("type") == "file" and not path.endswith("/")
        }

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders directly below `prefix/`."""
        with told_as(StorageError, "list", self.uri_of(prefix)):
            try:
                entries = patiently(lambda: self.filesystem.ls(f"{self.root}/{prefix}", detail=True, **self._fresh()))
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
                patiently(lambda: self._create(f"{self.root}/{key}", content))
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
            if not self.is_local:
                patiently(lambda: self.filesystem.pipe_file(f"{self.root}/{key}", content))
                return
            target = Path(self.root, key)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._staged(content).replace(target)

    def copy_new(self, source_key: str, key: str) -> bool:
        """Copy within the output without moving bytes through this process, unless the key is there already.

        Stores cannot copy on a condition: of two that copy to one key at the same time, the later one wins.

        Returns:
            Whether it was copied; False = something stands there, be it by an earlier attempt of ours.
        """
        source, target = f"{self.root}/{source_key}", f"{self.root}/{key}"
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
            patiently(lambda: self.filesystem.cp_file(source, target))
            return True

    def delete(self, key: str) -> None:
        """Remove a key; nothing happens if there is none."""
        with told_as(StorageError, "delete", self.uri_of(key)), suppress(FileNotFoundError):
            patiently(lambda: self.filesystem.rm_file(f"{self.root}/{key}"))

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
