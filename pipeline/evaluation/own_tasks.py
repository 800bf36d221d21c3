"""Tasks that mteb does not know, as it defines tasks: labelled sets of one's own, whose data comes from a mirror."""

from typing import Any

from mteb.abstasks import (
    AbsTaskClassification,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.clustering_legacy import AbsTaskClusteringLegacy
from mteb.abstasks.task_metadata import TaskMetadata

from pipeline.config import Kind
from pipeline.evaluation.card_tasks import CardTask


def own_task(name: str, kind: Kind, has_two_classes: bool = False) -> CardTask:
    """Return a task over the split `test` (and `train`, of a classification) of the mirror's folder of this name."""
    return CardTask(name, kind, "test", has_two_classes=has_two_classes, is_own=True)


def as_mteb_task(task: CardTask) -> Any:
    """Return a new mteb task for one that mteb does not know, without data."""
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
        description="A labelled set that mteb does not know.",
        dataset={"path": f"own/{task.name}", "revision": "1"},
        type=task.kind,
        category="t2c" if task.kind in ("Classification", "Clustering") else "t2t",
        modalities=["text"],
        eval_splits=[task.split],
        eval_langs=["cmn-Hans"],
        main_score=main_score,
        bibtex_citation="",
    )
    return type(task.name, (base,), {"metadata": metadata, **settings})()
