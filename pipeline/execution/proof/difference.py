"""What one Snapshot has that another has not: ids added, removed, and with another text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.arrow import fixed_size_binary, one_array
from pipeline.execution.proof.duplicates import id_hashes
from pipeline.parallel import in_order
from pipeline.records import Part
from pipeline.storage.filesystem import Store
from pipeline.storage.parquet import part_key, read_columns
from pipeline.storage.snapshots import Snapshot
from pipeline.storage.text_index import leading_halves
from pipeline.storage.uniqueness import ordered, placed

READERS = 16
"""Parts read at once, of each two small columns."""

SHOWN = 5
"""Ids named of each kind."""

AFTER = np.uint64(1 << 63)
"""Marks the rows of the second Snapshot, beside 63 bits of the hash of their text."""


@dataclass(frozen=True, slots=True)
class ComparedPart:
    """A Part as it is compared."""

    kind: str
    key: str
    name: str
    """The same for the same rows in another snapshot's folder."""
    rows: int


@dataclass(frozen=True, slots=True)
class Difference:
    """How two Snapshots differ, in ids; texts are compared by their hashes, vectors and kept columns are not."""

    carried: int
    """Rows of Parts that both have; these are not read."""
    unchanged: int
    """Ids of other Parts, with the same text in both."""
    changed: int
    added: int
    removed: int
    examples: dict[str, list[str]]
    """Some ids of each kind: `changed`, `added`, `removed`."""


def parts_of(snapshot: Snapshot) -> list[ComparedPart]:
    """Return the Parts of a Snapshot."""
    return [compared(folder, part) for folder, part in snapshot.placed_parts()]


def compared(folder: str, part: Part) -> ComparedPart:
    """Return what is compared of a Part, and the snapshot folder it lies in."""
    return ComparedPart(
        part.kind, part_key(part.kind, folder, part.path), f"{part.path} {part.content_hash}", part.rows
    )


def difference(store: Store, before: Sequence[ComparedPart], after: Sequence[ComparedPart]) -> Difference:
    """Compare two Snapshots by ids and text hashes; memory as `uniqueness.find_repeats`.

    Raises:
        StorageError: a Part is missing or damaged.
    """
    old, new = _read_of(before, after), _read_of(after, before)
    counts = dict.fromkeys(("unchanged", "changed", "added", "removed"), 0)
    wanted: dict[str, list[NDArray[np.void]]] = {}
    for rows in ordered(_entries(store, old, new)):
        for kind, first_G in kinds_of(rows).items():
            counts[kind] += len(first_G)
            if kind != "unchanged" and len(wanted.setdefault(kind, [])) < SHOWN:
                wanted[kind] += list(rows[first_G[:SHOWN]])
    read = set(old)
    carried = sum(part.rows for part in before if part.kind == "embeddings" and part.key not in read)
    where = {"changed": new, "added": new, "removed": old}
    examples = {kind: _named(store, where[kind], hashes[:SHOWN]) for kind, hashes in wanted.items() if hashes}
    return Difference(carried, **counts, examples=examples)


def ids_that_differ(
    store: Store, before: Sequence[ComparedPart], after: Sequence[ComparedPart]
) -> Iterator[tuple[str, pa.Array]]:
    """Yield `added`, `changed` or `removed` with ids of that kind, Part by Part; memory: 16 bytes for each of them.

    Raises:
        StorageError: a Part is missing or damaged.
    """
    old, new = _read_of(before, after), _read_of(after, before)
    found: dict[str, list[NDArray[np.uint64]]] = {"added": [], "changed": [], "removed": []}
    for rows in ordered(_entries(store, old, new)):
        kinds = kinds_of(rows)
        for kind, hashes in found.items():
            first_G = kinds.get(kind, np.empty(0, np.int64))
            hashes.append(np.stack([rows["high"][first_G], rows["low"][first_G]], axis=1))
    for kind, hashes in found.items():
        wanted = fixed_size_binary(np.concatenate(hashes).view(np.uint8)) if hashes else pa.array([], pa.binary(16))
        for key in (old if kind == "removed" else new) if len(wanted) else ():
            if len(of_part := _ids_with(store, key, wanted)):
                yield kind, of_part


def _read_of(these: Sequence[ComparedPart], others: Sequence[ComparedPart]) -> list[str]:
    """Return the keys of the Parts that the other Snapshot has not."""
    names = {part.name for part in others}
    return [part.key for part in these if part.kind == "embeddings" and part.name not in names]


def _entries(store: Store, old: Sequence[str], new: Sequence[str]) -> Iterator[NDArray[np.void]]:
    """Yield the hashes of the ids of both sides; `place` holds the side and the hash of the text."""

    def read(key: str) -> pa.Table:
        return read_columns(store, key, ["id", "text_hash"])

    for keys, side in ((old, np.uint64(0)), (new, AFTER)):
        for table in in_order(read, keys, READERS):
            rows = placed(id_hashes(table), 0)
            rows["place"] = (leading_halves(table["text_hash"]) >> np.uint64(1)) | side
            yield rows


def kinds_of(rows: NDArray[np.void]) -> dict[str, NDArray[np.int64]]:
    """Return, by kind, where each id begins among rows ordered by id; `place` holds their side and their version."""
    if not len(rows):
        return {}
    is_first = np.ones(len(rows), np.bool_)
    is_first[1:] = (rows["high"][1:] != rows["high"][:-1]) | (rows["low"][1:] != rows["low"][:-1])
    first_G = np.flatnonzero(is_first)
    is_new = rows["place"] >= AFTER
    texts = rows["place"] & (AFTER - np.uint64(1))
    new_G, rows_G = np.add.reduceat(is_new.astype(np.int64), first_G), np.diff(np.append(first_G, len(rows)))
    # several rows with one id: chunks, or duplicate_ids: allow; sums are equal where the texts are
    old_sum_G = np.add.reduceat(np.where(is_new, np.uint64(0), texts), first_G)
    new_sum_G = np.add.reduceat(np.where(is_new, texts, np.uint64(0)), first_G)
    is_added_G, is_removed_G = new_G == rows_G, new_G == 0
    is_same_G = ~is_added_G & ~is_removed_G & (2 * new_G == rows_G) & (old_sum_G == new_sum_G)
    return {
        "added": first_G[is_added_G],
        "removed": first_G[is_removed_G],
        "unchanged": first_G[is_same_G],
        "changed": first_G[~is_added_G & ~is_removed_G & ~is_same_G],
    }


def _named(store: Store, keys: Sequence[str], wanted: Sequence[NDArray[np.void]]) -> list[str]:
    """Return the ids that have these hashes."""
    halves_N2 = np.array([[row["high"], row["low"]] for row in wanted], np.uint64)
    hashes = fixed_size_binary(np.unique(halves_N2, axis=0).view(np.uint8))
    found: list[str] = []
    for key in keys:
        if len(found) == len(hashes):
            break
        named = {str(id) for id in _ids_with(store, key, hashes).to_pylist()}
        found += sorted(named - set(found))
    return found


def _ids_with(store: Store, key: str, hashes: pa.Array) -> pa.Array:
    """Return the ids of a Part that have one of these hashes, each once."""
    ids = read_columns(store, key, ["id"])
    is_wanted = pc.is_in(fixed_size_binary(id_hashes(ids).view(np.uint8).reshape(-1, 16)), hashes)
    return one_array(ids["id"]).filter(is_wanted).unique()
