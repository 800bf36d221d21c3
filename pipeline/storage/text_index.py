"""Where a Snapshot holds the vector of a text: sorted hashes, derived from its Parts and kept beside it."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrow import one_array
from pipeline.errors import StorageError
from pipeline.fingerprint import content_hash, fingerprint
from pipeline.parallel import in_order
from pipeline.storage.faults import told_as
from pipeline.storage.filesystem import Store
from pipeline.storage.folder_cache import cache_root, fetch_folder, remote_folder_identity
from pipeline.storage.parquet import part_key, read_columns
from pipeline.storage.snapshots import Snapshot
from pipeline.storage.uniqueness import ROW_BITS, SORTED_ROWS, distinct, placed

VERSION = 2
FACTS = "index.json"

READERS = 16
"""Parts whose hashes are read at once."""

ROW_BYTES = 16
"""Of an entry: the leading half of a hash, and its place."""


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
                self.keys = [str(key) for key, *_ in facts["parts"]]
                """Of the Parts, in the order in which places number them."""
                self.rows_P = [int(rows) for _, rows, _ in facts["parts"]]
                self.bytes_P = [int(size_bytes) for *_, size_bytes in facts["parts"]]
                pieces = facts["pieces"]
                self._first_P = np.array([piece["first"] for piece in pieces], np.uint64)
                self._pieces_P2R = [
                    np.memmap(folder / piece["name"], "<u8", "r", shape=(2, piece["rows"])) for piece in pieces
                ]
        except (ValueError, TypeError, KeyError) as error:
            raise StorageError(f"{folder}: the index is damaged ({error}); it is made anew by the next run") from error

    def find(self, hashes: pa.Array) -> NDArray[np.int64]:
        """Return the place of each hash (`uniqueness.placed`), -1 where the index has none.

        Args:
            hashes: N × fixed_size_binary(16).
        """
        wanted_N = leading_halves(hashes)
        places_N = np.full(len(wanted_N), -1, np.int64)
        order_N = np.argsort(wanted_N)  # neighbours are then sought in the same pages
        piece_N = np.searchsorted(self._first_P, wanted_N[order_N], "right") - 1
        bounds = np.searchsorted(piece_N, np.arange(len(self._pieces_P2R) + 1))
        for (high_R, place_R), start, end in zip(self._pieces_P2R, bounds, bounds[1:], strict=False):
            rows_K = order_N[start:end]
            found_K = np.minimum(np.searchsorted(high_R, wanted_N[rows_K]), len(high_R) - 1)
            is_found_K = high_R[found_K] == wanted_N[rows_K]
            places_N[rows_K[is_found_K]] = place_R[found_K[is_found_K]]
        return places_N


def leading_halves(hashes: pa.Array) -> NDArray[np.uint64]:
    """Return the first 8 bytes of each hash as a number.

    Args:
        hashes: N × fixed_size_binary(16).
    """
    array = one_array(hashes)
    return np.frombuffer(array.buffers()[1], "<u8")[2 * array.offset : 2 * (array.offset + len(array)) : 2]


def write_index(store: Store, snapshot: Snapshot) -> tuple[IndexReference, int]:
    """Return the index of a Snapshot, made from the text hashes of its Parts unless it stands there already.

    A text that stands more than once has the place of the first. Memory: `uniqueness.distinct`.

    Returns:
        The index, and how many Parts could not be read; then the next call makes it anew.

    Raises:
        StorageError: it cannot be written, or there is no room in the temporary folder.
    """
    folder = f"_meta/snapshots/{snapshot.number:08d}.index"
    facts = _facts_of(store, folder) or _written(store, snapshot, folder)
    identity = fingerprint(facts) if store.is_local else remote_folder_identity(store.uri_of(folder))
    return IndexReference(store.uri, folder, identity), facts["unreadable"]


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


def _facts_of(store: Store, folder: str) -> dict[str, Any] | None:
    """Return what an index says of itself, if it is whole."""
    content = store.read(f"{folder}/{FACTS}")
    try:
        facts: dict[str, Any] = orjson.loads(content or b"null")
        sizes = {key: stat.size_bytes for key, stat in store.files(folder).items()}
        expected = {f"{folder}/{piece['name']}": piece["rows"] * ROW_BYTES for piece in facts["pieces"]}
        is_whole = facts["version"] == VERSION and not facts["unreadable"] and expected.items() <= sizes.items()
    except (ValueError, TypeError, KeyError):
        return None
    return facts if is_whole else None


def _written(store: Store, snapshot: Snapshot, folder: str) -> dict[str, Any]:
    columns = (snapshot.parts[name].to_pylist() for name in ("kind", "folder", "path", "rows", "size_bytes"))
    lines = zip(*columns, strict=True)
    parts = [(part_key(*part), rows, size_bytes) for *part, rows, size_bytes in lines if part[0] == "embeddings"]
    unreadable: list[str] = []
    return write_texts(store, folder, parts, _hashes_of(store, parts, unreadable), unreadable)


def write_texts(
    store: Store,
    folder: str,
    parts: Sequence[tuple[str, int, int]],
    hashes: Iterable[NDArray[np.void]],
    unreadable: Sequence[str] = (),
) -> dict[str, Any]:
    """Write an index, its facts last; what stands there is written over, as all of it can be derived again.

    Args:
        parts: key, rows and bytes of each Part.
        hashes: of the texts, with their places in those (`uniqueness.placed`).
        unreadable: Parts that were found to be so when all hashes have come.

    Returns:
        The facts.
    """
    pieces: list[dict[str, Any]] = []
    gathered: list[NDArray[np.void]] = []

    def write() -> None:
        rows = np.concatenate(gathered)
        is_first = np.append(True, rows["high"][1:] != rows["high"][:-1])
        high_R, place_R = rows["high"][is_first], rows["place"][is_first]
        content = high_R.tobytes() + place_R.tobytes()
        name = f"{len(pieces):05d}-{content_hash(content)}.bin"
        store.put(f"{folder}/{name}", content)
        pieces.append({"name": name, "rows": len(high_R), "first": int(high_R[0])})
        gathered.clear()

    for rows in distinct(hashes):
        gathered.append(rows)
        if sum(map(len, gathered)) >= SORTED_ROWS:
            write()
    if gathered:
        write()
    facts = {"version": VERSION, "parts": parts, "pieces": pieces, "unreadable": len(unreadable)}
    store.put(f"{folder}/{FACTS}", orjson.dumps(facts))
    return facts


def _hashes_of(
    store: Store, parts: Sequence[tuple[str, int, int]], unreadable: list[str]
) -> Iterator[NDArray[np.void]]:
    """Yield the hashes of each Part's texts with their places; note which Parts cannot be read."""

    def read(part: tuple[str, int, int]) -> pa.Table | None:
        key, _, size_bytes = part
        try:
            return read_columns(store, key, ["text_hash", "tokens"], size_bytes)
        except StorageError:
            unreadable.append(key)
            return None

    for part, rows in enumerate(in_order(read, parts, READERS)):
        if rows is not None:  # what has no tokens is an empty text, whose vector depends on `empty_text`
            rows_M = np.flatnonzero(rows["tokens"].to_numpy())
            hashes = one_array(rows["text_hash"].take(pa.array(rows_M)))
            yield placed(np.frombuffer(hashes.buffers()[1], "V16", count=len(hashes)), part, rows_M)


def part_and_row(places_K: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the number of the Part and the row in it, of places that `TextIndex.find` gave."""
    return places_K >> ROW_BITS, places_K & ((1 << ROW_BITS) - 1)
