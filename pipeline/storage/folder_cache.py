"""Folders that every node needs a copy of: named by their content, fetched once per node, never half."""

import hashlib
import os
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import fsspec
import orjson
from filelock import FileLock

from pipeline.errors import StorageError
from pipeline.fingerprint import fingerprint
from pipeline.storage.connection import check_endpoint, open_filesystem
from pipeline.storage.faults import patiently, told_as
from pipeline.storage.filesystem import Stat, stat_of

IGNORED = ("README", ".git", "LICENSE")
"""Beginnings of file names that do not change what a folder does."""

PRIVATE = 0o700
"""Mode of the folders that copies lie in: whoever could write there could change what a model does."""

PIECE_BYTES = 16 * 2**20
PIECES_AT_ONCE = 8
"""At most 128 MiB of a file are held."""


def cache_root() -> Path:
    """Return where this node keeps what it has fetched: $BATCH_EMBEDDINGS_CACHE, else below ~/.cache."""
    return Path(os.environ.get("BATCH_EMBEDDINGS_CACHE") or "~/.cache/batch-embeddings").expanduser()


def local_folder_identity(folder: Path) -> str:
    """Return the fingerprint of a local folder: names and contents of its files.

    Raises:
        StorageError: there is no such folder, or it cannot be read.
    """
    if not folder.is_dir():
        raise StorageError(f"{folder}: no such folder")
    digests: dict[str, str] = {}
    with told_as(StorageError, "read", str(folder)):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.name.startswith(IGNORED):
                with path.open("rb") as stream:
                    digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return fingerprint(digests)


def remote_folder_identity(uri: str) -> str:
    """Return the fingerprint of a folder on a store: names, sizes and versions of its files.

    Raises:
        StorageError: it cannot be listed, or holds nothing, or a file that would land outside its copy.
    """
    with told_as(StorageError, "list", uri):
        check_endpoint(uri)
    return _identity(_list(uri))


def fetch_folder(uri: str, identity: str, shelf: str = "models") -> Path:
    """Return a local copy of a folder on a store, fetching it unless this node has it whole already.

    Args:
        uri: the folder.
        identity: as `remote_folder_identity` gave it; names the copy.
        shelf: folder of the cache that holds it.

    Raises:
        StorageError: it cannot be fetched, was changed meanwhile, or has a file that would land elsewhere.
    """
    target = cache_root() / shelf / identity
    contents = target.with_suffix(".json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.parent.chmod(PRIVATE)
    with FileLock(target.with_suffix(".lock")):
        if _is_whole(target, contents):
            return target
        _remove(target)
        staging = target.with_suffix(f".{uuid.uuid4().hex}.tmp")
        try:
            files = _list(uri)
            if _identity(files) != identity:
                raise StorageError(f"{uri} was changed since this run was planned; run again")
            _download(uri, files, staging)
            if _identity(_list(uri)) != identity:
                raise StorageError(f"{uri} was changed while it was fetched; run again")
            contents.write_bytes(orjson.dumps({name: stat.size_bytes for name, stat in files.items()}))
            staging.rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return target


def _is_whole(folder: Path, contents: Path) -> bool:
    """Whether a copy holds exactly the files that were fetched, each of its size, and no link."""
    if folder.is_symlink() or not folder.is_dir() or not contents.is_file():
        return False
    found: dict[str, int] = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            return False
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path.stat().st_size
    try:
        return bool(orjson.loads(contents.read_bytes()) == found)
    except orjson.JSONDecodeError:
        return False


def _remove(folder: Path) -> None:
    """Remove what stands where a copy belongs; of a link, the link and not what it leads to."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.is_dir():
        shutil.rmtree(folder)


def _download(uri: str, files: dict[str, Stat], staging: Path) -> None:
    staging.mkdir(mode=PRIVATE)
    filesystem, root = open_filesystem(uri)
    for name, stat in files.items():
        with told_as(StorageError, "fetch", f"{uri}/{name}"):
            local = staging / name
            local.parent.mkdir(parents=True, exist_ok=True)
            _download_file(filesystem, f"{root.rstrip('/')}/{name}", stat.size_bytes, local)


def _download_file(filesystem: fsspec.AbstractFileSystem, path: str, size_bytes: int, local: Path) -> None:
    """Fetch a file in pieces, several at once; each is tried again by itself until it came whole."""

    def piece(start: int) -> bytes:
        end = min(start + PIECE_BYTES, size_bytes)
        content: bytes = filesystem.cat_file(path, start=start, end=end)
        if len(content) != end - start:
            raise ConnectionError(f"{len(content)} bytes came of {end - start}")
        return content

    starts = range(0, size_bytes, PIECE_BYTES)
    with local.open("xb") as file, ThreadPoolExecutor(PIECES_AT_ONCE) as pool:
        for first in range(0, len(starts), PIECES_AT_ONCE):
            few = starts[first : first + PIECES_AT_ONCE]
            file.writelines(pool.map(lambda start: patiently(lambda: piece(start), filesystem), few))


def _identity(files: dict[str, Stat]) -> str:
    return fingerprint({name: [stat.size_bytes, stat.version] for name, stat in files.items()})


def _list(uri: str) -> dict[str, Stat]:
    with told_as(StorageError, "list", uri):
        filesystem, root = open_filesystem(uri)
        root = root.rstrip("/")
        found = patiently(lambda: filesystem.find(root, detail=True), filesystem)
    files: dict[str, Stat] = {}
    for path, details in sorted(found.items()):
        name = path[len(root) + 1 :]
        parts = PurePosixPath(name).parts
        if details["type"] != "file" or not parts or parts[-1].startswith(IGNORED):
            continue
        if not path.startswith(f"{root}/") or {"", ".", ".."} & set(name.split("/")) or "\\" in name or "\0" in name:
            raise StorageError(f"{uri} holds a file named {name!r}, which would land outside its copy; remove it")
        files[name] = stat_of(details)
    both = sorted({str(parent) for name in files for parent in PurePosixPath(name).parents} & files.keys())
    if both:
        raise StorageError(f"{uri} holds {both[0]!r} both as a file and as a folder; remove one of them")
    if not files:
        raise StorageError(f"{uri}: no such folder, or nothing in it")
    return files
