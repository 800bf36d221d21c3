"""From files to Shards: giants are cut by row groups, dwarfs gathered, and neighbours never disturb each other."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.fingerprint import content_hash, fingerprint
from pipeline.records import Shard, SourceFile, Span
from pipeline.storage.filesystem import open_source
from pipeline.storage.readers import BadFile, parquet_row_groups

SPLIT_BYTES = 256 * 2**20
"""A Parquet file beyond this is cut by row groups, so that several workers share it."""

BYTES_PER_ROW = 256
"""Rough size of a row of text, for gathering small files into Shards of about one Part."""

FOOTER_READERS = 16
"""Footers of giant files read at once."""


def cut_shards(
    files: Sequence[SourceFile],
    layout: dict[str, Any],
    recipe: str,
    rows_per_part: int,
    row_groups: dict[str, list[tuple[int, int]]],
) -> tuple[Shard, ...]:
    """Cut files into Shards; the same files give the same Shards, whatever stands beside them.

    Giant Parquet files are cut by row groups; small files that follow each other are gathered until
    they make about one Part. Where a group ends is drawn from the names in it (their hash), so that a new file changes
    the groups up to the next such end, mostly its own, and no other.

    Args:
        files: sorted by URI.
        layout: columns and shape, part of every shard_id.
        recipe: fingerprint of the recipe.
        rows_per_part: rows of a full Part.
        row_groups: (rows, bytes) per row group of the files to cut, by URI.
    """
    small_bytes = rows_per_part * BYTES_PER_ROW
    shards: list[Shard] = []
    group: list[Span] = []
    group_bytes = 0

    def close() -> None:
        nonlocal group_bytes
        if group:
            shards.append(_shard(tuple(group), layout, recipe))
            group.clear()
            group_bytes = 0

    for file in files:
        if file.uri in row_groups:
            close()
            shards += [_shard((span,), layout, recipe) for span in _spans(file, row_groups[file.uri])]
            continue
        if file.size_bytes > small_bytes // 2:
            close()
        group.append(Span(file))
        group_bytes += file.size_bytes
        share = file.size_bytes / small_bytes
        draw = int(fingerprint(file.uri)[:8], 16) / 2**32
        if group_bytes >= small_bytes or draw < share:
            close()
    close()
    return tuple(shards)


def _shard(spans: tuple[Span, ...], layout: dict[str, Any], recipe: str, dropped: Sequence[str] = ()) -> Shard:
    stretches = [[s.file.uri, s.file.version, s.file.format, s.position] for s in spans]
    return Shard(fingerprint([stretches, layout, recipe, *dropped]), spans)


def without_rows(shard: Shard, layout: dict[str, Any], recipe: str, dropped: NDArray[np.int64]) -> Shard:
    """Return the Shard without these rows: another one, for its Parts are others."""
    return _shard(shard.spans, layout, recipe, [content_hash(dropped.astype("<i8").tobytes())])


def _spans(file: SourceFile, row_groups: list[tuple[int, int]]) -> Iterator[Span]:
    """Cut a file's row groups, (rows, bytes) each, into stretches of about half of SPLIT_BYTES."""
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
