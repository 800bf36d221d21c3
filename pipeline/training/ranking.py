"""One loss for every kind of problem: in each row, what is more relevant should be more similar."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

NOTHING = -1e30
"""The logarithm of nothing: as an infinity it would turn gradients into NaN where a row has no pair."""


@dataclass(frozen=True, slots=True)
class CircleWeighting:
    """Exponents of the circle loss: what lies far from its goal pulls more than what has nearly reached it.

    After Sun et al., Circle Loss (arXiv 2002.10857), equations 6 to 8: with the margin m and the scale g, a positive of
    similarity s enters as -g · [1 + m - s]+ · (s - (1 - m)), a negative as g · [s + m]+ · (s - m); no gradient flows
    through the brackets.
    """

    margin: float
    scale: float

    def exponents(self, similarities_RM: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each similarity weighs as a positive and as a negative, (R, M) each."""
        fixed_RM = similarities_RM.detach()
        pulls_RM = (1 + self.margin - fixed_RM).clamp(min=0)
        pushes_RM = (fixed_RM + self.margin).clamp(min=0)
        as_positive_RM = -self.scale * pulls_RM * (similarities_RM - (1 - self.margin))
        as_negative_RM = self.scale * pushes_RM * (similarities_RM - self.margin)
        return as_positive_RM, as_negative_RM


@dataclass(frozen=True, slots=True)
class EvenWeighting:
    """Exponents without weights: with one positive a row the loss is InfoNCE, over graded pairs it is CoSENT."""

    scale: float
    """1 / temperature."""

    def exponents(self, similarities_RM: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each similarity weighs as a positive and as a negative, (R, M) each."""
        return -self.scale * similarities_RM, self.scale * similarities_RM


Weighting = CircleWeighting | EvenWeighting


def ranking_loss(similarities_RM: Tensor, relevance_RM: Tensor, weighting: Weighting) -> Tensor:
    """Return the mean over rows of log(1 + the sum over pairs (j, k) with relevance j > k of exp(p_j + n_k)).

    p and n are the exponents of the weighting. A row in which nothing is more relevant than something else counts for
    nothing. What each kind of problem makes of it:

    - labels: rows and columns are the texts of a batch, the relevance is 1 for the same label, else 0;
    - retrieval: rows are queries, columns the documents of the batch, the relevance is 1 for each of the query's own;
    - graded candidates: the same with their grades;
    - scored pairs: one row, a column for each pair of texts, the relevance is the pair's score.

    Args:
        similarities_RM: cosines, (R, M), with a gradient.
        relevance_RM: (R, M); NaN leaves an entry out.
        weighting: circle, or even.

    Returns:
        A number without dimensions; zero, with a gradient of zero, where no row has a pair.
    """
    as_positive_RM, as_negative_RM = weighting.exponents(similarities_RM)
    grades_G = relevance_RM[~relevance_RM.isnan()].unique()
    sums_PR = [
        _log_sum(as_positive_RM, relevance_RM == grade) + _log_sum(as_negative_RM, relevance_RM < grade)
        for grade in grades_G[1:]
    ]
    if not sums_PR:
        return similarities_RM.sum() * 0.0
    pairs_R = torch.logsumexp(torch.stack(sums_PR), dim=0)
    has_pair_R = pairs_R > NOTHING / 2
    return functional.softplus(pairs_R).sum() / has_pair_R.sum().clamp(min=1)


def _log_sum(exponents_RM: Tensor, chosen_RM: Tensor) -> Tensor:
    return exponents_RM.masked_fill(~chosen_RM, NOTHING).logsumexp(dim=1)


def label_relevance(labels_B: Tensor, keys_B: Tensor) -> Tensor:
    """Return the relevance of each text of a batch for each other, (B, B): same label or not; the text is left out.

    Args:
        keys_B: hashes of the texts, int64: in a set smaller than a batch one stands there again.
    """
    relevance_BB = (labels_B[:, None] == labels_B[None, :]).float()
    return relevance_BB.masked_fill(keys_B[:, None] == keys_B[None, :], torch.nan)


def document_relevance(
    query_keys_Q: Tensor, own_keys_QP: Tensor, own_grades_QP: Tensor, document_keys_M: Tensor
) -> Tensor:
    """Return the relevance of the documents of a batch for its queries, (Q, M): the grade, or 0 for those of others.

    A document is told by its text: the same text under another query is no false negative. Left out are a document
    that is the query itself, and all but the first of equal documents.

    Args:
        query_keys_Q: hashes of the texts, int64.
        own_keys_QP: hashes of each query's own documents; 0 where it has fewer than P.
        own_grades_QP: their grades.
        document_keys_M: hashes of the documents; 0 where there is none.
    """
    same_QPM = own_keys_QP[:, :, None] == document_keys_M[None, None, :]
    relevance_QM = (same_QPM * own_grades_QP[:, :, None]).amax(dim=1)
    is_known_M = (document_keys_M != 0) & _is_first(document_keys_M)
    is_query_QM = query_keys_Q[:, None] == document_keys_M[None, :]
    return relevance_QM.masked_fill(~is_known_M[None, :] | is_query_QM, torch.nan)


def _is_first(keys_M: Tensor) -> Tensor:
    same_MM = keys_M[:, None] == keys_M[None, :]
    return same_MM.float().argmax(dim=1) == torch.arange(len(keys_M), device=keys_M.device)
