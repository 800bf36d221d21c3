"""How the index of a Snapshot's texts is made: from an earlier one and the Parts that are new, else from all Parts."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import StorageError
from pipeline.fingerprint import content_hash, fingerprint
from pipeline.parallel import in_order
from pipeline.storage.filesystem import Stat, Store
from pipeline.storage.folder_cache import remote_folder_identity
from pipeline.storage.parquet import part_key, read_columns
from pipeline.storage.snapshots import Snapshot
from pipeline.storage.text_index import FACTS, IndexReference, leading_halves, part_and_row
from pipeline.storage.uniqueness import PLACED, ROW_BITS, SORTED_ROWS, distinct

VERSION = 3

READERS = 16
"""Parts whose hashes are read at once."""

ROW_BYTES = 16
"""Of an entry: the leading half of a hash, and its place."""

FOLDER = "_meta/snapshots"
FACTS_KEY = re.compile(rf"{FOLDER}/(\d{{8}})\.index/{re.escape(FACTS)}")


class IndexedPart(NamedTuple):
    """A Part whose texts are in an index."""

    key: str
    rows: int
    size_bytes: int
    file_hash: str
    """Names its content: a Part that is carried into another Snapshot keeps it under another key."""


def write_index(store: Store, snapshot: Snapshot) -> tuple[IndexReference, int]:
    """Return the index of a Snapshot, made unless it stands there already.

    A text that stands in several Parts has an entry for its first row in each of them, so that the index of the next
    Snapshot can be derived whichever of them stay. Memory: `uniqueness.distinct`.

    Returns:
        The index, and how many Parts could not be read; then the next call makes it anew.

    Raises:
        StorageError: it cannot be written, or there is no room in the temporary folder.
    """
    found, folder = store.files(FOLDER), _folder_of(snapshot.number)
    facts = _facts_of(store, folder, found) or _made(store, snapshot, folder, found)
    identity = fingerprint(facts) if store.is_local else remote_folder_identity(store.uri_of(folder))
    return IndexReference(store.uri, folder, identity), facts["unreadable"]


def _folder_of(number: int) -> str:
    return f"{FOLDER}/{number:08d}.index"


def _facts_of(store: Store, folder: str, found: Mapping[str, Stat]) -> dict[str, Any] | None:
    """Return what an index says of itself, if it is whole.

    Args:
        found: what lies below FOLDER.
    """
    if f"{folder}/{FACTS}" not in found:
        return None
    content = store.read(f"{folder}/{FACTS}")
    try:
        facts: dict[str, Any] = orjson.loads(content or b"null")
        expected = {f"{folder}/{piece['name']}": piece["rows"] * ROW_BYTES for piece in facts["pieces"]}
        is_there = all(key in found and found[key].size_bytes == size for key, size in expected.items())
        is_whole = facts["version"] == VERSION and not facts["unreadable"] and is_there
    except (ValueError, TypeError, KeyError):
        return None
    return facts if is_whole else None


def _made(store: Store, snapshot: Snapshot, folder: str, found: Mapping[str, Stat]) -> dict[str, Any]:
    """Write an index, from an earlier one if there is any that is sound."""
    parts = [
        IndexedPart(part_key(row["kind"], row["folder"], row["path"]), row["rows"], row["size_bytes"], row["file_hash"])
        for row in snapshot.parts.to_pylist()
        if row["kind"] == "embeddings"
    ]
    earlier = sorted((int(match[1]) for key in found if (match := FACTS_KEY.fullmatch(key))), reverse=True)
    for number in (number for number in earlier if number < snapshot.number):
        if facts := _facts_of(store, _folder_of(number), found):
            with suppress(StorageError):
                return _derived(store, folder, parts, _folder_of(number), facts)
    return _written(store, folder, parts, range(len(parts)))


def _derived(
    store: Store, folder: str, parts: Sequence[IndexedPart], base: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write an index with the entries of an earlier one for all Parts that both have.

    Args:
        base: folder of the earlier one.
        facts: of the earlier one.

    Raises:
        StorageError: the earlier one is damaged, or the new one cannot be written.
    """
    number_of = {part.file_hash: number for number, part in enumerate(parts)}
    number_P = np.array([number_of.get(IndexedPart(*part).file_hash, -1) for part in facts["parts"]], np.int64)

    def carried() -> Iterator[NDArray[np.void]]:
        for name in (piece["name"] for piece in facts["pieces"]):
            content = store.read(f"{base}/{name}") or b""
            if name != _piece_name(name.partition("-")[0], content):
                raise StorageError(f"{store.uri_of(base)}/{name} is damaged")
            high_R, place_R = np.frombuffer(content, "<u8").reshape(2, -1)
            part_R, row_R = part_and_row(place_R.astype(np.int64))
            is_kept_R = number_P[part_R] >= 0
            yield entries_of_rows(high_R[is_kept_R], number_P[part_R[is_kept_R]], row_R[is_kept_R])

    return _written(store, folder, parts, np.setdiff1d(np.arange(len(parts)), number_P).tolist(), carried())


