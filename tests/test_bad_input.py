"""The catalogue of bad input: what each kind of it costs, in every format, and that it costs nothing else.

Each test puts one bad thing among good rows. Finer points of a format stand in test_readers_lines.py and
test_readers_parquet.py, the whole of it in one corpus in test_bad_corpus.py, ids that stand twice in
test_duplicate_ids.py.
"""

import gzip
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SourceError
from pipeline.records import Block, FileFormat, Shard, SourceFile, Span
from pipeline.storage.connection import open_filesystem
from pipeline.storage.filesystem import open_source
from pipeline.storage.listing import list_source
from pipeline.storage.readers import read_shard
from tests.reading import (
    COMPRESS,
    blocks_of,
    columns,
    documents_of,
    quarantine_of,
    reasons_of,
    stretches_of,
    texts_of,
    written,
    written_parquet,
)

FORMATS: tuple[FileFormat, ...] = ("parquet", "jsonl", "csv", "text")
LINES = FORMATS[1:]
every_format = pytest.mark.parametrize("format", FORMATS)
every_line_format = pytest.mark.parametrize("format", LINES)


def file_of(folder: Path, format: FileFormat, texts: list[bytes | None], name: str = "a") -> SourceFile:
    """Write rows with these bytes as their text, whatever they are, and nothing escaped that need not be."""
    path = folder / f"{name}.{format}"
    if format == "parquet":
        ids = [f"r{row}" for row in range(len(texts))]
        return written_parquet(path, pa.table({"id": ids, "text": pa.array(texts, pa.binary()).view(pa.string())}))
    return written(path, b"".join(lines_of(format, texts)), format)


def lines_of(format: FileFormat, texts: Sequence[bytes | None]) -> list[bytes]:
    if format == "jsonl":
        quoted = (b"null" if text is None else b'"' + text + b'"' for text in texts)
        return [b'{"id":"r%d","text":%s}\n' % (row, text) for row, text in enumerate(quoted)]
    if format == "csv":
        return [b"id,text\n", *(b'r%d,"%s"\n' % (row, text or b"") for row, text in enumerate(texts))]
    return [(text or b"") + b"\n" for text in texts]


def assert_alone(blocks: list[Block], reason: str) -> dict[str, Any]:
    """Check that of three rows only the middle one is in quarantine, as a row, and return it."""
    assert texts_of(blocks) == ["good", "also good"]
    [entry] = quarantine_of(blocks)
    assert (entry["row"], entry["rows"], entry["reason"], entry["unreadable_bytes"]) == (1, 1, reason, None)
    assert sum(block.rows_read for block in blocks) == 3
    return entry


def among_good(folder: Path, format: FileFormat, text: bytes | None, **asked: Any) -> list[Block]:
    return blocks_of(file_of(folder, format, [b"good", text, b"also good"]), columns(**asked))


# Rows


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_a_null_text_goes_to_quarantine_alone(tmp_path: Path, format: FileFormat) -> None:
    assert assert_alone(among_good(tmp_path, format, None), "null_text")["id"] == "r1"


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize("text", ["", " ", "\t \r\n", "\u3000\u00a0\u2003"], ids=ascii)
def test_an_empty_or_whitespace_text_goes_to_quarantine_unless_asked_otherwise(
    tmp_path: Path, format: FileFormat, text: str
) -> None:
    raw = json.dumps(text, ensure_ascii=False)[1:-1].encode() if format == "jsonl" else text.encode()
    assert_alone(among_good(tmp_path, format, raw, empty_text="quarantine"), "empty_text")
    for policy in ("embed", "zero"):
        assert texts_of(among_good(tmp_path, format, raw, empty_text=policy)) == ["good", text, "also good"]


