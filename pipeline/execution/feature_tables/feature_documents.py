"""The documents of a Snapshot as features need them: keys, times and one float32 vector each, in buckets by entity."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from pipeline.arrow import dequantised, fixed_size_list, hash_strings, one_array
from pipeline.encoder.vectors import finish
from pipeline.errors import ConfigError
from pipeline.features.pooling import Pool, document_starts, latest_times, pool_chunks
from pipeline.parallel import in_order
from pipeline.storage.parquet import part_key, read_columns
from pipeline.storage.snapshots import Snapshot

DOCUMENT = "_id"
"""The id of a document, by which equal ones are told apart; may stand beside the key `id`."""

READERS = 2
"""Parts read ahead of the one that is used."""

UTC_MICROSECONDS = pa.timestamp("us", tz="UTC")

DAY_US = 24 * 3600 * 10**6

ISO_DATE_CHARACTERS = 10
"""Of `2026-01-31`; with a time of day a text is longer."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is taken from every Part."""

    keys: tuple[str, ...]
    event_time: str
    pool: Pool
    dimensions: int | None
    normalize: bool


@dataclass(slots=True)
class Counts:
    """What became of the documents of a Snapshot."""

    documents: int = 0
    unkeyed: int = 0
    """Without a key or an event time."""


def check_columns(schema: pa.Schema, wanted: Wanted) -> None:
    """Refuse keys and event times of types that cannot be such.

    Raises:
        ConfigError: a column is not there, or of another type.
    """
    for key, names in {"entity": wanted.keys, "event_time": (wanted.event_time,)}.items():
        for name in names:
            if name not in schema.names:
                raise ConfigError(
                    f"features.{key}: the snapshot has no column {name}; it has {', '.join(schema.names)}. Name one "
                    f"of these, or keep {name} (source.keep_columns) and run `embed`"
                )
            type = schema.field(name).type
            is_text = pa.types.is_string(type) or pa.types.is_large_string(type)
            if key == "entity" and not (is_text or pa.types.is_integer(type)):
                raise ConfigError(f"features.entity: {name} is {type}; expected string or integer")
            if key == "event_time" and not (is_text or pa.types.is_timestamp(type) or pa.types.is_date(type)):
                raise ConfigError(
                    f"features.event_time: {name} is {type}; expected a timestamp, a date or ISO 8601 text"
                )


def spill_documents(snapshot: Snapshot, wanted: Wanted, folder: Path, buckets: int) -> Counts:
    """Write every document into the file of its entity's bucket: `<folder>/<bucket>.arrow`, for `read_bucket`.

    Returns:
        How many there are, and how many of them have no key or no event time and are left out.
    """
    counts = Counts()
    parts = (part for part in snapshot.parts.to_pylist() if part["kind"] == "embeddings")
    for documents in in_order(lambda part: _documents(snapshot, part, wanted), parts, READERS):
        keyed = documents.filter(_is_keyed(documents, wanted.keys))
        counts.documents += documents.num_rows
        counts.unkeyed += documents.num_rows - keyed.num_rows
        bucket_N = bucket_of(keyed, wanted.keys, buckets)
        for bucket in np.unique(bucket_N):
            _append(folder / f"{bucket}.arrow", keyed.filter(pa.array(bucket_N == bucket)))
    return counts


def read_bucket(folder: Path, bucket: int) -> pa.Table | None:
    """Return the documents of a bucket, in any order; None if it has none."""
    path = folder / f"{bucket}.arrow"
    if not path.is_file():
        return None
    with pa.memory_map(str(path)) as stream:
        tables, size = [], stream.size()
        while stream.tell() < size:
            tables.append(pa.ipc.open_stream(stream).read_all())
        return pa.concat_tables(tables)


