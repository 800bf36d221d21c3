"""Training sets and batches: distinct examples, batches of one set, labels in company, a share for every set."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.errors import SourceError
from pipeline.training.batches import ClassBatches, Collator, ScheduledBatches, batches_of, schedule
from pipeline.training.piccolo import converted
from pipeline.training.sets import TrainingExamples, distinct_examples, keys_of


def examples(kind: str, **columns: list[Any]) -> TrainingExamples:
    return distinct_examples("set", kind, None, pa.table(columns))


def test_a_text_stands_once_and_not_at_all_if_its_labels_disagree() -> None:
    found = examples("class", text=["a", "b", "a", "c", "c"], label=["x", "y", "x", "x", "y"])
    assert found.table.to_pylist() == [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    assert found.weight == 2.0


def test_a_row_with_a_null_is_left_out() -> None:
    assert len(examples("pair", text_a=["a", None], text_b=["b", "c"], score=[1, 0])) == 1


def test_the_rows_of_one_query_become_one_example_with_all_documents() -> None:
    found = examples("retrieval", query=["q", "q"], positives=[["a"], ["b", "a"]], negatives=[["n"], ["b"]])
    (example,) = found.table.to_pylist()
    assert dict(zip(example["documents"], example["grades"], strict=True)) == {"a": 1.0, "b": 1.0, "n": 0.0}


def test_a_query_without_a_positive_is_no_example() -> None:
    with pytest.raises(SourceError, match="no example is left of 1 rows"):
        examples("rerank", query=["q"], candidates=[["a", "b"]], relevance=[[0.0, 0.0]])


def test_candidates_keep_their_grades() -> None:
    found = examples("rerank", query=["q"], candidates=[["a", "b", "c"]], relevance=[[2, 0, 1]])
    assert found.table.to_pylist() == [{"query": "q", "documents": ["a", "b", "c"], "grades": [2.0, 0.0, 1.0]}]


def test_candidates_without_a_grade_each_are_refused() -> None:
    with pytest.raises(SourceError, match="row 1 of a rerank set has 2 candidates and 1 grades"):
        examples("rerank", query=["q", "r", "s"], candidates=[["a"], ["b", "c"], ["d"]], relevance=[[1], [1], [0, 1]])


def test_a_missing_column_is_named_with_what_the_kind_needs() -> None:
    with pytest.raises(SourceError, match="kind pair has the columns text_a, text_b, score; missing: text_b, score"):
        examples("pair", text_a=["a"], label=[1])


def test_at_every_step_every_set_has_had_its_share_to_within_one() -> None:
    weights_S = np.array([6.0, 3.0, 1.0])
    chosen = schedule(weights_S.tolist(), 200)
    taken_TS = np.cumsum(chosen[:, None] == np.arange(3), axis=0)
    due_TS = np.arange(1, 201)[:, None] * weights_S / weights_S.sum()
    assert np.abs(taken_TS - due_TS).max() <= 1.0


def test_every_text_of_a_batch_has_another_of_its_label_even_with_many_labels() -> None:
    labels_N = np.repeat(np.arange(50), 8)
    batches = ClassBatches(labels_N, 32).epoch(np.random.default_rng(0))
    assert batches.shape == (12, 32)
    assert len(np.unique(batches)) == 384
    for rows_B in batches:
        _, counts = np.unique(labels_N[rows_B], return_counts=True)
        assert counts.min() > 1


def test_a_set_smaller_than_a_batch_is_repeated() -> None:
    few = examples("pair", text_a=["a", "b"], text_b=["c", "d"], score=[1, 0])
    assert sorted(batches_of(few, 4).epoch(np.random.default_rng(0))[0].tolist()) == [0, 0, 1, 1]


def two_sets() -> list[TrainingExamples]:
    labelled = examples("class", text=[f"t{n}" for n in range(10)], label=[n % 2 for n in range(10)])
    pairs = examples("pair", text_a=[f"a{n}" for n in range(6)], text_b=["b"] * 6, score=list(range(6)))
    return [labelled, pairs]


def test_a_batch_is_of_one_set_and_the_same_seed_gives_the_same_batches() -> None:
    sets = two_sets()
    whole: Any = torch.utils.data.ConcatDataset([range(10), range(6)])
    first, again, other = (list(ScheduledBatches(whole, sets, 4, 20, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 20
    assert {min(rows) >= 10 for rows in first} == {True, False}
    assert all((min(rows) >= 10) == (max(rows) >= 10) for rows in first)
    assert all(len(set(rows)) == 4 for rows in first)


def test_the_documents_of_a_batch_stand_once_and_know_whose_they_are() -> None:
    seen: list[list[str]] = []

    def preprocess(texts: list[str]) -> dict[str, Any]:
        seen.append(texts)
        return {"input_ids": torch.zeros(len(texts), 1)}

    rows = [
        {"query": "q", "documents": ["a", "n"], "grades": [1.0, 0.0]},
        {"query": "r", "documents": ["a"], "grades": [1.0]},
    ]
    batch = Collator(preprocess)(rows)
    assert seen == [["q", "r"], ["a", "n"]]
    assert batch["document_input_ids"].shape == (2, 1)
    labels = batch["label"]
    assert labels["kind"] == "retrieval"
    assert labels["document_keys_M"].tolist() == keys_of(["a", "n"]).tolist()
    assert labels["own_keys_QP"].tolist() == [keys_of(["a", "n"]).tolist(), [keys_of(["a"])[0], 0]]
    assert labels["own_grades_QP"].tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_records_of_piccolo_embedding_become_sets() -> None:
    search = [{"text": "q", "text_pos": "a", "text_neg": ["n"]}]
    assert converted(search, "retri_contrast")[1].to_pylist() == [
        {"query": "q", "positives": ["a"], "negatives": ["n"]}
    ]
    kind, table = converted([{"text": "t", "text_pos": "sport", "text_neg": ["art"]}], "cls_contrast")
    assert (kind, table.to_pylist()) == ("class", [{"text": "t", "label": "sport"}])
    kind, table = converted([{"text": "a", "text_pair": "b", "label": 3}], "cosent")
    assert (kind, table.to_pylist()) == ("pair", [{"text_a": "a", "text_b": "b", "score": 3}])
    with pytest.raises(SourceError, match="missing: text_pair, label"):
        converted([{"text": "a"}], "cosent")
