"""From a published Snapshot to a published feature table: as much of it in memory at a time as one bucket holds."""

import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import pipeline
from pipeline.arrow import vectors_of
from pipeline.config import Features, JobConfig
from pipeline.encoder.vectors import finish
from pipeline.errors import ConfigError
from pipeline.execution.feature_documents import (
    DOCUMENT,
    UTC_MICROSECONDS,
    Counts,
    Wanted,
    check_columns,
    read_bucket,
    spill_documents,
)
from pipeline.execution.feature_transform import (
    Centroids,
    load_or_fit,
    read_centroids,
    transform_key,
    vector_columns,
    vector_fields,
)
from pipeline.features.feast_view import feature_view
from pipeline.features.windows import moments_of, newest_so_far, ordered, window_means, window_starts
from pipeline.fingerprint import fingerprint
from pipeline.storage.feature_tables import (
    FeatureFile,
    FeatureTable,
    FeatureTableRecord,
    load_feature_table,
    publish_feature_table,
    table_folder,
    write_feature_file,
    write_pointers,
)
from pipeline.storage.filesystem import Store
from pipeline.storage.snapshots import Snapshot, encode_schema, open_snapshot

BUCKET_BYTES = 256 * 2**20
"""Of float32 vectors in one bucket, and so in one file; several times that is held while it is made."""

DAY_US = 24 * 3600 * 10**6


@dataclass(frozen=True, slots=True)
class FeatureRun:
    """What a run of the command has found or made."""

    table: FeatureTable
    is_new: bool
    """False = the newest table was made from this Snapshot with these settings already."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Origin:
    """What a table is made from."""

    features: Features
    snapshot: Snapshot
    centroids: Centroids

    @property
    def schema(self) -> pa.Schema:
        """Of the table."""
        times = [pa.field(name, UTC_MICROSECONDS, nullable=False) for name in ("event_timestamp", "created_timestamp")]
        types = [(name, self.snapshot.schema.field(name).type) for name in self.features.entity]
        keys = [pa.field(name, type, nullable=False) for name, type in types]
        dimension = dimension_of(self.features, self.snapshot)
        return pa.schema([*keys, *times, *vector_fields(self.features, dimension, self.centroids)])

    @property
    def transform_key(self) -> str | None:
        return transform_key(self.features, self.snapshot.record.fingerprint)


def make_features(config: JobConfig) -> FeatureRun:
    """Bring the feature table up to date with the newest Snapshot of the output.

    Raises:
        ConfigError: there is no section `features`, or it does not fit the Snapshot.
        SnapshotConflict: another run has published a table meanwhile.
        StorageError: nothing is published in the output, or a store fails.
    """
    started = time.monotonic()
    features = config.features
    if features is None:
        raise ConfigError("the config has no section features; it needs at least features.uri")
    snapshot, store = open_snapshot(config.output.uri), Store(features.uri)
    _check(features, snapshot)
    origin = Origin(features, snapshot, read_centroids(features.centroids, dimension_of(features, snapshot)))
    key = table_key(origin)
    newest = load_feature_table(store)
    if newest is not None and newest.record.key == key:
        write_pointers(store, newest.record, view_of(features, newest))
        return FeatureRun(newest, False, time.monotonic() - started)
    store.check_writable()
    number = 1 if newest is None else newest.record.number + 1
    with tempfile.TemporaryDirectory(prefix="features-") as temporary:
        folder = Path(temporary)
        counts = spill_documents(snapshot, wanted_of(features), folder, buckets_of(snapshot))
        files = list(_write_files(origin, store, table_folder(number, key), folder))
    record = _record(origin, number, key, counts, files)
    table = publish_feature_table(store, record, view_of(features, FeatureTable(store, record)))
    return FeatureRun(table, True, time.monotonic() - started)


def table_key(origin: Origin) -> str:
    """Return the fingerprint of all that decides the rows of a table and how they lie in files."""
    return fingerprint(
        {
            "output": origin.snapshot.store.uri,
            "snapshot": origin.snapshot.record.folder,
            "settings": deciding(origin.features),
            "centroids": origin.centroids.content_hash,
            "buckets": buckets_of(origin.snapshot),
            "version": pipeline.__version__,
        }
    )


def deciding(features: Features) -> dict[str, Any]:
    """Return the settings that decide the rows of a table."""
    return features.model_dump(mode="json", exclude={"uri", "name", "ttl_days"})


def buckets_of(snapshot: Snapshot) -> int:
    """Return into how many files the entities are divided."""
    return max(1, math.ceil(snapshot.totals["rows"] * snapshot.record.dimension * 4 / BUCKET_BYTES))


def wanted_of(features: Features) -> Wanted:
    """Return what the settings take from every Part."""
    return Wanted(features.entity, features.event_time, features.pool, features.dimensions, features.normalize)


def dimension_of(features: Features, snapshot: Snapshot) -> int:
    """Return how many numbers a vector has before a projection."""
    return features.dimensions or snapshot.record.dimension


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
    return feature_view(features.name, table.address, table.schema, features.entity, features.ttl_days, tags)


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
    created_M = newest_so_far(documents["created_timestamp"].cast(pa.int64()).to_numpy(), moments)
    created = pa.array(created_M, pa.int64()).cast(UTC_MICROSECONDS)
    at = rows.schema.get_field_index("created_timestamp")
    return rows.set_column(at, rows.schema.field(at), created), finish(means_MD, None, features.normalize)


def _check(features: Features, snapshot: Snapshot) -> None:
    check_columns(snapshot.schema, wanted_of(features))
    given = snapshot.record.dimension
    if features.dimensions is not None and features.dimensions > given:
        raise ConfigError(f"features.dimensions is {features.dimensions}; the vectors of the snapshot have {given}")
    before = dimension_of(features, snapshot)
    if features.components is not None and features.components > before:
        raise ConfigError(f"features.components is {features.components}; the vectors before it have {before}")
    kept = features.components or before
    if features.stored == "binary" and kept % 8:
        raise ConfigError(f"features.stored: binary needs a multiple of 8 dimensions; these vectors have {kept}")
    own = {*features.entity} & {"cluster"} if features.clusters is not None else set()
    own |= {name for name in features.entity if features.centroids is not None and name.startswith("cosine_")}
    if own:
        raise ConfigError(f"features.entity names {', '.join(sorted(own))}, which the table uses itself")


def _write_files(origin: Origin, store: Store, table: str, folder: Path) -> Iterator[FeatureFile]:
    features, recipe = origin.features, origin.snapshot.record
    transform = load_or_fit(store, origin.transform_key, features, (v for _, _, v in _buckets(origin, folder)))
    metadata = {
        "recipe": recipe.recipe,
        "fingerprint": recipe.fingerprint,
        "settings": deciding(features),
        "transform": origin.transform_key,
    }
    for bucket, rows, vectors_MD in _buckets(origin, folder):
        columns = [rows[name] for name in rows.column_names]
        columns += vector_columns(vectors_MD, features, transform, origin.centroids)
        yield write_feature_file(
            store, table, f"{bucket:05d}.parquet", pa.table(columns, schema=origin.schema), metadata
        )


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
