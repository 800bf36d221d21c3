"""The fitted part of a feature table: fitted once per recipe and settings, kept beside the tables, then used again."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.arrow import fixed_size_list
from pipeline.config import Features
from pipeline.encoder.vectors import to_stored
from pipeline.errors import ConfigError, SourceError, StorageError
from pipeline.features.transforms import Fit, Transform, cosines_to, distances_to, fitted
from pipeline.fingerprint import content_hash, fingerprint
from pipeline.schemas import embedding_fields
from pipeline.storage.connection import open_filesystem
from pipeline.storage.faults import patiently, told_as
from pipeline.storage.feature_tables import made_with, transform_path
from pipeline.storage.filesystem import Store


@dataclass(frozen=True, slots=True)
class Centroids:
    """Named vectors, of which it is told how near every row is to them."""

    names: tuple[str, ...]
    vectors_MD: NDArray[np.float32]
    content_hash: str

    def columns(self, measures: Sequence[str]) -> list[str]:
        """Return the columns that tell of them."""
        return [f"{measure}_{name}" for measure in measures for name in self.names]


MEASURES = {"cosine": cosines_to, "distance": distances_to}

ADDED = {"binary_threshold", "centroid_measures", "partition_by", "keep_tables"}
"""Keys that came later: at their defaults they stand in no fingerprint, or every fit would be made anew for nothing."""

NO_CENTROIDS = Centroids((), np.zeros((0, 0), np.float32), "")


def read_centroids(uri: str | None, dimension: int) -> Centroids:
    """Read the Parquet file of named centroids: `name`, and `embedding` of at least `dimension` numbers.

    Raises:
        ConfigError: it has not these columns, or the names cannot be those of columns.
        SourceError: it cannot be read.
    """
    if uri is None:
        return NO_CENTROIDS
    with told_as(SourceError, "read", uri):
        filesystem, path = open_filesystem(uri)
        content: bytes = patiently(lambda: filesystem.cat_file(path), filesystem)
    try:
        table = pq.read_table(pa.BufferReader(content), columns=["name", "embedding"])
        names, vectors = table["name"].to_pylist(), np.array(table["embedding"].to_pylist(), np.float32)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise ConfigError(f"features.centroids: {uri} is no Parquet file with columns name and embedding") from error
    if any(not isinstance(name, str) or not name.isidentifier() for name in names) or len(set(names)) < len(names):
        raise ConfigError(f"features.centroids: names must be distinct, of letters, digits and _; {uri} has others")
    if vectors.ndim != 2 or vectors.shape[1] < dimension:
        raise ConfigError(f"features.centroids: the vectors of {uri} must have at least {dimension} numbers")
    return Centroids(tuple(names), vectors[:, :dimension], content_hash(content))


def fit_of(features: Features) -> Fit:
    """Return what the settings fit."""
    has_scale = features.stored == "int8" and features.int8_scale == "corpus"
    return Fit(
        features.projection,
        features.components,
        features.clusters,
        has_scale,
        features.normalize,
        features.seed,
        features.binary_threshold == "median",
    )


def transform_key(features: Features, recipe_fingerprint: str) -> str | None:
    """Return the fingerprint of all that decides a fit but the snapshot; None if there is nothing to fit."""
    fit = fit_of(features)
    if fit.projection == "none" and fit.clusters is None and not fit.has_scale and not fit.has_thresholds:
        return None
    return fingerprint({"recipe": recipe_fingerprint, "settings": fitting_settings(features)})


def fitting_settings(features: Features) -> dict[str, Any]:
    """Return the settings that decide what a vector is before and after the fit."""
    settings = features.model_dump(mode="json", exclude={"uri", "name", "ttl_days", "centroids"} | ADDED)
    return settings | ({} if features.binary_threshold == "zero" else {"binary_threshold": features.binary_threshold})


def load_or_fit(
    store: Store, key: str | None, features: Features, vectors: Iterable[NDArray[np.float32]]
) -> tuple[Transform | None, str | None]:
    """Return the transform of this key, fitted now if no table before has needed it, and the hash of its file.

    Args:
        vectors: (N, D) each, read only if it must be fitted, and only as many as `features.fit_rows`.

    Raises:
        ConfigError: there are too few vectors.
        StorageError: what stands under the key is no transform, or not the one that a published table was made with.
    """
    if key is None:
        return None, None
    path, user = transform_path(key), made_with(store, key)
    content = store.read(path)
    if user is not None and (content is None or user.transform_hash not in (None, content_hash(content))):
        found = "is gone" if content is None else "holds another fit"
        raise StorageError(
            f"{store.uri_of(path)} {found}, and table {user.number} was made with what it held: vectors of two fits "
            "cannot be compared. Restore it, or set another features.seed to fit anew"
        )
    if content is None:
        try:
            own = fitted(_sample(vectors, features.fit_rows, features.seed), fit_of(features)).to_bytes()
        except ValueError as error:
            raise ConfigError(f"features: {error}") from None
        content = store.put_new(path, own) or own  # another run may have fitted it meanwhile
    try:
        return Transform.from_bytes(content), content_hash(content)
    except (ValueError, KeyError, OSError) as error:
        raise StorageError(
            f"{store.uri_of(path)} is damaged; restore it, or set another features.seed to fit anew: {error}"
        ) from error


def vector_fields(features: Features, dimension: int, centroids: Centroids) -> list[pa.Field]:
    """Return the columns that are made of a row's vector.

    Args:
        dimension: numbers per vector before a projection.
    """
    kept = features.components or dimension
    clusters = [pa.field("cluster", pa.int32(), nullable=False)] if features.clusters is not None else []
    cosines = [pa.field(name, pa.float32(), nullable=False) for name in centroids.columns(features.centroid_measures)]
    return [*embedding_fields(kept, features.stored), *clusters, *cosines]


def vector_columns(
    vectors_MD: NDArray[np.float32], features: Features, transform: Transform | None, centroids: Centroids
) -> list[pa.Array]:
    """Return the columns of `vector_fields`."""
    vectors_MK = vectors_MD if transform is None else transform.project(vectors_MD)
    columns = _stored(vectors_MK, features.stored, transform)
    if transform is not None and len(transform.centers_CK):
        columns.append(pa.array(transform.clusters_of(vectors_MK), pa.int32()))
    if centroids.names:
        for measure in features.centroid_measures:
            columns += [pa.array(one_M) for one_M in MEASURES[measure](vectors_MD, centroids.vectors_MD).T]
    return columns


def _stored(vectors_MK: NDArray[np.float32], stored: str, transform: Transform | None) -> list[pa.Array]:
    if transform is None or not transform.scale:
        bits_MK = vectors_MK if transform is None else transform.above_thresholds(vectors_MK)
        return to_stored(np.ascontiguousarray(bits_MK), stored)
    codes = fixed_size_list(transform.codes_of(vectors_MK), embedding_fields(vectors_MK.shape[1], stored)[0].type)
    return [codes, pa.repeat(pa.scalar(transform.scale, pa.float32()), len(vectors_MK))]


def _sample(vectors: Iterable[NDArray[np.float32]], rows: int, seed: int) -> NDArray[np.float32]:
    """Return at most so many rows, drawn from the first arrays that hold as many; the arrays are in random order."""
    taken, held = [], 0
    for vectors_ND in vectors:
        taken.append(vectors_ND)
        held += len(vectors_ND)
        if held >= rows:
            break
    if not held:
        raise ValueError("there is no vector to fit on")
    together_ND = np.concatenate(taken)
    if held <= rows:
        return together_ND
    return together_ND[np.sort(np.random.default_rng(seed).choice(held, rows, replace=False))]
