"""int8: one calibration per output, the same every night; another is another recipe, and a bad one writes nothing."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from jobs.__main__ import main
from pipeline.encoder import calibration
from pipeline.encoder.arithmetic import is_native
from pipeline.encoder.calibration import Calibrated, Order, facts_of, witnesses_of
from pipeline.encoder.canary import Likeness
from pipeline.encoder.openvino_body import OpenVinoBody
from pipeline.encoder.sentence_transformer import SentenceTransformerEncoder
from pipeline.errors import ConfigError, EncoderError, StorageError
from pipeline.execution import calibrating
from pipeline.execution import run as execution
from pipeline.execution.planning.calibrated import FOLDER
from pipeline.execution.reporting.metrics import RunReport
from pipeline.execution.reporting.report import render_html
from pipeline.storage.filesystem import Store
from pipeline.storage.snapshots import open_snapshot
from tests import without_ray
from tests.running import written_config
from tests.test_vectors import cosines
from tests.without_ray import run_in_process

pytest.importorskip("nncf")

from openvino import Model
from openvino import opset13 as ops


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A node's cache of its own, and calibrations on few texts: what they are worth is measured elsewhere."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("BATCH_EMBEDDINGS_CACHE", str(tmp_path_factory.mktemp("cache")))
        monkeypatch.setattr(calibrating, "TEXTS", 24)
        monkeypatch.setattr(calibrating, "WITNESSES", 16)
        yield


@dataclass(frozen=True)
class Job:
    """A folder with a source and an output."""

    folder: Path
    config: str

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def calibration(self) -> Path:
        identity: str = open_snapshot(str(self.output)).recipe["calibration_identity"]
        return self.output / FOLDER / identity

    def run(self, *overrides: str) -> RunReport:
        return run_in_process(self.config, *overrides)

    def vectors(self, output: str = "out") -> NDArray[np.float32]:
        rows = open_snapshot(str(self.folder / output)).to_table().sort_by("id")
        return np.stack(rows["embedding"].to_numpy()).astype(np.float32)

    def add(self, rows: pa.Table) -> None:
        source = self.folder / "in"
        source.mkdir(exist_ok=True)
        pq.write_table(rows, source / f"{len(list(source.iterdir()))}.parquet")


def job_in(folder: Path, model: Path) -> Job:
    config = written_config(
        folder / "job.yaml",
        source={"uri": str(folder / "in")},
        recipe={"model": str(model), "compute": "int8", "max_tokens": 64},
        output={"uri": str(folder / "out")},
    )
    return Job(folder, config)


@pytest.fixture(scope="module")
def published(m3e_small: Path, reviews: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """60 reviews, published in int8."""
    job = job_in(tmp_path_factory.mktemp("published"), m3e_small)
    job.add(reviews.slice(0, 60))
    assert job.run().outcome == "published"
    return job


@pytest.fixture
def job(published: Job, m3e_small: Path, tmp_path: Path) -> Job:
    """A copy of it, brought up to date with where its source lies now."""
    folder = tmp_path / "job"
    shutil.copytree(published.folder, folder, copy_function=shutil.copy2)
    job = job_in(folder, m3e_small)
    report = job.run()
    assert (report.embedded, report.reused) == (0, 60)
    return job


def test_8_bit_products_are_added_up_exactly_where_the_cpu_has_no_instructions_for_that() -> None:
    ids, mask = (ops.parameter([-1, -1], np.int64, name=name) for name in ("input_ids", "attention_mask"))
    shape = ops.concat([ops.shape_of(ids), ops.constant(np.array([64]))], 0)
    inputs = ops.broadcast(ops.unsqueeze(ops.convert(ids, np.float32), ops.constant(-1)), shape)
    least, most = np.float32(0), np.float32(255)
    quantised = ops.fake_quantize(inputs, least, most, least, most, 256)
    weights = ops.multiply(ops.convert(ops.constant(np.full((8, 64), 127, np.int8)), np.float32), np.float32(1 / 127))
    model = Model([ops.matmul(quantised, weights, transpose_a=False, transpose_b=True)], [ids, mask], "products")
    body = OpenVinoBody(model, "float32", threads=1, lacks_int8=not is_native("int8", "cpu"))
    features = {"input_ids": torch.tensor([[255, 3]]), "attention_mask": torch.ones((1, 2), dtype=torch.int64)}
    np.testing.assert_allclose(body(features)["token_embeddings"][0, :, 0], [255 * 64, 3 * 64], rtol=1e-5)


def no_calibration(*_: Any) -> Calibrated:
    raise AssertionError("calibrated once more")


def test_vectors_are_near_those_of_float32_and_the_recipe_says_by_which_calibration(job: Job) -> None:
    job.run("recipe.compute=float32", f"output.uri={job.folder / 'exact'}")
    assert cosines(job.vectors(), job.vectors("exact")).min() >= calibration.BOUNDS.min_cosine
    facts = open_snapshot(str(job.output)).recipe
    assert (facts["compute"], facts_of(job.calibration).model) == ("int8", facts["identity"])
    assert len(witnesses_of(job.calibration).tokens) == 15


def test_the_next_night_uses_the_same_calibration_and_says_what_it_took(
    job: Job, reviews: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrating, "calibrate", no_calibration)
    before = job.calibration
    assert job.run().outcome == "nothing_to_do"
    job.add(reviews.slice(60, 20))
    report = job.run()
    assert (report.outcome, report.embedded, report.reused) == ("published", 20, 60)
    assert report.calibration is not None
    assert report.calibration["identity"] == before.name == job.calibration.name
    assert report.calibration["seconds"] > 0 < report.calibration["peak_memory_bytes"]
    cosine = report.calibration["likeness"]["min_cosine"]
    assert cosine >= calibration.BOUNDS.min_cosine
    assert f"least cosine to float32 {cosine:.4f}" in render_html(report)


@pytest.mark.long
def test_another_calibration_is_another_recipe(
    job: Job, m3e_small: Path, reviews: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrating, "TEXTS", 8)
    (job.folder / "other").mkdir()
    other = job_in(job.folder / "other", m3e_small)
    other.add(reviews.slice(100, 30))
    other.run()
    assert other.calibration.name != job.calibration.name
    report = job.run(f"recipe.calibration={other.calibration}")
    assert (report.outcome, report.embedded, report.reused) == ("published", 60, 0)
    assert job.calibration.name == other.calibration.name


@pytest.mark.parametrize("lost", ["pointer", "weights"])
def test_a_lost_calibration_is_an_error_and_no_reason_for_another_one(job: Job, lost: str) -> None:
    folder = job.calibration
    for path in folder.parent.glob("*.json") if lost == "pointer" else [folder / "model.bin"]:
        path.unlink()
    with pytest.raises(StorageError, match=rf"{folder.name}.*another calibration would make other vectors"):
        job.run()


def test_a_calibration_that_was_changed_is_not_used(job: Job, reviews: pa.Table) -> None:
    weights = job.calibration / "model.bin"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.unlink()  # it may be a hard link
    weights.write_bytes(content)
    job.add(reviews.slice(60, 20))
    with pytest.raises(EncoderError, match="holds other files than this calibration had"):
        job.run()


def test_of_two_that_calibrate_at_once_the_second_takes_the_calibration_of_the_first(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = job.folder / "late"

    def overtaken(order: Order, target: Path) -> Calibrated:
        (target / "model.xml").write_text("of the second")
        shutil.copytree(job.output / FOLDER, late / FOLDER, dirs_exist_ok=True)
        return Calibrated(1.0, 1, Likeness(1, 1.0, 1.0, 0, 1.0, 1.0))

    monkeypatch.setattr(calibrating, "calibrate", overtaken)
    assert job.run(f"output.uri={late}").outcome == "published"
    assert open_snapshot(str(late)).recipe["calibration_identity"] == job.calibration.name


def test_a_calibration_with_other_vectors_than_float32_writes_nothing(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poor = Calibrated(1.0, 1, Likeness(16, 0.9, 0.95, 3, 0.9, 0.9))
    monkeypatch.setattr(calibration, "quantised_by_child", lambda order, target: poor)
    refused = job.folder / "refused"
    assert main(["embed", job.config, f"output.uri={refused}"]) == 4
    assert "the quantised model does not give the vectors of float32: cosine" in capsys.readouterr().err
    assert [path for path in refused.rglob("*") if path.is_file()] == []


def test_a_model_that_cannot_be_quantised_is_told_with_the_reason(job: Job) -> None:
    tokens = witnesses_of(job.calibration).tokens
    order = Order("/nowhere", "", "", False, False, tokens, tokens)
    with pytest.raises(EncoderError, match=r"cannot be calibrated: /nowhere has no modules\.json"):
        calibration.calibrate(order, job.folder)


def test_an_encoder_that_has_drifted_from_float32_writes_nothing_without_a_gate_too(
    job: Job, reviews: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    job.add(reviews.slice(60, 20))
    before = set(Store(str(job.output)).files("snapshots"))
    begin = SentenceTransformerEncoder.begin

    def drifted(self: SentenceTransformerEncoder, batch: Any) -> Any:
        taken = begin(self, batch)
        return lambda: np.roll(taken(), 1, axis=1)

    with (
        patch.object(SentenceTransformerEncoder, "begin", drifted),
        patch.object(execution, "_encode_missing", without_ray._encode_missing),
    ):
        assert main(["embed", job.config]) == 4
    assert "does not give the vectors of the calibration's witnesses" in capsys.readouterr().err
    assert set(Store(str(job.output)).files("snapshots")) == before


def test_a_package_that_is_missing_is_told_before_anything_is_written(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    other = job.folder / "other"
    with pytest.raises(ConfigError, match=r"compute: int8 needs the package nncf.*\[int8\]"):
        job.run(f"output.uri={other}")
    assert not other.exists()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("runtime.engine=torch", "int8 needs runtime.engine: openvino, not torch"),
        ("recipe.model=hashing://8", "needs a model that can be quantised"),
        ("recipe.calibration=/nowhere/_meta/calibrations", "is no calibration, which is a folder"),
    ],
)
def test_what_int8_cannot_be_had_with_is_told(job: Job, override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        job.run(override)
