"""Equal hashes are found wherever they stand, each repeat once, whatever fits into memory."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.errors import StorageError
from pipeline.storage.uniqueness import PLACED, distinct, find_repeats, index_and_row, placed, repeated

FILES = st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=8)


def hashes_of(values: Sequence[int]) -> bytes:
    """Return 16 bytes per value; values that are 20 apart differ in the second half only."""
    return b"".join((value % 20 << 59).to_bytes(8, "little") + (value // 20).to_bytes(8, "little") for value in values)


def pieces_of(files: Sequence[Sequence[int]]) -> list[NDArray[np.void]]:
    return [placed(np.frombuffer(hashes_of(values), "V16"), index) for index, values in enumerate(files)]


def repeats_of(files: Sequence[Sequence[int]], sorted_rows: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return ((file, row) of each repeat, (file, row) of an earlier one), ordered."""
    found = [row for rows_R2 in find_repeats(pieces_of(files), sorted_rows) for row in rows_R2.tolist()]
    return sorted((index_and_row(repeat), index_and_row(earlier)) for repeat, earlier in found)


@given(FILES, st.integers(1, 30))
def test_every_value_but_its_first_is_a_repeat_of_an_earlier_one(files: list[list[int]], sorted_rows: int) -> None:
    seen: dict[int, list[tuple[int, int]]] = {}
    for index, values in enumerate(files):
        for row, value in enumerate(values):
            seen.setdefault(value, []).append((index, row))
    found = repeats_of(files, sorted_rows)
    assert [repeat for repeat, _ in found] == sorted(place for places in seen.values() for place in places[1:])
    for repeat, earlier in found:
        assert files[repeat[0]][repeat[1]] == files[earlier[0]][earlier[1]]
        assert earlier < repeat


@given(FILES, st.integers(1, 30))
def test_each_value_comes_once_in_order_with_its_first_place(files: list[list[int]], sorted_rows: int) -> None:
    first: dict[int, tuple[int, int]] = {}
    for index, values in enumerate(files):
        for row, value in enumerate(values):
            first.setdefault(value, (index, row))
    pieces = list(distinct(pieces_of(files), sorted_rows))
    found = [tuple(row) for piece in pieces for row in piece.tolist()]
    assert [(high, low) for high, low, _ in found] == sorted((value % 20 << 59, value // 20) for value in first)
    assert {index_and_row(place) for _, _, place in found} == set(first.values())
    highs = [set(piece["high"].tolist()) for piece in pieces]
    assert sum(map(len, highs)) == len(set().union(*highs))


@given(FILES, st.integers(1, 30))
def test_each_value_that_comes_more_than_once_comes_once_in_order(files: list[list[int]], sorted_rows: int) -> None:
    values = Counter(value for of_file in files for value in of_file)
    found = [(high, low) for piece in repeated(pieces_of(files), sorted_rows) for high, low, _ in piece.tolist()]
    assert found == sorted((value % 20 << 59, value // 20) for value, count in values.items() if count > 1)


def test_a_place_tells_file_and_row_also_beyond_four_billion_rows() -> None:
    rows = placed(np.frombuffer(hashes_of([1]), "V16"), 16_000_000, np.array([5_000_000_000]))
    assert index_and_row(int(rows["place"][0])) == (16_000_000, 5_000_000_000)


def test_what_has_no_room_on_disk_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pieces = iter(find_repeats(pieces_of([[1], [2], [3]]), 1))
    next(pieces)
    (folder,) = tmp_path.iterdir()
    folder.rmdir()
    with pytest.raises(StorageError, match="TMPDIR"):
        next(pieces)


def test_a_column_of_one_value_takes_one_hash_per_sorted_stretch_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sizes, repeats = [], 0
    for repeats_R2 in find_repeats(pieces_of([[7] * 100] * 30), 100):
        sizes.append(sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()))
        repeats += len(repeats_R2)
    assert repeats == 30 * 100 - 1
    assert max(sizes) == 30 * PLACED.itemsize


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert len(repeats_of([[1, 2], [2, 3], [3, 1]], 1)) == 3
    assert not list(tmp_path.iterdir())