def test_a_line_of_text_that_is_only_whitespace_is_no_row_if_blank_and_else_quarantined(tmp_path: Path) -> None:
    blocks = blocks_of(
        file_of(tmp_path, "text", [b"good", b"", b" \t", "\u3000".encode()]), columns(empty_text="quarantine")
    )
    assert (texts_of(blocks), reasons_of(blocks), blocks[0].rows_read) == (["good"], {3: "empty_text"}, 2)


def test_quarantine_is_the_default_for_empty_texts() -> None:
    from pipeline.config import Source

    assert Source(uri=("a",)).empty_text == "quarantine"


@every_format
@pytest.mark.parametrize("text", [b"caf\xe9", b"\xff", b"\xf4\x90\x80\x80"], ids=repr)
def test_a_text_that_is_no_utf8_goes_to_quarantine_alone(tmp_path: Path, format: FileFormat, text: bytes) -> None:
    entry = assert_alone(among_good(tmp_path, format, text), "invalid_utf8")
    assert text in entry["raw"]


@every_format
def test_half_a_surrogate_pair_goes_to_quarantine_alone(tmp_path: Path, format: FileFormat) -> None:
    assert_alone(among_good(tmp_path, format, b"\xed\xa0\x80"), "invalid_utf8")
    if format == "jsonl":
        assert_alone(among_good(tmp_path, format, rb"\ud800"), "invalid_unicode")


@every_format
def test_nul_in_a_text_is_a_character_like_any_other_where_the_format_allows_it(
    tmp_path: Path, format: FileFormat
) -> None:
    raw = rb"a\u0000b" if format == "jsonl" else b"a\x00b"
    assert texts_of(among_good(tmp_path, format, raw)) == ["good", "a\x00b", "also good"]
    if format == "jsonl":
        assert_alone(among_good(tmp_path, format, b"a\x00b"), "invalid_json")


@pytest.mark.parametrize("line", [b'{"id":"r1","text":"t"', b'{"id":"r1" "text":"t"}', b"\xef\xbb\xbf{}", b"{'id': 1}"])
def test_a_broken_json_line_goes_to_quarantine_alone(tmp_path: Path, line: bytes) -> None:
    good = lines_of("jsonl", [b"good", b"", b"also good"])
    file = written(tmp_path / "a.jsonl", good[0] + line + b"\n" + good[2], "jsonl")
    assert assert_alone(blocks_of(file), "invalid_json")["raw"] == line


@pytest.mark.parametrize("line", [b"[]", b'"text"', b"7", b"null", b"true"])
def test_a_json_line_that_is_no_object_goes_to_quarantine_alone(tmp_path: Path, line: bytes) -> None:
    good = lines_of("jsonl", [b"good", b"", b"also good"])
    file = written(tmp_path / "a.jsonl", good[0] + line + b"\n" + good[2], "jsonl")
    assert assert_alone(blocks_of(file), "not_an_object")["raw"] == line


@pytest.mark.parametrize(
    ("format", "content"),
    [
        (
            "jsonl",
            '{"id":"a","text":"good"}\n{"id":"b","text":"t","n":"1"}\n{"id":"c","text":"also good","n":2}\n',
        ),
        ("csv", "id,text,n\na,good,1\nb,t,one\nc,also good,2\n"),
    ],
)
def test_a_value_of_the_wrong_type_takes_only_its_own_row(tmp_path: Path, format: FileFormat, content: str) -> None:
    file = written(tmp_path / f"a.{format}", content.encode(), format)
    assert_alone(blocks_of(file, columns(kept=[pa.field("n", pa.int64())])), "wrong_type")


@every_format
def test_what_quarantine_keeps_of_a_row_is_its_beginning_its_size_and_the_hash_of_all_of_it(
    tmp_path: Path, format: FileFormat
) -> None:
    text = b"\xff" + b"x" * 5000
    entry = assert_alone(among_good(tmp_path, format, text), "invalid_utf8")
    line = text if format == "parquet" else lines_of(format, [b"", text])[-1].rstrip(b"\n")
    assert (entry["raw"], entry["raw_bytes"]) == (line[:1024], len(line))
    assert entry["raw_hash"] == hashlib.sha256(line).hexdigest()


