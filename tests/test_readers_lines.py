"""What reading JSON lines, CSV and plain text promises."""

import bz2
import hashlib
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pytest
import zstandard

from pipeline import schemas
from pipeline.errors import SourceError
from pipeline.records import FileFormat, Shard, SourceFile, Span
from pipeline.storage.line_reader import split_lines
from pipeline.storage.readers import read_shard, read_source_schema
from pipeline.storage.rows import ReadColumns
from tests.reading import (
    COMPRESS,
    blocks_of,
    columns,
    documents_of,
    open_local,
    quarantine_of,
    reasons_of,
    stretches_of,
    texts_of,
    written,
)

GOOD = b'{"id":"a","text":"one"}\n'


def jsonl(path: Path, *lines: bytes | str) -> SourceFile:
    content = b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
    return written(path / "a.jsonl", content, "jsonl")


def csv(path: Path, content: str | bytes) -> SourceFile:
    return written(path / "a.csv", content.encode() if isinstance(content, str) else content, "csv")


# JSON lines


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id":"x","text":null}', "null_text"),
        (b'{"id":"x"}', "missing_column"),
        (b'{"id":null,"text":"t"}', "missing_id"),
        (b'{"text":"t"}', "missing_id"),
        (b'{"id":1,"text":"t"}', "wrong_type"),
        (b'{"id":true,"text":"t"}', "wrong_type"),
        (b'{"id":"x","text":7}', "wrong_type"),
        (b'{"id":"x","text":["t"]}', "wrong_type"),
        (b'{"id":"x","text":"caf\xe9"}', "invalid_utf8"),
        (b'{"id":"x","text":"\xed\xa0\x80"}', "invalid_utf8"),
        (b'{"id":"x","text":"\\ud800"}', "invalid_unicode"),
        (b'{"id":"x","text":"\\udc00 \\ud800"}', "invalid_unicode"),
        (b'{"id":"x","text":"t"', "invalid_json"),
        (b'{"id":"x","text":"t"} {}', "invalid_json"),
        (b'{"id":"x","text":"raw \x00 NUL"}', "invalid_json"),
        (b'{"id":"x","text":"t","n":NaN}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'["x","t"]', "not_an_object"),
        (b'"t"', "not_an_object"),
        (b"null", "not_an_object"),
    ],
)
def test_a_bad_json_line_is_one_row_in_quarantine_and_never_more(tmp_path: Path, line: bytes, reason: str) -> None:
    file = jsonl(tmp_path, GOOD[:-1], line, b'{"id":"c","text":"three"}')
    blocks = blocks_of(file)
    assert texts_of(blocks) == ["one", "three"]
    [row] = quarantine_of(blocks)
    assert (row["row"], row["byte_offset"], row["reason"]) == (1, len(GOOD), reason)
    assert (row["source_uri"], row["raw"]) == (file.uri, line[: schemas.RAW_BYTES])


def test_quarantine_knows_the_id_where_it_was_readable(tmp_path: Path) -> None:
    file = jsonl(tmp_path, '{"id":7,"text":null}', '{"id":"7","text":"t"}', "{")
    assert [row["id"] for row in quarantine_of(blocks_of(file, columns(pa.int64())))] == ["7", None, None]


def test_errors_never_hold_the_content(tmp_path: Path) -> None:
    lines = [
        '{"id":"secret","text":7}',
        '{"id":"b","text":"secret\\ud800"}',
        '{"secret',
        '"secret"',
        '{"text":"secret"}',
    ]
    kept = columns(kept=[pa.field("n", pa.int64())])
    for row in quarantine_of(blocks_of(jsonl(tmp_path, *lines, '{"id":"c","text":"t","n":"secret"}'), kept)):
        assert "secret" not in row["error"]


@pytest.mark.parametrize(
    ("id", "is_good"),
    [
        ("7", True),
        ("-9223372036854775808", True),
        ("9223372036854775808", False),
        ("99999999999999999999999", False),
        ("1e3", False),
        ("7.0", False),
        ("true", False),
        ('"7"', False),
    ],
)
def test_an_integer_id_is_a_whole_number_of_64_bits(tmp_path: Path, id: str, is_good: bool) -> None:
    blocks = blocks_of(jsonl(tmp_path, f'{{"id":{id},"text":"t"}}'), columns(pa.int64()))
    assert reasons_of(blocks) == ({} if is_good else {0: "wrong_type"})