def _written(
    store: Store,
    folder: str,
    parts: Sequence[IndexedPart],
    unknown: Sequence[int],
    known: Iterable[NDArray[np.void]] = (),
) -> dict[str, Any]:
    """Write an index.

    Args:
        parts: that it is of.
        unknown: numbers of those that are to be read.
        known: entries of the others.
    """
    unreadable: list[str] = []
    return write_texts(store, folder, parts, chain(known, _entries_of(store, parts, unknown, unreadable)), unreadable)


def write_texts(
    store: Store,
    folder: str,
    parts: Sequence[IndexedPart],
    entries: Iterable[NDArray[np.void]],
    unreadable: Sequence[str] = (),
) -> dict[str, Any]:
    """Write an index, its facts last; what stands there is written over, as all of it can be derived again.

    Args:
        parts: as places number them.
        entries: as `entries_of_rows` gives them, in any order.
        unreadable: Parts that were found to be so when all entries have come.

    Returns:
        The facts.
    """
    pieces: list[dict[str, Any]] = []
    gathered: list[NDArray[np.void]] = []

    def write() -> None:
        rows = np.concatenate(gathered)
        content = rows["high"].tobytes() + rows["place"].tobytes()
        name = _piece_name(f"{len(pieces):05d}", content)
        store.put(f"{folder}/{name}", content)
        pieces.append({"name": name, "rows": len(rows), "first": int(rows["high"][0])})
        gathered.clear()

    for rows in distinct(entries):
        gathered.append(rows)
        if sum(map(len, gathered)) >= SORTED_ROWS:
            write()
    if gathered:
        write()
    facts = {
        "version": VERSION,
        "parts": [list(part) for part in parts],
        "pieces": pieces,
        "unreadable": len(unreadable),
    }
    store.put(f"{folder}/{FACTS}", orjson.dumps(facts))
    return facts


def _piece_name(number: str, content: bytes) -> str:
    return f"{number}-{content_hash(content)}.bin"


def _entries_of(
    store: Store, parts: Sequence[IndexedPart], numbers: Sequence[int], unreadable: list[str]
) -> Iterator[NDArray[np.void]]:
    """Yield the entries of these Parts; note which of them cannot be read."""

    def read(number: int) -> pa.Table | None:
        part = parts[number]
        try:
            return read_columns(store, part.key, ["text_hash", "tokens"], part.size_bytes)
        except StorageError:
            unreadable.append(part.key)
            return None

    for number, rows in zip(numbers, in_order(read, numbers, READERS), strict=True):
        if rows is not None:  # what has no tokens is an empty text, whose vector depends on `empty_text`
            rows_M = np.flatnonzero(rows["tokens"].to_numpy())
            hashes = rows["text_hash"].take(pa.array(rows_M))
            yield entries_of_rows(leading_halves(hashes), np.full(len(rows_M), number), rows_M)


def entries_of_rows(
    high_N: NDArray[np.uint64], part_N: NDArray[np.int64], row_N: NDArray[np.int64]
) -> NDArray[np.void]:
    """Return the entries of N rows: in the place of the second half of their hash stands their Part.

    Args:
        high_N: the first halves of the hashes of their texts.
        part_N: numbers of their Parts.
        row_N: their rows in those.
    """
    entries = np.empty(len(high_N), PLACED)
    entries["high"], entries["low"] = high_N, part_N
    entries["place"] = (part_N << ROW_BITS) | row_N
    return entries
