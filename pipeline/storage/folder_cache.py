"""Folders that every node needs a copy of: named by their content, fetched once per node, never half."""

import hashlib
import os
import shutil
import uuid
from pathlib import Path, PurePosixPath

from filelock import FileLock

from pipeline.errors import StorageError
from pipeline.fingerprint import fingerprint
from pipeline.storage.faults import patiently, told_as
from pipeline.storage.filesystem import Stat, check_endpoint, open_filesystem, stat_of

IGNORED = ("README", ".git", "LICENSE")
"""Beginnings of file names that do not change what a folder does."""


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
        StorageError: it cannot be listed, or holds nothing.
    """
    return fingerprint({name: [stat.size_bytes, stat.version] for name, stat in _list(uri).items()})


def fetch_folder(uri: str, identity: str) -> Path:
    """Return a local copy of a folder on a store, fetching it unless this node has it already.

    Args:
        uri: the folder.
        identity: as `remote_folder_identity` gave it; names the copy.

    Raises:
        StorageError: it cannot be fetched, was changed meanwhile, or has a file that would land elsewhere.
    """
    target = cache_root() / "models" / identity
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if target.is_dir():
            return target
        staging = target.with_suffix(f".{uuid.uuid4().hex}.tmp")
        try:
            _download(uri, staging)
            if remote_folder_identity(uri) != identity:
                raise StorageError(f"{uri} was changed while it was fetched; run again")
            staging.rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return target


def _download(uri: str, staging: Path) -> None:
    filesystem, root = open_filesystem(uri)
    for name in _list(uri):
        local = staging / name
        local.parent.mkdir(parents=True, exist_ok=True)
        with told_as(StorageError, "fetch", f"{uri}/{name}"):
            patiently(lambda name=name, local=local: filesystem.get_file(f"{root.rstrip('/')}/{name}", str(local)))  # type: ignore[misc]


def _list(uri: str) -> dict[str, Stat]:
    with told_as(StorageError, "list", uri):
        check_endpoint(uri)
        filesystem, root = open_filesystem(uri)
        root = root.rstrip("/")
        found = patiently(lambda: filesystem.find(root, detail=True))
    files: dict[str, Stat] = {}
    for path, details in sorted(found.items()):
        name = path[len(root) + 1 :]
        parts = PurePosixPath(name).parts
        if details["type"] != "file" or not parts or parts[-1].startswith(IGNORED):
            continue
        if ".." in parts or name.startswith("/") or "\\" in name or "\0" in name:
            raise StorageError(f"{uri} holds a file named {name!r}, which would land outside the cache; remove it")
        files[name] = stat_of(details)
    if not files:
        raise StorageError(f"{uri}: no such folder, or nothing in it")
    return files
