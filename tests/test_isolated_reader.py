"""Files that end the process that reads them: what is lost, and what is not."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.records import Block, Shard, SourceFile, Span
from pipeline.storage.isolated_reader import isolated_rows
from pipeline.storage.readers import read_shard
from tests.reading import blocks_of, columns, documents_of, quarantine_of, texts_of, written, written_parquet

ROWS = 4000


class Lethal:
    """A stream that ends its process where certain bytes are read, and notes it; not in the process that made it."""

    def __init__(self, stream: BinaryIO, opener: "LethalOpener") -> None:
        self._stream, self._opener = stream, opener

    def read(self, size: int = -1, /) -> bytes:
        start = self._stream.tell()
        content = self._stream.read(size)
        if start <= self._opener.position < start + len(content):
            self._opener.strike()
        return content

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@dataclass(frozen=True)
class LethalOpener:
    """Opens local files, of which one ends the child that reads it at a position."""

    uri: str
    position: int
    log: Path
    parent: int
    deaths: int = 1_000
    """It kills so often and then no more."""

    @contextmanager
    def __call__(self, file: SourceFile) -> Iterator[BinaryIO]:
        with Path(file.uri).open("rb") as stream:
            yield cast("BinaryIO", Lethal(stream, self)) if file.uri == self.uri else stream

    def strike(self) -> None:
        if os.getpid() == self.parent or self.struck() >= self.deaths:
            return
        with self.log.open("a") as log:
            log.write("killed\n")
        os._exit(139)

    def struck(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


def read(files: list[SourceFile], opener: LethalOpener, rows_per_block: int = 1000) -> list[Block]:
    shard = Shard("s1", tuple(Span(file) for file in files))
    return list(read_shard(shard, columns(), rows_per_block, opener, rows_of=isolated_rows))


def reviews(first: int) -> pa.Table:
    numbers = range(first, first + ROWS)
    return pa.table({"id": [str(n) for n in numbers], "text": [random.Random(n).randbytes(150).hex() for n in numbers]})


def lines(first: int) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in reviews(first).to_pylist())


def test_a_file_that_kills_nobody_gives_the_same_blocks(tmp_path: Path) -> None:
    files = [
        written(tmp_path / "a.jsonl", lines(0) + b"broken\n", "jsonl"),
        written_parquet(tmp_path / "b.parquet", reviews(ROWS), row_group_size=900),
    ]
    found = read(files, LethalOpener("", 0, tmp_path / "log", os.getpid()))
    expected = blocks_of(files)
    assert len(found) == 9
    for one, other in zip(found, expected, strict=True):
        assert one.documents.equals(other.documents)
        assert one.quarantine.equals(other.quarantine)
        assert (one.number, one.rows_read, one.is_last) == (other.number, other.rows_read, other.is_last)


def test_a_row_group_that_kills_is_set_aside_from_there_and_all_else_is_read(tmp_path: Path) -> None:
    lethal = written_parquet(tmp_path / "b.parquet", reviews(0), row_group_size=1000)
    position = pq.ParquetFile(lethal.uri).metadata.row_group(2).column(1).data_page_offset + 10
    files = [
        written(tmp_path / "a.jsonl", lines(ROWS), "jsonl"),
        lethal,
        written(tmp_path / "c.jsonl", lines(2 * ROWS), "jsonl"),
    ]
    opener = LethalOpener(lethal.uri, position, tmp_path / "log", os.getpid())
    blocks = read(files, opener)
    assert opener.struck() == 2
    kept = [*range(ROWS, 2 * ROWS), *range(2000), *range(3000, ROWS), *range(2 * ROWS, 3 * ROWS)]
    assert documents_of(blocks)["id"].to_pylist() == [str(number) for number in kept]
    (entry,) = quarantine_of(blocks)
    assert (entry["source_uri"], entry["row"], entry["rows"]) == (lethal.uri, 2000, 1000)
    assert entry["reason"] == "kills_process"
    assert 0 < entry["unreadable_bytes"] < lethal.size_bytes / 2
    assert sum(block.rows_read for block in blocks) == 3 * ROWS


def test_of_a_line_file_that_kills_the_rows_before_are_kept(tmp_path: Path) -> None:
    content = lines(0)
    lethal = written(tmp_path / "a.jsonl", content, "jsonl")
    opener = LethalOpener(lethal.uri, len(content) - 10, tmp_path / "log", os.getpid())
    blocks = read([lethal, written(tmp_path / "b.jsonl", lines(ROWS), "jsonl")], opener)
    (entry,) = quarantine_of(blocks)
    assert (entry["reason"], entry["rows"]) == ("kills_process", None)
    assert 0 < entry["row"] < ROWS
    assert texts_of(blocks) == reviews(0)["text"].to_pylist()[: entry["row"]] + reviews(ROWS)["text"].to_pylist()


def test_a_death_by_chance_costs_no_row(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", lines(0), "jsonl")
    opener = LethalOpener(file.uri, file.size_bytes - 10, tmp_path / "log", os.getpid(), deaths=1)
    blocks = read([file], opener)
    assert opener.struck() == 1
    assert documents_of(blocks).num_rows == ROWS
    assert quarantine_of(blocks) == []


@pytest.mark.parametrize("done", [frozenset[int](), frozenset([1])])
def test_blocks_that_are_written_are_not_given_again(tmp_path: Path, done: frozenset[int]) -> None:
    file = written(tmp_path / "a.jsonl", lines(0), "jsonl")
    opener = LethalOpener("", 0, tmp_path / "log", os.getpid())
    blocks = read_shard(Shard("s1", (Span(file),)), columns(), 1000, opener, done, rows_of=isolated_rows)
    assert [block.number for block in blocks] == [number for number in range(4) if number not in done]
