"""What the cutting of rows into Blocks promises, whatever the format."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import schemas
from pipeline.records import Block, FileFormat, Shard, SourceFile, Span
from pipeline.storage.readers import read_shard
from tests.reading import (
    COMPRESS,
    blocks_of,
    columns,
    documents_of,
    open_local,
    quarantine_of,
    reasons_of,
    texts_of,
    written,
    written_parquet,
)


def lines(path: Path, texts: list[str | None], name: str = "a.jsonl") -> SourceFile:
    rows = (json.dumps({"id": f"{name}-{n}", "text": text}) + "\n" for n, text in enumerate(texts))
    return written(path / name, "".join(rows).encode(), "jsonl")


def extents(blocks: list[Block]) -> list[tuple[int, int, bool]]:
    return [(block.number, block.rows_read, block.is_last) for block in blocks]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (0, [(0, 0, True)]),
        (1, [(0, 1, True)]),
        (2, [(0, 2, True)]),
        (3, [(0, 2, False), (1, 1, True)]),
        (4, [(0, 2, False), (1, 2, True)]),
    ],
)
def test_exactly_one_block_is_the_last_be_it_full_short_or_empty(
    tmp_path: Path, rows: int, expected: list[tuple[int, int, bool]]
) -> None:
    assert extents(blocks_of(lines(tmp_path, ["t"] * rows), rows_per_block=2)) == expected


def test_a_block_counts_documents_and_quarantine_together(tmp_path: Path) -> None:
    blocks = blocks_of(lines(tmp_path, ["a", None, "b", None, None, "c"]), rows_per_block=3)
    assert [(block.documents.num_rows, block.quarantine.num_rows) for block in blocks] == [(2, 1), (1, 2)]
    assert reasons_of(blocks[:1]) == {1: "null_text"}
    assert [block.shard_id for block in blocks] == ["s1", "s1"]


def test_blocks_cross_the_files_of_a_shard_and_rows_count_in_their_file(tmp_path: Path) -> None:
    table = pa.table({"id": ["p"], "text": ["seven"]})
    files = [
        lines(tmp_path, ["one", "two", None], "a.jsonl"),
        lines(tmp_path, [], "b.jsonl"),
        written(tmp_path / "c.txt", b"four\n\nsix", "text"),
        written_parquet(tmp_path / "d.parquet", table),
    ]
    blocks = blocks_of(files, rows_per_block=4)
    assert extents(blocks) == [(0, 4, False), (1, 2, True)]
    documents = documents_of(blocks)
    assert texts_of(blocks) == ["one", "two", "four", "six", "seven"]
    assert documents[schemas.SPAN].to_pylist() == [0, 0, 2, 2, 3]
    assert documents[schemas.ROW].to_pylist() == [0, 1, 0, 2, 0]
    assert [(row["source_uri"], row["row"]) for row in quarantine_of(blocks)] == [(files[0].uri, 2)]


def test_a_block_ends_early_with_the_row_that_reaches_the_text_limit(tmp_path: Path) -> None:
    file = lines(tmp_path, ["xxxx", "xxxx", "xxxx", None, "x" * 50, "xx", "xx", "", ""])
    blocks = blocks_of(file, rows_per_block=5, max_text_bytes=10)
    assert extents(blocks) == [(0, 3, False), (1, 2, False), (2, 4, True)]
    assert [block.metrics["text_bytes"] for block in blocks] == [12.0, 50.0, 4.0]


def test_every_block_says_how_long_reading_it_took(tmp_path: Path) -> None:
    assert all(block.metrics["read_seconds"] >= 0 for block in blocks_of(lines(tmp_path, ["t"] * 5), rows_per_block=2))


def test_a_block_carries_its_own_rows_and_not_those_around_it(tmp_path: Path) -> None:
    blocks = blocks_of(lines(tmp_path, ["x" * 100] * 1000), rows_per_block=10)
    assert all(block.documents.get_total_buffer_size() < 4000 for block in blocks)


def test_a_skipped_last_block_is_not_read_again(tmp_path: Path) -> None:
    file = lines(tmp_path, ["t"] * 5)
    assert extents(blocks_of(file, rows_per_block=2, skip_blocks=frozenset({0, 2, 9}))) == [(1, 2, False)]
    assert blocks_of(file, rows_per_block=9, skip_blocks=frozenset({0})) == []


# Any rows, in any format

TEXTS = st.one_of(st.none(), st.text(max_size=6), st.just("长文本" * 9))
IDS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-3, 3), st.none())
LABELS = st.one_of(st.none(), st.text(max_size=3))
ROWS = st.lists(st.tuples(IDS, TEXTS, LABELS), max_size=30)
FORMATS: list[tuple[FileFormat, str]] = [
    ("parquet", ""),
    *(("jsonl", suffix) for suffix in COMPRESS),
    ("csv", ""),
    ("csv", ".gz"),
]
Row = tuple[int | None, str | None, str | None]


def as_csv(value: Any) -> str:
    return "" if value is None else '"' + str(value).replace('"', '""') + '"'


def write_any(path: Path, rows: list[Row], format: FileFormat, suffix: str, row_group_size: int) -> SourceFile:
    """Write rows in a format; CSV has no null, there it is an empty field."""
    if format == "parquet":
        ids, texts, labels = ([row[column] for row in rows] for column in range(3))
        table = pa.table(
            {
                "id": pa.array(ids, pa.int64()),
                "text": pa.array(texts, pa.string()),
                "label": pa.array(labels, pa.string()),
            }
        )
        return written_parquet(path / "a.parquet", table, row_group_size=row_group_size)
    if format == "jsonl":
        content = "".join(json.dumps(dict(zip(("id", "text", "label"), row, strict=True))) + "\n" for row in rows)
    else:
        content = "".join(",".join(map(as_csv, row)) + "\r\n" for row in [("id", "text", "label"), *rows])
    return written(path / f"a.{format}{suffix}", COMPRESS[suffix](content.encode()), format)


def expected_rows(files: list[list[Row]], format: FileFormat) -> list[tuple[int, int, Any]]:
    """Return (span, row, what becomes of it): id, label and text of a document, or the reason against it."""
    expected: list[tuple[int, int, Any]] = []
    for span, rows in enumerate(files):
        for number, (id, text, label) in enumerate(rows):
            if format == "csv":
                text, label = text or "", label or ""
            fate: Any = "missing_id" if id is None else "null_text" if text is None else (id, label, text)
            expected.append((span, number, fate))
    return expected


def found_rows(blocks: list[Block], files: list[SourceFile]) -> list[tuple[int, int, Any]]:
    """Return the same of what was read, Block by Block, and check the order within each."""
    spans = {file.uri: span for span, file in enumerate(files)}
    found: list[tuple[int, int, Any]] = []
    for block in blocks:
        ids, labels, texts, in_span, row, _ = (column.to_pylist() for column in block.documents.columns)
        good = list(zip(in_span, row, zip(ids, labels, texts, strict=True), strict=True))
        bad = [(spans[row["source_uri"]], row["row"], row["reason"]) for row in block.quarantine.to_pylist()]
        for positions in ([fate[:2] for fate in good], [fate[:2] for fate in bad]):
            assert positions == sorted(positions)
        assert len(good) + len(bad) == block.rows_read
        found += sorted([*good, *bad], key=lambda fate: fate[:2])
    return found


@settings(max_examples=150)
@given(
    files=st.lists(ROWS, min_size=1, max_size=3),
    kind=st.sampled_from(FORMATS),
    row_group_size=st.integers(1, 12),
    rows_per_block=st.integers(1, 12),
    max_text_bytes=st.integers(1, 200),
    skipped=st.frozensets(st.integers(0, 8)),
)
@example([[(1, "\r", "\x00"), (2, "\n", '"')]], ("csv", ""), 1, 1, 1, frozenset())
@example([[], [(None, None, None)], []], ("parquet", ""), 1, 1, 1, frozenset({0}))
def test_every_source_row_comes_exactly_once_in_order_whatever_the_cut(
    files: list[list[Row]],
    kind: tuple[FileFormat, str],
    row_group_size: int,
    rows_per_block: int,
    max_text_bytes: int,
    skipped: frozenset[int],
) -> None:
    format, suffix = kind
    with tempfile.TemporaryDirectory() as folder:
        written_files = []
        for number, rows in enumerate(files):
            path = Path(folder) / str(number)
            path.mkdir()
            written_files.append(write_any(path, rows, format, suffix, row_group_size))
        asked = columns(pa.int64(), kept=[pa.field("label", pa.string())])
        blocks = blocks_of(written_files, asked, rows_per_block, max_text_bytes=max_text_bytes)
        others = blocks_of(written_files, asked, rows_per_block, max_text_bytes=max_text_bytes, skip_blocks=skipped)
    assert found_rows(blocks, written_files) == expected_rows(files, format)
    assert [block.number for block in blocks] == list(range(len(blocks)))
    assert [block.is_last for block in blocks] == [False] * (len(blocks) - 1) + [True]
    assert all(0 < block.rows_read <= rows_per_block for block in blocks[:-1])
    untimed = [replace(block, metrics={}) for block in blocks if block.number not in skipped]
    assert [replace(block, metrics={}) for block in others] == untimed


BROKEN_LINES = st.sampled_from(
    [
        b"",
        b"  ",
        b"{",
        b"[]",
        b'{"id":1}',
        b"\xff",
        b'"\\ud800"',
        b'{"id":"x","text":"t"}',
        b"x" * 300,
        b"\x00",
    ]
)
GOOD_LINES = st.integers(0, 99).map(lambda n: b'{"id":%d,"text":"text %d"}' % (n, n))


@settings(max_examples=150)
@given(
    content=st.lists(st.one_of(GOOD_LINES, BROKEN_LINES), max_size=40),
    last=GOOD_LINES,
    end=st.sampled_from([b"\n", b"\r\n"]),
    rows_per_block=st.integers(1, 9),
)
def test_every_line_that_is_not_blank_is_a_document_or_in_quarantine(
    content: list[bytes], last: bytes, end: bytes, rows_per_block: int
) -> None:
    content = [*content, last]
    expected = {number: line for number, line in enumerate(content) if line.strip()}
    with tempfile.TemporaryDirectory() as folder:
        file = written(Path(folder) / "a.jsonl", end.join(content), "jsonl")
        blocks = blocks_of(file, columns(pa.int64(), max_line_bytes=100), rows_per_block)
    documents, rejected = documents_of(blocks), quarantine_of(blocks)
    good = {number for number, line in expected.items() if b'"text":"text ' in line}
    assert documents[schemas.ROW].to_pylist() == sorted(good)
    assert [row["row"] for row in rejected] == sorted(expected.keys() - good)
    assert sum(block.rows_read for block in blocks) == len(expected)
    offsets = [*documents[schemas.BYTE_OFFSET].to_pylist(), *(row["byte_offset"] for row in rejected)]
    starts = [sum(len(line) + len(end) for line in content[:number]) for number in expected]
    assert sorted(offsets) == starts


def test_what_a_consumer_does_with_a_block_is_not_reading_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("pipeline.storage.blocks.perf_counter", lambda: clock[0])
    file = lines(tmp_path, ["t"] * 6)
    seconds = []
    for block in read_shard(Shard("s1", (Span(file),)), columns(), 2, open_local):
        seconds.append(block.metrics["read_seconds"])
        clock[0] += 100
    assert seconds == [0.0, 0.0, 0.0]
