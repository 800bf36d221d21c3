"""Distributed batch embedding: text on object storage to embeddings as Parquet, exactly once."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.storage.snapshots import Snapshot, open_snapshot

__version__ = "0.1.0"
__all__ = ["Snapshot", "__version__", "open_snapshot"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `python -m jobs --help` does not pay for pyarrow."""
    if name in ("Snapshot", "open_snapshot"):
        from pipeline.storage import snapshots

        return getattr(snapshots, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
