"""`train` with two workers on sets in a bucket: killed and started again, and its model embeds."""

import io
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load
from sentence_transformers import SentenceTransformer

from jobs.demo.local_s3 import LocalS3
from jobs.demo.processes import Process
from pipeline import open_snapshot
from pipeline.arrow import vectors_of
from pipeline.config import Recipe
from pipeline.execution.planning.model import local_folder, resolve_model
from pipeline.storage.filesystem import Store
from tests.benchmarks.random_model import Shape, make_model, texts_of
from tests.running import Finished, ended, started, written_config
from tests.watching import command_line, family_of

pytestmark = pytest.mark.slow

BUCKET = "trainings"
SHAPE = Shape(layers=2, hidden=32, heads=2, inner=64, dimensions=24, vocabulary=500, max_tokens=32)
TEXTS = texts_of(np.full(64, 12), SHAPE)
STEPS, CHECKPOINT_STEPS = 24, 3
SECONDS = 600
WIDTH, NARROW = 48, 16


def put_table(store: Store, key: str, columns: dict[str, Any]) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    store.put(key, sink.getvalue())


def finished(*arguments: str) -> Finished:
    return ended(started(*arguments), SECONDS)


@dataclass(frozen=True)
class Trainings:
    """Sets in a bucket, and the config of a training on them; `uri` tells where its model is to be."""

    path: Path

    def config(self, name: str) -> str:
        kinds = ("class", "pair", "retrieval")
        return written_config(
            self.path / f"{name}.yaml",
            source={"uri": f"s3://{BUCKET}/texts/"},
            recipe={"model": str(self.path / "base"), "compute": "float32", "max_tokens": 32},
            output={"uri": f"s3://{BUCKET}/embedded-{name}"},
            runtime={"look_for_repeats": False},
            training={
                "uri": f"s3://{BUCKET}/{name}",
                "sets": [{"uri": f"s3://{BUCKET}/sets/{kind}/", "kind": kind, "weight": 1} for kind in kinds],
                "steps": STEPS,
                "batch_rows": 8,
                "mini_batch_rows": 2,
                "checkpoint_steps": CHECKPOINT_STEPS,
                "learning_rate": 1e-3,
                "base_weight": 0.25,
                "head_dimensions": WIDTH,
                "matryoshka": [NARROW, WIDTH],
                "workers": 2,
            },
        )


@pytest.fixture(scope="module")
def trainings(s3: LocalS3, tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    s3.create_bucket(BUCKET)
    store, folder = Store(f"s3://{BUCKET}"), tmp_path_factory.mktemp("trainings")
    make_model(folder / "base", SHAPE)
    put_table(store, "texts/texts.parquet", {"id": range(len(TEXTS)), "text": TEXTS})
    put_table(store, "sets/class/a.parquet", {"text": TEXTS, "label": [number % 3 for number in range(len(TEXTS))]})
    pairs = {"text_a": TEXTS[:32], "text_b": TEXTS[32:], "score": [number / 32 for number in range(32)]}
    put_table(store, "sets/pair/a.parquet", pairs)
    found = [[text, other] for text, other in zip(TEXTS[16:32], TEXTS[32:48], strict=True)]
    search = {"query": TEXTS[:16], "positives": found, "negatives": [[text] for text in TEXTS[48:]]}
    put_table(store, "sets/retrieval/a.parquet", search)
    return Trainings(folder)


@pytest.fixture(scope="module")
def undisturbed(trainings: Trainings) -> Finished:
    """A training that nothing has disturbed."""
    return finished("train", trainings.config("undisturbed"), "--json")


def weights_of(name: str) -> dict[str, np.ndarray]:
    store = Store(f"s3://{BUCKET}/{name}")
    files = [key for key in sorted(store.files("")) if key.endswith(".safetensors")]
    assert len(files) == 3, files  # of the body, of the model's own head, and of the new one
    return {f"{key}:{part}": value for key in files for part, value in load(store.read(key) or b"").items()}


def test_a_model_trained_by_two_workers_on_sets_in_a_bucket_embeds_at_both_of_its_widths(
    trainings: Trainings, undisturbed: Finished
) -> None:
    assert undisturbed.code == 0, undisturbed.stderr
    assert undisturbed.report["outcome"] == "published"
    assert undisturbed.report["training"]["losses"][-1]["step"] == STEPS
    config, model = trainings.config("undisturbed"), f"s3://{BUCKET}/undisturbed"
    embedded = finished("embed", config, f"recipe.model={model}", f"recipe.dimensions={NARROW}", "--json")
    assert embedded.code == 0, embedded.stderr
    rows = open_snapshot(f"s3://{BUCKET}/embedded-undisturbed").to_table().sort_by("id")
    folder = local_folder(resolve_model(Recipe(model=model)))
    oracle = SentenceTransformer(str(folder), device="cpu", truncate_dim=NARROW, local_files_only=True)
    expected_ND = oracle.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(vectors_of(rows["embedding"]).astype(np.float32), expected_ND, atol=1e-5)


def test_a_training_that_was_done_is_not_done_again_and_another_one_does_not_replace_it(
    trainings: Trainings, undisturbed: Finished
) -> None:
    config = trainings.config("undisturbed")
    assert finished("train", config, "--json").report["outcome"] == "nothing to do"
    other = finished("train", config, "training.seed=9")
    assert other.code == 3
    assert "holds another model" in other.stderr


def wait_until(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Wait until something has happened; the process must still be running then."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, f"ended before it could be disturbed: {ended(process).stderr[-2000:]}"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def checkpoints_of(name: str) -> set[str]:
    """Return the whole checkpoints of a training in the bucket: those with the state of both workers."""
    keys = Store(f"s3://{BUCKET}/{name}-checkpoints").files("")
    return {key.rpartition("/")[0] for key in keys if key.endswith("/rng_state_1.pth")}


def workers_of(driver: "subprocess.Popen[str]") -> list[Process]:
    titles = {pid: command_line(pid) for pid in family_of(driver.pid)}
    return [Process(pid, title) for pid, title in titles.items() if "RayTrainWorker" in title]


@pytest.mark.long
def test_a_training_whose_driver_and_then_a_worker_were_killed_ends_with_the_weights_of_one_that_was_not(
    trainings: Trainings, undisturbed: Finished
) -> None:
    config, kills = trainings.config("disturbed"), []
    driver = started("train", config, "--json")
    wait_until(lambda: bool(checkpoints_of("disturbed")), driver)
    driver.send_signal(signal.SIGKILL)
    assert ended(driver).code == -signal.SIGKILL
    kills.append("driver")

    again, before = started("train", config, "--json"), checkpoints_of("disturbed")
    wait_until(lambda: bool(checkpoints_of("disturbed") - before), again)
    kills += ["worker"] * workers_of(again)[-1].kill()
    done = ended(again, SECONDS)
    assert done.code == 0, done.stderr
    assert kills == ["driver", "worker"]
    assert done.report["training"]["losses"] == undisturbed.report["training"]["losses"]
    disturbed, straight = weights_of("disturbed"), weights_of("undisturbed")
    assert disturbed.keys() == straight.keys()
    for part, value in straight.items():
        np.testing.assert_array_equal(disturbed[part], value, err_msg=part)
