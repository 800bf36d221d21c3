"""Equal hashes among more of them than fit into memory, and where they stand."""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StorageError

PLACED = np.dtype([("high", "<u8"), ("low", "<u8"), ("place", "<u8")])
"""A 128-bit hash, and in 8 bytes where it stands."""

ROW_BITS = 40
"""A place is `index << ROW_BITS | row`: 16.7 million files of a trillion rows, ordered as they are numbered."""

SORTED_ROWS = 1 << 20
"""Hashes sorted at once in memory, 24 bytes each."""

BUCKET_BITS = 8
"""The hashes are parted by their leading bits into so many files; at 100 million of them a file holds 9 MB, and is
read whole."""


def placed(
    hashes_N: NDArray[np.void], index: int | NDArray[np.int64], rows_N: NDArray[np.int64] | None = None
) -> NDArray[np.void]:
    """Return N hashes of 16 bytes with their places.

    Args:
        index: number of the file they are of, or that of each.
        rows_N: their rows in it; None = 0, 1, 2 …
    """
    rows = np.empty(len(hashes_N), PLACED)
    halves_N2 = hashes_N.view("<u8").reshape(-1, 2)
    rows["high"], rows["low"] = halves_N2[:, 0], halves_N2[:, 1]
    numbers_N = np.arange(len(rows)) if rows_N is None else rows_N
    rows["place"] = (np.asarray(index, np.int64) << ROW_BITS) | numbers_N
    return rows


def index_and_row(place: int) -> tuple[int, int]:
    """Return what `placed` has put together."""
    return place >> ROW_BITS, place & ((1 << ROW_BITS) - 1)


def find_repeats(pieces: Iterable[NDArray[np.void]], sorted_rows: int = SORTED_ROWS) -> Iterator[NDArray[np.uint64]]:
    """Yield the places of hashes that stand at a smaller place as well; each such place once, in no order.

    Memory is that of some `sorted_rows` hashes. What is more lies in a temporary folder (below $TMPDIR), 24 bytes a
    hash, and of equal ones only one per `sorted_rows`, so that even a column of one value needs no more memory.

    Args:
        pieces: in the dtype PLACED, no place twice.
        sorted_rows: hashes sorted at once.

    Yields:
        (R, 2): the place of the repeat, and a smaller one of the same hash.

    Raises:
        StorageError: the temporary folder is full.
    """
    for _, repeats_R2 in _passes(pieces, sorted_rows):
        yield repeats_R2


def distinct(pieces: Iterable[NDArray[np.void]], sorted_rows: int = SORTED_ROWS) -> Iterator[NDArray[np.void]]:
    """Yield each hash once, with the smallest place it stands at, ordered by hash; memory and errors as `find_repeats`.

    Yields:
        Rows in the dtype PLACED; equal leading halves are never in two of these arrays.
    """
    for firsts, _ in _passes(pieces, sorted_rows):
        if len(firsts):
            yield firsts


def repeated(pieces: Iterable[NDArray[np.void]], sorted_rows: int = SORTED_ROWS) -> Iterator[NDArray[np.void]]:
    """Yield the hashes that come more than once, each once, ordered by hash; memory and errors as `find_repeats`."""
    for rows in ordered(pieces, sorted_rows):
        is_repeat = np.zeros(len(rows) + 1, np.bool_)
        is_repeat[1:-1] = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
        yield rows[is_repeat[:-1] & ~np.append(False, is_repeat[:-2])] if len(rows) else rows


def ordered(pieces: Iterable[NDArray[np.void]], sorted_rows: int = SORTED_ROWS) -> Iterator[NDArray[np.void]]:
    """Yield all rows ordered by hash, equal ones in one array; memory and errors as `find_repeats`.

    All of them go through the temporary folder, if there are more than `sorted_rows`.
    """
    with tempfile.TemporaryDirectory(prefix="hashes-") as name:
        folder, last = Path(name), np.empty(0, PLACED)
        for rows in _gathered(pieces, sorted_rows):
            if len(last):
                _spill(last, folder)
            last = rows[np.lexsort((rows["low"], rows["high"]))]
        if any(folder.iterdir()):
            _spill(last, folder)
            last = last[:0]
        yield last
        for bucket in sorted(folder.iterdir()):
            rows = np.fromfile(bucket, PLACED)
            yield rows[np.lexsort((rows["low"], rows["high"]))]
            bucket.unlink()


def _passes(
    pieces: Iterable[NDArray[np.void]], sorted_rows: int
) -> Iterator[tuple[NDArray[np.void], NDArray[np.uint64]]]:
    """Yield hashes, each once and ordered, as soon as all equal ones were seen; and repeats as they are found."""
    with tempfile.TemporaryDirectory(prefix="hashes-") as name:
        folder, firsts = Path(name), None
        for rows in _gathered(pieces, sorted_rows):
            if firsts is not None:
                _spill(firsts, folder)
            firsts, repeats_R2 = _firsts_and_repeats(rows)
            yield rows[:0], repeats_R2
        buckets = list(folder.iterdir())
        if firsts is not None and not buckets:
            yield firsts, np.empty((0, 2), np.uint64)
        if firsts is not None and buckets:
            _spill(firsts, folder)
        for bucket in sorted(folder.iterdir()):
            yield _firsts_and_repeats(np.fromfile(bucket, PLACED))
            bucket.unlink()


def _gathered(pieces: Iterable[NDArray[np.void]], rows: int) -> Iterator[NDArray[np.void]]:
    """Yield the pieces put together until they have this many rows."""
    pending: list[NDArray[np.void]] = []
    missing = rows
    for piece in pieces:
        pending.append(piece)
        missing -= len(piece)
        if missing <= 0:
            yield np.concatenate(pending)
            pending, missing = [], rows
    if pending:
        yield np.concatenate(pending)


def _firsts_and_repeats(rows: NDArray[np.void]) -> tuple[NDArray[np.void], NDArray[np.uint64]]:
    """Return a row per hash, that with the smallest place, ordered by hash; and the places of the others."""
    rows = rows[np.argsort(rows["high"])]
    if not (rows["high"][1:] == rows["high"][:-1]).any():  # nearly always, and five times as fast as the sort below
        return rows, np.empty((0, 2), np.uint64)
    rows = rows[np.lexsort((rows["place"], rows["low"], rows["high"]))]
    is_first = np.ones(len(rows), np.bool_)
    is_first[1:] = (rows["high"][1:] != rows["high"][:-1]) | (rows["low"][1:] != rows["low"][:-1])
    first_N = np.maximum.accumulate(np.where(is_first, np.arange(len(rows)), 0))
    repeats_R2 = np.stack([rows["place"][~is_first], rows["place"][first_N[~is_first]]], axis=1)
    return rows[is_first], repeats_R2


def _spill(rows: NDArray[np.void], folder: Path) -> None:
    """Add rows that are ordered by hash to the files of their leading bits."""
    bounds = np.arange(1, 1 << BUCKET_BITS, dtype=np.uint64) << np.uint64(64 - BUCKET_BITS)
    ends = [*np.searchsorted(rows["high"], bounds).tolist(), len(rows)]
    try:
        for bucket, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            if end > start:
                with (folder / f"{bucket:03d}").open("ab") as file:
                    rows[start:end].tofile(file)
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot keep the hashes of ids there ({error.strerror}), 24 bytes a row; let TMPDIR name a "
            "folder with room"
        ) from error
