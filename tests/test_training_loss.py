"""The unified circle loss: against other implementations, against itself without a cache, against two workers."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_metric_learning.losses import CircleLoss
from torch import Tensor, distributed, nn
from torch.nn import functional

from pipeline.training.circle_loss import UnifiedCircleLoss, circle, compared
from pipeline.training.ranking import (
    CircleWeighting,
    EvenWeighting,
    document_relevance,
    label_relevance,
    ranking_loss,
)

NAN = float("nan")


def vectors(rows: int, seed: int = 0) -> Tensor:
    return functional.normalize(torch.randn(rows, 16, dtype=torch.float64, generator=torch.manual_seed(seed)), dim=1)


def test_on_labels_it_is_the_circle_loss_of_pytorch_metric_learning_in_value_and_gradient() -> None:
    labels_B = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3])
    ours_BD, theirs_BD = (vectors(8).requires_grad_() for _ in range(2))
    units_BD = functional.normalize(ours_BD, dim=1)
    ours = ranking_loss(units_BD @ units_BD.T, label_relevance(labels_B, torch.arange(8)), CircleWeighting(0.25, 32.0))
    theirs = CircleLoss(m=0.25, gamma=32)(theirs_BD, labels_B)
    ours.backward()
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    assert theirs_BD.grad is not None
    torch.testing.assert_close(ours_BD.grad, theirs_BD.grad, atol=1e-6, rtol=0)


def test_a_text_that_stands_twice_in_a_batch_is_no_positive_of_itself() -> None:
    relevance_BB = label_relevance(torch.tensor([0, 0, 1, 0]), torch.tensor([7, 8, 9, 7]))
    expected_BB = [[NAN, 1, 0, NAN], [1, NAN, 0, 1], [0, 0, NAN, 0], [NAN, 1, 0, NAN]]
    torch.testing.assert_close(relevance_BB, torch.tensor(expected_BB), equal_nan=True)


def test_without_weights_and_with_one_positive_a_query_it_is_info_nce() -> None:
    queries_QD, documents_MD = vectors(4, 1), vectors(6, 2)
    similarities_QM = queries_QD @ documents_MD.T
    relevance_QM = functional.one_hot(torch.arange(4), 6).double()
    expected = functional.cross_entropy(similarities_QM / 0.05, torch.arange(4))
    assert ranking_loss(similarities_QM, relevance_QM, EvenWeighting(1 / 0.05)).item() == pytest.approx(
        expected.item(), abs=1e-8
    )


def test_without_weights_and_over_scored_pairs_it_is_cosent() -> None:
    cosines_B = torch.tensor([0.9, 0.1, 0.4, 0.7], dtype=torch.float64)
    scores_B = torch.tensor([5.0, 1.0, 1.0, 3.0], dtype=torch.float64)
    differences = [
        (cosines_B[low] - cosines_B[high]) * 20
        for high in range(4)
        for low in range(4)
        if scores_B[high] > scores_B[low]
    ]
    expected = torch.logsumexp(torch.stack([torch.tensor(0.0, dtype=torch.float64), *differences]), dim=0)
    found = ranking_loss(cosines_B[None], scores_B[None], EvenWeighting(20.0))
    assert found.item() == pytest.approx(expected.item(), abs=1e-8)


def test_every_positive_of_a_query_is_pulled() -> None:
    similarities_RM = torch.tensor([[0.2, 0.4, 0.3, 0.1]], requires_grad=True)
    ranking_loss(similarities_RM, torch.tensor([[1.0, 1.0, 1.0, 0.0]]), CircleWeighting(0.25, 32.0)).backward()
    assert similarities_RM.grad is not None
    assert (similarities_RM.grad[0, :3] < 0).all()
    assert similarities_RM.grad[0, 3] > 0


def test_what_lies_further_from_its_goal_pulls_more() -> None:
    similarities_RM = torch.tensor([[0.1, 0.7, 0.0]], requires_grad=True)
    ranking_loss(similarities_RM, torch.tensor([[1.0, 1.0, 0.0]]), CircleWeighting(0.25, 4.0)).backward()
    assert similarities_RM.grad is not None
    assert similarities_RM.grad[0, 0] < similarities_RM.grad[0, 1] < 0


def test_a_better_candidate_must_be_nearer_than_a_good_one() -> None:
    in_order, in_disorder = torch.tensor([[0.9, 0.5, 0.1]]), torch.tensor([[0.5, 0.9, 0.1]])
    grades = torch.tensor([[2.0, 1.0, 0.0]])
    weighting = CircleWeighting(0.25, 32.0)
    assert ranking_loss(in_order, grades, weighting) < ranking_loss(in_disorder, grades, weighting)


def test_rows_without_a_pair_count_for_nothing_and_give_finite_gradients() -> None:
    similarities_RM = torch.tensor([[0.5, 0.2, 999.0], [0.3, 0.3, 0.3]], requires_grad=True)
    relevance_RM = torch.tensor([[1.0, 0.0, NAN], [0.0, 0.0, 0.0]])
    loss = ranking_loss(similarities_RM, relevance_RM, CircleWeighting(0.25, 32.0))
    loss.backward()
    alone = ranking_loss(similarities_RM[:1, :2].detach(), relevance_RM[:1, :2], CircleWeighting(0.25, 32.0))
    assert similarities_RM.grad is not None
    assert loss.item() == pytest.approx(alone.item())
    assert similarities_RM.grad[1].tolist() == [0.0, 0.0, 0.0]
    assert similarities_RM.grad[0, 2] == 0.0
    assert similarities_RM.grad.isfinite().all()


def test_a_batch_in_which_nothing_can_be_compared_has_a_loss_of_zero() -> None:
    similarities_RM = torch.rand(2, 2, requires_grad=True)
    loss = ranking_loss(similarities_RM, torch.full((2, 2), 1.0), CircleWeighting(0.25, 32.0))
    loss.backward()
    assert loss.item() == 0.0
    assert similarities_RM.grad is not None
    assert similarities_RM.grad.abs().sum() == 0.0


def test_the_same_text_under_another_query_is_no_negative() -> None:
    relevance_QM = document_relevance(
        query_keys_Q=torch.tensor([1, 3]),
        own_keys_QP=torch.tensor([[11, 13], [11, 0]]),
        own_grades_QP=torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
        document_keys_M=torch.tensor([11, 13, 3, 11, 0]),
    )
    expected = torch.tensor([[1.0, 0.0, 0.0, NAN, NAN], [1.0, 0.0, NAN, NAN, NAN]])
    torch.testing.assert_close(relevance_QM, expected, equal_nan=True)


class Bag(nn.Module):  # type: ignore[misc]
    """A model of one table: the mean of the vectors of its tokens, after dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 8)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": self.dropout(self.table(features["input_ids"])).mean(dim=1)}


