"""A sample of vectors of a Snapshot, laid flat by their two main directions, and which of them are nearest to which."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.arrow import dequantised
from pipeline.errors import SourceError
from pipeline.execution.planning.plan import read_columns_of
from pipeline.execution.verification.recount import shard_of
from pipeline.schemas import TEXT
from pipeline.storage.arrow_types import is_string_kind
from pipeline.storage.filesystem import open_source
from pipeline.storage.parquet import part_key
from pipeline.storage.readers import read_shard
from pipeline.storage.snapshots import Snapshot

POINTS = 800
"""Enough to see a shape; each is a circle of the page."""

MOST_BYTES = 64 * 2**20
"""Of Parts that are read for a map; one is read whatever its size."""

MOST_PARTS = 12
MOST_GROUPS = 6
OTHERS = "others"

QUERIES, NEIGHBOURS = 5, 3
SHOWN_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class VectorMap:
    """Points on a plane."""

    points: tuple[tuple[float, float, str], ...]
    """(x, y, group)."""
    column: str
    """The kept column whose values the groups are; empty without one."""
    groups: tuple[str, ...]
    """The most frequent first."""
    explained: float
    """Share of the variance that the plane shows, 0 to 1."""
    rows: int
    """Of the Snapshot."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """A text and those of the sample whose vectors are nearest to its own."""

    text: str
    nearest: tuple[tuple[float, str], ...]
    """(cosine, text)."""


@dataclass(frozen=True, slots=True)
class VectorSample:
    """Some rows of a Snapshot, a few from each of some Parts."""

    rows: pa.Table
    """`id`, the kept columns that are of plain values, `_shard` and `_block`; all but the last as strings."""
    vectors_ND: NDArray[np.float32]
    snapshot: Snapshot


def read_vectors(snapshot: Snapshot, seed: int = 7) -> VectorSample | None:
    """Return random rows of some Parts from all over a Snapshot; None if it has no row."""
    parts = [part for part in snapshot.parts.to_pylist() if part["kind"] == "embeddings" and part["rows"]]
    chosen = _affordable(parts)
    numbers, tables, vectors = np.random.default_rng(seed), [], []
    for part in chosen:
        content = snapshot.store.read(part_key(part["kind"], part["folder"], part["path"]))
        table = pq.ParquetFile(pa.BufferReader(content or b"")).read()
        count = min(table.num_rows, POINTS // len(chosen))
        rows = table.take(pa.array(np.sort(numbers.choice(table.num_rows, count, replace=False))))
        vectors.append(dequantised(rows, snapshot.recipe["stored"]))
        tables.append(_named(rows, part, snapshot))
    if not tables:
        return None
    return VectorSample(pa.concat_tables(tables), np.concatenate(vectors), snapshot)


def _affordable(parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return Parts from all over the list, as many as may be read."""
    candidates = parts
    if len(parts) > MOST_PARTS:
        candidates = [parts[number * len(parts) // MOST_PARTS] for number in range(MOST_PARTS)]
    sizes = np.cumsum([part["size_bytes"] for part in candidates])
    return [part for part, size in zip(candidates, sizes, strict=True) if size <= MOST_BYTES] or list(candidates[:1])


def _named(rows: pa.Table, part: dict[str, Any], snapshot: Snapshot) -> pa.Table:
    """Return the rows without their vectors, with the columns that their folder says."""
    _, _, *kept = snapshot.record.layout["columns"]
    steps = (step.partition("=") for step in part["path"].split("/")[:-1])
    folders = {unquote(name): unquote(value) for name, _, value in steps}
    columns = {"id": rows["id"].cast(pa.string())}
    for name in kept:
        if name in folders:
            columns[name] = pa.repeat(folders[name], rows.num_rows)
        elif _is_plain(rows.schema.field(name).type):
            columns[name] = rows[name].cast(pa.string())
    columns |= {"_shard": pa.repeat(part["shard_id"], rows.num_rows), "_block": pa.repeat(part["block"], rows.num_rows)}
    return pa.table(columns)


def _is_plain(found: pa.DataType) -> bool:
    """Whether values are such as people group by; lists, maps, bytes and the like are not."""
    values = found.value_type if pa.types.is_dictionary(found) else found
    return bool(pa.types.is_primitive(values) or is_string_kind(values))


def vector_map(sample: VectorSample) -> VectorMap | None:
    """Return the sample on the plane of its first two principal components; None with fewer than three rows."""
    if len(sample.vectors_ND) < 3:
        return None
    centred_ND = sample.vectors_ND - sample.vectors_ND.mean(axis=0)
    _, spread_D, directions_DD = np.linalg.svd(centred_ND, full_matrices=False)
    flat_N2 = centred_ND @ directions_DD[:2].T
    column, values = _coloured_by(sample)
    frequent = tuple(value for value, _ in Counter(values).most_common(MOST_GROUPS))
    groups = [value if value in frequent else OTHERS for value in values]
    variance = float((spread_D**2).sum())
    named = frequent + ((OTHERS,) if OTHERS in groups and OTHERS not in frequent else ())
    return VectorMap(
        tuple((round(float(x), 4), round(float(y), 4), group) for (x, y), group in zip(flat_N2, groups, strict=True)),
        column,
        named if column else (),
        float((spread_D[:2] ** 2).sum()) / variance if variance else 0.0,
        sample.snapshot.totals["rows"],
    )


def _coloured_by(sample: VectorSample) -> tuple[str, list[str]]:
    """Return the kept column with the fewest values of those that have several, and its values; partitions first."""
    _, _, *kept = sample.snapshot.record.layout["columns"]
    partitions = sample.snapshot.record.layout["partition_by"]
    rows = sample.rows.num_rows
    counts = {name: len(sample.rows[name].unique()) for name in kept if name in sample.rows.column_names}
    fitting = [name for name, count in counts.items() if 1 < count <= max(2, rows // 10)]
    if not fitting:
        return "", [""] * rows
    column = min(fitting, key=lambda name: (name not in partitions, counts[name]))
    return column, [value if value is not None else "null" for value in sample.rows[column].to_pylist()]


def nearest_texts(sample: VectorSample) -> list[Neighbours]:
    """Return some rows with their nearest ones, by the texts as the source holds them today.

    Raises:
        SourceError: the source was changed since, or cannot be read.
    """
    vectors_ND = sample.vectors_ND / np.maximum(np.linalg.norm(sample.vectors_ND, axis=1, keepdims=True), 1e-12)
    queries_Q = np.linspace(0, len(vectors_ND) - 1, min(QUERIES, len(vectors_ND)), dtype=int)
    cosines_QN = vectors_ND[queries_Q] @ vectors_ND.T
    cosines_QN[np.arange(len(queries_Q)), queries_Q] = -2.0  # each is nearest to itself
    best_QK = np.argsort(-cosines_QN, axis=1)[:, : min(NEIGHBOURS, len(vectors_ND) - 1)]
    texts = _texts_of(sample, np.unique(np.concatenate([queries_Q, best_QK.ravel()])))
    return [
        Neighbours(texts[query], tuple((float(cosines_QN[at, row]), texts[row]) for row in best_QK[at].tolist()))
        for at, query in enumerate(queries_Q.tolist())
    ]


def _texts_of(sample: VectorSample, rows_M: NDArray[np.int64]) -> dict[int, str]:
    """Return the texts of some rows of the sample, cut to what a person reads."""
    snapshot, wanted = sample.snapshot, sample.rows.take(pa.array(rows_M))
    layout = snapshot.record.layout
    entries = {entry["shard_id"]: entry for entry in snapshot.shards.to_pylist()}
    by_place: dict[str, dict[int, dict[str, list[int]]]] = {}
    columns = (wanted[name].to_pylist() for name in ("_shard", "_block", "id"))
    for row, shard_id, block, id in zip(rows_M.tolist(), *columns, strict=True):
        by_place.setdefault(shard_id, {}).setdefault(block, {}).setdefault(id, []).append(row)
    texts: dict[int, str] = {}
    for shard_id, blocks in by_place.items():
        entry = entries[shard_id]
        others = frozenset(range(entry["blocks"])) - blocks.keys()
        arguments = (read_columns_of(layout), layout["rows_per_part"], open_source, others)
        for block in read_shard(shard_of(entry), *arguments):
            rows_of = blocks.get(block.number, {})
            ids = block.documents["id"].cast(pa.string()).to_pylist()
            for at, id in enumerate(ids):
                for row in rows_of.get(id, ()):
                    texts[row] = _shown(block.documents[TEXT][at].as_py())
    if len(texts) < len(rows_M):
        raise SourceError("the source no longer holds the texts of this snapshot; they are shown as long as it does")
    return texts


def _shown(text: str) -> str:
    whole = " ".join(text.split())
    return whole if len(whole) <= SHOWN_CHARACTERS else f"{whole[: SHOWN_CHARACTERS - 1]}…"
