"""What a run now would take, in numbers a person can judge before spending anything."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO, TypedDict

import orjson

from pipeline.errors import SourceError
from pipeline.execution.planning.plan import Plan, read_columns_of
from pipeline.records import Shard, SourceFile, Span
from pipeline.storage.filesystem import Store, open_source
from pipeline.storage.readers import BadFile, ReadColumns, parquet_row_groups, read_shard

FOOTERS, SAMPLES = 1000, 16
"""Parquet files, and line files of each compression, looked at; others are taken to hold as many rows per byte."""

SAMPLE_BYTES, SAMPLE_ROWS = 8 * 2**20, 1000
"""How much of a line file is read, and in which steps."""

READERS = 16


class PlanSummary(TypedDict):
    """What a run now would do."""

    files: int
    shards: int
    shards_done: int
    """Shards that need nothing, because an earlier run has done them."""
    shards_redone: int
    """Shards that a requeue does anew, because they have rows in quarantine."""
    rows_retried: int
    """How many rows those are."""
    rows: int
    """Rows of the source."""
    rows_are_exact: bool
    """False where files do not say how many rows they hold, or are too many to ask."""
    source_bytes: int
    bytes_to_read: int
    """Bytes of the Shards still to do."""
    is_done: bool
    """Whether the newest snapshot is already all that is wanted; else a run publishes one, be it of old Parts."""
    snapshot: int | None
    """The newest one published; a run would publish the next."""


def estimate(plan: Plan) -> PlanSummary:
    """Count what can be counted from footers, and estimate the rest from a sample."""
    rows, exact = _rows(plan)
    return PlanSummary(
        files=len(plan.files),
        shards=len(plan.wanted),
        shards_done=len(plan.wanted) - len(plan.embed),
        shards_redone=len(plan.redo),
        rows_retried=sum(plan.redo.values()),
        rows=rows,
        rows_are_exact=exact,
        source_bytes=plan.source_bytes,
        bytes_to_read=sum(shard.size_bytes for shard in plan.embed),
        is_done=plan.is_done,
        snapshot=plan.parent.number if plan.parent else None,
    )


def keep_forecast(store: Store, run_key: str, forecast: dict[str, Any]) -> str:
    """Write what was forecast where the run that it is for will look for it; return its address."""
    key = _key_of(run_key)
    store.put(key, orjson.dumps(forecast, option=orjson.OPT_INDENT_2))
    return store.uri_of(key)


def kept_forecast(store: Store, run_key: str) -> dict[str, Any] | None:
    """Return the newest forecast for a run, as it was kept; None if there is none."""
    content = store.read(_key_of(run_key))
    return dict(orjson.loads(content)) if content else None


def _key_of(run_key: str) -> str:
    return f"_meta/estimates/{run_key}.json"


def _rows(plan: Plan) -> tuple[int, bool]:
    if plan.is_done and plan.parent:
        return plan.parent.totals["rows_read"], True
    columns = read_columns_of(plan.layout)
    kinds: dict[str, list[SourceFile]] = defaultdict(list)
    for file in plan.files:
        kinds["".join(PurePosixPath(file.uri).suffixes[-2:]) + file.format].append(file)
    counts = [_rows_of_kind(files, columns) for files in kinds.values()]
    return sum(rows for rows, _ in counts), all(exact for _, exact in counts)


def _rows_of_kind(files: Sequence[SourceFile], columns: ReadColumns) -> tuple[int, bool]:
    """Return the rows of files of one format and compression, and whether they are counted."""
    if files[0].format == "parquet":
        asked = _spread(files, FOOTERS)
        with ThreadPoolExecutor(READERS) as pool:
            counts = list(pool.map(_rows_by_footer, asked))
    else:
        asked = _spread(files, SAMPLES)
        counts = [_sample(file, columns) for file in asked]
    rows = _scaled(files, asked, [rows for rows, _ in counts])
    return rows, len(asked) == len(files) and all(exact for _, exact in counts)


def _rows_by_footer(file: SourceFile) -> tuple[int, bool]:
    """Return the rows of a Parquet file, and whether they are known."""
    try:
        return sum(rows for rows, _ in parquet_row_groups(file, open_source)), True
    except BadFile:
        return 0, False


def _spread(files: Sequence[SourceFile], count: int) -> list[SourceFile]:
    """Return up to `count` files, evenly spread over the list."""
    return [files[i * len(files) // count] for i in range(count)] if len(files) > count else list(files)


def _scaled(files: Sequence[SourceFile], sampled: Sequence[SourceFile], rows: Sequence[int]) -> int:
    """Return the rows of all files if they hold as many per byte as the sampled ones."""
    sampled_bytes = sum(file.size_bytes for file in sampled)
    if len(sampled) == len(files) or not sampled_bytes:
        return sum(rows)
    return round(sum(rows) * sum(file.size_bytes for file in files) / sampled_bytes)


def _sample(file: SourceFile, columns: ReadColumns) -> tuple[int, bool]:
    """Return the rows of a line file, and whether they are counted rather than extrapolated from its beginning."""
    streams: list[BinaryIO] = []

    @contextmanager
    def open_and_note(file: SourceFile) -> Iterator[BinaryIO]:
        with open_source(file) as stream:
            streams.append(stream)
            yield stream

    rows = position = 0
    try:
        for block in read_shard(Shard("sample", (Span(file),)), columns, SAMPLE_ROWS, open_and_note):
            rows += block.rows_read
            if block.is_last:
                return rows, True
            position = streams[0].tell()
            if position >= SAMPLE_BYTES:
                break
    except SourceError:
        return rows, False
    return round(rows * file.size_bytes / max(position, 1)), False
