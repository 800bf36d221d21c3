"""Hive folders: any value is refused or read back unchanged by every tool, and none leaves its folder."""

import datetime
import itertools
import os
import shutil
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.storage.filesystem import Store
from pipeline.storage.partitions import NULL_FOLDER, is_partitionable, segment, split_by_partition

HOSTILE = ["", "..", ".", "../../etc", "a/b", "a=b", "%2F", "%", " ", "+", "a b", "空", "é", "\n", "\x7f", "~", "\\"]
HOSTILE += ["*", "?", "[a]", "{a}", "#", "&", '"', "'", "null", "NULL", "None", "true", "-0", "007", "1e5", "\u2028"]
VALUES = st.text(st.characters(exclude_categories=["Cs"]), max_size=90)
numbers = itertools.count()


@given(VALUES)
@example("\0")
@example(NULL_FOLDER)
@example("x" * 300)
def test_a_value_is_refused_or_names_exactly_one_folder(value: str) -> None:
    name = segment("label", value)
    if name is None:
        assert "\0" in value or value == NULL_FOLDER or len(value.encode()) > 80
        return
    assert name.startswith("label=")
    assert "/" not in name
    assert "\0" not in name
    assert len(name.encode()) <= 255
    assert name.removeprefix("label=") not in (NULL_FOLDER, *((value,) if set(value) & set("/=%") else ()))


@given(VALUES)
@example("../" * 20)
@example("..\\..\\x")
@example("/etc/passwd")
@example("\u2025/\uff0e\uff0e\uff0f")
@example("．．／x")
def test_no_value_leads_out_of_the_folder_it_stands_in(value: str) -> None:
    name = segment("label", value)
    if name is not None:
        key = f"snapshots/folder/{name}/part.parquet"
        assert Path(os.path.normpath(f"/output/{key}")) == Path("/output") / key
        assert Store("/output").path_of(key) == f"/output/{key}"


@given(VALUES, VALUES)
def test_two_values_never_share_a_folder(one: str, other: str) -> None:
    if one != other and segment("label", one) is not None:
        assert segment("label", one) != segment("label", other)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(VALUES, min_size=1, max_size=6, unique=True))
@example(HOSTILE)
def test_every_tool_reads_every_value_back(tmp_path: Path, values: list[str]) -> None:
    root = tmp_path / f"{next(numbers)}" / "out"
    written = {"x-makes-it-a-string": -1}
    for row, value in enumerate(values):
        name = segment("label", value)
        if name is not None:
            written[value] = row
    for value, row in written.items():
        folder = root / str(segment("label", value))
        folder.mkdir(parents=True)
        assert folder.parent == root
        assert folder.resolve() == folder
        pq.write_table(pa.table({"row": pa.array([row], pa.int64())}), folder / "part.parquet")
    expected = {row: value for value, row in written.items()}
    assert by_pyarrow(root) == expected
    assert by_pandas(root) == expected
    assert by_duckdb(root) == expected
    assert by_polars(root) == expected
    shutil.rmtree(root.parent)


def by_pyarrow(root: Path) -> dict[int, str]:
    table = pq.read_table(root)
    return dict(zip(table["row"].to_pylist(), table["label"].cast(pa.string()).to_pylist(), strict=True))


def by_pandas(root: Path) -> dict[int, str]:
    frame = pd.read_parquet(root, partitioning="hive", dtype_backend="pyarrow")
    return dict(zip(frame["row"], frame["label"], strict=True))


def by_duckdb(root: Path) -> dict[int, str]:
    query = "select row, label from read_parquet(?, hive_partitioning=true, hive_types_autocast=false)"
    return dict(duckdb.execute(query, [f"{root}/**/*.parquet"]).fetchall())


def by_polars(root: Path) -> dict[int, str]:
    frame = pl.scan_parquet(root, hive_partitioning=True, hive_schema={"label": pl.String}).collect()
    return dict(frame.select("row", "label").iter_rows())