READ_ALONE = """
import json, resource, sys
from pathlib import Path
from pipeline.records import Shard, SourceFile, Span
from pipeline.storage.readers import read_shard
from tests.reading import columns, open_local, quarantine_of, texts_of
path, format = Path(sys.argv[1]), sys.argv[2]
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
shard = Shard("s1", (Span(SourceFile(str(path), "v1", path.stat().st_size, format)),))
blocks = list(read_shard(shard, columns(), 16384, open_local))
[entry] = quarantine_of(blocks)
entry = {name: entry[name] for name in ("row", "reason", "raw_bytes", "raw_hash", "error")}
print(json.dumps({"texts": texts_of(blocks), "entry": entry, "grown": peak() - before}))
"""


@every_line_format
def test_a_line_of_100_mb_goes_to_quarantine_alone_and_is_never_held(tmp_path: Path, format: FileFormat) -> None:
    path, hash, size_bytes = tmp_path / f"a.{format}", hashlib.sha256(), 0
    first, start, last = ([*lines_of(format, [b"good", b"x", b"also good"])] * 2)[-3:]
    with path.open("wb") as sink:
        sink.write((b"id,text\n" if format == "csv" else b"") + first)
        for piece in [start.rstrip(b"\n"), *[b"0123456789abcdef" * 2**16] * 100]:
            sink.write(piece)
            hash.update(piece)
            size_bytes += len(piece)
        sink.write(b"\n" + last)
    command = [sys.executable, "-c", READ_ALONE, str(path), format]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]).stdout
    found = json.loads(printed)
    error = f"the line has {size_bytes:,} bytes; at most 16,777,216 are read"
    assert found["texts"] == ["good", "also good"]
    assert found["entry"] == {
        "row": 1,
        "reason": "line_too_long",
        "raw_bytes": size_bytes,
        "raw_hash": hash.hexdigest(),
        "error": error,
    }
    assert found["grown"] < 64 * 2**20, "100 MB must not be held"


def test_a_text_beyond_the_limit_of_a_line_goes_to_quarantine_in_parquet_too(tmp_path: Path) -> None:
    entry = assert_alone(among_good(tmp_path, "parquet", b"x" * 101, max_line_bytes=100), "line_too_long")
    assert (entry["raw_bytes"], entry["error"]) == (101, "the text has 101 bytes; at most 100 are read")


# Stretches and whole files

GOOD = [b"text %d" % row for row in range(40)]


def beside_a_good_file(folder: Path, bad: SourceFile, **options: Any) -> list[Block]:
    """Read a Shard of a bad file between two good ones, and check that these come whole."""
    before = file_of(folder, "jsonl", [b"first"], name="before")
    behind = file_of(folder, "jsonl", [b"last"], name="behind")
    blocks = blocks_of([before, bad, behind], **options)
    texts = texts_of(blocks)
    assert (texts[0], texts[-1]) == ("first", "last")
    assert [block.number for block in blocks] == list(range(len(blocks)))
    assert all(entry["source_uri"] == bad.uri for entry in quarantine_of(blocks))
    lost = sum(1 if entry["rows"] is None else entry["rows"] for entry in quarantine_of(blocks))
    assert sum(block.rows_read for block in blocks) == len(texts) + lost
    return blocks


@every_line_format
@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2"])
def test_of_a_truncated_compressed_file_every_row_before_the_cut_is_read(
    tmp_path: Path, format: FileFormat, suffix: str
) -> None:
    lines = b"".join(lines_of(format, GOOD))
    members = COMPRESS[suffix](lines) + COMPRESS[suffix](b"".join(lines_of(format, [b"x" * 999] * 40)[-40:]))[:-9]
    bad = written(tmp_path / f"a.{format}{suffix}", members, format)
    blocks = beside_a_good_file(tmp_path, bad, rows_per_block=7)
    assert [text.encode() for text in texts_of(blocks)[1:41]] == GOOD
    [(row, rows, reason)] = stretches_of(blocks)
    assert (row >= 40, rows, reason) == (True, None, "unreadable_stretch")
    assert sum(block.metrics.get("unreadable_bytes", 0) for block in blocks) == bad.size_bytes


