"""`training.compare`: the mini set before and after in the model's card, and missing data told before the training."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import orjson
import pyarrow as pa
import pytest
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

from jobs.__main__ import main
from jobs.demo.debian import Passage
from jobs.demo.mini_sets import build_mini_sets
from pipeline.config import JobConfig, Recipe
from pipeline.evaluation.model_index import parse_card
from pipeline.evaluation.trained_card import trained_card
from pipeline.execution.train import TrainingResult
from tests.benchmarks.random_model import Shape, make_model
from tests.running import written_config
from tests.without_ray import without_ray

SHAPE = Shape(layers=1, hidden=32, heads=2, inner=64, dimensions=16, vocabulary=200, max_tokens=32)
TRAINING = {
    "steps": 3,
    "batch_rows": 4,
    "loss": "circle",
    "learning_rate": 5e-5,
    "max_tokens": 32,
    "base_weight": 0.25,
}
RECORD = {
    "base": {"model": "base"},
    "sets": [{"kind": "class"}, {"kind": "pair"}],
    "training": TRAINING,
    "losses": [{"step": 3, "loss": 1.5}],
    "versions": {"torch": "2", "sentence-transformers": "6"},
}


@pytest.fixture
def mirror(reviews: pa.Table, tmp_path: Path) -> Path:
    """The mini set of few reviews and of a book without a package."""
    book = [Passage("甲乙"[n % 2], f"章{n % 4}", f"w{n} w{n + 1}", f"w{n} w{n + 2} w{n % 7} " * 6) for n in range(40)]
    build_mini_sets(reviews.slice(0, 180), book, tmp_path / "mini")
    return tmp_path / "mini"


def config_of(folder: Path, mirror: Path) -> str:
    sets = [{"uri": str(mirror / "MiniReviews"), "kind": "class"}]
    return written_config(
        folder / "job.yaml",
        source={"uri": str(folder / "in")},
        recipe={"model": str(make_model(folder / "base", SHAPE)), "compute": "float32", "max_tokens": 32},
        output={"uri": str(folder / "out")},
        runtime={"engine": "torch"},
        training={"uri": str(folder / "model"), "sets": sets, "compare": True},
        evaluation={"uri": str(folder / "evaluation"), "mirror": str(mirror)},
    )


def changed_base(config: JobConfig) -> TrainingResult:
    """Stand for the training: the base model with other weights, in the folder of the result."""
    assert config.training is not None
    model = SentenceTransformer(config.recipe.model, device="cpu", local_files_only=True)
    for weights in model.parameters():
        weights.data += 0.05 * np.random.default_rng(0).normal()
    model.save_pretrained(config.training.uri, create_model_card=False)
    return TrainingResult(config.training.uri, True, RECORD, 1.0)


def test_the_mini_set_is_scored_before_and_after_and_the_table_stands_in_the_card_and_on_the_terminal(
    tmp_path: Path, mirror: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path, mirror)
    with without_ray(), patch("pipeline.execution.train.train_model", changed_base):
        assert main(["train", config, "--json"]) == 0
        compared = orjson.loads(capsys.readouterr().out.splitlines()[-1])["compared"]
        assert main(["train", config]) == 0
    told = capsys.readouterr().out
    kinds = ["STS", "Classification", "Clustering", "PairClassification", "Reranking", "Retrieval"]
    assert list(compared) == [*kinds, "mean of 6 tasks"]
    assert compared["Retrieval"]["before"] != compared["Retrieval"]["after"]
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert not (tmp_path / "model" / "_meta").exists()
    assert "Its weights are 25 % those of base, the rest as trained" in card.text
    for kind, points in compared.items():
        assert f"| {points['before']:.2f} | {points['after']:.2f} |" in card.text, kind
        assert f"{points['before']:6.2f} {points['after']:6.2f}" in told, kind
    results = {result.dataset_name: result for result in card.data.eval_results if result.metric_type == "ndcg_at_10"}
    assert results["MTEB MiniRetrieval"].metric_value == compared["Retrieval"]["after"]


def test_the_card_of_a_model_without_a_share_of_its_base_says_that_its_weights_are_as_trained() -> None:
    card = parse_card(Path("configs/reference/xiaobu-embedding-v2.yaml").read_text(encoding="utf-8"), "the reference")
    record = RECORD | {"training": TRAINING | {"base_weight": 0.0}}
    assert "Its weights are as they were trained.\n" in trained_card(card, card, record, Recipe(model="base"))


@pytest.mark.parametrize("asked", [["--dry-run"], []])
def test_without_the_data_of_the_mini_set_nothing_is_trained(
    tmp_path: Path, mirror: Path, capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    config = config_of(tmp_path, mirror)
    (tmp_path / "empty").mkdir()
    with patch("pipeline.execution.train.train_model") as trained:
        assert main(["train", config, f"evaluation.mirror={tmp_path / 'empty'}", *asked]) == 1
    assert "has no data of MiniReviews" in capsys.readouterr().err
    assert not trained.called
    assert not (tmp_path / "model").exists()
