"""Where a Snapshot holds the vector of a text: sorted hashes, searched where they lie."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrow import one_array
from pipeline.errors import StorageError
from pipeline.fingerprint import fingerprint
from pipeline.storage.faults import told_as
from pipeline.storage.filesystem import Store
from pipeline.storage.folder_cache import cache_root, fetch_folder
from pipeline.storage.uniqueness import ROW_BITS

FACTS = "index.json"

MANY_PLACES = 64
"""Of a text in so many Parts it is not asked in which others it stands."""


@dataclass(frozen=True, slots=True)
class IndexReference:
    """An index that has been written, for whoever wants to open it."""

    output_uri: str
    key: str
    """Its folder, below the output."""
    identity: str
    """Of its content; names the copies that nodes keep of it."""


class TextIndex:
    """An index, open for searching: its pieces are mapped into memory and shared by all who search on this node.

    Only half of each hash stands in it, so that what it says is to be compared with the row it leads to: that finds out
    a wrong entry as well as the texts that share this half, one pair among 6 billion texts.

    Args:
        folder: a local one.

    Raises:
        StorageError: it is gone or damaged.
    """

    def __init__(self, folder: Path) -> None:
        try:
            with told_as(StorageError, "read the index", str(folder)):
                facts = orjson.loads((folder / FACTS).read_bytes())
                self.keys = [str(key) for key, _, _, _ in facts["parts"]]
                """Of the Parts, in the order in which places number them."""
                self.rows_P = [int(rows) for _, rows, _, _ in facts["parts"]]
                self.bytes_P = [int(size_bytes) for _, _, size_bytes, _ in facts["parts"]]
                pieces = facts["pieces"]
                self._first_P = np.array([piece["first"] for piece in pieces], np.uint64)
                self._pieces_P2R = [
                    np.memmap(folder / piece["name"], "<u8", "r", shape=(2, piece["rows"])) for piece in pieces
                ]
        except (ValueError, TypeError, KeyError) as error:
            raise StorageError(f"{folder}: the index is damaged ({error}); it is made anew by the next run") from error

    def find(self, hashes: pa.Array) -> NDArray[np.int64]:
        """Return the first place of each hash (`uniqueness.placed`), -1 where the index has none.

        Args:
            hashes: N × fixed_size_binary(16).
        """
        row_K, place_K = self.find_all(hashes, at_most=1)
        places_N = np.full(len(hashes), -1, np.int64)
        places_N[row_K] = place_K
        return places_N

    def find_all(self, hashes: pa.Array, at_most: int = MANY_PLACES) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first places of each hash, one per Part that holds its text.

        Args:
            hashes: N × fixed_size_binary(16).
            at_most: places per hash.

        Returns:
            (K,) row 0 … N-1 and (K,) place; those of one row ascending and together, the rows in no order.
        """
        wanted_N = leading_halves(hashes)
        order_N = np.argsort(wanted_N)  # neighbours are then sought in the same pages
        piece_N = np.searchsorted(self._first_P, wanted_N[order_N], "right") - 1
        bounds = np.searchsorted(piece_N, np.arange(len(self._pieces_P2R) + 1))
        rows, places = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for (high_R, place_R), start, end in zip(self._pieces_P2R, bounds, bounds[1:], strict=False):
            rows_M = order_N[start:end]
            first_M = np.searchsorted(high_R, wanted_N[rows_M])
            found_M = np.minimum(np.searchsorted(high_R, wanted_N[rows_M], "right") - first_M, at_most)
            nth_K = np.arange(found_M.sum()) - np.repeat(np.cumsum(found_M) - found_M, found_M)
            rows.append(np.repeat(rows_M, found_M))
            places.append(place_R[np.repeat(first_M, found_M) + nth_K].astype(np.int64))
        return np.concatenate(rows), np.concatenate(places)


def leading_halves(hashes: pa.Array) -> NDArray[np.uint64]:
    """Return the first 8 bytes of each hash as a number.

    Args:
        hashes: N × fixed_size_binary(16).
    """
    array = one_array(hashes)
    return np.frombuffer(array.buffers()[1], "<u8")[2 * array.offset : 2 * (array.offset + len(array)) : 2]


def open_index(store: Store, index: IndexReference) -> TextIndex:
    """Open an index where it lies, if that is on this machine; else a copy, fetched once per node and index.

    Raises:
        StorageError: it is gone or damaged, or cannot be fetched.
    """
    if store.is_local:
        return TextIndex(Path(store.root, index.key))
    shelf = f"indexes/{fingerprint(index.output_uri)}"
    copy = fetch_folder(store.uri_of(index.key), index.identity, shelf)
    for other in (cache_root() / shelf).iterdir():  # of the nights before; who has one open can go on reading
        if other.is_dir() and len(other.name) == len(copy.name) and other.name != copy.name:
            shutil.rmtree(other, ignore_errors=True)
    return TextIndex(copy)


def part_and_row(places_K: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the number of the Part and the row in it, of places that `TextIndex.find` gave."""
    return places_K >> ROW_BITS, places_K & ((1 << ROW_BITS) - 1)