@every_line_format
def test_the_line_in_which_a_stream_breaks_off_is_no_row_even_if_it_looks_whole(
    tmp_path: Path, format: FileFormat
) -> None:
    lines = b"".join(lines_of(format, GOOD))[:-1]
    bad = written(tmp_path / f"a.{format}.gz", gzip.compress(lines)[:-8], format)
    blocks = beside_a_good_file(tmp_path, bad)
    assert [text.encode() for text in texts_of(blocks)[1:-1]] == GOOD[:-1]
    assert stretches_of(blocks) == [(39, None, "unreadable_stretch")]


def test_a_quoted_csv_record_that_breaks_off_leaves_no_line_that_looks_like_a_row(tmp_path: Path) -> None:
    content = b'id,text\na,good\nb,"a review of many lines,\nwith, one comma\nand again, one\nand'
    bad = written(tmp_path / "a.csv.gz", gzip.compress(content)[:-8], "csv")
    blocks = beside_a_good_file(tmp_path, bad)
    assert texts_of(blocks)[1:-1] == ["good"]
    assert stretches_of(blocks) == [(1, None, "unreadable_stretch")]


def test_a_wrong_checksum_condemns_all_bytes_of_the_file_though_its_rows_were_read(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(b"".join(lines_of("jsonl", GOOD))))
    content[-5] ^= 1
    blocks = beside_a_good_file(tmp_path, written(tmp_path / "a.jsonl.gz", bytes(content), "jsonl"))
    assert [text.encode() for text in texts_of(blocks)[1:-1]] == GOOD
    assert stretches_of(blocks) == [(40, None, "unreadable_stretch")]
    assert blocks[0].metrics["unreadable_bytes"] == len(content)


def test_a_corrupt_footer_is_one_entry_for_the_whole_file(tmp_path: Path) -> None:
    bad = file_of(tmp_path, "parquet", [*GOOD])
    content = bytearray(Path(bad.uri).read_bytes())
    footer_bytes = int.from_bytes(content[-8:-4], "little")
    content[-8 - footer_bytes : -8 - footer_bytes + 30] = b"\x00" * 30
    Path(bad.uri).write_bytes(content)
    blocks = beside_a_good_file(tmp_path, bad)
    assert stretches_of(blocks) == [(0, None, "unreadable_file")]
    assert blocks[0].metrics["unreadable_bytes"] == bad.size_bytes


def test_a_corrupt_page_in_the_middle_costs_a_counted_stretch(tmp_path: Path) -> None:
    table = pa.table({"id": [f"r{row}" for row in range(40)], "text": [text.decode() for text in GOOD]})
    options = {"row_group_size": 10, "write_page_checksum": True, "compression": "none", "use_dictionary": False}
    bad = written_parquet(tmp_path / "a.parquet", table, **options)
    content = bytearray(Path(bad.uri).read_bytes())
    content[content.index(b"text 15")] ^= 1
    Path(bad.uri).write_bytes(content)
    blocks = beside_a_good_file(tmp_path, bad, rows_per_block=6)
    assert [text.encode() for text in texts_of(blocks)[1:-1]] == [*GOOD[:10], *GOOD[20:]]
    assert stretches_of(blocks) == [(10, 10, "unreadable_stretch")]


@every_line_format
def test_a_line_file_of_no_bytes_is_a_file_without_rows(tmp_path: Path, format: FileFormat) -> None:
    blocks = beside_a_good_file(tmp_path, written(tmp_path / f"a.{format}", b"", format))
    assert (quarantine_of(blocks), blocks[0].rows_read) == ([], 2)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.csv.zst", "a.text.bz2"])
