"""The steps of a training on one worker: going on after a death, the share of the base, a head, what a config says."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, distributed
from transformers import TrainerCallback

from pipeline.config import JobConfig
from pipeline.errors import ConfigError
from pipeline.execution.train import plan_training
from pipeline.training.loop import Hyperparameters, _arguments, prepare, train
from pipeline.training.sets import TrainingExamples, distinct_examples
from tests.benchmarks.random_model import Shape, make_model
from tests.test_demo_training_sets import strings_of

SHAPE = Shape(layers=1, hidden=32, heads=2, inner=64, dimensions=16, vocabulary=200, max_tokens=32)
TEXTS = ["房间很干净", "服务太差了", "早餐不错", "再也不来了"]


def chosen(**changes: Any) -> Hyperparameters:
    values: dict[str, Any] = {
        "loss": "circle",
        "margin": 0.25,
        "scale": 32.0,
        "steps": 4,
        "batch_rows": 4,
        "mini_batch_rows": 2,
        "learning_rate": 5e-5,
        "warmup_fraction": 0.0,
        "max_tokens": 16,
        "base_weight": 0.0,
        "head_dimensions": None,
        "matryoshka": (),
        "checkpoint_steps": 2,
        "seed": 3,
    }
    return Hyperparameters(**values | changes)


def sets_of(reviews: pa.Table) -> list[TrainingExamples]:
    texts = reviews["text"].to_pylist()[:32]
    pairs = {"text_a": texts[:8], "text_b": texts[8:16], "score": np.arange(8) / 8}
    search = {"query": texts[:8], "positives": [[text] for text in texts[16:24]], "negatives": [[]] * 8}
    tables = {"class": reviews.slice(0, 32), "pair": pa.table(pairs), "retrieval": pa.table(search)}
    return [distinct_examples(kind, kind, 1.0, table) for kind, table in tables.items()]


def loaded(folder: Path | str) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def parameters_of(model: SentenceTransformer) -> dict[str, Tensor]:
    return {name: weights.detach().clone() for name, weights in model.named_parameters()}


class Death(Exception):
    """Of the process that trains."""


class DiesAfterACheckpoint(TrainerCallback):  # type: ignore[misc]
    """Ends a training when its first checkpoint is written."""

    def on_save(self, *_: object, **__: object) -> None:
        raise Death


def test_a_training_that_goes_on_at_its_checkpoint_ends_as_one_that_was_never_stopped(
    m3e_small: Path, reviews: pa.Table, tmp_path: Path
) -> None:
    sets = sets_of(reviews)
    whole, resumed = loaded(m3e_small), loaded(m3e_small)
    before_ND = whole.encode(TEXTS)
    asked = chosen(base_weight=0.25)
    straight = train(whole, sets, asked, tmp_path / "whole")
    with pytest.raises(Death):
        train(loaded(m3e_small), sets, asked, tmp_path / "dead", [DiesAfterACheckpoint()])
    checkpoint = tmp_path / "dead" / "checkpoint-2"
    card = (checkpoint / "README.md").read_text(encoding="utf-8")
    assert not [text for examples in sets for text in strings_of(examples.table.to_pylist()) if text in card]
    again = train(resumed, sets, asked, tmp_path / "resumed", checkpoint=checkpoint)
    assert again.first_step == 2
    assert [line["step"] for line in again.losses] == [line["step"] for line in straight.losses] == [1, 2, 3, 4]
    np.testing.assert_allclose(resumed.encode(TEXTS), whole.encode(TEXTS), atol=1e-6)
    assert np.abs(whole.encode(TEXTS) - before_ND).max() > 1e-3


def test_a_head_gives_vectors_of_its_width_and_survives_the_folder(
    m3e_small: Path, reviews: pa.Table, tmp_path: Path
) -> None:
    asked = chosen(steps=1, head_dimensions=96, matryoshka=(32, 96))
    model = train(loaded(m3e_small), sets_of(reviews)[:1], asked, tmp_path / "run").model
    model.save_pretrained(str(tmp_path / "model"))
    vectors_ND = loaded(tmp_path / "model").encode(TEXTS)
    assert vectors_ND.shape == (4, 96)
    np.testing.assert_allclose(vectors_ND, model.encode(TEXTS), atol=1e-6)


def test_a_share_of_the_base_is_left_in_all_weights_but_those_of_a_new_head(reviews: pa.Table, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "base", SHAPE)
    base = parameters_of(loaded(folder))

    def trained(base_weight: float) -> dict[str, Tensor]:
        prepare(seed=3, threads=1)
        asked = chosen(base_weight=base_weight, head_dimensions=24, learning_rate=1e-2)
        return parameters_of(train(loaded(folder), sets_of(reviews), asked, tmp_path / "run").model)

    whole, interpolated = trained(0.0), trained(0.25)
    new = whole.keys() - base.keys()
    assert len(new) == 2
    for name, weights in whole.items():
        expected = weights if name in new else 0.25 * base[name] + 0.75 * weights
        torch.testing.assert_close(interpolated[name], expected, rtol=0, atol=1e-6)
    assert max(float((weights - base[name]).abs().max()) for name, weights in whole.items() if name in base) > 1e-3


def test_a_config_without_training_says_what_it_needs(tmp_path: Path) -> None:
    config = JobConfig.model_validate({"source": {"uri": "in"}, "recipe": {"model": "m"}, "output": {"uri": "out"}})
    with pytest.raises(ConfigError, match=r"needs at least training\.uri and training\.sets"):
        plan_training(config)


def test_a_model_whose_folder_is_told_from_here_is_put_there_by_workers_that_are_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"text": TEXTS, "label": [0, 0, 1, 1]}), tmp_path / "set.parquet")
    sections = {
        "source": {"uri": "in"},
        "recipe": {"model": str(make_model(tmp_path / "base", SHAPE))},
        "output": {"uri": "out"},
        "training": {"uri": "models/new", "sets": [{"uri": str(tmp_path / "set.parquet"), "kind": "class"}]},
    }
    monkeypatch.chdir(tmp_path)
    plan = plan_training(JobConfig.model_validate(sections))
    assert plan.training.uri == str(tmp_path / "models" / "new")
    assert plan.checkpoints == str(tmp_path / "models" / "new-checkpoints")


def told_of_workers(rank: int, folder: str) -> None:
    """Be one of two workers without a GPU, as Ray starts them: write down what the trainer knows of both."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "CUDA_VISIBLE_DEVICES": ""}
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    arguments = _arguments(chosen(), Path(folder))
    Path(folder, f"{rank}.txt").write_text(f"{arguments.process_index} of {arguments.world_size}")
    distributed.destroy_process_group()


def test_workers_without_a_gpu_know_of_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=told_of_workers, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["0 of 2", "1 of 2"]
