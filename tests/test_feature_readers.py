"""What the README says about reading a feature table works as it stands there."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas
import pyarrow as pa
import pytest
import torch

from pipeline.execution.feature_tables import feature_plan
from tests.readme import readmes
from tests.test_feature_table import Job, embeddings_of, reviews, rows_of


def example(begins_with: str) -> str:
    """Return the Python example of the README files that begins with this comment; it stands there once."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in readmes())
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (found,) = (block for block in blocks if block.startswith(begins_with))
    return str(found)


def names_after(code: str, given: Mapping[str, Any]) -> dict[str, Any]:
    names = dict(given)
    exec(code, names)
    return names


@pytest.fixture
def job(tmp_path: Path) -> Job:
    job = Job(tmp_path, reviews(), entity="user", event_time="day")
    job.embed()
    return job


def test_training_rows_are_joined_as_the_readme_says(job: Job) -> None:
    rows, times = rows_of(job.features()), pa.array(["2026-01-02T00:00:00Z"] * 2).cast(pa.timestamp("us", "UTC"))
    training_rows = pa.table({"user": ["bob", "ann"], "event_timestamp": times})
    code = example("# features for training rows")
    joined = names_after(code, {"uri": str(job.file.parents[1] / "table"), "training_rows": training_rows})["joined"]
    assert joined["embedding"].to_pylist() == [None, rows["embedding"][0].as_py()]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_for_torch_yields_every_vector_once(job: Job, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_plan, "BUCKET_BYTES", 16)
    rows = embeddings_of(rows_of(job.features()))
    stream = names_after(example("# torch:"), {})["FeatureStream"](str(job.file.parents[1] / "table"))
    pieces = list(torch.utils.data.DataLoader(stream, batch_size=None, num_workers=workers))
    assert sorted(torch.cat(pieces).tolist()) == sorted(rows.tolist())


def test_duckdb_and_pandas_read_the_folder(job: Job) -> None:
    run = job.features()
    folder, rows = run.table.address, embeddings_of(rows_of(run))
    lines = {line.split(".")[0]: line for line in example("# DuckDB, pandas").splitlines()}
    names = {"duckdb": duckdb, "pandas": pandas, "folder": folder}
    found = names_after(f"a = {lines['duckdb']}.to_arrow_table()\nb = {lines['pandas']}", names)
    assert sorted(found["a"]["embedding"].to_pylist()) == sorted(rows.tolist())
    assert sorted(np.stack(found["b"]["embedding"]).tolist()) == sorted(rows.tolist())
