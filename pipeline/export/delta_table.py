"""A Snapshot as the newest version of a Delta table, written by delta-rs."""

import pyarrow as pa

from pipeline.errors import ConfigError, StorageError
from pipeline.export.outcome import Exported, origin_of
from pipeline.export.stream import reader_of
from pipeline.optional import library
from pipeline.storage.object_store import object_store_options
from pipeline.storage.snapshots import Snapshot


def export(snapshot: Snapshot, uri: str) -> Exported:
    """Write the rows as one new version of the table; nothing if its newest version holds this Snapshot already.

    Every version holds all rows: kept columns can change where no text does, which a merge of changes would miss.

    Raises:
        ConfigError: delta-rs is not installed, or the table is not of this output.
        StorageError: the table cannot be read or written.
    """
    delta = library("deltalake", "delta", "--to delta")
    exceptions = library("deltalake.exceptions", "delta", "--to delta")
    options, origin, about = object_store_options(uri), origin_of(snapshot), f"Embeddings of {snapshot.store.uri}"
    try:
        found = delta.DeltaTable.is_deltatable(uri, options) and delta.DeltaTable(uri, storage_options=options)
        if found and found.metadata().description != about:
            raise ConfigError(f"{uri} is a Delta table of something else than {snapshot.store.uri}; name another")
        is_new = not found or found.history(1)[0].get("pipeline.folder") != origin["pipeline.folder"]
        if is_new:
            delta.write_deltalake(
                uri,
                reader_of(snapshot, delta_schema(snapshot.schema)),
                mode="overwrite",
                schema_mode="overwrite",
                partition_by=list(snapshot.record.layout["partition_by"]) or None,
                description=about,
                commit_properties=delta.CommitProperties(custom_metadata=origin),
                storage_options=options,
            )
        table = delta.DeltaTable(uri, storage_options=options)
    except (exceptions.DeltaError, OSError, ValueError, pa.ArrowException) as error:
        raise StorageError(f"cannot write the Delta table {uri}: {error}") from error
    facts = {"files": len(table.file_uris())}
    return Exported("delta", uri, snapshot.number, snapshot.totals["rows"], str(table.version()), is_new, facts)


def delta_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema in types that Delta has: variable lists, no half precision, no fixed width of bytes."""
    return pa.schema([field.with_type(_delta_type(field.type)) for field in schema])


def _delta_type(type: pa.DataType) -> pa.DataType:
    if pa.types.is_fixed_size_list(type):
        element = type.value_field
        return pa.list_(element.with_type(pa.float32()) if pa.types.is_float16(element.type) else element)
    return pa.binary() if pa.types.is_fixed_size_binary(type) else type