def test_values_that_are_too_long_only_together_are_refused_and_no_other_row(bucket: str) -> None:
    columns = ["a", "b", "c", "d"]
    short, long = dict.fromkeys(columns, "x" * 170), dict.fromkeys(columns, "x" * 240)
    (kept, rows), refused = split_by_partition(pa.Table.from_pylist([short, long]), columns)
    assert (rows.to_pylist(), refused[0], refused[1].to_pylist()) == ([0], None, [1])
    store = Store(f"s3://{bucket}/{'p' * 100}")
    key = f"snapshots/00000001-{'0' * 32}/{kept}{'0' * 32}-00000.parquet"
    assert store.put_new(key, b"content") is None
    assert store.read(key) == b"content"


def test_null_has_the_folder_that_every_tool_reads_as_null(tmp_path: Path) -> None:
    for row, value in enumerate([None, "a"]):
        folder = tmp_path / str(segment("label", value))
        folder.mkdir()
        pq.write_table(pa.table({"row": [row]}), folder / "part.parquet")
    expected = {0: None, 1: "a"}
    assert by_pyarrow(tmp_path) == by_duckdb(tmp_path) == by_polars(tmp_path) == expected
    assert pd.isna(by_pandas(tmp_path)[0])


@pytest.mark.parametrize(
    ("value", "name"),
    [(True, "true"), (False, "false"), (-5, "-5"), (datetime.date(2026, 11, 23), "2026-11-23"), ("空", "空")],
)
def test_other_types_are_named_as_hive_names_them(value: object, name: str) -> None:
    assert segment("column", value) == f"column={name}"


def test_a_column_name_cannot_leave_its_folder_either() -> None:
    assert segment("../a=b", "c") == "..%2Fa%3Db=c"


def test_only_types_that_come_back_unchanged_can_name_folders() -> None:
    good = [pa.string(), pa.large_string(), pa.int8(), pa.uint64(), pa.bool_(), pa.date32()]
    bad = [pa.float32(), pa.timestamp("us"), pa.binary(), pa.list_(pa.int8()), pa.decimal128(5, 2), pa.null()]
    assert all(map(is_partitionable, good))
    assert not any(map(is_partitionable, bad))


def test_a_table_is_split_into_its_folders_with_every_row_once() -> None:
    table = pa.table({"a": ["x", None, "x", "\0"], "b": [1, 1, 2, 1]})
    found = {folder: rows.to_pylist() for folder, rows in split_by_partition(table, ["a", "b"])}
    assert found == {"a=x/b=1/": [0], f"a={NULL_FOLDER}/b=1/": [1], "a=x/b=2/": [2], None: [3]}
    assert [(folder, rows.to_pylist()) for folder, rows in split_by_partition(table, [])] == [("", [0, 1, 2, 3])]


def test_a_date_that_no_calendar_has_cannot_name_a_folder() -> None:
    days = pa.array([0, 3_000_000, 0, -800_000], pa.int32()).cast(pa.date32())
    split = {
        folder: rows.to_pylist() for folder, rows in split_by_partition(pa.table({"day": days}), ["day"]) if folder
    }
    assert split == {"day=1970-01-01/": [0, 2]}
    refused = [rows.to_pylist() for folder, rows in split_by_partition(pa.table({"day": days}), ["day"]) if not folder]
    assert sorted(refused) == [[1], [3]]


@given(st.lists(st.sampled_from(["a", "b", None, "\0", ""]), max_size=30))
def test_splitting_keeps_every_row_once(values: list[str | None]) -> None:
    found = [rows.to_pylist() for _, rows in split_by_partition(pa.table({"a": pa.array(values, pa.string())}), ["a"])]
    assert sorted(itertools.chain.from_iterable(found)) == list(range(len(values)))
    assert all(rows == sorted(rows) for rows in found)
