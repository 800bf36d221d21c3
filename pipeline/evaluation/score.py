"""What mteb says of the vectors of a Snapshot, task by task, each result kept when it is there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mteb
import orjson

from pipeline.evaluation.card_tasks import MAIN_METRIC, CardTask, metrics_of
from pipeline.evaluation.collect import Collected
from pipeline.evaluation.model_index import Card, results_of
from pipeline.evaluation.search import Mapped
from pipeline.evaluation.stored_encoder import StoredEncoder
from pipeline.evaluation.stored_vectors import StoredVectors
from pipeline.storage.filesystem import Store
from pipeline.storage.snapshots import Snapshot


@dataclass(frozen=True)
class Scored:
    """The scores of one Snapshot."""

    name: str
    """Of the folders `results/<name>` and `reports/<name>`."""
    card: Card
    points: dict[CardTask, float]
    """The main metric of each task, by the convention of C-MTEB cards, 0 to 100."""
    scored: int
    """Tasks scored now; the others were there."""


def score(
    store: Store, collected: Collected, snapshot: Snapshot, watch: Callable[[CardTask], None], mapped: Mapped = map
) -> Scored:
    """Score every task that has no result yet; needs no model, and no Ray but where `mapped` is of a cluster.

    Args:
        store: the folder of the evaluation; gets `results/<name>/<task>.json`, as mteb writes them.
        watch: called before each task is scored.
        mapped: searches the documents of a retrieval, Part by Part.

    Raises:
        SourceError: a text has no vector.
    """
    name = f"{snapshot.record.folder}-{collected.key[:12]}"
    encoder: StoredEncoder | None = None
    results, scored = {}, 0
    for task in collected.tasks:
        key = f"results/{name}/{task.dataset_name.removeprefix('MTEB ')}.json"
        content = store.read(key)
        if content is None:
            watch(task)
            encoder = encoder or StoredEncoder(
                StoredVectors(snapshot), str(snapshot.recipe["model"]), snapshot.record.dimension, mapped
            )
            content = _scored(encoder, collected, task)
            store.put_new(key, content)
            scored += 1
        results[task] = orjson.loads(content)
    scores = {task: _of_split(task, result) for task, result in results.items()}
    card = Card(
        str(snapshot.recipe["model"]).rstrip("/").split("/")[-1],
        tuple(
            line
            for task, found in scores.items()
            for line in results_of(task, found, _dataset_path(task, collected), collected.revision(task))
        ),
    )
    points = {task: 100 * found[metrics_of(task)[MAIN_METRIC[task.kind]]] for task, found in scores.items()}
    return Scored(name, card, points, scored)


def _scored(encoder: StoredEncoder, collected: Collected, task: CardTask) -> bytes:
    made = collected.loaded(task)
    found = mteb.evaluate(encoder, made, cache=None, co2_tracker=False, show_progress_bar=False)
    result = found.task_results[0].model_dump(mode="json")
    return orjson.dumps(result | {"dataset_revision": collected.revision(task)}, option=orjson.OPT_INDENT_2)


def _of_split(task: CardTask, result: dict[str, Any]) -> dict[str, Any]:
    scores: list[dict[str, Any]] = result["scores"][task.split]
    return next(score for score in scores if score["hf_subset"] == task.subset)


def _dataset_path(task: CardTask, collected: Collected) -> str:
    from pipeline.evaluation.tasks import mteb_task

    return str(mteb_task(task).metadata.dataset["path"])
