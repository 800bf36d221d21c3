"""The 35 tasks of a C-MTEB model card: their names, kinds, splits and metrics there, and what mteb calls them now.

Authority for the names of tasks: `mteb.results.task_result.renamed_tasks`; for those of metrics: the conversion of old
results in `mteb.results.TaskResult.from_disk` (cos_sim → cosine). `map` and `mrr` of Reranking were an average
precision over a query's own candidates and an MRR at 10; mteb computes them now from a ranking, as `map_at_1000` and
`mrr_at_10`, so that they differ where candidates tie.
"""

from dataclasses import dataclass
from typing import get_args

from pipeline.config import Kind

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class CardTask:
    """One task as a card names it."""

    name: str
    kind: Kind
    split: str
    subset: str = "default"
    renamed: str | None = None
    """Its name in mteb, where that is another."""
    has_two_classes: bool = False
    """Then its card has the metric `ap`."""
    is_own: bool = False
    """Whether mteb does not know it."""

    @property
    def mteb_name(self) -> str:
        return self.renamed or self.name

    @property
    def dataset_name(self) -> str:
        """As it stands under `dataset.name` of a card."""
        return f"MTEB {self.name}" + ("" if self.subset == "default" else f" ({self.subset})")


CARD_TASKS = (
    CardTask("AFQMC", "STS", "validation"),
    CardTask("ATEC", "STS", "test"),
    CardTask("AmazonReviewsClassification", "Classification", "test", subset="zh"),
    CardTask("BQ", "STS", "test"),
    CardTask("CLSClusteringP2P", "Clustering", "test"),
    CardTask("CLSClusteringS2S", "Clustering", "test"),
    CardTask("CMedQAv1", "Reranking", "test", renamed="CMedQAv1-reranking"),
    CardTask("CMedQAv2", "Reranking", "test", renamed="CMedQAv2-reranking"),
    CardTask("CmedqaRetrieval", "Retrieval", "dev"),
    CardTask("Cmnli", "PairClassification", "validation"),
    CardTask("CovidRetrieval", "Retrieval", "dev"),
    CardTask("DuRetrieval", "Retrieval", "dev"),
    CardTask("EcomRetrieval", "Retrieval", "dev"),
    CardTask("IFlyTek", "Classification", "validation"),
    CardTask("JDReview", "Classification", "test", has_two_classes=True),
    CardTask("LCQMC", "STS", "test"),
    CardTask("MMarcoReranking", "Reranking", "dev"),
    CardTask("MMarcoRetrieval", "Retrieval", "dev"),
    CardTask("MassiveIntentClassification", "Classification", "test", subset="zh-CN"),
    CardTask("MassiveScenarioClassification", "Classification", "test", subset="zh-CN"),
    CardTask("MedicalRetrieval", "Retrieval", "dev"),
    CardTask("MultilingualSentiment", "Classification", "validation"),
    CardTask("Ocnli", "PairClassification", "validation"),
    CardTask("OnlineShopping", "Classification", "test", has_two_classes=True),
    CardTask("PAWSX", "STS", "test"),
    CardTask("QBQTC", "STS", "test"),
    CardTask("STS22", "STS", "test", subset="zh"),
    CardTask("STSB", "STS", "test"),
    CardTask("T2Reranking", "Reranking", "dev"),
    CardTask("T2Retrieval", "Retrieval", "dev"),
    CardTask("TNews", "Classification", "validation"),
    CardTask("ThuNewsClusteringP2P", "Clustering", "test"),
    CardTask("ThuNewsClusteringS2S", "Clustering", "test"),
    CardTask("VideoRetrieval", "Retrieval", "dev"),
    CardTask("Waimai", "Classification", "test", has_two_classes=True),
)
"""In the order of the card."""

MAIN_METRIC: dict[Kind, str] = {
    "STS": "cos_sim_spearman",
    "Classification": "accuracy",
    "Clustering": "v_measure",
    "PairClassification": "max_ap",
    "Reranking": "map",
    "Retrieval": "ndcg_at_10",
}
"""What C-MTEB cards average; not mteb's `main_score`, which is max_accuracy and map_at_1000 today."""

_DEPTHS = (1, 10, 100, 1000, 3, 5)
_DISTANCES = {"cos_sim": "cosine", "dot": "dot", "euclidean": "euclidean", "manhattan": "manhattan"}


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _of_distances(distances: tuple[str, ...], measures: tuple[str, ...]) -> dict[str, str]:
    return {f"{old}_{measure}": f"{_DISTANCES[old]}_{measure}" for old in distances for measure in measures}


METRICS: dict[Kind, dict[str, str]] = {
    "STS": _of_distances(("cos_sim", "euclidean", "manhattan"), ("pearson", "spearman")),
    "Classification": _same("accuracy", "ap", "f1"),
    "Clustering": _same("v_measure"),
    "PairClassification": _of_distances(tuple(_DISTANCES), ("accuracy", "ap", "f1", "precision", "recall"))
    | _same("max_accuracy", "max_ap", "max_f1"),
    "Reranking": {"map": "map_at_1000", "mrr": "mrr_at_10"},
    "Retrieval": _same(*(f"{m}_at_{k}" for m in ("map", "mrr", "ndcg", "precision", "recall") for k in _DEPTHS)),
}
"""Of each kind the metrics of a card, in its order, and the key that mteb gives each today."""

REDEFINED = frozenset({"Reranking"})
"""Kinds whose metrics mteb computes otherwise than when the cards were written."""


def card_task(name: str) -> CardTask | None:
    """Return the task of this name, as a card or as mteb has it; None if the card has no such task."""
    return next((task for task in CARD_TASKS if name in (task.name, task.mteb_name)), None)


def metrics_of(task: CardTask) -> dict[str, str]:
    """Return the metrics that a card gives for a task, in its order, with the keys of mteb."""
    metrics = METRICS[task.kind]
    if task.kind == "Classification" and not task.has_two_classes:
        return {name: key for name, key in metrics.items() if name != "ap"}
    return metrics
