"""From files to Shards: giants are cut by row groups, dwarfs gathered, and neighbours never disturb each other."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.execution.planning.grouping import group_ends
from pipeline.fingerprint import content_hash, fingerprint
from pipeline.records import Shard, SourceFile, Span
from pipeline.storage.filesystem import open_source
from pipeline.storage.readers import BadFile, parquet_row_groups

SPLIT_BYTES = 256 * 2**20
"""A Parquet file beyond this is cut by row groups, so that several workers share it."""

BYTES_PER_ROW = 256
"""Rough size of a row of text, for gathering small files into Shards of about one Part."""

FILES_PER_SHARD = 512
"""Small files that share a Shard, on average at most: to open one on object storage takes some 10 ms."""

FOOTER_READERS = 16
"""Footers of giant files read at once."""

READ_AS = {"jsonl": "jsonl-2"}
"""Of formats whose readers have come to count rows otherwise, what stands for their names in what identifies Shards and
runs: what was begun by the old count is not gone on with. 2 = lines without a single row are one stretch (2026-11)."""


def cut_shards(
    files: Sequence[SourceFile],
    layout: dict[str, Any],
    recipe: str,
    rows_per_part: int,
    row_groups: dict[str, list[tuple[int, int]]],
) -> tuple[Shard, ...]:
    """Cut files into Shards; the same files give the same Shards, whatever was there the night before.

    Giant Parquet files are cut by row groups, a file of a full Part or more is a Shard of its own. Smaller ones that
    follow each other are put together to about one Part (`grouping`), so that a file which comes, goes or is changed
    changes its own Shard, sometimes one beside it, and no other.

    Args:
        files: sorted by URI.
        layout: columns and shape, part of every shard_id.
        recipe: fingerprint of the recipe.
        rows_per_part: rows of a full Part.
        row_groups: (rows, bytes) per row group of the files to cut, by URI.
    """
    full = rows_per_part * BYTES_PER_ROW
    shards: list[Shard] = []
    for is_small, run in groupby(files, key=lambda file: file.size_bytes < full and file.uri not in row_groups):
        if is_small:
            shards += [_shard(spans, layout, recipe) for spans in _gathered(list(run), full)]
        else:
            each = ((span,) for file in run for span in _spans(file, row_groups.get(file.uri)))
            shards += [_shard(span, layout, recipe) for span in each]
    return tuple(shards)


def _gathered(files: Sequence[SourceFile], full: int) -> Iterator[tuple[Span, ...]]:
    """Yield groups of neighbours, all of them smaller than `full` bytes."""
    draws_N = np.array([int(content_hash(file.uri.encode())[:16], 16) for file in files], np.uint64)
    sizes_N = np.array([file.size_bytes for file in files], np.int64)
    weights_N = np.maximum(sizes_N, -(-full // FILES_PER_SHARD))
    stops = (np.flatnonzero(group_ends(draws_N, weights_N, full)) + 1).tolist()
    for start, stop in zip([0, *stops], stops, strict=False):
        yield tuple(map(Span, files[start:stop]))


def _shard(spans: tuple[Span, ...], layout: dict[str, Any], recipe: str, dropped: Sequence[str] = ()) -> Shard:
    stretches = [[s.file.uri, s.file.version, READ_AS.get(s.file.format, s.file.format), s.position] for s in spans]
    return Shard(fingerprint([stretches, layout, recipe, *dropped]), spans)


def without_rows(shard: Shard, layout: dict[str, Any], recipe: str, dropped: NDArray[np.int64]) -> Shard:
    """Return the Shard without these rows: another one, for its Parts are others."""
    return _shard(shard.spans, layout, recipe, [content_hash(dropped.astype("<i8").tobytes())])


def _spans(file: SourceFile, row_groups: list[tuple[int, int]] | None) -> Iterator[Span]:
    """Cut a file's row groups, (rows, bytes) each, into stretches of about half of SPLIT_BYTES; None = not at all."""
    if row_groups is None:
        yield Span(file)
        return
    first, rows, size = 0, 0, 0
    for number, (group_rows, group_bytes) in enumerate(row_groups):
        rows, size = rows + group_rows, size + group_bytes
        if size >= SPLIT_BYTES // 2 or number == len(row_groups) - 1:
            yield Span(file, first, number + 1 - first, rows, size)
            first, rows, size = number + 1, 0, 0


def row_groups_of(files: Iterable[SourceFile]) -> dict[str, list[tuple[int, int]]]:
    """Return (rows, bytes) per row group of the files that are to be cut, from their footers.

    One without a footer that can be read is not cut: it is a Shard of its own, and all of it goes to quarantine.
    """
    giants = [file for file in files if file.format == "parquet" and file.size_bytes > SPLIT_BYTES]
    with ThreadPoolExecutor(FOOTER_READERS) as pool:
        footers = pool.map(_row_groups_or_none, giants)
        return {file.uri: groups for file, groups in zip(giants, footers, strict=True) if groups is not None}


def _row_groups_or_none(file: SourceFile) -> list[tuple[int, int]] | None:
    try:
        return parquet_row_groups(file, open_source)
    except BadFile:
        return None
