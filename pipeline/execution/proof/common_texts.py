"""Texts that two Snapshots have in common: a bounded sample, the same whenever it is drawn, with both vectors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrow import dequantised
from pipeline.execution.proof.difference import READERS, ComparedPart, parts_of
from pipeline.fingerprint import fingerprint
from pipeline.parallel import in_order
from pipeline.storage.parquet import read_columns
from pipeline.storage.snapshots import Snapshot
from pipeline.storage.text_index import leading_halves

TEXTS = 2000
"""Of a sample, at most; the cosines between all of them are 32 MB."""

PARTS, ROWS = 16, 16_384
"""Texts are sought in so many Parts of a Snapshot at least, and in more until these hold so many rows."""

VECTOR_READERS = 2
"""Parts whose vectors are in memory at once."""

Id: TypeAlias = tuple[object, ...]
"""An id, and the chunk where a text is one of several of a document."""


@dataclass(frozen=True, slots=True)
class CommonTexts:
    """N texts and what two Snapshots hold of them."""

    looked_at: int
    """Distinct texts of the newer Snapshot that were sought in the older one."""
    ids: tuple[str, ...]
    """In the newer Snapshot."""
    same_ids: int
    """Texts that were found under one id in both."""
    before_ND: NDArray[np.float32]
    after_ND: NDArray[np.float32]
    """The two may be of different D."""


@dataclass(frozen=True, slots=True)
class _Place:
    part: int
    row: int


def common_texts(before: Snapshot, after: Snapshot, texts: int = TEXTS) -> CommonTexts:
    """Draw texts by the hashes of their Parts and their own, so that another night draws mostly the same.

    Of the older Snapshot all text hashes are read, of a few Parts of both the ids, and then the vectors. Memory: two
    such Parts, the hashes and ids of PARTS, and the sample.

    Args:
        texts: how many, at most.

    Raises:
        StorageError: a Part is missing or damaged.
    """
    new = _some(_pinned(after))
    new_rows = _rows_of(after, new)
    wanted = np.unique(np.concatenate([_hashes(rows) for rows in new_rows] or [np.empty(0, np.uint64)]))
    old = _richest(before, wanted, len(new))
    old_rows = _rows_of(before, old)
    found = np.unique(np.concatenate([_hashes(rows) for rows in old_rows] or [np.empty(0, np.uint64)]))
    chosen = np.intersect1d(wanted, found)[:texts]
    old_places, new_places = (_places(rows, chosen) for rows in (old_rows, new_rows))
    pairs = [_paired(old_places[text], new_places[text]) for text in chosen.tolist()]
    return CommonTexts(
        looked_at=len(wanted),
        ids=tuple("/".join(map(str, new_id)) for _, new_id in pairs),
        same_ids=sum(old_id == new_id for old_id, new_id in pairs),
        before_ND=_vectors(before, old, [old_places[t][id] for t, (id, _) in zip(chosen.tolist(), pairs, strict=True)]),
        after_ND=_vectors(after, new, [new_places[t][id] for t, (_, id) in zip(chosen.tolist(), pairs, strict=True)]),
    )


def _pinned(snapshot: Snapshot) -> list[ComparedPart]:
    """Return the Parts that hold rows in an order that is random, and the same for those that another night has too."""
    filled = (part for part in parts_of(snapshot) if part.kind == "embeddings" and part.rows)
    return sorted(filled, key=lambda part: fingerprint(part.name))


def _some(parts: Iterable[ComparedPart]) -> list[ComparedPart]:
    chosen: list[ComparedPart] = []
    for part in parts:
        if len(chosen) >= PARTS and sum(one.rows for one in chosen) >= ROWS:
            break
        chosen.append(part)
    return chosen


def _richest(snapshot: Snapshot, wanted: NDArray[np.uint64], count: int) -> list[ComparedPart]:
    """Return the Parts that hold most of these texts."""

    def held(part: ComparedPart) -> int:
        hashes = leading_halves(read_columns(snapshot.store, part.key, ["text_hash"])["text_hash"])
        return len(np.intersect1d(wanted, hashes))

    parts = _pinned(snapshot)
    held_P = np.array(list(in_order(held, parts, READERS)), np.int64)
    best = np.argsort(-held_P, kind="stable")[: max(count, PARTS)]
    return [parts[at] for at in best.tolist() if held_P[at]]


def _rows_of(snapshot: Snapshot, parts: Sequence[ComparedPart]) -> list[pa.Table]:
    names = [name for name in ("id", "chunk", "text_hash") if name in snapshot.schema.names]
    return list(in_order(lambda part: read_columns(snapshot.store, part.key, names), parts, READERS))


def _hashes(rows: pa.Table) -> NDArray[np.uint64]:
    return leading_halves(rows["text_hash"])


def _places(of_parts: Sequence[pa.Table], chosen: NDArray[np.uint64]) -> dict[int, dict[Id, _Place]]:
    """Return where each text stands, by its id there."""
    places: dict[int, dict[Id, _Place]] = {}
    for part, rows in enumerate(of_parts):
        hashes = _hashes(rows)
        at = np.flatnonzero(np.isin(hashes, chosen))
        columns = [column.to_pylist() for column in rows.drop_columns("text_hash").take(pa.array(at)).columns]
        for row, text, *id in zip(at.tolist(), hashes[at].tolist(), *columns, strict=True):
            places.setdefault(text, {}).setdefault(tuple(id), _Place(part, row))
    return places


def _paired(old: dict[Id, _Place], new: dict[Id, _Place]) -> tuple[Id, Id]:
    """Return under which ids a text is compared: one that both have, else the first of each."""
    same = next((id for id in new if id in old), None)
    return (same, same) if same is not None else (next(iter(old)), next(iter(new)))


def _vectors(snapshot: Snapshot, parts: Sequence[ComparedPart], places: Sequence[_Place]) -> NDArray[np.float32]:
    """Return the vectors of these rows, (N, D)."""
    names = [name for name in ("embedding", "scale") if name in snapshot.schema.names]
    part_N, row_N = (np.array([getattr(place, name) for place in places], np.int64) for name in ("part", "row"))
    vectors_ND = np.empty((len(places), snapshot.record.dimension), np.float32)

    def of_part(number: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        at = np.flatnonzero(part_N == number)
        rows = read_columns(snapshot.store, parts[number].key, names).take(pa.array(row_N[at]))
        return at, dequantised(rows, str(snapshot.recipe["stored"]))

    for at, of_rows in in_order(of_part, np.unique(part_N).tolist(), VECTOR_READERS):
        vectors_ND[at] = of_rows
    return vectors_ND
