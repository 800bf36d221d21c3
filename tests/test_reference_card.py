"""The reference card: its figures, its names in mteb, and a card of ours laid beside it."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import SourceError
from pipeline.evaluation.card_tasks import CARD_TASKS, METRICS, card_task, metrics_of
from pipeline.evaluation.comparison import averages, compare, comparison_markdown
from pipeline.evaluation.model_index import Card, card_yaml, parse_card, results_of

REFERENCE = Path(__file__).parents[1] / "configs" / "reference" / "xiaobu-embedding-v2.yaml"


@pytest.fixture(scope="module")
def reference() -> Card:
    return parse_card(REFERENCE.read_text(encoding="utf-8"), str(REFERENCE))


def test_the_card_parsed_and_written_again_is_the_same_file(reference: Card) -> None:
    assert card_yaml(reference) == REFERENCE.read_text(encoding="utf-8")
    assert len(reference.metrics()) == 35
    assert len(reference.results) == 367


def test_its_averages_are_those_it_is_quoted_with(reference: Card) -> None:
    kinds, whole = averages(reference)
    assert {kind: round(mean, 2) for kind, mean in kinds.items()} == {
        "STS": 64.53,
        "Classification": 74.67,
        "Clustering": 65.17,
        "Reranking": 72.58,
        "Retrieval": 76.49,
        "PairClassification": 91.87,
    }
    assert round(whole, 2) == 72.43


def test_the_table_names_every_task_of_the_card_in_its_order_with_kind_subset_and_split(reference: Card) -> None:
    first = {result.dataset_name: result for result in reversed(reference.results)}
    of_card = [(r.dataset_name, r.task_type, r.dataset_config, r.dataset_split) for r in reversed(first.values())]
    assert of_card == [(task.dataset_name, task.kind, task.subset, task.split) for task in CARD_TASKS]


def test_every_task_has_the_metrics_of_the_card_in_its_order(reference: Card) -> None:
    metrics = reference.metrics()
    assert {task.name: list(metrics_of(task)) for task in CARD_TASKS} == {
        task.name: list(metrics[task.dataset_name]) for task in CARD_TASKS
    }


def test_mteb_has_every_task_with_the_kind_the_subset_and_the_split_of_the_card() -> None:
    import mteb

    tasks = {task.metadata.name: task for task in mteb.get_tasks(tasks=[task.mteb_name for task in CARD_TASKS])}
    for task in CARD_TASKS:
        metadata = tasks[task.mteb_name].metadata
        assert (metadata.type, task.split in metadata.eval_splits) == (task.kind, True)
        assert task.subset in metadata.hf_subsets


def test_a_task_is_found_by_its_name_in_the_card_and_in_mteb() -> None:
    assert card_task("CMedQAv1") is card_task("CMedQAv1-reranking") is not None
    assert card_task("Banking77Classification") is None


def test_a_card_is_read_from_the_readme_of_a_model(reference: Card) -> None:
    readme = f"---\n{card_yaml(reference)}---\n\n# A model\n"
    assert parse_card(readme, "README.md") == reference


@pytest.mark.parametrize("text", ["", "a: 1", "model-index: 3", "model-index:\n- name: x", "---\n", "a: ["])
def test_what_is_no_card_is_refused_by_its_address(text: str) -> None:
    with pytest.raises(SourceError, match=r"s3://models/x/README\.md is no model card"):
        parse_card(text, "s3://models/x/README.md")


def test_scores_of_mteb_become_the_metrics_of_the_card_in_points() -> None:
    task = card_task("CMedQAv1")
    assert task is not None
    scores = {"map_at_1000": 0.5, "mrr_at_10": 0.25, "ndcg_at_10": 0.9}
    results = list(results_of(task, scores, "mteb/CMedQAv1-reranking", "f77f0345"))
    assert [(r.metric_type, r.metric_value) for r in results] == [("map", 50.0), ("mrr", 25.0)]
    assert results[0].dataset_name == "MTEB CMedQAv1"


def half_of(reference: Card, *names: str) -> Card:
    """Return a card with these tasks only, every metric half as high."""
    kept = {task.dataset_name for task in CARD_TASKS if task.name in names}
    results = [
        replace(result, metric_value=result.metric_value / 2)
        for result in reference.results
        if result.dataset_name in kept
    ]
    return Card("ours", tuple(results))


def test_a_comparison_averages_over_the_tasks_that_both_have(reference: Card) -> None:
    comparison = compare(half_of(reference, "STSB", "TNews", "T2Reranking"), reference, normalized=True)
    assert [line.name for line in comparison.tasks] == ["MTEB STSB", "MTEB T2Reranking", "MTEB TNews"]
    metrics = reference.metrics()
    expected = [
        metrics["MTEB STSB"]["cos_sim_spearman"],
        metrics["MTEB T2Reranking"]["map"],
        metrics["MTEB TNews"]["accuracy"],
    ]
    assert comparison.average.reference == pytest.approx(sum(expected) / 3)
    assert comparison.average.difference == pytest.approx(-sum(expected) / 6)
    assert [line.name for line in comparison.kinds] == ["STS", "Classification", "Reranking"]
    assert "no C-MTEB score" in comparison_markdown(comparison)


def test_a_comparison_says_where_split_revision_data_or_metric_differ(reference: Card) -> None:
    ours = half_of(reference, "STS22", "T2Reranking", "BQ")
    others = {
        "MTEB STS22 (zh)": {"dataset_revision": "abc", "dataset_type": "mteb/sts22"},
        "MTEB BQ": {"dataset_split": "dev"},
    }
    changed = [replace(result, **others.get(result.dataset_name, {})) for result in ours.results]  # type: ignore[arg-type]
    flags = {line.name: line.flags for line in compare(Card("ours", tuple(changed)), reference, normalized=True).tasks}
    assert flags["MTEB STS22 (zh)"] == (
        "another revision of the data",
        "data from mteb/sts22, there mteb/sts22-crosslingual-sts",
    )
    assert flags["MTEB BQ"] == ("split dev, there test", "revision there unknown")
    assert flags["MTEB T2Reranking"] == ("revision there unknown", "metric is defined otherwise today")


def test_vectors_that_are_not_normalised_are_told_in_the_table(reference: Card) -> None:
    ours = half_of(reference, "STSB")
    assert "not normalised" in comparison_markdown(compare(ours, reference, normalized=False))
    assert "not normalised" not in comparison_markdown(compare(ours, reference, normalized=True))


def test_pair_classification_has_all_23_metrics_and_retrieval_all_30() -> None:
    assert Counter({kind: len(metrics) for kind, metrics in METRICS.items()}) == {
        "STS": 6,
        "Classification": 3,
        "Clustering": 1,
        "PairClassification": 23,
        "Reranking": 2,
        "Retrieval": 30,
    }
