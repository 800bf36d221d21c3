"""What a feature table would be made from, and whether the newest one is that already; nothing is written here."""

import math
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

import pipeline
from pipeline.config import Features, JobConfig
from pipeline.errors import ConfigError
from pipeline.execution.feature_tables.feature_documents import UTC_MICROSECONDS, Wanted, check_columns
from pipeline.execution.feature_tables.feature_transform import (
    ADDED,
    Centroids,
    read_centroids,
    transform_key,
    vector_fields,
)
from pipeline.fingerprint import fingerprint
from pipeline.storage.feature_tables import FeatureTable, load_feature_table
from pipeline.storage.filesystem import Store
from pipeline.storage.snapshots import Snapshot, open_snapshot

EVENT_DATE = "event_date"
"""In `features.partition_by` and in the table: the day of the event time in UTC."""

ROWS_VERSION = 2
"""Raised where the same Snapshot and settings come to give other rows, so that a table of before is made anew."""

BUCKET_BYTES = 128 * 2**20
"""Of float32 vectors in one bucket, and so in one file; several times that is held while it is made."""


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
        dates = [pa.field(EVENT_DATE, pa.date32(), nullable=False)] if EVENT_DATE in self.features.partition_by else []
        return pa.schema([*keys, *times, *vector_fields(self.features, dimension, self.centroids), *dates])

    @property
    def transform_key(self) -> str | None:
        return transform_key(self.features, self.snapshot.record.fingerprint)


@dataclass(frozen=True, slots=True)
class FeaturePlan:
    """What a run of the command would do."""

    origin: Origin
    store: Store
    key: str
    newest: FeatureTable | None

    @property
    def is_done(self) -> bool:
        """Whether the newest table was made from this Snapshot with these settings already."""
        return self.newest is not None and self.newest.record.key == self.key

    @property
    def number(self) -> int:
        """Of the table that would be made."""
        return 1 if self.newest is None else self.newest.record.number + 1


def plan_features(config: JobConfig) -> FeaturePlan:
    """Compare the newest feature table with the newest Snapshot of the output; write nothing.

    Raises:
        ConfigError: there is no section `features`, or it does not fit the Snapshot.
        StorageError: nothing is published in the output, or a store fails.
    """
    features = config.features
    if features is None:
        raise ConfigError("the config has no section features; it needs at least features.uri")
    snapshot, store = open_snapshot(config.output.uri), Store(features.uri)
    store.check_reachable()
    _check(features, snapshot)
    origin = Origin(features, snapshot, read_centroids(features.centroids, dimension_of(features, snapshot)))
    return FeaturePlan(origin, store, table_key(origin), load_feature_table(store))


def table_key(origin: Origin) -> str:
    """Return the fingerprint of all that decides the rows of a table and how they lie in files."""
    return fingerprint(
        {
            "output": origin.snapshot.store.uri,
            "snapshot": origin.snapshot.record.folder,
            "settings": deciding(origin.features),
            "centroids": origin.centroids.content_hash,
            "buckets": buckets_of(origin.snapshot),
            "version": [pipeline.__version__, ROWS_VERSION],
        }
    )


def deciding(features: Features) -> dict[str, Any]:
    """Return the settings that decide the rows of a table."""
    added = features.model_dump(mode="json", include=ADDED - {"keep_tables"}, exclude_defaults=True)
    return features.model_dump(mode="json", exclude={"uri", "name", "ttl_days"} | ADDED) | added


def buckets_of(snapshot: Snapshot) -> int:
    """Return into how many files the entities are divided."""
    return max(1, math.ceil(snapshot.totals["rows"] * snapshot.record.dimension * 4 / BUCKET_BYTES))


def wanted_of(features: Features) -> Wanted:
    """Return what the settings take from every Part."""
    return Wanted(features.entity, features.event_time, features.pool, features.dimensions, features.normalize)


def dimension_of(features: Features, snapshot: Snapshot) -> int:
    """Return how many numbers a vector has before a projection."""
    return features.dimensions or snapshot.record.dimension


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
    measures = ("cosine_", "distance_") if features.centroids is not None else ()
    own |= {name for name in features.entity if name.startswith(measures)}
    own |= {*features.entity} & {*features.partition_by} & {EVENT_DATE}
    if own:
        raise ConfigError(f"features.entity names {', '.join(sorted(own))}, which the table uses itself")
