"""Distributed batch embedding: text on object storage to embeddings as Parquet, exactly once."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.features.asof import as_of_join
    from pipeline.storage.changes import ChangeFeed, open_changes
    from pipeline.storage.feature_tables import FeatureTable, open_feature_table
    from pipeline.storage.snapshots import Snapshot, open_snapshot

__version__ = "0.1.0"
__all__ = [
    "ChangeFeed",
    "FeatureTable",
    "Snapshot",
    "__version__",
    "as_of_join",
    "open_changes",
    "open_feature_table",
    "open_snapshot",
]

_MODULES = {
    "ChangeFeed": "pipeline.storage.changes",
    "FeatureTable": "pipeline.storage.feature_tables",
    "Snapshot": "pipeline.storage.snapshots",
    "as_of_join": "pipeline.features.asof",
    "open_changes": "pipeline.storage.changes",
    "open_feature_table": "pipeline.storage.feature_tables",
    "open_snapshot": "pipeline.storage.snapshots",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `python -m jobs --help` does not pay for pyarrow."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
