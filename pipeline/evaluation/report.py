"""What an evaluation leaves: the card of the model, its table beside the reference, and the points for a gate."""

from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.arrow import fixed_size_list
from pipeline.errors import ConfigError, SourceError
from pipeline.evaluation.card_tasks import KINDS
from pipeline.evaluation.collect import Collected
from pipeline.evaluation.comparison import Comparison, compare, comparison_markdown
from pipeline.evaluation.model_index import Card, card_yaml, parse_card
from pipeline.evaluation.score import Scored
from pipeline.evaluation.stored_vectors import StoredVectors
from pipeline.storage.filesystem import Store
from pipeline.storage.snapshots import Snapshot

CANARY_TEXTS = 64


def read_card(uri: str) -> Card:
    """Return the reference card at an address.

    Raises:
        SourceError: there is none.
    """
    folder, _, name = uri.rpartition("/")
    content = Store(folder or ".").read(name)
    if content is None:
        raise SourceError(f"evaluation.reference: there is no {uri}")
    return parse_card(content.decode("utf-8"), uri)


def points_of(scored: Scored, collected: Collected) -> dict[str, Any]:
    """Return what a gate compares: the main metric by kind and task, and what names the data."""
    by_kind = {
        kind: {task.name: points for task, points in scored.points.items() if task.kind == kind} for kind in KINDS
    }
    return {"data": collected.key, "points": {kind: points for kind, points in by_kind.items() if points}}


def write_canary(store: Store, collected: Collected, scored: Scored, snapshot: Snapshot) -> None:
    """Write `reports/<name>/canary.parquet`, unless it is there: texts of all tasks with vectors, for `gate.canary`."""
    key = f"reports/{scored.name}/canary.parquet"
    if store.stat(key) is not None:
        return
    content = store.read(collected.source_key)
    texts = pq.read_table(pa.BufferReader(content))["text"]
    drawn = texts.take(pa.array(np.unique(np.linspace(0, len(texts) - 1, CANARY_TEXTS).astype(int))))
    vectors = StoredVectors(snapshot)
    vectors_ND = vectors.vectors(vectors.places(drawn.to_pylist()))
    table = pa.table(
        {"text": drawn, "embedding": fixed_size_list(vectors_ND, pa.list_(pa.float32(), vectors_ND.shape[1]))}
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    store.put(key, sink.getvalue().to_pybytes())


def write_report(
    store: Store, collected: Collected, scored: Scored, snapshot: Snapshot, reference: Card | None
) -> Comparison | None:
    """Write `reports/<name>/`: model_index.yaml, README.md, scores.json, and with a reference comparison.md."""
    folder = f"reports/{scored.name}"
    index = card_yaml(scored.card)
    store.put(f"{folder}/model_index.yaml", index.encode())
    store.put(f"{folder}/scores.json", orjson.dumps(points_of(scored, collected), option=orjson.OPT_INDENT_2))
    comparison = compare(scored.card, reference, bool(snapshot.recipe["normalize"])) if reference else None
    page = comparison_markdown(comparison) if comparison else ""
    if comparison:
        store.put(f"{folder}/comparison.md", page.encode())
    store.put(f"{folder}/README.md", f"---\n{index}---\n\n# {scored.card.model}\n\n{page}".encode())
    store.put(_latest_key(collected.key), f"{scored.name}\n".encode())
    return comparison


def open_baseline(uri: str) -> Store:
    """Return the folder of another evaluation.

    Raises:
        ConfigError: no report was written there.
    """
    store = Store(uri)
    if not store.folders("reports"):
        raise ConfigError(f"--gate: {uri} holds no evaluation; run `evaluate` on the baseline's config first")
    return store


def baseline_points(store: Store, data: str) -> dict[str, Any]:
    """Return the points of the newest report on this data in another evaluation's folder.

    Args:
        data: `Collected.key`.

    Raises:
        ConfigError: there is none.
    """
    name = store.read(_latest_key(data))
    content = store.read(f"reports/{name.decode().strip()}/scores.json") if name else None
    if content is None:
        raise ConfigError(
            f"--gate: {store.uri} was scored on other tasks, on other data or by another version of mteb; run "
            "`evaluate` on the baseline's config with these tasks first"
        )
    points: dict[str, Any] = orjson.loads(content)
    return points


def _latest_key(data: str) -> str:
    """Return the key that names the newest report on this data."""
    return f"latest/{data[:12]}"
