"""The steps of a training on one worker: from a model and its sets to better weights."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from sentence_transformers.sentence_transformer.modules import Dense
from torch.utils.data import ConcatDataset
from transformers import TrainerCallback, set_seed

from pipeline.training.batches import Collator, ScheduledBatches
from pipeline.training.circle_loss import UnifiedCircleLoss, circle, weighted
from pipeline.training.interpolation import interpolate, weights_of
from pipeline.training.sets import TrainingExamples


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """All that decides what a training makes of a model and its sets; `Training` in the config explains each."""

    loss: Literal["circle", "weighted"]
    margin: float
    scale: float
    steps: int
    batch_rows: int
    mini_batch_rows: int
    learning_rate: float
    warmup_fraction: float
    max_tokens: int
    base_weight: float
    head_dimensions: int | None
    matryoshka: tuple[int, ...]
    checkpoint_steps: int
    seed: int


@dataclass(frozen=True, slots=True)
class Trained:
    """What the steps of this call came to."""

    model: SentenceTransformer
    """The model that was given, or where it got a head, one of the same modules and the head."""
    first_step: int
    """0, or that of the checkpoint."""
    losses: Sequence[Mapping[str, float]]
    """`step` and `loss`, the mean since the one before, by the log of the trainer; those before the checkpoint too."""


def prepare(seed: int, threads: int) -> None:
    """Let every worker draw the same numbers, and use so many CPU threads."""
    torch.set_num_threads(threads)
    set_seed(seed)


def _with_head(model: SentenceTransformer, head_dimensions: int | None) -> SentenceTransformer:
    width = int(model.get_embedding_dimension() or 0)
    if head_dimensions is None or head_dimensions == width:
        return model
    head = Dense(width, head_dimensions, bias=True, activation_function=torch.nn.Identity())
    return SentenceTransformer(modules=[*model, head], device=str(model.device))


def train(
    model: SentenceTransformer,
    sets: Sequence[TrainingExamples],
    chosen: Hyperparameters,
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
    checkpoint: Path | None = None,
) -> Trained:
    """Change the weights of a model, put behind it the head that is `chosen`, and interpolate with the base.

    In a process group every worker calls this with the same arguments, and holds the same weights afterwards. A head
    has no base: it stays as it was trained. Checkpoints hold the weights before the interpolation.

    Args:
        model: the base, also where a training goes on.
        sets: at least one.
        folder: for checkpoints, on this machine.
        callbacks: of the transformers trainer; told of every checkpoint.
        checkpoint: a checkpoint folder of the same training, to go on from.

    Returns:
        The model, and what the loss was.
    """
    base = weights_of(model) if chosen.base_weight else {}
    model = _with_head(model, chosen.head_dimensions)
    allowed = model.max_seq_length
    model.model_card_data.generate_widget_examples = False
    model.max_seq_length = min(chosen.max_tokens, int(allowed or chosen.max_tokens))
    trainer = _Trainer(
        model=model,
        args=_arguments(chosen, folder),
        train_dataset={examples.name: Dataset(examples.table) for examples in sets},
        loss=_loss(model, chosen),
        data_collator=Collator(model.preprocess),
        callbacks=list(callbacks),
    )
    trainer.schedule = (sets, chosen)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    interpolate(model, base, chosen.base_weight)
    model.max_seq_length = allowed
    first_step = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] if checkpoint else 0
    losses = [{"step": line["step"], "loss": line["loss"]} for line in trainer.state.log_history if "loss" in line]
    return Trained(model, first_step, losses)


class _Trainer(SentenceTransformerTrainer):  # type: ignore[misc]
    """The trainer of sentence-transformers, with our order of batches and no text of the sets in a card."""

    schedule: tuple[Sequence[TrainingExamples], Hyperparameters]

    def add_model_card_callback(self, *_: object) -> None:
        """Leave out what would put examples of the sets into the card of every checkpoint."""

    def get_multi_dataset_batch_sampler(
        self, dataset: ConcatDataset[Any], *_: object, **__: object
    ) -> ScheduledBatches:
        sets, chosen = self.schedule
        return ScheduledBatches(dataset, sets, chosen.batch_rows, chosen.steps, chosen.seed)


def _loss(model: SentenceTransformer, chosen: Hyperparameters) -> torch.nn.Module:
    weighting_of = circle(chosen.margin, chosen.scale) if chosen.loss == "circle" else weighted()
    loss = UnifiedCircleLoss(model, weighting_of, chosen.mini_batch_rows)
    return MatryoshkaLoss(model, loss, list(chosen.matryoshka)) if chosen.matryoshka else loss


def _arguments(chosen: Hyperparameters, folder: Path) -> SentenceTransformerTrainingArguments:
    return SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=chosen.steps,
        per_device_train_batch_size=chosen.batch_rows,
        accelerator_config={"split_batches": True},  # one batch over all workers: each of its texts meets all others
        dataloader_drop_last=True,
        learning_rate=chosen.learning_rate,
        warmup_steps=round(chosen.warmup_fraction * chosen.steps),
        use_cpu=not torch.cuda.is_available(),  # accelerate 1.x sees only one of several workers without a GPU else
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        save_strategy="steps",
        save_steps=chosen.checkpoint_steps,
        save_total_limit=1,
        logging_steps=max(1, chosen.steps // 30),
        seed=chosen.seed,
        data_seed=chosen.seed,
        report_to=[],
        disable_tqdm=True,
    )
