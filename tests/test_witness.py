"""Planning over files of which some are broken or deviate: they cost themselves, not the plan, not the others."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import JobConfig, Source
from pipeline.errors import ConfigError, SourceError
from pipeline.execution.planning import shards as cutting
from pipeline.execution.planning import witness
from pipeline.execution.planning.estimate import estimate
from pipeline.execution.planning.plan import Plan, make_plan
from pipeline.execution.planning.witness import document_schema_of
from pipeline.records import SourceFile
from pipeline.storage.filesystem import Store
from pipeline.storage.listing import list_source
from pipeline.storage.readers import read_source_schema

GOOD = {"id": pa.array([1, 2]), "text": pa.array(["a", "b"])}
DRIFTED = GOOD | {"id": pa.array(["1", "2"])}
LACKING = {"id": pa.array([1, 2]), "body": pa.array(["a", "b"])}


def write(folder: Path, **files: dict[str, pa.Array] | bytes) -> list[SourceFile]:
    """Write Parquet files in the order of their names; bytes stand for themselves, as JSON lines if they look so."""
    for name, content in files.items():
        if isinstance(content, bytes):
            suffix = "jsonl" if content[:1] == b"{" else "parquet"
            (folder / f"{name}.{suffix}").write_bytes(content)
        else:
            pq.write_table(pa.table(content), folder / f"{name}.parquet")
    return list_source([str(folder)], "auto")


def id_type(files: list[SourceFile], standing: pa.Schema | None = None) -> pa.DataType:
    return document_schema_of(files, Source(uri=("in",)), standing).field("id").type


def plan_of(folder: Path, **sections: Any) -> Plan:
    values: dict[str, Any] = {"source": {"uri": str(folder)}, "output": {"uri": f"{folder}-out"}}
    config = JobConfig.model_validate(values | {"recipe": {"model": "hashing://8"}} | sections)
    return make_plan(config, Store(config.output.uri))


@pytest.mark.parametrize("first", [b"PAR1 no Parquet PAR1", b"", DRIFTED, LACKING], ids=list("abcd"))
def test_a_first_file_that_is_bad_is_not_the_witness_for_all(tmp_path: Path, first: Any) -> None:
    assert id_type(write(tmp_path, a=first, b=GOOD, c=GOOD)) == pa.int64()


def test_most_of_the_files_that_were_asked_decide(tmp_path: Path) -> None:
    files = {f"a{n:02}": DRIFTED if n in (0, 10, 19) else GOOD for n in range(20)}
    assert id_type(write(tmp_path, **files)) == pa.int64()


def test_only_three_files_are_asked_where_they_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    read = read_source_schema

    def noted(file: SourceFile, *rest: Any) -> pa.Schema | None:
        asked.append(Path(file.uri).stem)
        return read(file, *rest)

    monkeypatch.setattr(witness, "read_source_schema", noted)
    id_type(write(tmp_path, **{f"a{n:03}": GOOD for n in range(101)}))
    assert asked == ["a000", "a050", "a100"]


def test_the_schema_of_the_snapshot_before_stands_as_long_as_a_witness_agrees_with_it(tmp_path: Path) -> None:
    files = write(tmp_path, a=GOOD, b=DRIFTED, c=GOOD)
    standing = document_schema_of(files[1:2], Source(uri=("in",)), None)
    assert id_type(files, standing) == pa.string()
    assert id_type(files[::2], standing) == pa.int64()


def test_parquet_is_asked_before_formats_that_say_less_of_types(tmp_path: Path) -> None:
    assert id_type(write(tmp_path, a=b'{"id":"x","text":"t"}\n', b=GOOD)) == pa.int64()
    assert id_type(write(tmp_path, a=b'{"id":"x","text":"t"}\n', b=b"no Parquet")) == pa.string()


def test_a_column_that_no_file_has_is_told_of_the_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.parquet has no column 'text'; It has: id, body"):
        document_schema_of(write(tmp_path, a=LACKING, b=LACKING, c=LACKING), Source(uri=("in",)), None)


def test_where_no_file_can_be_read_the_first_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"a\.parquet is not a whole Parquet file"):
        plan_of(write_in(tmp_path, a=b"no Parquet", b=b""))


def write_in(folder: Path, **files: dict[str, pa.Array] | bytes) -> Path:
    (folder / "in").mkdir()
    write(folder / "in", **files)
    return folder / "in"


def test_a_giant_that_cannot_be_read_is_a_shard_of_its_own_and_does_not_stop_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "SPLIT_BYTES", 500)
    folder = write_in(tmp_path, a=b"x" * 5_000_000, b=GOOD, c=GOOD)
    plan = plan_of(folder)
    spans = [[(Path(span.file.uri).stem, span.position) for span in shard.spans] for shard in plan.wanted]
    assert spans == [[("a", "all")], [("b", "g0+1")], [("c", "g0+1")]]


def test_a_file_that_cannot_be_read_makes_the_estimate_inexact_and_nothing_worse(tmp_path: Path) -> None:
    folder = write_in(tmp_path, a=b"no Parquet", b=GOOD, c=GOOD)
    summary = estimate(plan_of(folder))
    assert (summary["rows"], summary["rows_are_exact"]) == (4, False)