def batch_of(kind: str, rows: slice = slice(None)) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
    """Return eight examples of a kind, or some of them, as the collator would."""
    random = torch.manual_seed(5)
    first_BT, second_BT = (torch.randint(0, 50, (8, 5), generator=random)[rows] for _ in range(2))
    texts = [{"input_ids": first_BT}, {"input_ids": second_BT}]
    if kind == "class":
        labels_B = torch.tensor([0, 1, 0, 2, 1, 0, 2, 2])
        return texts[:1], {"kind": kind, "labels_B": labels_B[rows], "keys_B": torch.arange(8)[rows]}
    if kind == "pair":
        return texts, {"kind": kind, "scores_B": torch.tensor([0.1, 0.9, 0.5, 0.5, 0.3, 0.0, 1.0, 0.7])[rows]}
    keys_M = torch.arange(101, 109)[rows]
    return texts, {
        "kind": "retrieval",
        "query_keys_Q": torch.arange(1, 9)[rows],
        "own_keys_QP": torch.stack([keys_M, torch.full_like(keys_M, 101)], dim=1),
        "own_grades_QP": torch.ones(len(keys_M), 2),
        "document_keys_M": keys_M,
    }


KINDS = ("class", "pair", "retrieval")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mini_batch_rows", [3, 8])
def test_mini_batches_change_no_gradient(kind: str, mini_batch_rows: int) -> None:
    features, labels = batch_of(kind)
    plain, cached = Bag(), Bag()
    columns = [functional.normalize(plain(column)["sentence_embedding"], dim=1) for column in features]
    expected = ranking_loss(*compared(columns, labels), CircleWeighting(0.25, 32.0))
    expected.backward()
    loss = UnifiedCircleLoss(cached, circle(0.25, 32.0), mini_batch_rows)(features, labels)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert plain.table.weight.grad is not None
    assert plain.table.weight.grad.abs().sum() > 0
    torch.testing.assert_close(cached.table.weight.grad, plain.table.weight.grad, atol=1e-4, rtol=0)


def shared_gradients(rank: int, folder: str) -> None:
    """Be one of two workers: save the averaged gradient of each kind, rank 0 with five of eight examples."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for kind in KINDS:
        model = Bag()
        features, labels = batch_of(kind, slice(0, 5) if rank == 0 else slice(5, 8))
        loss = UnifiedCircleLoss(model, circle(0.25, 32.0), mini_batch_rows=2)(features, labels)
        loss.backward()
        assert model.table.weight.grad is not None
        distributed.all_reduce(model.table.weight.grad)
        found[kind] = (loss.item(), model.table.weight.grad / 2)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_workers_with_parts_of_a_batch_give_the_gradient_of_one_with_all_of_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=shared_gradients, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for kind in KINDS:
        model = Bag()
        loss = UnifiedCircleLoss(model, circle(0.25, 32.0), mini_batch_rows=8)(*batch_of(kind))
        loss.backward()
        for worker in found:
            assert worker[kind][0] == pytest.approx(loss.item(), abs=1e-5)
            torch.testing.assert_close(worker[kind][1], model.table.weight.grad, atol=1e-6, rtol=0)
