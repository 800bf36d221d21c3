"""Known vectors: what a Snapshot holds of texts that come again, looked up by their hashes."""

from collections import OrderedDict
from collections.abc import Iterator
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

NAME = "_name"
"""Of a row, as `row_names` gives it."""


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
    """The known ones, in their order: `text_hash` and the columns asked for; without columns if none is known."""
    is_own_K: NDArray[np.bool_]
    """Which of the known ones are stored under the name by which they were asked for."""


class KnownVectors:
    """The vectors of a Snapshot, to be found by the hash of their text.

    Args:
        store: the output.
        index: of the Snapshot.
        columns: of its Parts, what is wanted of them, `id` and if there is one `chunk` among it.
    """

    def __init__(self, store: Store, index: TextIndex, columns: tuple[str, ...]) -> None:
        self.store, self.index = store, index
        self.columns = [name for name in columns if name != "text_hash"]
        self._cached: OrderedDict[int, pa.Table] = OrderedDict()
        self._unreadable: set[int] = set()

    def look_up(self, hashes: pa.Array, names: pa.Array) -> Found:
        """Return what is known of the texts with these hashes; memory is that of the result, a Part and the cache.

        Args:
            hashes: N × fixed_size_binary(16).
            names: of N rows, as `row_names` gives them; of equal texts in the Parts that are read, the one of the same
                name is taken.
        """
        row_C, place_C = self.index.find_all(hashes)
        part_C, place_C = part_and_row(place_C)
        is_chosen_C = _in_few_parts(row_C, part_C)
        fate_N, is_own_N = np.zeros(len(hashes), np.int8), np.zeros(len(hashes), np.bool_)
        tables, rows = [], []
        cold_bytes = 0
        for part, here_K in _by_part(part_C, place_C, is_chosen_C):
            here_K = here_K[~is_own_N[row_C[here_K]]]
            rows_K, is_chosen_K = row_C[here_K], is_chosen_C[here_K]
            if part not in self._cached and part < len(self.index.keys):
                if cold_bytes > MANY_BYTES and is_chosen_K.sum() < FEW_ROWS * self.index.rows_P[part]:
                    fate_N[rows_K[is_chosen_K]] = Fate.SCATTERED
                    continue
                cold_bytes += self.index.bytes_P[part]
            fate_N[rows_K[is_chosen_K]] = Fate.UNREADABLE
            table = self._part(part)
            if table is not None and table.num_rows:
                asked = pa.array(rows_K)
                at_K, is_own_K = _places(table, place_C[here_K], hashes.take(asked), names.take(asked))
                is_taken_K = is_own_K | (is_chosen_K & (at_K >= 0))
                tables.append(table.take(pa.array(at_K[is_taken_K])))
                rows.append(rows_K[is_taken_K])
                fate_N[rows[-1]], is_own_N[rows_K] = Fate.KNOWN, is_own_K
        stored = _in_order(tables, rows) if tables else pa.table({})
        return Found(fate_N, stored, is_own_N[fate_N == Fate.KNOWN])

    def _part(self, part: int) -> pa.Table | None:
        """Return the columns of a Part, None if they cannot be read; that is not tried twice."""
        if part in self._unreadable or part >= len(self.index.keys):
            return None
        if part in self._cached:
            self._cached.move_to_end(part)
            return self._cached[part]
        try:
            table = read_columns(self.store, self.index.keys[part], ["text_hash", *self.columns])
        except StorageError:
            self._unreadable.add(part)
            return None
        table = self._cached[part] = table.append_column(NAME, row_names(table))
        while len(self._cached) > 1 and sum(one.nbytes for one in self._cached.values()) > CACHE_BYTES:
            self._cached.popitem(last=False)
        return table


def _in_few_parts(row_C: NDArray[np.int64], part_C: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Choose one of the places of each row: that in the Part which has places of most rows, so that few are read."""
    _, nth_C, rows_P = np.unique(part_C, return_inverse=True, return_counts=True)
    order_C = np.lexsort((part_C, -rows_P[nth_C], row_C))
    _, first_K = np.unique(row_C[order_C], return_index=True)
    is_chosen_C = np.zeros(len(row_C), np.bool_)
    is_chosen_C[order_C[first_K]] = True
    return is_chosen_C


def _by_part(
    part_C: NDArray[np.int64], place_C: NDArray[np.int64], is_chosen_C: NDArray[np.bool_]
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield the Parts in which any place is chosen, those with most of them first, and all places in each, in order."""
    order_C = np.lexsort((place_C, part_C))
    parts, starts, places = np.unique(part_C[order_C], return_index=True, return_counts=True)
    chosen = np.add.reduceat(is_chosen_C[order_C], starts, dtype=np.int64) if len(parts) else places
    for nth in np.argsort(-chosen, kind="stable")[: np.count_nonzero(chosen)].tolist():
        yield int(parts[nth]), order_C[starts[nth] : starts[nth] + places[nth]]


def row_names(rows: pa.Table) -> pa.Array:
    """Return what tells the rows of whole documents apart: the id, and of a chunk its number and whether it is the end.

    A document whose chunks all have the names and the texts they had is the same document.

    Args:
        rows: N, with `id` and perhaps `chunk`; the chunks of a document follow each other from 0.
    """
    ids = one_array(rows["id"]).cast(pa.string())
    if "chunk" not in rows.column_names:
        return ids
    chunk_N = rows["chunk"].to_numpy()
    is_last_N = np.append(chunk_N[1:] == 0, True)[: len(chunk_N)]
    places = (pa.array(values_N).cast(pa.string()) for values_N in (chunk_N, is_last_N))
    return pc.binary_join_element_wise(*places, ids, "/")


def _places(
    table: pa.Table, place_K: NDArray[np.int64], hashes: pa.Array, names: pa.Array
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return where in a Part the text of each hash stands, and whether under its name.

    Args:
        place_K: where it should stand; where it stands under its name elsewhere in the Part, that is returned.

    Returns:
        (K,), -1 where another text stands, and (K,).
    """
    hashes_P, names_P = one_array(table["text_hash"]), one_array(table[NAME])
    place_K = np.minimum(place_K, table.num_rows - 1)
    if not _equal(names_P.take(pa.array(place_K)), names).all():
        own = pc.index_in(_joined(hashes, names), value_set=_joined(hashes_P, names_P))
        place_K = pc.coalesce(own.cast(pa.int64()), pa.array(place_K)).to_numpy()
    is_same_K = _equal(hashes_P.take(pa.array(place_K)), hashes)
    return np.where(is_same_K, place_K, -1), is_same_K & _equal(names_P.take(pa.array(place_K)), names)


def _joined(hashes: pa.Array, names: pa.Array) -> pa.Array:
    """Return one value for each pair of a hash and a name."""
    return pc.binary_join_element_wise(hashes.cast(pa.binary()), names.cast(pa.binary()), b"")


def _equal(some: pa.Array, others: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(pc.equal(some, others).to_numpy(zero_copy_only=False), np.bool_)


def _in_order(tables: list[pa.Table], rows: list[NDArray[np.int64]]) -> pa.Table:
    """Return the tables, at least one, as one that is ordered by the rows they are for, the last of each row."""
    rows_K = np.concatenate(rows)
    order_K = np.argsort(rows_K, kind="stable")
    order_K = order_K[np.append(rows_K[order_K][1:] != rows_K[order_K][:-1], True)[: len(order_K)]]
    table = pa.concat_tables(tables)
    is_ordered = np.array_equal(order_K, np.arange(table.num_rows))
    return table if is_ordered else table.combine_chunks().take(pa.array(order_K))
