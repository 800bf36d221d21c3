"""From examples to batches: which set is next, which of its examples, and what the loss is told of them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.base.sampler import MultiDatasetDefaultBatchSampler
from torch.utils.data import BatchSampler, ConcatDataset

from pipeline.training.sets import TrainingExamples, keys_of

Preprocess = Callable[[list[str]], dict[str, Any]]
"""From texts to what the model reads: `input_ids`, `attention_mask`, …, (B, T) each."""

TEXTS_PER_LABEL = 4
"""So many texts of a label meet in a batch where there are many labels: without company a text has no positive."""


class ClassBatches:
    """Batches of a labelled set: several texts of each label that is in, each text once per epoch.

    With few labels the texts are simply shuffled; else the shuffled texts of each label are cut into groups, and the
    groups are shuffled.
    """

    def __init__(self, labels_N: NDArray[np.int64], batch_rows: int) -> None:
        self._labels_N = labels_N
        self._batch_rows = batch_rows

    def epoch(self, random: np.random.Generator) -> NDArray[np.int64]:
        """Return the rows of one epoch in whole batches, (batches, batch_rows)."""
        order_N = random.permutation(len(self._labels_N))
        if len(np.unique(self._labels_N)) * TEXTS_PER_LABEL > self._batch_rows:
            by_label_N = order_N[np.argsort(self._labels_N[order_N], kind="stable")]
            labels_N = self._labels_N[by_label_N]
            starts_N = np.searchsorted(labels_N, labels_N)
            place_N = np.arange(len(labels_N)) - starts_N
            groups_N = np.unique(np.stack([labels_N, place_N // TEXTS_PER_LABEL]), axis=1, return_inverse=True)[
                1
            ].ravel()
            ranks_G = random.permutation(groups_N.max() + 1)
            order_N = by_label_N[np.argsort(ranks_G[groups_N], kind="stable")]
        return _whole_batches(order_N, self._batch_rows)


class ShuffledBatches:
    """Batches of a set in which every example has all it needs."""

    def __init__(self, rows: int, batch_rows: int) -> None:
        self._rows = rows
        self._batch_rows = batch_rows

    def epoch(self, random: np.random.Generator) -> NDArray[np.int64]:
        """Return the rows of one epoch in whole batches, (batches, batch_rows)."""
        return _whole_batches(random.permutation(self._rows), self._batch_rows)


def _whole_batches(order_N: NDArray[np.int64], batch_rows: int) -> NDArray[np.int64]:
    """Return the order cut into batches; a last one that is not full is left out, a set below one batch is repeated."""
    if len(order_N) < batch_rows:
        order_N = np.resize(order_N, batch_rows)
    batches = len(order_N) // batch_rows
    return order_N[: batches * batch_rows].reshape(batches, batch_rows)


def batches_of(examples: TrainingExamples, batch_rows: int) -> ClassBatches | ShuffledBatches:
    """Return what cuts a set into batches."""
    if examples.kind == "class":
        return ClassBatches(examples.table["label"].to_numpy(), batch_rows)
    return ShuffledBatches(len(examples), batch_rows)


def schedule(weights_S: Sequence[float], steps: int) -> NDArray[np.int64]:
    """Return the set of each step, (steps,): at every step each set has had its share of the steps, to within one."""
    shares_S = np.asarray(weights_S, np.float64) / np.sum(weights_S)
    turns = np.zeros(len(shares_S))
    chosen = np.empty(steps, np.int64)
    for step in range(steps):
        chosen[step] = int(np.argmax(shares_S * (step + 1) - turns))
        turns[chosen[step]] += 1
    return chosen


class ScheduledBatches(MultiDatasetDefaultBatchSampler):  # type: ignore[misc]
    """The batches of a training, each of one set: `steps` of them, the same for the same seed."""

    def __init__(
        self, dataset: ConcatDataset[Any], sets: Sequence[TrainingExamples], batch_rows: int, steps: int, seed: int
    ) -> None:
        rows = [BatchSampler(range(len(examples)), batch_rows, drop_last=True) for examples in sets]
        super().__init__(dataset, rows, seed=seed)
        self._sets = sets
        self._batch_rows = batch_rows
        self._steps = steps

    def __iter__(self) -> Iterator[list[int]]:
        starts_S = np.concatenate(([0], np.cumsum([len(examples) for examples in self._sets])))
        endless = [
            _endless(batches_of(examples, self._batch_rows), np.random.default_rng([self.seed, number]))
            for number, examples in enumerate(self._sets)
        ]
        for number in schedule([examples.weight for examples in self._sets], self._steps):
            yield (next(endless[number]) + starts_S[number]).tolist()

    def __len__(self) -> int:
        return self._steps


def _endless(batches: ClassBatches | ShuffledBatches, random: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    while True:
        yield from batches.epoch(random)


class Collator:
    """Turns examples of one set into token features and the labels that `UnifiedCircleLoss` reads.

    The documents of a batch are put together, each text once, so that every document is compared with every query.
    """

    valid_label_columns: tuple[str, ...] = ()

    def __init__(self, preprocess: Preprocess) -> None:
        self._preprocess = preprocess

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `<column>_<feature>` tensors, `label` with a mapping, and `dataset_name`."""
        names = examples[0].keys()
        batch: dict[str, Any] = {"dataset_name": examples[0]["dataset_name"]} if "dataset_name" in names else {}
        if "documents" in names:
            return batch | self._ranked(examples)
        if "text" in names:
            labels_B = torch.tensor([example["label"] for example in examples])
            keys_B = torch.from_numpy(keys_of([example["text"] for example in examples]))
            labels: dict[str, Any] = {"kind": "class", "labels_B": labels_B, "keys_B": keys_B}
            return batch | self._features(examples, "text") | {"label": labels}
        scores_B = torch.tensor([example["score"] for example in examples], dtype=torch.float64)
        sides = self._features(examples, "text_a") | self._features(examples, "text_b")
        return batch | sides | {"label": {"kind": "pair", "scores_B": scores_B}}

    def _features(self, examples: list[dict[str, Any]], column: str) -> dict[str, Any]:
        return self._tokens(column, [example[column] for example in examples])

    def _tokens(self, column: str, texts: list[str]) -> dict[str, Any]:
        return {f"{column}_{name}": value for name, value in self._preprocess(texts).items()}

    def _ranked(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        queries = [example["query"] for example in examples]
        documents = list(dict.fromkeys(text for example in examples for text in example["documents"]))
        most = max(len(example["documents"]) for example in examples)
        keys_QP, grades_QP = np.zeros((len(examples), most), np.int64), np.zeros((len(examples), most), np.float32)
        for row, example in enumerate(examples):
            own = len(example["documents"])
            keys_QP[row, :own] = keys_of(example["documents"])
            grades_QP[row, :own] = example["grades"]
        labels = {
            "kind": "retrieval",
            "query_keys_Q": torch.from_numpy(keys_of(queries)),
            "own_keys_QP": torch.from_numpy(keys_QP),
            "own_grades_QP": torch.from_numpy(grades_QP),
            "document_keys_M": torch.from_numpy(keys_of(documents)),
        }
        return self._tokens("query", queries) | self._tokens("document", documents) | {"label": labels}
