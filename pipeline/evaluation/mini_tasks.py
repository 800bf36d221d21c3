"""The six tasks of the mini set, one for each kind, as mteb defines tasks; their data comes from a mirror."""

from typing import Any

from mteb.abstasks import (
    AbsTaskClassification,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.clustering_legacy import AbsTaskClusteringLegacy
from mteb.abstasks.task_metadata import TaskMetadata

from pipeline.evaluation.card_tasks import CardTask

MINI_TASKS = (
    CardTask("MiniReviews", "Classification", "test", has_two_classes=True),
    CardTask("MiniChapters", "Clustering", "test"),
    CardTask("MiniHeadings", "PairClassification", "test"),
    CardTask("MiniReranking", "Reranking", "test"),
    CardTask("MiniRetrieval", "Retrieval", "test"),
    CardTask("MiniNearness", "STS", "test"),
)


def mini_task(task: CardTask) -> Any:
    """Return a new mteb task for one of MINI_TASKS, without data."""
    base, main_score, settings = {
        "Classification": (AbsTaskClassification, "accuracy", {"samples_per_label": 32, "n_experiments": 10}),
        "Clustering": (AbsTaskClusteringLegacy, "v_measure", {}),
        "PairClassification": (AbsTaskPairClassification, "max_accuracy", {}),
        "Reranking": (AbsTaskRetrieval, "map_at_1000", {}),
        "Retrieval": (AbsTaskRetrieval, "ndcg_at_10", {}),
        "STS": (AbsTaskSTS, "cosine_spearman", {"min_score": 0, "max_score": 3}),
    }[task.kind]
    metadata = TaskMetadata(
        name=task.name,
        description="Of packages, for a quick look; grades of STS are places in a book, not judgements of people.",
        dataset={"path": f"mini/{task.name}", "revision": "1"},
        type=task.kind,
        category="t2c" if task.kind in ("Classification", "Clustering") else "t2t",
        modalities=["text"],
        eval_splits=[task.split],
        eval_langs=["cmn-Hans"],
        main_score=main_score,
        bibtex_citation="",
    )
    return type(task.name, (base,), {"metadata": metadata, **settings})()
