"""How a store is reached: which filesystem, with what patience of the client, and whether it answers at all."""

from functools import partial
from typing import Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.faults import patiently

S3_OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,
    "default_block_size": 4 * 2**20,
    "config_kwargs": {
        "retries": {"mode": "standard", "total_max_attempts": 4},
        "connect_timeout": 5,
        "read_timeout": 30,
    },
}
"""The client tries a request four times, so that a page of a long listing does not cost the listing; all patience
beyond that is that of `patiently`, which has a deadline, counts, and knows more faults. Listings are never cached."""

FIRST_CONTACT = {"retries": {"mode": "standard", "total_max_attempts": 1}, "connect_timeout": 3, "read_timeout": 15}
FIRST_CONTACT_SECONDS = 6.0
"""A wrong endpoint should be told within seconds, not after all patience."""


def open_filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the filesystem of a URI and the path in it; credentials come from the environment alone.

    Raises:
        ImportError: the scheme needs a package that is not installed.
        ValueError: the scheme is unknown.
    """
    return _opened(uri, S3_OPTIONS)


def _opened(uri: str, s3_options: dict[str, Any]) -> tuple[fsspec.AbstractFileSystem, str]:
    is_s3 = uri.startswith(("s3://", "s3a://"))
    filesystem, path = fsspec.url_to_fs(uri, **(s3_options if is_s3 else {}))
    if is_s3:
        filesystem.retries = 1  # of s3fs itself, around those of the client and within ours: without a deadline
    if isinstance(filesystem, LocalFileSystem):
        filesystem = LocalFileSystem(skip_instance_cache=True)  # what is set below concerns nobody else here
    for walk in ("walk", "_walk"):  # of which `find` and `glob` are made, the second of asynchronous filesystems
        if hasattr(type(filesystem), walk):
            setattr(filesystem, walk, partial(getattr(type(filesystem), walk), filesystem, on_error=_raise_unless_gone))
    return filesystem, cast(str, path)


def _raise_unless_gone(error: OSError) -> None:
    """Let a folder that cannot be listed be an error: fsspec 2026.9 takes it for an empty one, in globs on S3 too."""
    if not isinstance(error, FileNotFoundError):
        raise error


def check_endpoint(uri: str) -> None:
    """Ask an S3 endpoint one question, so that a wrong address or key is told within seconds.

    Raises:
        OSError, botocore exceptions: as the store gives them; wrap in `told_as`.
    """
    if uri.startswith(("s3://", "s3a://")):
        hasty, path = _opened(uri, {**S3_OPTIONS, "config_kwargs": FIRST_CONTACT})
        bucket, _, prefix = path.partition("/")
        patiently(
            lambda: hasty.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1),
            hasty,
            FIRST_CONTACT_SECONDS,
        )
