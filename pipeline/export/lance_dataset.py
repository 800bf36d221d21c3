"""A Snapshot as the newest version of a Lance dataset."""

from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError, StorageError
from pipeline.export.outcome import Exported, origin_of
from pipeline.export.stream import reader_of
from pipeline.optional import library
from pipeline.storage.object_store import object_store_options
from pipeline.storage.snapshots import Snapshot


def export(snapshot: Snapshot, uri: str) -> Exported:
    """Write the rows as one new version of the dataset; nothing if its newest version holds this Snapshot already.

    Raises:
        ConfigError: pylance is not installed, or the dataset is not of this output.
        StorageError: the dataset cannot be read or written.
    """
    lance = library("lance", "lance", "--to lance")
    options, origin = object_store_options(uri) or None, origin_of(snapshot)
    try:
        found = _opened(lance, uri, options)
        said = {key.decode(): value.decode() for key, value in (found.schema.metadata or {}).items()} if found else {}
        if found and said.get("pipeline.output") != origin["pipeline.output"]:
            raise ConfigError(
                f"{uri} is a Lance dataset of something else than {snapshot.store.uri}; name another place"
            )
        is_new = said.get("pipeline.folder") != origin["pipeline.folder"]
        if is_new:
            reader = reader_of(snapshot, snapshot.schema.with_metadata(origin))
            mode = "overwrite" if found else "create"
            found = lance.write_dataset(reader, uri, mode=mode, storage_options=options)
    except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
        raise StorageError(f"cannot write the Lance dataset {uri}: {error}") from error
    facts = {"files": len(found.get_fragments())}
    return Exported("lance", uri, snapshot.number, snapshot.totals["rows"], str(found.version), is_new, facts)


def _opened(lance: Any, uri: str, options: dict[str, str] | None) -> Any:
    """Return the dataset that stands there, or None."""
    try:
        return lance.dataset(uri, storage_options=options)
    except ValueError as error:
        if "not found" not in str(error):
            raise
        return None