def bucket_of(rows: pa.Table, keys: tuple[str, ...], buckets: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the bucket of each row: a hash of its keys, the same on every machine."""
    if buckets == 1:
        return np.zeros(rows.num_rows, np.int64)
    named = pc.binary_join_element_wise(*(one_array(rows[key]).cast(pa.string()) for key in keys), "\0")
    digests = hash_strings(named).buffers()[1]
    return (np.frombuffer(digests, "<u8")[::2] % np.uint64(buckets)).astype(np.int64)


def event_times(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Return times in UTC, of timestamps, dates or texts in ISO 8601; UTC is taken for those that name no zone.

    A date stands for the last microsecond of its day: when on that day something became known it does not say.

    Raises:
        ConfigError: a text is no time, or a time lies too far away.
    """
    type = column.type
    try:
        if pa.types.is_string(type) or pa.types.is_large_string(type):
            return _parsed(column)
        if pa.types.is_timestamp(type):
            column = column.cast(pa.timestamp("us", tz=type.tz), safe=type.unit != "ns")
            return column.cast(UTC_MICROSECONDS) if type.tz else pc.assume_timezone(column, "UTC")
        return pc.assume_timezone(_end_of_day(column.cast(pa.timestamp("us"))), "UTC")
    except pa.ArrowInvalid:
        raise ConfigError(
            f"features.event_time: {name} holds a value that is no time; expected ISO 8601, each with a zone or none"
        ) from None


def _parsed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(UTC_MICROSECONDS)
    except pa.ArrowInvalid:
        times = column.cast(pa.timestamp("us"))
        is_date = pc.equal(pc.utf8_length(column), ISO_DATE_CHARACTERS)
        return pc.assume_timezone(pc.if_else(is_date, _end_of_day(times), times), "UTC")


def _end_of_day(midnights: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.add(midnights, pa.scalar(DAY_US - 1, pa.duration("us")))


def _documents(snapshot: Snapshot, part: dict[str, Any], wanted: Wanted) -> pa.Table:
    rows = _rows(snapshot, part, wanted)
    starts_M = document_starts(rows)
    pooled_MD = pool_chunks(
        dequantised(rows, snapshot.recipe["stored"]), rows["tokens"].to_numpy(), starts_M, wanted.pool
    )
    is_unchanged = snapshot.recipe["normalize"] and len(starts_M) == rows.num_rows and wanted.dimensions is None
    vectors_MD = np.ascontiguousarray(finish(pooled_MD, wanted.dimensions, wanted.normalize and not is_unchanged))
    firsts = rows.take(pa.array(starts_M))
    columns = {key: firsts[key] for key in wanted.keys} | {
        DOCUMENT: firsts["id"],
        "event_timestamp": latest_times(event_times(rows[wanted.event_time], wanted.event_time), starts_M),
        "created_timestamp": latest_times(rows["created_timestamp"], starts_M),
        "embedding": fixed_size_list(vectors_MD, pa.list_(pa.float32(), vectors_MD.shape[1])),
    }
    return pa.table(columns)


def _rows(snapshot: Snapshot, part: dict[str, Any], wanted: Wanted) -> pa.Table:
    """Return the needed columns of a Part, those included that only its folder says."""
    names = {"id", "chunk", "tokens", "event_timestamp", "created_timestamp", "embedding", "scale"}
    names |= {*wanted.keys, wanted.event_time}
    partitioned = snapshot.record.layout["partition_by"]
    in_file = [name for name in snapshot.schema.names if name in names and name not in partitioned]
    rows = read_columns(snapshot.store, part_key(part["kind"], part["folder"], part["path"]), in_file)
    fields = [snapshot.schema.field(name) for name in partitioned]
    hive = pyarrow.dataset.partitioning(pa.schema(fields), flavor="hive")
    values = pyarrow.dataset.get_partition_keys(hive.parse(part["path"])) if fields else {}
    for field in (field for field in fields if field.name in names):
        value = pa.scalar(values.get(field.name), field.type)
        rows = rows.append_column(field, pa.repeat(value, rows.num_rows))
    return rows


def _is_keyed(documents: pa.Table, keys: tuple[str, ...]) -> pa.ChunkedArray:
    is_keyed = pc.is_valid(documents["event_timestamp"])
    for key in keys:
        is_keyed = pc.and_(is_keyed, pc.is_valid(documents[key]))
    return is_keyed


def _append(path: Path, rows: pa.Table) -> None:
    with path.open("ab") as file, pa.ipc.new_stream(file, rows.schema) as stream:
        stream.write_table(rows)
