"""UnifiedCircleLoss: the ranking loss on the vectors of a batch, over all workers, with the memory of a mini-batch."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from torch import Tensor, nn
from torch.nn import functional

from pipeline.training.ranking import (
    CircleWeighting,
    EvenWeighting,
    Weighting,
    document_relevance,
    label_relevance,
    ranking_loss,
)
from pipeline.training.workers import gathered, workers

COMPARISONS = ("class", "pair", "retrieval")
"""What a batch compares; graded candidates are compared as retrieval is."""

Labels = Mapping[str, Any]
"""Of one batch, see `pipeline.training.batches`: `kind`, and its tensors."""


class UnifiedCircleLoss(CachedLossMixin, nn.Module):  # type: ignore[misc]
    """One circle loss for labels, scored pairs, retrieval and graded candidates, without weights between them.

    The loss of a batch is `ranking_loss` of its cosines; there it stands how each kind becomes one. Every positive of a
    query is used. The constants are ours: the model card of xiaobu-embedding-v2 names the idea and publishes none.

    The batch may be far larger than what fits: vectors are computed `mini_batch_rows` texts at a time, without
    gradients, then once more with them (gradient caching, arXiv 2101.06983); one that fits into a mini-batch is
    computed once. With several workers each sees the vectors of all: the gradients are those of one worker with the
    whole batch. `MatryoshkaLoss` can wrap it.

    Args:
        model: what turns token features into `sentence_embedding`.
        weighting_of: the weighting of each kind, and what the loss of the kind is multiplied with.
        mini_batch_rows: texts that are computed at once.
    """

    def __init__(
        self, model: nn.Module, weighting_of: Mapping[str, tuple[Weighting, float]], mini_batch_rows: int
    ) -> None:
        super().__init__()
        self.model = model
        self.weighting_of = dict(weighting_of)
        self.mini_batch_size = mini_batch_rows

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Labels) -> Tensor:
        """Return the loss of a batch; its backward pass gives the weights their gradients."""
        columns = list(sentence_features)
        if torch.is_grad_enabled() and all(len(column["input_ids"]) <= self.mini_batch_size for column in columns):
            return self._at_once(columns, labels)
        loss: Tensor = self.forward_cached(columns, labels)
        return loss

    def _at_once(self, columns: list[dict[str, Tensor]], labels: Labels) -> Tensor:
        """Return the loss of a batch whose columns fit into a mini-batch each, which are computed once."""
        vectors = [self.model(column)["sentence_embedding"] for column in columns]
        leaves = [vectors_BD.detach().requires_grad_() for vectors_BD in vectors]
        loss = self.calculate_loss([[leaf_BD] for leaf_BD in leaves], labels, with_backward=True)
        pulls = [(vectors_BD * leaf_BD.grad).sum() for vectors_BD, leaf_BD in zip(vectors, leaves, strict=True)]
        pull = torch.stack(pulls).sum()
        return loss + (pull - pull.detach())

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Labels | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Return the loss of all workers' batches.

        Args:
            reps: for each column the vectors of its mini-batches, (b, D) each.
            labels: of this worker's batch.
            with_backward: also compute the gradients of the vectors, times the number of workers, over which they
                will be averaged.
        """
        assert labels is not None
        columns = [functional.normalize(torch.cat(column).float(), dim=-1) for column in reps]
        similarities_RM, relevance_RM = compared(columns, labels)
        weighting, factor = self.weighting_of[labels["kind"]]
        loss = ranking_loss(similarities_RM, relevance_RM, weighting) * factor
        if with_backward:
            (loss * workers()).backward()
            return loss.detach()
        return loss

    def get_config_dict(self) -> dict[str, Any]:
        """Return what the model card says of the loss."""
        weightings = {kind: repr(weighting) for kind, (weighting, _) in self.weighting_of.items()}
        return {"weighting": weightings, "mini_batch_rows": self.mini_batch_size}


def circle(margin: float, scale: float) -> dict[str, tuple[Weighting, float]]:
    """Return the same weighting for every kind: nothing to tune between them."""
    return {kind: (CircleWeighting(margin, scale), 1.0) for kind in COMPARISONS}


def weighted() -> dict[str, tuple[Weighting, float]]:
    """Return InfoNCE and CoSENT with the temperatures and weights of piccolo-embedding, to compare with.

    Source: hjq133/piccolo-embedding at 9dd1d66: temperature 0.01 for retrieval and reranking; 0.05 and the weight 0.04
    for scored pairs; 0.05 and the weight 0.2 for labels. Unlike there, all positives of a query are used, and labels
    are compared by texts of the batch and not by the labels' names, so that only the loss differs.
    """
    return {
        "retrieval": (EvenWeighting(1 / 0.01), 1.0),
        "pair": (EvenWeighting(1 / 0.05), 0.04),
        "class": (EvenWeighting(1 / 0.05), 0.2),
    }


def compared(columns: list[Tensor], labels: Labels) -> tuple[Tensor, Tensor]:
    """Return the cosines that the kind of a batch compares, over all workers, and their relevance, (R, M) each.

    Args:
        columns: vectors of length 1, (B, D) each: the texts; the two sides of the pairs; or queries and documents.
        labels: of this worker's batch.
    """
    if labels["kind"] == "class":
        vectors_BD = gathered(columns[0])
        return vectors_BD @ vectors_BD.T, label_relevance(gathered(labels["labels_B"]), gathered(labels["keys_B"]))
    if labels["kind"] == "pair":
        cosines_B = (columns[0] * columns[1]).sum(dim=-1)
        return gathered(cosines_B)[None, :], gathered(labels["scores_B"])[None, :]
    queries_QD, documents_MD = gathered(columns[0]), gathered(columns[1])
    relevance_QM = document_relevance(
        gathered(labels["query_keys_Q"]),
        gathered(labels["own_keys_QP"]),
        gathered(labels["own_grades_QP"]),
        gathered(labels["document_keys_M"]),
    )
    return queries_QD @ documents_MD.T, relevance_QM
