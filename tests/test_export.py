"""`export`: what other formats hold, read by their own libraries, is what the snapshot holds."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from jobs.__main__ import main
from pipeline import open_snapshot
from pipeline.arrow import dequantised
from pipeline.config import JobConfig
from pipeline.export import faiss_index
from pipeline.export.recall import HELD, ExactSearch, recall_of
from pipeline.optional import library
from pipeline.storage.filesystem import Store
from pipeline.storage.object_store import object_store_options
from tests.inline import run_inline

ROWS = 40


def publish(folder: Path, uri: str, rows: int, **recipe: Any) -> None:
    """Publish a snapshot of so many rows, half of them in each of two partitions."""
    (folder / "corpus").mkdir(exist_ok=True)
    numbers = range(rows)
    table = pa.table(
        {"id": [*numbers], "text": [f"text {n}" for n in numbers], "label": [f"l{n % 2}" for n in numbers]}
    )
    pq.write_table(table.append_column("stars", pa.array([n % 5 for n in numbers])), folder / "corpus" / "a.parquet")
    sections = {
        "source": {"uri": str(folder / "corpus"), "keep_columns": ["label", "stars"]},
        "recipe": {"model": "hashing://16", **recipe},
        "output": {"uri": uri, "partition_by": ["label"], "rows_per_part": max(7, rows // 4)},
    }
    run_inline(JobConfig.model_validate(sections))


def export(output: str, to: str, uri: str, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    """Run the command and return what it prints for machines."""
    assert main(["export", output, "--to", to, uri, "--json", *more]) == 0
    return dict(orjson.loads(capsys.readouterr().out))


def read_delta(uri: str, version: int | None = None) -> pa.Table:
    options = object_store_options(uri)
    return (
        library("deltalake", "delta", "this test")
        .DeltaTable(uri, version=version, storage_options=options)
        .to_pyarrow_table()
    )


def read_lance(uri: str, version: int | None = None) -> pa.Table:
    return (
        library("lance", "lance", "this test")
        .dataset(uri, version, storage_options=object_store_options(uri))
        .to_table()
    )


def plain(rows: pa.Table) -> list[dict[str, Any]]:
    """Return rows by id, as Python values."""
    found: list[dict[str, Any]] = rows.select(sorted(rows.column_names)).sort_by("id").to_pylist()
    return found


READERS: dict[str, Callable[..., pa.Table]] = {"delta": read_delta, "lance": read_lance}


@pytest.mark.parametrize("to", READERS)
def test_each_snapshot_is_one_version_that_holds_its_rows(
    tmp_path: Path, store: Store, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output, uri = f"{store.uri}/out", f"{store.uri}/exported"
    publish(tmp_path, output, ROWS)
    first = export(output, to, uri, capsys)
    publish(tmp_path, output, ROWS - 5)
    second = export(output, to, uri, capsys)
    again = export(output, to, uri, capsys)
    assert int(second["version"]) == int(first["version"]) + 1
    assert (first["is_new"], second["is_new"], again["is_new"]) == (True, True, False)
    assert again["version"] == second["version"]
    for number, exported in ((1, first), (2, second)):
        rows = READERS[to](uri, int(exported["version"]))
        assert plain(rows) == plain(open_snapshot(output, number).to_table())
    assert (first["rows"], second["rows"]) == (ROWS, ROWS - 5)


def test_a_delta_table_says_which_snapshot_and_recipe_it_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, uri = str(tmp_path / "out"), str(tmp_path / "delta")
    publish(tmp_path, output, ROWS)
    export(output, "delta", uri, capsys)
    table = library("deltalake", "delta", "this test").DeltaTable(uri)
    (commit,) = table.history()
    assert (commit["pipeline.snapshot"], commit["pipeline.output"]) == ("1", output)
    assert orjson.loads(commit["pipeline.recipe"])["model"] == "hashing://16"
    assert table.metadata().partition_columns == ["label"]


def test_a_lance_dataset_says_which_snapshot_and_recipe_it_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, uri = str(tmp_path / "out"), str(tmp_path / "lance")
    publish(tmp_path, output, ROWS)
    export(output, "lance", uri, capsys, "--snapshot", "1")
    said = library("lance", "lance", "this test").dataset(uri).schema.metadata
    assert said[b"pipeline.snapshot"] == b"1"
    assert orjson.loads(said[b"pipeline.recipe"])["model"] == "hashing://16"


@pytest.mark.parametrize("stored", ["float16", "int8", "binary"])
@pytest.mark.parametrize("to", READERS)
def test_every_number_type_arrives(tmp_path: Path, to: str, stored: str, capsys: pytest.CaptureFixture[str]) -> None:
    output, uri = str(tmp_path / "out"), str(tmp_path / "exported")
    publish(tmp_path, output, ROWS, stored=stored)
    export(output, to, uri, capsys)
    assert plain(READERS[to](uri)) == plain(open_snapshot(output).to_table())


@pytest.mark.parametrize(("stored", "exact_rows"), [("float32", 10), ("int8", 10), ("float32", 1000)])
def test_the_index_finds_the_neighbours_that_exact_search_finds(
    tmp_path: Path,
    local: Store,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    stored: str,
    exact_rows: int,
) -> None:
    monkeypatch.setattr(faiss_index, "EXACT_ROWS", exact_rows)
    output, uri, rows = f"{local.uri}/out", f"{local.uri}/index", 400
    publish(tmp_path, output, rows, stored=stored)
    exported = export(output, "faiss", uri, capsys)
    index, ids_N = read_index(Store(uri), exported["version"], tmp_path)
    table = open_snapshot(output).to_table()
    at_N = pc.index_in(pa.array(ids_N), value_set=table["id"].combine_chunks()).to_numpy()
    vectors_ND = dequantised(table, stored)[at_N]
    assert sorted(ids_N) == [*range(rows)]
    assert exported["facts"]["recall_at_10"] >= 0.95
    assert (exported["facts"]["lists"] > 0) == (exact_rows == 10)
    similar_NN = vectors_ND @ vectors_ND.T
    np.fill_diagonal(similar_NN, 2)
    exact_NK = np.argsort(-similar_NN, axis=1)[:, :11]
    found_NK = index.search(vectors_ND, 11)[1]
    shares = [len({*exact} & {*found}) / 11 for exact, found in zip(exact_NK.tolist(), found_NK.tolist(), strict=True)]
    assert np.mean(shares) > 0.93
    Store(uri).delete("LATEST")  # as a run leaves it that dies between the index and what points to it
    assert export(output, "faiss", uri, capsys)["is_new"] is False
    assert Store(uri).read("LATEST") == f"{exported['version']}\n".encode()


def test_an_older_index_that_stands_does_not_become_the_latest_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, uri = str(tmp_path / "out"), str(tmp_path / "index")
    for rows in (20, 21):
        publish(tmp_path, output, rows)
        newest = export(output, "faiss", uri, capsys)["version"]
    assert export(output, "faiss", uri, capsys, "--snapshot", "1")["version"] != newest
    assert Store(uri).read("LATEST") == f"{newest}\n".encode()


def test_an_index_that_finds_too_few_neighbours_is_told_with_exit_code_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_index, "EXACT_ROWS", 10)
    monkeypatch.setattr(faiss_index, "ENOUGH_RECALL", 1.01)
    publish(tmp_path, str(tmp_path / "out"), 200)
    for _ in range(2):  # an index that stands is judged as one that is written
        assert main(["export", str(tmp_path / "out"), "--to", "faiss", str(tmp_path / "index"), "--json"]) == 4
        printed = capsys.readouterr()
        assert "below 1.01, with all lists searched" in printed.err
        facts = orjson.loads(printed.out)["facts"]
        assert facts["lists_searched"] == facts["lists"] > 1


def test_the_index_is_written_from_s3_to_s3(tmp_path: Path, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    output, uri = f"s3://{bucket}/out", f"s3://{bucket}/index"
    publish(tmp_path, output, ROWS)
    exported = export(output, "faiss", uri, capsys)
    index, ids_N = read_index(Store(uri), exported["version"], tmp_path)
    assert (index.ntotal, sorted(ids_N)) == (ROWS, [*range(ROWS)])


def read_index(store: Store, folder: str, here: Path) -> tuple[Any, NDArray[np.int64]]:
    for name in ("index.faiss", "ids.parquet"):
        (here / name).write_bytes(store.read(f"{folder}/{name}") or b"")
    index = library("faiss", "faiss", "this test").read_index(str(here / "index.faiss"))
    return index, pq.read_table(here / "ids.parquet")["id"].to_numpy()


def test_recall_counts_the_true_neighbours_but_not_the_row_itself_and_any_of_equals() -> None:
    random = np.random.default_rng(3)
    vectors_ND = random.normal(size=(200, 8)).astype(np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    vectors_ND[100:120] = vectors_ND[0]  # copies of one text
    rows_Q = np.array([0, 50, 199])
    exact = ExactSearch(rows_Q, vectors_ND[rows_Q])
    for start in range(0, 200, 64):
        exact.look_at(vectors_ND[start : start + 64])
    near_QN = vectors_ND[rows_Q] @ vectors_ND.T
    near_QN[np.arange(3), rows_Q] = -np.inf
    order_QN = np.argsort(-near_QN, axis=1, kind="stable")
    assert {*exact.labels_QH[1].tolist()} == {*order_QN[1, :HELD].tolist()}
    best_QK = np.column_stack([rows_Q, order_QN[:, :10]])
    assert recall_of(best_QK, exact) == 1
    others_of_equals_QK = best_QK.copy()
    others_of_equals_QK[0, 1:] = np.arange(110, 120)
    assert recall_of(others_of_equals_QK, exact) == 1
    half_QK = best_QK.copy()
    half_QK[:, 6:] = order_QN[:, 150:155]
    assert recall_of(half_QK, exact) == pytest.approx(0.5)
    assert recall_of(np.full((3, 11), -1), exact) == 0


@pytest.mark.parametrize("to", READERS)
def test_what_is_of_another_output_is_not_written_over(
    tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = str(tmp_path / "exported")
    for name in ("one", "two"):
        publish(tmp_path, str(tmp_path / name), ROWS)
    export(str(tmp_path / "one"), to, uri, capsys)
    assert main(["export", str(tmp_path / "two"), "--to", to, uri]) == 2
    assert "of something else than" in capsys.readouterr().err
    assert READERS[to](uri).num_rows == ROWS


@pytest.mark.parametrize(
    ("to", "package", "pip"),
    [("delta", "deltalake", ".[delta]"), ("lance", "lance", ".[lance]"), ("faiss", "faiss", ".[faiss]")],
)
def test_a_package_that_is_missing_is_told_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], to: str, package: str, pip: str
) -> None:
    publish(tmp_path, str(tmp_path / "out"), 3)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["export", str(tmp_path / "out"), "--to", to, str(tmp_path / "exported")]) == 2
    assert f"pip install -c docker/constraints.txt '{pip}'" in capsys.readouterr().err


def test_a_format_that_is_none_and_codes_that_cannot_be_searched_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path, str(tmp_path / "out"), 3, stored="binary")
    assert main(["export", str(tmp_path / "out"), "--to", "iceberg", "x"]) == 2
    assert "expected delta, lance, faiss" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "out"), "--to", "faiss", str(tmp_path / "index")]) == 2
    assert "this snapshot holds binary codes" in capsys.readouterr().err


def test_other_libraries_find_the_store_as_the_environment_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_ENDPOINT_URL": "https://store", "AWS_SESSION_TOKEN": "t", "AWS_REGION": "eu-x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    options = object_store_options("s3://bucket/table")
    assert (options["aws_endpoint"], options["aws_session_token"]) == ("https://store", "t")
    assert "aws_allow_http" not in options
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert object_store_options("s3://bucket/table")["aws_allow_http"] == "true"
    assert object_store_options("/tmp/table") == {}
