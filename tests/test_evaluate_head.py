"""evaluate of a model with a head: prefixes of the widened vectors score as with sentence-transformers and mteb."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from mteb.models.abs_encoder import AbsEncoder
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from jobs.evaluate import evaluate
from pipeline.config_file import load_config
from pipeline.evaluation.card_tasks import MAIN_METRIC, METRICS
from pipeline.evaluation.collect import collect
from pipeline.evaluation.model_meta import meta_of
from pipeline.evaluation.rehearsal import texts_of
from pipeline.evaluation.tasks import chosen_tasks
from pipeline.storage.filesystem import Store
from pipeline.storage.snapshots import open_snapshot
from tests.benchmarks.random_model import Shape, make_model, word
from tests.labelled_sets import write_sets
from tests.running import written_config
from tests.without_ray import without_ray

SHAPE = Shape(layers=1, hidden=1024, heads=16, inner=64, dimensions=1792, vocabulary=300, max_tokens=64)
"""As wide as BERT-large, and as its head; of one thin layer."""

NAMES = ["Nearness:STS", "Search:Retrieval", "Halves:PairClassification"]


class PlainEncoder(AbsEncoder):  # type: ignore[misc]
    """sentence-transformers alone: vectors cut to their first numbers, then scaled to length 1."""

    def __init__(self, folder: Path, dimensions: int | None) -> None:
        self.model = SentenceTransformer(str(folder), device="cpu", truncate_dim=dimensions)
        self.mteb_model_meta = meta_of("oracle", dimensions or SHAPE.dimensions)

    def encode(self, inputs: Any, **asked: Any) -> NDArray[np.float32]:
        return np.asarray(self.model.encode(texts_of(inputs), normalize_embeddings=True, show_progress_bar=False))


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory, reviews: pa.Table) -> Path:
    """Sets in the words of the model's vocabulary: a word per character of a review."""
    spelt = [" ".join(word(ord(one) % 290) for one in text[:30]) for text in reviews["text"][:2000].to_pylist()]
    texts = pa.table({"text": spelt, "label": reviews["label"][:2000]})
    return write_sets(tmp_path_factory.mktemp("sets"), texts)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "wide", SHAPE)


@pytest.mark.parametrize(("dimensions", "stored"), [(None, "float32"), (256, "float32"), (1024, "int8")])
def test_a_head_and_the_prefixes_of_its_vectors_score_as_with_sentence_transformers(
    tmp_path: Path, mirror: Path, model: Path, dimensions: int | None, stored: str
) -> None:
    import mteb

    config = written_config(
        tmp_path / "job.yaml",
        source={"uri": "in"},
        recipe={"model": str(model), "compute": "float32", "dimensions": dimensions, "stored": stored},
        output={"uri": "out"},
        runtime={"engine": "torch"},
        evaluation={"uri": str(tmp_path / "evaluation"), "tasks": NAMES, "mirror": str(mirror)},
    )
    loaded = load_config(config)
    assert loaded.evaluation is not None
    with without_ray():
        facts = evaluate(loaded, loaded.evaluation, None)["facts"]
    vectors = open_snapshot(facts["vectors"])
    assert vectors.record.dimension == (dimensions or SHAPE.dimensions)
    oracle = PlainEncoder(model, dimensions)
    tasks = collect(Store(str(tmp_path / "evaluation")), chosen_tasks(NAMES), str(mirror))
    for task in tasks.tasks:
        found = mteb.evaluate(oracle, tasks.loaded(task), cache=None, co2_tracker=False, show_progress_bar=False)
        expected = 100 * found.task_results[0].scores["test"][0][METRICS[task.kind][MAIN_METRIC[task.kind]]]
        allowed = 0.01 if stored == "float32" else 1.5
        assert facts["points"][task.name] == pytest.approx(expected, abs=allowed), task.name
