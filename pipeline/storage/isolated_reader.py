"""Files that end the process that reads them: read in a child process, so that only what cannot be read is lost."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from pipeline.isolation import Isolated, ProcessDied
from pipeline.records import Reason, Shard, Span
from pipeline.schemas import rows_counted
from pipeline.storage.parquet_reader import parquet_row_groups
from pipeline.storage.readers import read_span
from pipeline.storage.rows import Bad, BadFile, OpenFile, ReadColumns, Rows, Stretch, stretch_as_rows

ATTEMPTS = 2
"""A piece must end its process so often: the first time may have had another cause."""

KILLS = "reading on from here ends the process that does it (a fault of the decoder, or want of memory)"


@dataclass(frozen=True, slots=True)
class _Stretch:
    """What is read as one: a row group, or a line file."""

    index: int
    """Of its Span in the Shard."""
    span: Span
    first_row: int
    rows: int | None
    """None = unknown."""
    size_bytes: int


def isolated_rows(shard: Shard, columns: ReadColumns, open_file: OpenFile) -> Iterator[Rows]:
    """Yield the rows that `read_shard` reads, and a stretch in quarantine where reading ends its process.

    What is lost is the rest of a row group, or of a line file, behind the last rows that came through; the row groups
    and files after it are read.

    Args:
        shard: as for `read_shard`.
        columns: as there.
        open_file: is called in the child and must be picklable.

    Raises:
        SourceError: as `read_shard`.
    """
    child: Isolated[tuple[_Stretch, int], Rows | None] = Isolated(partial(_reading, columns, open_file))
    try:
        for index, span in enumerate(shard.spans):
            for stretch in _stretches_of(index, span, open_file):
                yield from _survivors(stretch, columns, child)
    finally:
        child.close()


def _survivors(
    stretch: _Stretch, columns: ReadColumns, child: Isolated[tuple[_Stretch, int], Rows | None]
) -> Iterator[Rows]:
    pieces, rows, deaths = 0, 0, 0
    while deaths < ATTEMPTS:
        try:
            piece = child((stretch, pieces))
        except ProcessDied:
            deaths += 1
            continue
        if piece is None:
            return
        yield piece
        pieces, deaths = pieces + 1, 0
        rows += piece.documents.num_rows + sum(rows_counted(piece.quarantine).to_pylist())
    lost = None if stretch.rows is None else stretch.rows - rows
    if lost == 0:
        return
    share = 1.0 if lost is None or not stretch.rows else lost / stretch.rows
    why = Bad(Reason.KILLS_PROCESS, KILLS, rows=lost, unreadable_bytes=round(stretch.size_bytes * share))
    yield stretch_as_rows(Stretch(stretch.first_row + rows, why), columns, stretch.span.file)


def _stretches_of(index: int, span: Span, open_file: OpenFile) -> Iterator[_Stretch]:
    """Yield the row groups of a Span one by one; its footer was read by the plan, which lives."""
    size_bytes = span.file.size_bytes if span.stretch_bytes is None else span.stretch_bytes
    groups: list[tuple[int, int]] = []
    if span.file.format == "parquet":
        with suppress(BadFile):  # its reader tells it in quarantine
            groups = parquet_row_groups(span.file, open_file)
    first = span.first_row_group or 0
    wanted = groups[first:] if span.row_groups is None else groups[first : first + span.row_groups]
    is_as_planned = span.row_groups in (None, len(wanted)) and span.rows in (None, sum(rows for rows, _ in wanted))
    if not wanted or not is_as_planned:
        yield _Stretch(index, span, 0, span.rows, size_bytes)
        return
    first_row = sum(rows for rows, _ in groups[:first])
    for group, (rows, group_bytes) in enumerate(wanted, first):
        part = replace(span, first_row_group=group, row_groups=1, rows=rows, stretch_bytes=group_bytes)
        yield _Stretch(index, part, first_row, rows, group_bytes)
        first_row += rows


def _reading(columns: ReadColumns, open_file: OpenFile) -> Callable[[tuple[_Stretch, int]], Rows | None]:
    """Return what gives a numbered piece of a stretch, None behind its last one; made in the child."""
    current: _Stretch | None = None
    pieces: Iterator[Rows] = iter(())
    next_piece = 0

    def read(asked: tuple[_Stretch, int]) -> Rows | None:
        nonlocal current, pieces, next_piece
        stretch, number = asked
        if stretch != current or number != next_piece:
            current, next_piece = stretch, number
            pieces = islice(read_span(stretch.span, stretch.index, columns, open_file), number, None)
        next_piece += 1
        return next(pieces, None)

    return read
