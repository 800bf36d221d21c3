"""Feast reads a feature table as it is: apply, historical features and materialisation of the generated definition."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest
from filelock import FileLock

from pipeline.features.asof import as_of_join
from pipeline.fingerprint import fingerprint
from pipeline.storage.folder_cache import cache_root
from tests.test_feature_readers import example
from tests.test_feature_table import Job, embeddings_of, reviews, rows_of

FEAST = ("feast==0.67.0", "datasets==5.2.0", "pyarrow==26.0.1", "pandas==2.3.3", "orjson==3.13.0")
"""Feast wants an older pandas than the rest of the tests."""

REPOSITORY = """
project: reviews
provider: local
registry: registry.db
online_store: {type: sqlite, path: online.db}
offline_store: {type: dask}
entity_key_serialization_version: 3
"""
STORED = ("float32", "float16", "int8", "binary")
ROWS = [("ann", "01-02"), ("ann", "01-10"), ("bob", "01-02"), ("bob", "01-04"), ("ann", "01-03"), ("ann", "02-10")]
ROWS += [("ann", "03-15")]  # past the TTL


@pytest.fixture(scope="session")
def feast() -> Path:
    """The `bin` folder of an environment of its own with Feast and datasets, made once and kept in the cache."""
    folder = cache_root() / f"feast-{fingerprint([sys.version, *FEAST])[:8]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "complete").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            install = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
            done = subprocess.run([*install, *FEAST], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"Feast cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
            (folder / "complete").touch()
    return folder / "bin"


def ran(*command: object, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
    own = {**os.environ, **(environment or {})}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first time it installs Feast
def test_feast_gives_every_row_what_the_as_of_join_gives_and_serves_the_newest(tmp_path: Path, feast: Path) -> None:
    job, repository = Job(tmp_path, reviews(), entity="user", event_time="day", ttl_days=20), tmp_path / "repository"
    job.embed()
    repository.mkdir()
    (repository / "feature_store.yaml").write_text(REPOSITORY)
    runs = {}
    for stored in STORED:
        run = job.features(f"features.stored={stored}", f"features.uri={tmp_path / stored}", f"features.name={stored}")
        shutil.copy(tmp_path / stored / "feature_view.py", repository / f"{stored}.py")
        runs[stored] = run
    times = [f"2026-{at}T00:00:00Z" for _, at in ROWS]
    training = {"user": [user for user, _ in ROWS], "event_timestamp": times, "row": list(range(len(ROWS)))}
    ran(feast / "feast", "apply", cwd=repository)
    program = Path(__file__).with_name("feast_program.py")
    printed = ran(feast / "python", program, repository, orjson.dumps(training).decode(), *STORED, cwd=tmp_path)
    found = orjson.loads(printed.splitlines()[-1])
    typed = pa.table({**training, "event_timestamp": pa.array(times).cast(pa.timestamp("us", "UTC"))})
    for stored, run in runs.items():
        joined = as_of_join(typed, run.table.dataset(), ["user"], timedelta(days=20)).to_pylist()
        expected = {str(row["row"]): list(row["embedding"]) for row in joined if row["embedding"] is not None}
        assert expected.keys() == {"0", "1", "3", "4", "5"}
        assert found[stored]["historical"] == expected
    rows = embeddings_of(rows_of(runs["float32"]))
    np.testing.assert_array_equal(np.array(found["float32"]["online"], np.float32), rows[[2, 3]])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_datasets_of_hugging_face_stream_the_folder(tmp_path: Path, feast: Path) -> None:
    job = Job(tmp_path, reviews(), entity="user", event_time="day")
    job.embed()
    run = job.features()
    (line,) = (line for line in example("# DuckDB, pandas").splitlines() if line.startswith("datasets."))
    program = f"import datasets, json; folder = {run.table.address!r}; rows = {line}"
    ending = "; print(json.dumps([row['embedding'] for row in rows]))"
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    printed = ran(feast / "python", "-c", program + ending, cwd=tmp_path, environment=offline)
    assert sorted(orjson.loads(printed.splitlines()[-1])) == sorted(embeddings_of(rows_of(run)).tolist())