def test_a_kept_value_that_does_not_fit_its_column_takes_only_its_own_row(tmp_path: Path) -> None:
    good = ['{"id":"a","text":"t","n":1}', '{"id":"b","text":"t"}', '{"id":"c","text":"t","n":null}']
    bad = ['"1"', "1.5", "1.0", "true", "[1]", "9223372036854775808"]
    lines = good + [f'{{"id":"x","text":"t","n":{value}}}' for value in bad]
    blocks = blocks_of(jsonl(tmp_path, *lines), columns(kept=[pa.field("n", pa.int64())]))
    assert documents_of(blocks)["n"].to_pylist() == [1, None, None]
    assert reasons_of(blocks) == dict.fromkeys(range(3, 9), "wrong_type")
    assert quarantine_of(blocks)[0]["error"] == "column 'n': expected int64, found string"
    assert quarantine_of(blocks)[5]["error"] == "column 'n': expected int64, found integer beyond its range"


@pytest.mark.parametrize(
    ("type", "value", "is_good"),
    [
        (pa.float64(), "1", True),
        (pa.float64(), "true", False),
        (pa.bool_(), "1", False),
        (pa.dictionary(pa.int32(), pa.string()), '"x"', True),
        (pa.list_(pa.string()), '["x",null]', True),
        (pa.list_(pa.string()), '"xy"', False),
        (pa.list_(pa.int64()), "[1,2.5]", False),
        (pa.struct([("a", pa.int64())]), '{"a":1}', True),
        (pa.struct([("a", pa.int64())]), "{}", True),
        (pa.struct([("a", pa.int64())]), '{"a":1,"b":2}', False),
        (pa.timestamp("us"), "1", False),
        (pa.binary(), '"x"', False),
        (pa.null(), "1", False),
        (pa.null(), "null", True),
    ],
    ids=str,
)
def test_json_values_are_never_coerced_and_no_key_is_dropped(
    tmp_path: Path, type: pa.DataType, value: str, is_good: bool
) -> None:
    file = jsonl(tmp_path, f'{{"id":"a","text":"t","kept":{value}}}')
    blocks = blocks_of(file, columns(kept=[pa.field("kept", type)]))
    assert reasons_of(blocks) == ({} if is_good else {0: "wrong_type"})


def test_lines_end_at_newlines_only_and_rows_are_line_numbers(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"id":"a","text":"\xe2\x80\xa8"}\r\n\n \t\r\n{"id":"b","text":"\\u0000\xc2\x85"}'
    blocks = blocks_of(written(tmp_path / "a.jsonl", content, "jsonl"))
    documents = documents_of(blocks)
    assert texts_of(blocks) == ["\u2028", "\x00\x85"]
    assert documents[schemas.ROW].to_pylist() == [0, 3]
    assert documents[schemas.BYTE_OFFSET].to_pylist() == [3, content.index(b'{"id":"b"')]
    assert blocks[0].rows_read == 2


def test_of_a_key_that_stands_twice_the_last_holds(tmp_path: Path) -> None:
    assert texts_of(blocks_of(jsonl(tmp_path, '{"id":"a","text":"first","text":"last"}'))) == ["last"]


def test_a_line_beyond_the_limit_goes_to_quarantine_alone(tmp_path: Path) -> None:
    long = b'{"id":"x","text":"' + b"x" * 100 + b'"}'
    short_json_then_spaces = b"{}" + b" " * 120
    file = jsonl(tmp_path, GOOD[:-1], long, short_json_then_spaces, b" " * 120, GOOD[:-1])
    blocks = blocks_of(file, columns(max_line_bytes=100))
    assert texts_of(blocks) == ["one", "one"]
    assert reasons_of(blocks) == dict.fromkeys([1, 2, 3], "line_too_long")
    assert quarantine_of(blocks)[0]["error"] == "the line has 120 bytes; at most 100 are read"
    assert texts_of(blocks_of(file, columns(max_line_bytes=120)))[1] == "x" * 100


