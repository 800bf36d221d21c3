"""Known vectors: what a Snapshot holds of texts that come again, looked up by their hashes."""

from collections import OrderedDict
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.arrow import one_array
from pipeline.errors import StorageError
from pipeline.storage.filesystem import Store
from pipeline.storage.parquet import read_columns
from pipeline.storage.text_index import TextIndex, part_and_row

CACHE_BYTES = 128 * 2**20
"""Of Parts that are kept by each process, the newest one however large: neighbours want the same."""

MANY_BYTES, FEW_ROWS = 4 * 2**30, 1 / 64
"""A look-up reads so much of Parts in any case, beginning with those that hold most of its rows; a further one only if
it wants such a share of its rows. To read a Part of 16,384 vectors for one of them costs more than to encode a text."""

OF_A_TEXT = ("text_hash", "id")
"""Columns by which a row is known again."""


class Fate(IntEnum):
    """What came of looking a text up."""

    NEW = 0
    """The Snapshot does not hold it, or nobody has looked."""
    KNOWN = 1
    UNREADABLE = 2
    """Its Part is gone or damaged, or holds another text than the index says."""
    SCATTERED = 3
    """It is held, and too few others of the same Part are wanted to be worth reading it."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of N texts."""

    fate_N: NDArray[np.int8]
    """`Fate` of each."""
    stored: pa.Table
    """The known ones, in their order: `text_hash`, `id` and the columns asked for; without columns if none is known."""
    is_own_K: NDArray[np.bool_]
    """Which of the known ones are stored under the id that has asked for them."""


class KnownVectors:
    """The vectors of a Snapshot, to be found by the hash of their text.

    Args:
        store: the output.
        index: of the Snapshot.
        columns: of its Parts, what is wanted of them.
    """

    def __init__(self, store: Store, index: TextIndex, columns: tuple[str, ...]) -> None:
        self.store, self.index = store, index
        self.columns = [name for name in columns if name not in OF_A_TEXT]
        self._cached: OrderedDict[int, pa.Table] = OrderedDict()
        self._unreadable: set[int] = set()

    def look_up(self, hashes: pa.Array, ids: pa.Array) -> Found:
        """Return what is known of the texts with these hashes; memory is that of the result, a Part and the cache.

        Args:
            hashes: N × fixed_size_binary(16).
            ids: of N documents; of equal texts in a Part the one that has the same id is taken.
        """
        texts = _texts(ids)
        rows_K, part_K, place_K = _in_few_parts(*self.index.find_all(hashes))
        parts, starts, counts = np.unique(part_K, return_index=True, return_counts=True)
        fate_N = np.zeros(len(hashes), np.int8)
        tables, rows = [], []
        cold_bytes = 0
        for nth in np.argsort(-counts, kind="stable").tolist():
            part, here = int(parts[nth]), slice(starts[nth], starts[nth] + counts[nth])
            if part not in self._cached and part < len(self.index.keys):
                if cold_bytes > MANY_BYTES and counts[nth] < FEW_ROWS * self.index.rows_P[part]:
                    fate_N[rows_K[here]] = Fate.SCATTERED
                    continue
                cold_bytes += self.index.bytes_P[part]
            fate_N[rows_K[here]] = Fate.UNREADABLE
            table = self._part(part)
            if table is not None:
                asked = pa.array(rows_K[here])
                found, is_same = _taken(table, place_K[here], hashes.take(asked), texts.take(asked))
                tables.append(found)
                rows.append(rows_K[here][is_same])
                fate_N[rows[-1]] = Fate.KNOWN
        if not tables:
            return Found(fate_N, pa.table({}), np.zeros(0, np.bool_))
        stored = _in_order(tables, rows)
        return Found(fate_N, stored, _equal(_texts(stored["id"]), texts.filter(pa.array(fate_N == Fate.KNOWN))))

    def _part(self, part: int) -> pa.Table | None:
        """Return the columns of a Part, None if they cannot be read; that is not tried twice."""
        if part in self._unreadable or part >= len(self.index.keys):
            return None
        if part in self._cached:
            self._cached.move_to_end(part)
            return self._cached[part]
        try:
            table = read_columns(self.store, self.index.keys[part], [*OF_A_TEXT, *self.columns])
        except StorageError:
            self._unreadable.add(part)
            return None
        self._cached[part] = table
        while len(self._cached) > 1 and sum(one.nbytes for one in self._cached.values()) > CACHE_BYTES:
            self._cached.popitem(last=False)
        return table


def _in_few_parts(
    row_C: NDArray[np.int64], places_C: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return one place for each row that has any, as row, Part and place in it, ordered by Part and place.

    Of several it is that in the Part which holds most of the rows: fewer Parts are read then, and where a corpus is
    written anew in its old order, that Part is the one in which the ids of these rows stood.
    """
    part_C, place_C = part_and_row(places_C)
    _, nth_C, rows_P = np.unique(part_C, return_inverse=True, return_counts=True)
    order_C = np.lexsort((place_C, part_C, -rows_P[nth_C], row_C))
    _, first_K = np.unique(row_C[order_C], return_index=True)
    chosen_K = order_C[first_K]
    chosen_K = chosen_K[np.lexsort((place_C[chosen_K], part_C[chosen_K]))]
    return row_C[chosen_K], part_C[chosen_K], place_C[chosen_K]


def _taken(
    table: pa.Table, place_K: NDArray[np.int64], hashes: pa.Array, ids: pa.Array
) -> tuple[pa.Table, NDArray[np.bool_]]:
    """Return the rows at these places that are indeed of these hashes, and which those are.

    A row of the same hash and the same id that stands elsewhere in the Part is taken instead.
    """
    if not table.num_rows:
        return table, np.zeros(len(place_K), np.bool_)
    place_K = np.minimum(place_K, table.num_rows - 1)
    if not _equal(_texts(table["id"]).take(pa.array(place_K)), ids).all():
        own = pc.index_in(_named(hashes, ids), value_set=_named(one_array(table["text_hash"]), _texts(table["id"])))
        place_K = pc.coalesce(own.cast(pa.int64()), pa.array(place_K)).to_numpy()
    found = table.take(pa.array(place_K))
    is_same_K = _equal(one_array(found["text_hash"]), hashes)
    return (found if is_same_K.all() else found.filter(pa.array(is_same_K))), is_same_K


def _texts(ids: pa.Array | pa.ChunkedArray) -> pa.Array:
    return one_array(ids).cast(pa.string())


def _named(hashes: pa.Array, ids: pa.Array) -> pa.Array:
    """Return one value for each pair of a hash and an id."""
    return pc.binary_join_element_wise(hashes.cast(pa.binary()), ids.cast(pa.binary()), b"")


def _equal(some: pa.Array, others: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(pc.equal(some, others).to_numpy(zero_copy_only=False), np.bool_)


def _in_order(tables: list[pa.Table], rows: list[NDArray[np.int64]]) -> pa.Table:
    """Return the tables, at least one, as one that is ordered by the rows they are for."""
    order = np.argsort(np.concatenate(rows), kind="stable")
    table = pa.concat_tables(tables)
    return table if (order[1:] > order[:-1]).all() else table.combine_chunks().take(pa.array(order))
