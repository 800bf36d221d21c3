"""`verify` finds every manipulation of a published snapshot, and nothing where nothing is wrong."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.execution.verify import verify
from pipeline.storage.snapshots import open_snapshot
from tests.running import embed, written_config

ROWS = 60


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    table = pa.table({"id": pa.array(range(ROWS)), "text": [f"text {row}" for row in range(ROWS)]})
    pq.write_table(table, folder / "corpus.parquet")
    config = written_config(
        folder / "job.yaml",
        source={"uri": str(folder / "corpus.parquet")},
        recipe={"model": "hashing://16"},
        output={"uri": str(folder / "output"), "rows_per_part": 16},
    )
    assert embed(config).code == 0
    return folder / "output"


@pytest.fixture
def output(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "output"))


def parts(output: Path) -> list[Path]:
    return sorted(output.glob("snapshots/*/*.parquet"))


def delete(output: Path) -> None:
    parts(output)[1].unlink()


def truncate(output: Path) -> None:
    path = parts(output)[1]
    path.write_bytes(path.read_bytes()[:-100])


def flip(output: Path) -> None:
    path = parts(output)[1]
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)


def duplicate(output: Path) -> None:
    first = parts(output)[0]
    shutil.copy(first, first.with_name("copy.parquet"))


def swap(output: Path) -> None:
    first, second, *_ = parts(output)
    shutil.copy(first, second)


@pytest.mark.parametrize(
    ("manipulate", "check"),
    [(delete, "missing"), (truncate, "size"), (flip, "content"), (duplicate, "stray"), (swap, "rows")],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_manipulation_is_found(output: Path, manipulate: Callable[[Path], None], check: str) -> None:
    manipulate(output)
    assert check in verify(open_snapshot(str(output))).counts


def test_an_untouched_snapshot_is_sound(output: Path) -> None:
    result = verify(open_snapshot(str(output)))
    assert result.is_sound, result.findings
    assert (result.rows, result.parts) == (ROWS, 4)


def test_a_foreign_recipe_is_found_in_the_files_themselves(output: Path) -> None:
    snapshot = open_snapshot(str(output))
    snapshot.record = replace(snapshot.record, fingerprint="0" * 32)
    assert verify(snapshot).counts["recipe"] == 4


def test_a_vector_of_the_wrong_length_is_found_even_if_the_snapshot_vouches_for_the_file(output: Path) -> None:
    path = parts(output)[0]
    table = pq.read_table(path)
    vectors_ND = np.stack(table["embedding"].to_numpy())
    vectors_ND[3] *= 2
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), type=table.schema.field("embedding").type)
    index = table.schema.get_field_index("embedding")
    pq.write_table(table.set_column(index, table.schema.field(index), column), path)
    snapshot = open_snapshot(str(output))
    forged = [row | _facts_of(path) if row["path"] == path.name else row for row in snapshot.parts.to_pylist()]
    snapshot.__dict__["parts"] = pa.Table.from_pylist(forged, schema=snapshot.parts.schema)
    assert verify(snapshot).counts["norm"] == 1


def _facts_of(path: Path) -> dict[str, object]:
    from pipeline.fingerprint import content_hash

    content = path.read_bytes()
    assert orjson.loads(pq.read_metadata(path).metadata[b"pipeline.fingerprint"])
    return {"size_bytes": len(content), "file_hash": content_hash(content)}