def test_a_line_beyond_the_limit_is_never_held_and_hashed_whole() -> None:
    pieces, whole = [b"x" * 2**20, b"y" * 2**19, b"z" * 100] * 70, hashlib.sha256()

    def chunks() -> Iterator[bytes]:
        for piece in pieces:
            whole.update(piece)
            yield piece
        yield b"\nend"

    first, last = split_lines(chunks(), 16 * 2**20)
    assert first.lines == [b"x" * schemas.RAW_BYTES]
    assert first.bad[0].error == "the line has 110,107,480 bytes; at most 16,777,216 are read"
    assert (first.bad[0].raw_bytes, first.bad[0].raw_hash) == (110_107_480, whole.hexdigest())
    assert (last.lines, last.byte_offset_N.tolist()) == ([b"end"], [110_107_481])


def test_json_lines_without_a_column_go_to_quarantine_each_and_stop_nothing(tmp_path: Path) -> None:
    blocks = blocks_of(jsonl(tmp_path, *['{"id":"a","txt":"t"}', '{"text":"t"}'] * 800, GOOD[:-1]))
    assert texts_of(blocks) == ["one"]
    assert reasons_of(blocks) == {row: ("missing_column", "missing_id")[row % 2] for row in range(1600)}


def test_the_schema_of_json_lines_comes_from_the_kind_that_most_values_have(tmp_path: Path) -> None:
    file = jsonl(
        tmp_path,
        "broken",
        '{"id":1,"text":"t","b":true,"i":1,"f":1,"s":"x","l":["x"],"o":{"k":[]},"n":null,"m":1}',
        '{"id":2,"text":7,"b":null,"i":2,"f":2.5,"s":null,"l":[],"o":{"k":null},"m":"x"}',
        '{"id":18446744073709551616,"text":"t","m":"x"}',
    )
    schema = read_source_schema(file, "id", "text", tuple("bifslonm"), open_local)
    assert schema is not None
    assert {field.name: str(field.type) for field in schema if field.name in "id bifslonm"} == {
        "id": "int64",
        "b": "bool",
        "i": "int64",
        "f": "double",
        "s": "string",
        "l": "list<item: string>",
        "o": "struct<k: list<item: string>>",
        "n": "string",
        "m": "string",
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id":1.5,"text":"t","k":1}', "column 'id' of .* holds double; expected string or integer ids"),
        ('{"id":1,"text":7,"k":1}', "column 'text' of .* holds int64; expected string"),
        ('{"id":1,"text":"t"}', r"has no column 'k'; It has: id, text"),
        ('{"id":1,"text":"t","k":[1,"x"]}', "column 'k' of .* holds arrays of several types"),
        ('{"id":1,"text":"t","k":{}}', "column 'k' of .* holds objects without a key, which Parquet cannot store"),
        ('{"id":1,"text":"t","k":[{"a":{}}]}', "column 'k' of .* holds objects without a key"),
    ],
)
def test_a_schema_that_cannot_be_used_is_an_error(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read_source_schema(jsonl(tmp_path, line), "id", "text", ("k",), open_local)


@pytest.mark.parametrize("lines", [[], ["broken", "[]"]])
def test_a_json_file_without_a_good_row_says_nothing_of_its_columns(tmp_path: Path, lines: list[str]) -> None:
    assert read_source_schema(jsonl(tmp_path, *lines), "id", "text", ("k",), open_local) is None


# Compression


def whole(suffix: str) -> bytes:
    return COMPRESS[suffix](b"".join(b'{"id":"%d","text":"text %d"}\n' % (n, n * n) for n in range(500)))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_compression_gives_the_same_rows_and_offsets(tmp_path: Path, suffix: str) -> None:
    documents = documents_of(blocks_of(written(tmp_path / f"a.jsonl{suffix}", whole(suffix), "jsonl")))
    assert documents.num_rows == 500
    assert documents[schemas.BYTE_OFFSET].to_pylist()[:3] == [0, 27, 54]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_several_members_in_a_row_are_one_file(tmp_path: Path, suffix: str) -> None:
    members = [GOOD + b'{"id":"b",', b'"text":"two"}\n', b""]
    content = b"".join(map(COMPRESS[suffix], members))
    assert texts_of(blocks_of(written(tmp_path / f"a.jsonl{suffix}", content, "jsonl"))) == ["one", "two"]


def test_frames_to_skip_are_skipped(tmp_path: Path) -> None:
    content = zstandard.compress(GOOD) + b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc" + zstandard.compress(GOOD)
    assert texts_of(blocks_of(written(tmp_path / "a.jsonl.zst", content, "jsonl"))) == ["one", "one"]


def decodable(content: bytes, suffix: str) -> bytes:
    """Return what Python's own decoders make of a stream that breaks off."""
    if suffix == ".gz":
        return zlib.decompressobj(31).decompress(content)
    if suffix == ".bz2":
        return bz2.BZ2Decompressor().decompress(content)
    return zstandard.ZstdDecompressor().decompressobj().decompress(content)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_every_cut_of_a_compressed_file_gives_the_rows_before_it_and_one_stretch(tmp_path: Path, suffix: str) -> None:
    content = whole(suffix)
    for size in {*range(20), *range(0, len(content), 97), *range(len(content) - 12, len(content))}:
        file = written(tmp_path / f"a.jsonl{suffix}", content[:size], "jsonl")
        blocks, expected = blocks_of(file), decodable(content[:size], suffix)
        rows = expected.count(b"\n")
        assert documents_of(blocks)["id"].to_pylist() == [str(row) for row in range(rows)], size
        [entry] = quarantine_of(blocks)
        reason = "unreadable_stretch" if expected else "unreadable_file"
        assert (entry["row"], entry["rows"], entry["reason"], entry["unreadable_bytes"]) == (rows, None, reason, size)
        assert (entry["byte_offset"], entry["raw"]) == (expected.rfind(b"\n") + 1, expected.rpartition(b"\n")[2])
        assert [block.rows_read for block in blocks] == [rows + 1]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_what_follows_a_whole_stream_and_is_none_costs_no_row(tmp_path: Path, suffix: str) -> None:
    content = whole(suffix)
    for broken in [content + b"x", content + b"garbage\n", content + content[:9]]:
        blocks = blocks_of(written(tmp_path / f"a.jsonl{suffix}", broken, "jsonl"))
        assert len(texts_of(blocks)) == 500
        assert stretches_of(blocks) == [(500, None, "unreadable_stretch")]
        assert blocks[0].metrics["unreadable_bytes"] == len(broken)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_a_flipped_bit_in_a_compressed_file_never_passes_unseen(tmp_path: Path, suffix: str) -> None:
    content = whole(suffix)
    for position in range(4 if suffix == ".bz2" else 20, len(content), 41):
        flipped = bytearray(content)
        flipped[position] ^= 1
        blocks = blocks_of(written(tmp_path / f"a.jsonl{suffix}", bytes(flipped), "jsonl"))
        [(row, rows, _)] = stretches_of(blocks)
        assert (rows, row) == (None, max(reasons_of(blocks)))
        assert blocks[0].metrics["unreadable_bytes"] == len(content)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_a_plain_file_with_the_name_of_a_compressed_one_is_one_entry(tmp_path: Path, suffix: str) -> None:
    blocks = blocks_of(written(tmp_path / f"a.jsonl{suffix}", GOOD * 500, "jsonl"))
    assert stretches_of(blocks) == [(0, None, "unreadable_file")]
    assert blocks[0].rows_read == 1


def test_what_was_damaged_on_its_way_only_is_read_again(tmp_path: Path) -> None:
    content = whole(".gz")
    file = written(tmp_path / "a.jsonl.gz", content, "jsonl")
    flipped = bytearray(content)
    flipped[len(content) - 3] ^= 1
    answers = [bytes(flipped), content]

    def open_by_turns(file: SourceFile) -> AbstractContextManager[BinaryIO]:
        return io.BytesIO(answers.pop(0))

    blocks = list(read_shard(Shard("s1", (Span(file),)), columns(), 1000, open_by_turns))
    assert (len(texts_of(blocks)), quarantine_of(blocks)) == (500, [])


@pytest.mark.parametrize("suffix", COMPRESS)
def test_fewer_or_more_bytes_than_planned_are_an_error(tmp_path: Path, suffix: str) -> None:
    file = written(tmp_path / f"a.jsonl{suffix}", COMPRESS[suffix](GOOD), "jsonl")
    for planned in (file.size_bytes - 1, file.size_bytes + 1):
        with pytest.raises(SourceError, match="the plan saw"):
            blocks_of(SourceFile(file.uri, "v1", planned, "jsonl"))


class BrokenStore(io.BytesIO):
    """A store that fails at the end of a file."""

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        if not piece:
            raise ConnectionResetError("the store hung up")
        return piece


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_fault_of_the_store_is_not_told_as_a_fault_of_the_file(tmp_path: Path, suffix: str) -> None:
    file = written(tmp_path / f"a.jsonl{suffix}", whole(suffix)[:-10], "jsonl")

    def open_broken(file: SourceFile) -> AbstractContextManager[BinaryIO]:
        return BrokenStore(Path(file.uri).read_bytes())

    with pytest.raises(ConnectionResetError, match="the store hung up"):
        list(read_shard(Shard("s1", (Span(file),)), columns(), 10, open_broken))


@pytest.mark.parametrize("format", ["jsonl", "csv", "text"])
def test_a_file_of_no_bytes_has_no_rows(tmp_path: Path, format: FileFormat) -> None:
    [block] = blocks_of(written(tmp_path / f"a.{format}", b"", format))
    assert (block.rows_read, block.is_last, block.documents.num_rows) == (0, True, 0)


# CSV


def test_csv_quotes_hold_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    content = '\ufefftext,id,extra\r\n"a, ""b""\r\nc",1,x\r\n\r\n一 ,2,\r\n'
    blocks = blocks_of(csv(tmp_path, content))
    assert texts_of(blocks) == ['a, "b"\r\nc', "一 "]
    documents = documents_of(blocks)
    assert documents["id"].to_pylist() == ["1", "2"]
    assert documents[schemas.ROW].to_pylist() == [0, 1]
    assert documents[schemas.BYTE_OFFSET].to_pylist() == [
        18,
        len(content.encode()) - len("一 ,2,\r\n".encode()),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x", "invalid_csv"),
        ("x,t,1,2", "invalid_csv"),
        ('x,"t" t,1', "invalid_csv"),
        ('x,"never closed,1', "invalid_csv"),
        (",t,1", "missing_id"),
        ("x,t,one", "wrong_type"),
        (b"x,caf\xe9,1", "invalid_utf8"),
        (b'"x\n\xe9",t,1', "invalid_utf8"),
    ],
)
def test_a_bad_csv_record_is_one_row_in_quarantine(tmp_path: Path, line: str | bytes, reason: str) -> None:
    raw = line.encode() if isinstance(line, str) else line
    content = b"id,text,n\na,one,1\n" + raw + b"\nc,three,3\nd,four,\n"
    blocks = blocks_of(csv(tmp_path, content), columns(kept=[pa.field("n", pa.int64())]))
    assert documents_of(blocks)["n"].to_pylist() == [1, 3, None]
    [row] = quarantine_of(blocks)
    assert (row["row"], row["reason"], row["byte_offset"], row["raw"]) == (1, reason, 18, raw)