def test_a_file_of_no_bytes_where_a_footer_or_a_header_must_be_is_unreadable(tmp_path: Path, name: str) -> None:
    format: Any = name.split(".")[1]
    blocks = beside_a_good_file(tmp_path, written(tmp_path / name, b"", format))
    assert stretches_of(blocks) == [(0, None, "unreadable_file")]


@every_format
def test_a_column_that_one_shard_lacks_costs_that_file_and_no_other(tmp_path: Path, format: FileFormat) -> None:
    if format == "parquet":
        bad = written_parquet(tmp_path / "a.parquet", pa.table({"id": ["a", "b"], "body": ["x", "y"]}))
        asked = columns()
    elif format == "jsonl":
        bad = written(tmp_path / "a.jsonl", b'{"id":"a","body":"x"}\n' * 3, format)
        asked = columns()
    else:
        bad = written(tmp_path / f"a.{format}", b"id,body\na,x\nb,y\n", format)
        asked = columns(kept=[pa.field("label", pa.string())])
    blocks = beside_a_good_file(tmp_path, bad, asked=asked)
    assert stretches_of(blocks) == [(0, 2 if format == "parquet" else None, "missing_column")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>\n<h1>503 Service Unavailable</h1>\n</html>\n", "unreadable_file"),
        (b'[\n {\n  "id": "a",\n  "text": "t"\n },\n null\n]\n', "unreadable_file"),
        (b'[{"id":"a","text":"t"},{"id":"b","text":"t"}]', "unreadable_file"),
        (b'{"id":"a","text":"%s' % (b"x" * 4000), "unreadable_file"),
        (b'{"error":"503 Service Unavailable"}', "missing_column"),
    ],
    ids=["an error page", "a document over many lines", "a document in one line", "an endless line", "an error object"],
)
def test_json_lines_without_a_row_are_a_file_that_cannot_be_read(tmp_path: Path, content: bytes, reason: str) -> None:
    bad = written(tmp_path / "a.jsonl", content, "jsonl")
    blocks = beside_a_good_file(tmp_path, bad, asked=columns(max_line_bytes=2000))
    assert stretches_of(blocks) == [(0, None, reason)]
    assert blocks[0].metrics["unreadable_bytes"] == bad.size_bytes


def test_one_row_behind_any_number_of_bad_lines_makes_each_of_them_a_bad_row(tmp_path: Path) -> None:
    bad = written(tmp_path / "a.jsonl", (b"<p>" + b" " * 2000 + b"\n") * 600 + lines_of("jsonl", [b"good"])[0], "jsonl")
    blocks = beside_a_good_file(tmp_path, bad, rows_per_block=10**6)
    assert (texts_of(blocks)[1], blocks[0].rows_read, stretches_of(blocks)) == ("good", 603, [])


@pytest.mark.parametrize(
    ("drifted", "reason"),
    [
        pytest.param({"n": pa.array([1, 2], pa.int8())}, None, id="a narrower number"),
        pytest.param({"n": pa.array([1, 2], pa.float64())}, None, id="a fraction"),
        pytest.param({"n": pa.nulls(2)}, None, id="nulls"),
        pytest.param(
            {"n": pa.array([1, 2]), "id": pa.array(["a", "b"], pa.large_string())}, None, id="a larger string"
        ),
        pytest.param({"n": pa.array([1, 2]), "more": pa.array([1, 2])}, None, id="a further column"),
        pytest.param({"n": pa.array(["1", "2"])}, "wrong_type", id="a string"),
        pytest.param({"n": pa.array([1, 2]), "id": pa.array([1, 2])}, "wrong_type", id="an id"),
        pytest.param({"n": pa.array([1, 2]), "text": pa.array([1, 2])}, "wrong_type", id="a text"),
    ],
)
def test_a_schema_that_drifts_between_shards_is_read_where_no_value_changes_and_else_one_stretch(
    tmp_path: Path, drifted: dict[str, pa.Array], reason: str | None
) -> None:
    bad = written_parquet(tmp_path / "a.parquet", pa.table({"id": ["a", "b"], "text": ["x", "y"]} | drifted))
    asked = columns(kept=[pa.field("n", pa.int64())])
    blocks = beside_a_good_file(tmp_path, bad, asked=asked)
    assert stretches_of(blocks) == ([(0, 2, reason)] if reason else [])
    expected = [None] * 2 if reason or pa.types.is_null(drifted["n"].type) else [1, 2]
    assert documents_of(blocks)["n"].to_pylist()[1:-1] == ([] if reason else expected)


