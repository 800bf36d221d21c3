"""From a published Snapshot to a published feature table: as much of it in memory at a time as one bucket holds."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import pipeline
from pipeline.arrow import vectors_of
from pipeline.config import Features, JobConfig
from pipeline.encoder.vectors import finish
from pipeline.errors import ConfigError, StorageError
from pipeline.execution.feature_tables.feature_documents import (
    DAY_US,
    DOCUMENT,
    UTC_MICROSECONDS,
    Counts,
    read_bucket,
    spill_documents,
)
from pipeline.execution.feature_tables.feature_plan import (
    EVENT_DATE,
    Origin,
    buckets_of,
    deciding,
    plan_features,
    wanted_of,
)
from pipeline.execution.feature_tables.feature_transform import (
    load_or_fit,
    vector_columns,
)
from pipeline.features.feast_view import feature_view
from pipeline.features.transforms import Transform
from pipeline.features.windows import moments_of, newest_in_windows, ordered, window_means, window_starts
from pipeline.storage.faults import told_as
from pipeline.storage.feature_tables import (
    FeatureFile,
    FeatureTable,
    FeatureTableRecord,
    publish_feature_table,
    table_folder,
    write_feature_file,
    write_pointers,
)
from pipeline.storage.filesystem import Store
from pipeline.storage.partitions import split_by_partition
from pipeline.storage.snapshots import encode_schema


@dataclass(frozen=True, slots=True)
class FeatureRun:
    """What a run of the command has found or made."""

    table: FeatureTable
    is_new: bool
    """False = the newest table was made from this Snapshot with these settings already."""
    seconds: float


def make_features(config: JobConfig) -> FeatureRun:
    """Bring the feature table up to date with the newest Snapshot of the output.

    Raises:
        ConfigError: as `plan_features`, or there are too few rows to fit on.
        SnapshotConflict: another run has published a table meanwhile.
        StorageError: as `plan_features`, or $TMPDIR has no room for the vectors.
    """
    started = time.monotonic()
    plan = plan_features(config)
    origin, store, newest = plan.origin, plan.store, plan.newest
    features, snapshot = origin.features, origin.snapshot
    if newest is not None and plan.is_done:
        write_pointers(store, newest.record, view_of(features, newest))
        return FeatureRun(newest, False, time.monotonic() - started)
    store.check_writable()
    with tempfile.TemporaryDirectory(prefix="features-") as temporary:
        folder = Path(temporary)
        with told_as(StorageError, "hold the vectors of the snapshot in", temporary):
            counts = spill_documents(snapshot, wanted_of(features), folder, buckets_of(snapshot))
        vectors = (vectors_MD for _, _, vectors_MD in _buckets(origin, folder))
        transform, transform_hash = load_or_fit(store, origin.transform_key, features, vectors)
        files = list(_write_files(origin, transform, store, table_folder(plan.number, plan.key), folder))
    record = replace(_record(origin, plan.number, plan.key, counts, files), transform_hash=transform_hash)
    table = publish_feature_table(store, record, view_of(features, FeatureTable(store, record)))
    return FeatureRun(table, True, time.monotonic() - started)


def view_of(features: Features, table: FeatureTable) -> str:
    """Return the Feast definition that reads this table."""
    record = table.record
    tags = {
        "model": str(record.snapshot["model"]),
        "recipe": record.fingerprint,
        "snapshot": str(record.snapshot["number"]),
        "table": record.folder,
        "stored": features.stored,
    }
    schema = pa.schema([field for field in table.schema if field.name != EVENT_DATE])
    return feature_view(features.name, table.address, schema, features.entity, features.ttl_days, tags)


def feature_rows(documents: pa.Table, features: Features) -> tuple[pa.Table, NDArray[np.float32]]:
    """Return one row per entity and event time: keys and times, and the vectors (M, D).

    Args:
        documents: all documents of some entities, in any order.
    """
    documents = ordered(documents, features.entity, ("created_timestamp", DOCUMENT))
    moments = moments_of(documents, features.entity)
    vectors_ND = vectors_of(documents["embedding"]).astype(np.float32, copy=False)
    rows = documents.select([*features.entity, "event_timestamp", "created_timestamp"]).take(pa.array(moments.last_M))
    if features.aggregate == "none":
        return rows, vectors_ND[moments.last_M]
    starts_M = window_starts(moments, round(features.window_days * DAY_US))
    means_MD = window_means(vectors_ND, starts_M, moments.last_M)
    created_N = documents["created_timestamp"].cast(pa.int64()).to_numpy()
    created_M = newest_in_windows(created_N, starts_M, moments.last_M)
    created = pa.array(created_M, pa.int64()).cast(UTC_MICROSECONDS)
    at = rows.schema.get_field_index("created_timestamp")
    return rows.set_column(at, rows.schema.field(at), created), finish(means_MD, None, features.normalize)


def _write_files(
    origin: Origin, transform: Transform | None, store: Store, table: str, folder: Path
) -> Iterator[FeatureFile]:
    features, recipe = origin.features, origin.snapshot.record
    metadata = {
        "recipe": recipe.recipe,
        "fingerprint": recipe.fingerprint,
        "settings": deciding(features),
        "transform": origin.transform_key,
    }
    are_written, folders = False, list(features.partition_by)
    for bucket, rows, vectors_MD in _buckets(origin, folder):
        columns = [rows[name] for name in rows.column_names]
        columns += vector_columns(vectors_MD, features, transform, origin.centroids)
        if EVENT_DATE in folders:
            columns.append(rows["event_timestamp"].cast(pa.date32()))
        content = pa.table(columns, schema=origin.schema)
        for partition, indices in split_by_partition(content, folders):
            if partition is None:
                raise ConfigError("features.partition_by: a value of the entity cannot name a folder; leave it out")
            inside = content.take(indices).drop_columns(folders) if folders else content
            yield write_feature_file(store, table, f"{partition}{bucket:05d}.parquet", inside, metadata)
            are_written = True
    if not are_written:  # a folder without a file could not be read, nor would it say which columns it has
        empty = origin.schema.empty_table().drop_columns(folders)
        yield write_feature_file(store, table, "00000.parquet", empty, metadata)


def _buckets(origin: Origin, folder: Path) -> Iterator[tuple[int, pa.Table, NDArray[np.float32]]]:
    for bucket in range(buckets_of(origin.snapshot)):
        documents = read_bucket(folder, bucket)
        if documents is not None:
            yield bucket, *feature_rows(documents, origin.features)


def _record(origin: Origin, number: int, key: str, counts: Counts, files: list[FeatureFile]) -> FeatureTableRecord:
    features, snapshot = origin.features, origin.snapshot
    rows = sum(file.rows for file in files)
    return FeatureTableRecord(
        number=number,
        key=key,
        snapshot={
            "output": snapshot.store.uri,
            "number": snapshot.number,
            "folder": snapshot.record.folder,
            "model": snapshot.recipe["model"],
        },
        fingerprint=snapshot.record.fingerprint,
        settings=deciding(features),
        transform=origin.transform_key,
        table_schema=encode_schema(origin.schema),
        totals={
            "rows": rows,
            "documents": counts.documents,
            "unkeyed": counts.unkeyed,
            "superseded": counts.documents - counts.unkeyed - rows,
            "bytes": sum(file.size_bytes for file in files),
        },
        files=[asdict(file) for file in files],
        published_at=datetime.now(UTC).isoformat(timespec="seconds"),
        pipeline_version=pipeline.__version__,
    )