def test_an_open_quote_costs_its_own_line_and_no_row_behind_it(tmp_path: Path) -> None:
    rows = "".join(f"{n},text {n}\n" for n in range(5000))
    blocks = blocks_of(csv(tmp_path, f'id,text\nx,"open\n{rows}'), columns(max_line_bytes=1000))
    assert documents_of(blocks)["id"].to_pylist() == [str(n) for n in range(5000)]
    assert reasons_of(blocks) == {0: "invalid_csv"}


def test_a_csv_line_beyond_the_limit_goes_to_quarantine_alone(tmp_path: Path) -> None:
    content = f'id,text\na,one\nb,{"x" * 200}\nc,"open\nd,{"y" * 200}\ne,five\n'
    blocks = blocks_of(csv(tmp_path, content), columns(max_line_bytes=100))
    assert texts_of(blocks) == ["one", "five"]
    assert reasons_of(blocks) == {1: "line_too_long", 2: "invalid_csv", 3: "line_too_long"}


def test_csv_texts_are_what_stands_there_however_long_or_odd(tmp_path: Path) -> None:
    long = "x" * 500_000
    blocks = blocks_of(csv(tmp_path, f'id,text\na,{long}\nb,NUL \x00 and \u2028\nc,""\nd,NULL\n'))
    assert texts_of(blocks) == [long, "NUL \x00 and \u2028", "", "NULL"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,txt\n1,t\n", r"a\.csv has no column 'text'; did you mean 'txt'\? It has: id, txt"),
        ("id,text,text\n1,t,u\n", "has 2 columns 'text'"),
        (b"id,text,caf\xe9\n", "the header of .* cannot be read: the record is not valid UTF-8"),
        ('id,"text\n', "the header of .* cannot be read"),
    ],
)
def test_a_csv_file_whose_header_cannot_be_used_is_one_stretch_and_no_witness(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    file = csv(tmp_path, content)
    [entry] = quarantine_of(blocks_of(file))
    assert re.search(message, entry["error"])
    assert (entry["row"], entry["rows"], entry["unreadable_bytes"]) == (0, None, file.size_bytes)
    with pytest.raises(SourceError, match=message):
        read_source_schema(file, "id", "text", (), open_local)


def test_csv_columns_are_strings_unless_the_run_says_otherwise(tmp_path: Path) -> None:
    file = csv(tmp_path, "id,text,day\n7,t,2026-11-23\n")
    schema = read_source_schema(file, "id", "text", ("day",), open_local)
    assert schema is not None
    assert schema.types[:3] == [pa.string()] * 3
    documents = documents_of(blocks_of(file, columns(pa.int64(), kept=[pa.field("day", pa.date32())])))
    assert [str(value) for value in documents.to_pylist()[0].values()][:2] == ["7", "2026-11-23"]


# Plain text


def test_plain_text_is_a_document_per_line_named_by_file_and_line(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbffirst\r\n\n  second \x00\n\xff\n\nlast"
    file = written(tmp_path / "b.txt", content, "text")
    blocks = blocks_of(file)
    documents = documents_of(blocks)
    assert documents["id"].to_pylist() == ["b.txt#0", "b.txt#2", "b.txt#5"]
    assert texts_of(blocks) == ["first", "  second \x00", "last"]
    assert documents[schemas.BYTE_OFFSET].to_pylist() == [3, 11, 25]
    assert [(row["row"], row["reason"], row["raw"]) for row in quarantine_of(blocks)] == [(3, "invalid_utf8", b"\xff")]


def test_a_text_line_beyond_the_limit_goes_to_quarantine(tmp_path: Path) -> None:
    file = written(tmp_path / "b.txt", b"a\n" + b"x" * 20 + b"\n" + b" " * 20, "text")
    assert reasons_of(blocks_of(file, columns(max_line_bytes=10))) == {1: "line_too_long", 2: "line_too_long"}


@pytest.mark.parametrize("names", [("key", "text", ()), ("id", "body", ()), ("id", "text", ("label",))])
def test_plain_text_has_no_other_columns(tmp_path: Path, names: tuple[str, str, tuple[str, ...]]) -> None:
    file = written(tmp_path / "b.txt", b"a\n", "text")
    with pytest.raises(
        SourceError, match=r"its columns are 'id' \(file name, line\) and 'text', not '(key|body|label)'"
    ):
        read_source_schema(file, *names, open_local)
    asked = ReadColumns(*names, columns(kept=[pa.field(name, pa.string()) for name in names[2]]).schema)
    assert stretches_of(blocks_of(file, asked)) == [(0, None, "missing_column")]
