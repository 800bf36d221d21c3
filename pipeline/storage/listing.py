"""From the addresses in `source.uri` to the list of SourceFiles, with their versions."""

import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import SourceError
from pipeline.records import FileFormat, SourceFile
from pipeline.storage.connection import check_endpoint, open_filesystem
from pipeline.storage.faults import patiently, told_as
from pipeline.storage.filesystem import stat_of

logger = logging.getLogger(__name__)

SUFFIXES: dict[str, FileFormat] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".txt": "text",
    ".text": "text",
}
FOLDER_MARKERS = ("/", "_$folder$")
"""Ends of the names of empty objects that stand for a folder; Hadoop's are the second."""
COMPRESSIONS = (".gz", ".zst", ".bz2")


def list_source(uris: Sequence[str], format: str) -> list[SourceFile]:
    """Return the files at these addresses with their versions, each once, sorted by URI.

    Names that begin with `_` or `.` and folder markers are not data and are left out; so are files of an
    unknown suffix inside a folder when the format is `auto` (a warning counts them).

    Args:
        uris: files, folders or globs.
        format: `auto`, or the format of all files.

    Raises:
        SourceError: an address cannot be listed, or nothing at it can be read.
    """
    files: dict[str, SourceFile] = {}
    for uri in uris:
        with told_as(SourceError, "list the source", uri):
            check_endpoint(uri)
            found, skipped = _list_one(uri, format)
        if not found:
            hint = (
                f"; {len(skipped)} of another kind were found ({skipped[0]}, …): set source.format" if skipped else ""
            )
            raise SourceError(f"no files matched {uri}{hint}")
        if skipped:
            logger.warning("event=files_skipped uri=%s files=%d example=%s", uri, len(skipped), skipped[0])
        files |= {file.uri: file for file in found}
    return sorted(files.values(), key=lambda file: file.uri)


def _list_one(uri: str, format: str) -> tuple[list[SourceFile], list[str]]:
    filesystem, path = open_filesystem(uri)
    entries, base = _entries(filesystem, path)
    found: list[SourceFile] = []
    skipped: list[str] = []
    for name, details in entries.items():
        if details.get("islink"):
            details = filesystem.info(str(Path(name).resolve())) | {"name": name}
            if details["type"] == "directory":
                raise SourceError(
                    f"{name} is a link to a folder, which is not followed; name that folder in source.uri"
                )
        if details["type"] != "file" or name.endswith(FOLDER_MARKERS) or _is_hidden(name, base):
            continue
        kind = _format_of(name, format)
        if kind is None:
            skipped.append(name)
            continue
        stat = stat_of(details)
        found.append(SourceFile(_uri_of(filesystem, name), stat.version, stat.size_bytes, kind))
    return found, skipped


def _entries(filesystem: fsspec.AbstractFileSystem, path: str) -> tuple[dict[str, dict[str, Any]], str]:
    """List a file, folder or glob; the second value is the prefix below which names are judged.

    A name is taken as it stands before it is taken for a glob: `part[1].parquet` is a file where there is one.
    """
    try:
        info = patiently(lambda: filesystem.info(path), filesystem)
    except FileNotFoundError:
        if not any(character in path for character in "*?["):
            return {}, path
        found = patiently(lambda: filesystem.glob(path, detail=True), filesystem)
        return cast(dict[str, dict[str, Any]], found), path[: min(path.find(c) for c in "*?[" if c in path)]
    if info["type"] == "file" and not path.endswith("/"):
        return {path: info}, path
    found = patiently(lambda: filesystem.find(path, detail=True), filesystem)
    return cast(dict[str, dict[str, Any]], found), path


def _is_hidden(name: str, base: str) -> bool:
    """Whether a path below `base` has a component that tools take for no data."""
    return any(part[:1] in ("_", ".") for part in PurePosixPath(name[len(base) :]).parts if part not in ("/", ".."))


def _format_of(name: str, format: str) -> FileFormat | None:
    if format != "auto":
        return cast(FileFormat, format)
    path = PurePosixPath(name.lower())
    if path.suffix in COMPRESSIONS:
        path = path.with_suffix("")
    kind = SUFFIXES.get(path.suffix)
    return None if kind == "parquet" and name.lower().endswith(COMPRESSIONS) else kind


def _uri_of(filesystem: fsspec.AbstractFileSystem, name: str) -> str:
    return name if isinstance(filesystem, LocalFileSystem) else cast(str, filesystem.unstrip_protocol(name))
