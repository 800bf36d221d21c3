"""Fitted transforms: what they compute, and that tomorrow's table is made with the fit of today's."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.errors import ConfigError, StorageError
from pipeline.features.transforms import Fit, Transform, cosines_to, fitted, unit
from pipeline.fingerprint import content_hash, fingerprint
from pipeline.storage.feature_tables import transform_path
from tests.test_feature_table import DIMENSION, Job, embeddings_of, rows_of, vectors_by_id

RANDOM = np.random.default_rng(7)
SPREAD_SD = (RANDOM.normal(size=(400, 6)) * [5, 3, 2, 1, 0.5, 0.1] + 4).astype(np.float32)


def fit(**changes: Any) -> Fit:
    least: dict[str, Any] = {"projection": "none", "components": None, "clusters": None, "has_scale": False}
    return Fit(**(least | {"normalize": False, "seed": 0} | changes))


def test_pca_keeps_the_directions_in_which_most_varies_and_all_of_them_keep_distances() -> None:
    projected_SK = fitted(SPREAD_SD, fit(projection="pca", components=2)).project(SPREAD_SD)
    centred_SD = SPREAD_SD - SPREAD_SD.mean(axis=0)
    values = np.linalg.svd(centred_SD, compute_uv=False)[:2]
    np.testing.assert_allclose(np.linalg.norm(projected_SK, axis=0), values, rtol=1e-4)
    whole_SD = fitted(SPREAD_SD, fit(projection="pca")).project(SPREAD_SD)
    np.testing.assert_allclose(np.linalg.norm(whole_SD, axis=1), np.linalg.norm(centred_SD, axis=1), rtol=1e-4)


def test_whitened_vectors_vary_by_one_along_each_direction_and_no_two_together() -> None:
    whitened_SK = fitted(SPREAD_SD, fit(projection="whiten", components=4)).project(SPREAD_SD)
    np.testing.assert_allclose(np.cov(whitened_SK.T), np.eye(4), atol=1e-3)


def test_a_direction_in_which_nothing_varies_is_not_blown_up() -> None:
    flat_SD = SPREAD_SD.copy()
    flat_SD[:, 5] = 1
    assert np.abs(fitted(flat_SD, fit(projection="whiten")).project(flat_SD)).max() < 10


def test_a_cluster_is_the_nearest_centre() -> None:
    transform = fitted(SPREAD_SD, fit(clusters=5))
    distances_SC = np.linalg.norm(SPREAD_SD[:, None] - transform.centers_CK[None], axis=2)
    np.testing.assert_array_equal(transform.clusters_of(SPREAD_SD), distances_SC.argmin(axis=1))
    assert len(set(transform.clusters_of(SPREAD_SD).tolist())) == 5


def test_codes_of_one_scale_are_within_half_a_step_and_saturate_beyond() -> None:
    transform = fitted(unit(SPREAD_SD), fit(has_scale=True))
    numbers_SD = unit(SPREAD_SD)
    is_inside_SD = np.abs(numbers_SD) <= transform.scale * 127
    assert 0.998 <= is_inside_SD.mean() < 1
    error_SD = np.abs(transform.codes_of(numbers_SD) * transform.scale - numbers_SD)
    assert error_SD[is_inside_SD].max() <= transform.scale / 2 + 1e-6
    assert set(np.abs(transform.codes_of(numbers_SD)[~is_inside_SD]).tolist()) == {127}


def test_a_transform_is_written_and_read_without_a_change() -> None:
    transform = fitted(SPREAD_SD, fit(projection="whiten", components=3, clusters=4, has_scale=True, normalize=True))
    again = Transform.from_bytes(transform.to_bytes())
    np.testing.assert_array_equal(again.project(SPREAD_SD), transform.project(SPREAD_SD))
    np.testing.assert_array_equal(again.centers_CK, transform.centers_CK)
    assert (again.scale, again.normalize, again.to_bytes()) == (transform.scale, True, transform.to_bytes())


@settings(max_examples=50)
@given(st.lists(st.lists(st.floats(-9, 9, width=32), min_size=3, max_size=3), min_size=1, max_size=8))
def test_a_cosine_is_between_minus_one_and_one_and_one_to_itself(rows: list[list[float]]) -> None:
    vectors_N3 = np.array(rows, np.float32)
    cosines_NN = cosines_to(vectors_N3, vectors_N3)
    assert np.abs(cosines_NN).max() <= 1 + 1e-5
    is_long_N = np.linalg.norm(vectors_N3, axis=1) > 1e-3
    np.testing.assert_allclose(cosines_NN.diagonal()[is_long_N], 1, atol=1e-5)


def corpus(rows: int, begin: int = 0) -> pa.Table:
    numbers = range(begin, begin + rows)
    return pa.table({"id": [f"r{n}" for n in numbers], "text": [f"text {n} " + "好" * (n % 9) for n in numbers]})


FITTED: dict[str, Any] = {
    "projection": "whiten",
    "components": 8,
    "clusters": 3,
    "stored": "int8",
    "int8_scale": "corpus",
}


def test_the_table_of_tomorrow_is_made_with_the_fit_of_today(tmp_path: Path) -> None:
    job = Job(tmp_path, corpus(60), **FITTED)
    job.embed()
    today = job.features()
    pq.write_table(corpus(90, begin=30), job.file)
    job.embed()
    tomorrow = job.features()
    assert (tomorrow.is_new, tomorrow.table.record.transform) == (True, today.table.record.transform)
    before = {row["id"]: row for row in rows_of(today).to_pylist()}
    both = [row for row in rows_of(tomorrow).to_pylist() if row["id"] in before]
    assert len(both) == 30
    for row in both:
        assert [row[name] for name in ("embedding", "scale", "cluster")] == [
            before[row["id"]][name] for name in ("embedding", "scale", "cluster")
        ]
    anew = job.features("features.seed=1")
    assert anew.table.record.transform != today.table.record.transform


def test_a_fit_that_a_table_was_made_with_is_never_replaced_by_another(tmp_path: Path) -> None:
    job = Job(tmp_path, corpus(60), **FITTED)
    job.embed()
    record = job.features().table.record
    pq.write_table(corpus(90, begin=30), job.file)
    job.embed()
    path = tmp_path / "table" / transform_path(str(record.transform))
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(StorageError, match="is gone, and table 1 was made with"):
        job.features()
    path.write_bytes(fitted(SPREAD_SD, fit(projection="whiten", components=3)).to_bytes())
    with pytest.raises(StorageError, match="holds another fit, and table 1 was made with"):
        job.features()
    assert not list(tmp_path.glob("table/_meta/tables/00000002*"))
    path.write_bytes(content)
    assert job.features().table.record.transform_hash == record.transform_hash == content_hash(content)


def test_a_record_that_names_no_hash_of_its_fit_can_be_read(tmp_path: Path) -> None:
    job = Job(tmp_path, corpus(60), **FITTED)
    job.embed()
    job.features()
    (path,) = tmp_path.glob("table/_meta/tables/*")
    record = orjson.loads(path.read_bytes())
    del record["transform_hash"]
    path.write_bytes(orjson.dumps(record))
    pq.write_table(corpus(90, begin=30), job.file)
    job.embed()
    assert job.features().table.record.number == 2


def test_rows_carry_their_cluster_and_their_cosine_to_each_named_centroid(tmp_path: Path) -> None:
    centroids_2D: NDArray[np.float32] = np.eye(2, DIMENSION, dtype=np.float32)
    named = pa.table({"name": ["price", "service"], "embedding": centroids_2D.tolist()})
    pq.write_table(named, tmp_path / "centroids.parquet")
    job = Job(tmp_path, corpus(40), clusters=4, projection="pca", centroids=str(tmp_path / "centroids.parquet"))
    vectors, run = vectors_by_id(job.embed()), job.features()
    rows = rows_of(run)
    assert run.table.schema.names[-3:] == ["cluster", "cosine_price", "cosine_service"]
    assert set(rows["cluster"].to_pylist()) == {0, 1, 2, 3}
    expected_N = [vectors[id][0] for id in rows["id"].to_pylist()]
    np.testing.assert_allclose(rows["cosine_price"].to_numpy(), expected_N, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embeddings_of(rows), axis=1), 1, atol=1e-5)
    named = named.set_column(0, "name", pa.array(["price", "quality"]))
    pq.write_table(named, tmp_path / "centroids.parquet")
    assert job.features().table.schema.names[-1] == "cosine_quality"  # another file is another table


def test_rows_carry_the_measures_that_are_asked_for(tmp_path: Path) -> None:
    centroids_2D: NDArray[np.float32] = RANDOM.normal(size=(2, DIMENSION)).astype(np.float32)
    named = pa.table({"name": ["price", "service"], "embedding": centroids_2D.tolist()})
    pq.write_table(named, tmp_path / "centroids.parquet")
    job = Job(tmp_path, corpus(20), centroids=str(tmp_path / "centroids.parquet"))
    vectors = vectors_by_id(job.embed())
    run = job.features("features.centroid_measures=[distance, cosine]")
    measured = ["distance_price", "distance_service", "cosine_price", "cosine_service"]
    assert run.table.schema.names[-4:] == measured
    rows = rows_of(run)
    expected_N2 = [np.linalg.norm(vectors[id] - centroids_2D, axis=1) for id in rows["id"].to_pylist()]
    found_N2 = np.stack([rows[name].to_numpy() for name in measured[:2]], axis=1)
    np.testing.assert_allclose(found_N2, np.stack(expected_N2), rtol=1e-5)
    assert job.features("features.centroid_measures=distance").table.schema.names[-2:] == measured[:2]


def test_bits_above_the_median_halve_the_sample_in_every_dimension_today_and_tomorrow(tmp_path: Path) -> None:
    job = Job(tmp_path, corpus(60), stored="binary", binary_threshold="median")
    vectors = vectors_by_id(job.embed())
    today = job.features()
    bits_ND = bits_of(rows_of(today))
    np.testing.assert_array_equal(bits_ND.sum(axis=0), [30] * DIMENSION)
    thresholds_D = np.median(np.stack(list(vectors.values())), axis=0)
    expected_ND = np.stack([vectors[id] > thresholds_D for id in rows_of(today)["id"].to_pylist()])
    np.testing.assert_array_equal(bits_ND, expected_ND)
    pq.write_table(corpus(90, begin=30), job.file)
    vectors = vectors_by_id(job.embed())
    tomorrow = job.features()
    assert tomorrow.table.record.transform == today.table.record.transform is not None
    expected_ND = np.stack([vectors[id] > thresholds_D for id in rows_of(tomorrow)["id"].to_pylist()])
    np.testing.assert_array_equal(bits_of(rows_of(tomorrow)), expected_ND)


def bits_of(rows: pa.Table) -> NDArray[np.bool_]:
    codes = np.frombuffer(b"".join(rows["embedding"].to_pylist()), np.uint8).reshape(len(rows), -1)
    return np.unpackbits(codes, axis=1).astype(np.bool_)


def test_a_fit_of_before_these_keys_is_found_and_read(tmp_path: Path) -> None:
    features = {"projection": "pca", "components": 4, "seed": 0, "fit_rows": 50_000, "clusters": None, "stored": "int8"}
    settings: dict[str, Any] = {"entity": ["id"], "event_time": "event_timestamp", "pool": "mean", "aggregate": "none"}
    settings |= {"window_days": 90.0, "dimensions": None, "normalize": True, "int8_scale": "row"} | features
    job = Job(tmp_path, corpus(20), projection="pca", components=4, stored="int8")
    key = fingerprint({"recipe": job.embed().record.fingerprint, "settings": settings})
    transform = fitted(SPREAD_SD, fit(projection="pca", components=4))
    with np.load(io.BytesIO(transform.to_bytes())) as arrays:
        of_before = {name: arrays[name] for name in arrays.files if name != "thresholds_K"}
    stream = io.BytesIO()
    np.savez(stream, **of_before)
    again = Transform.from_bytes(stream.getvalue())
    np.testing.assert_array_equal(again.project(SPREAD_SD), transform.project(SPREAD_SD))
    assert job.features().table.record.transform == key


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["features.projection=pca"], "16 components need more than 16 vectors; there are 10"),
        (["features.clusters=11"], "11 clusters need as many vectors; there are 10"),
        (["features.projection=pca", "features.components=17"], "the vectors before it have 16"),
        (["features.components=4"], "components needs projection"),
        (["features.int8_scale=corpus"], "int8_scale needs stored: int8"),
        (["features.binary_threshold=median"], "binary_threshold needs stored: binary"),
        (["features.centroid_measures=distance"], "centroid_measures needs centroids"),
        (["features.centroids=corpus/a.parquet"], "no Parquet file with columns name and embedding"),
    ],
)
def test_a_fit_that_cannot_be_is_refused_and_nothing_is_published(
    tmp_path: Path, overrides: list[str], said: str
) -> None:
    job = Job(tmp_path, corpus(10))
    job.embed()
    with pytest.raises(ConfigError) as caught:
        job.features(*(override.replace("corpus/", f"{tmp_path}/corpus/") for override in overrides))
    assert said in str(caught.value)
    assert not list(tmp_path.glob("table/_meta/tables/*"))