# What lies in a folder and is no data, and what does not stay as it was


def test_folder_markers_and_hidden_names_are_no_data(bucket: str) -> None:
    filesystem, _ = open_filesystem(f"s3://{bucket}/in/")
    line = lines_of("jsonl", [b"good"])[0]
    filesystem.pipe_file(f"{bucket}/in/a.jsonl", line)
    filesystem.pipe_file(f"{bucket}/in/deep/b.jsonl", line)
    for marker in ("in/", "in/deep/", "in/empty.parquet/", "in/deep_$folder$", "in/_SUCCESS", "in/.c.jsonl.crc"):
        filesystem.call_s3("put_object", Bucket=bucket, Key=marker, Body=b"")
    for format in ("auto", "jsonl"):
        found = list_source([f"s3://{bucket}/in/"], format)
        assert [file.uri.rsplit("/in/")[1] for file in found] == ["a.jsonl", "deep/b.jsonl"]


def replaced(path: Path) -> None:
    path.write_bytes(path.read_bytes() * 2)


@every_format
@pytest.mark.parametrize(
    ("meanwhile", "message"),
    [(Path.unlink, "there is nothing at this address"), (replaced, "was changed between plan and read")],
    ids=["vanishes", "changes"],
)
def test_a_file_that_is_not_what_was_planned_ends_the_run_and_is_never_bad_input(
    tmp_path: Path, format: FileFormat, meanwhile: Callable[[Path], None], message: str
) -> None:
    file_of(tmp_path, format, [b"good"])
    [planned] = list_source([str(tmp_path)], format)
    meanwhile(Path(planned.uri))
    with pytest.raises(SourceError, match=message):
        list(read_shard(Shard("s1", (Span(planned),)), columns(), 10, open_source))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz"])
def test_a_file_that_is_overwritten_while_it_is_read_ends_the_run_even_where_it_looks_corrupt(
    tmp_path: Path, name: str
) -> None:
    table = pa.table({"id": [f"r{row}" for row in range(40)], "text": [str(row) * 99 for row in range(40)]})
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name, row_group_size=10, write_page_checksum=True)
    else:
        lines = b"".join(lines_of("jsonl", [text.encode() for text in table["text"].to_pylist()]))
        (tmp_path / name).write_bytes(gzip.compress(lines))
    [planned] = list_source([str(tmp_path)], "auto")
    whole = (tmp_path / name).read_bytes()
    with pytest.raises(SourceError, match="was changed between plan and read"):
        for _ in read_shard(Shard("s1", (Span(planned),)), columns(max_line_bytes=10**6), 1, changed_when_open(whole)):
            pass


def changed_when_open(whole: bytes) -> Any:
    """Return an opener that checks versions, and overwrites the file once it has opened it."""
    from contextlib import contextmanager

    @contextmanager
    def open_and_overwrite(file: SourceFile) -> Any:
        with open_source(file) as stream:
            middle = len(whole) // 2
            Path(file.uri).write_bytes(whole[: middle - 50] + b"\x55" * 100 + whole[middle + 50 :])
            yield stream

    return open_and_overwrite
