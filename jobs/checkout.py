"""The checkout as a zip file for the nodes of a cluster: what runs there is the code that stands here."""

import fnmatch
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError

ROOT = Path(__file__).parents[1]

IGNORED = (
    ".*",  # .git, .venv, .env, caches, what make leaves
    "__pycache__",
    "*.py[cod]",
    "*.egg-info",
    "build",
    "dist",
    "node_modules",
    "venv",
    "tests",
    "*.pem",
    "*.key",
    "*.p12",
    "*credentials*",
    "*secret*",
    "*.parquet",
    "*.safetensors",
)
"""Names of files and folders that stay here, in any folder; a file `.shipignore` at the top adds more, a line each."""

LARGEST_BYTES = 32 * 2**20
SHOWN = 5
FIXED_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Package:
    """A zip file of code."""

    path: Path
    files: int
    size_bytes: int
    """Unpacked."""


def packed(target: Path, root: Path = ROOT, largest_bytes: int = LARGEST_BYTES) -> Package:
    """Write the files of a checkout that are not ignored into a zip file; the same files give the same bytes.

    Raises:
        ConfigError: it is no checkout, or larger than it may be; the message names the largest files.
    """
    if not (root / "pyproject.toml").is_file():
        raise ConfigError(
            f"{root} is no checkout that could be shipped; where the nodes have the package, use --no-ship"
        )
    sizes = {path: (root / path).stat().st_size for path in _files(root)}
    if (total := sum(sizes.values())) > largest_bytes:
        largest = sorted(sizes, key=lambda path: -sizes[path])[:SHOWN]
        told = "\n".join(f"  {sizes[path] / 1e6:8.1f} MB  {path.as_posix()}" for path in largest)
        raise ConfigError(
            f"the checkout has {total / 1e6:.1f} MB, at most {largest_bytes / 1e6:.1f} MB are shipped; move these "
            f"away, or name them in {root / '.shipignore'}:\n{told}"
        )
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sizes:
            entry = zipfile.ZipInfo(path.as_posix(), FIXED_TIME)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, (root / path).read_bytes())
    return Package(target, len(sizes), total)


def _files(root: Path) -> Iterator[Path]:
    """Yield what is shipped, relative to the root, in order; links are not followed."""
    own = root / ".shipignore"
    more = tuple(own.read_text(encoding="utf-8").split()) if own.is_file() else ()
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not _is_ignored(name, more))
        for name in sorted(names):
            path = Path(folder, name)
            if not _is_ignored(name, more) and not path.is_symlink():
                yield path.relative_to(root)


def _is_ignored(name: str, more: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name.lower(), pattern.rstrip("/").lower()) for pattern in (*IGNORED, *more))
