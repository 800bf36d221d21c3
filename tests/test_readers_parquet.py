"""What reading Parquet promises."""

import io
import json
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schemas
from pipeline.errors import SourceError
from pipeline.records import Shard, SourceFile, Span
from pipeline.storage.readers import parquet_row_groups, read_shard, read_source_schema
from tests.reading import (
    blocks_of,
    columns,
    documents_of,
    open_local,
    quarantine_of,
    reasons_of,
    stretches_of,
    texts_of,
    written,
    written_parquet,
)

NOT_UTF8 = b"caf\xe9"


def not_utf8(values: list[bytes | None], type: pa.DataType) -> pa.Array:
    """A string column that holds bytes which are no UTF-8, as careless writers make them."""
    layouts = {
        pa.string(): pa.binary(),
        pa.large_string(): pa.large_binary(),
        pa.string_view(): pa.binary_view(),
    }
    return pa.array(values, layouts.get(type, type)).view(type)


@pytest.mark.parametrize(
    "type",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
def test_text_of_any_layout_comes_out_as_string(tmp_path: Path, type: pa.DataType) -> None:
    texts = pa.array(["一", "two", "", "two"]).cast(type)
    file = written_parquet(tmp_path / "a.parquet", pa.table({"id": ["a", "b", "c", "d"], "text": texts}))
    documents = documents_of(blocks_of(file))
    assert documents.schema.equals(columns().schema)
    assert documents[schemas.TEXT].to_pylist() == ["一", "two", "", "two"]
    assert documents[schemas.ROW].to_pylist() == [0, 1, 2, 3]
    assert documents[schemas.BYTE_OFFSET].null_count == 4


@pytest.mark.parametrize("type", [pa.string(), pa.large_string(), pa.string_view(), pa.binary()], ids=str)
def test_only_the_row_that_is_no_utf8_goes_to_quarantine(tmp_path: Path, type: pa.DataType) -> None:
    texts = not_utf8([b"good", NOT_UTF8, b"\xed\xa0\x80", b"also good"], type)
    file = written_parquet(tmp_path / "a.parquet", pa.table({"id": list("abcd"), "text": texts}))
    blocks = blocks_of(file)
    assert texts_of(blocks) == ["good", "also good"]
    assert reasons_of(blocks) == {1: "invalid_utf8", 2: "invalid_utf8"}
    first = quarantine_of(blocks)[0]
    assert first == {
        "source_uri": file.uri,
        "row": 1,
        "byte_offset": None,
        "id": "b",
        "reason": "invalid_utf8",
        "error": "the text is not valid UTF-8",
        "raw": NOT_UTF8,
        "rows": 1,
        "raw_bytes": len(NOT_UTF8),
        "raw_hash": sha256(NOT_UTF8).hexdigest(),
        "unreadable_bytes": None,
    }


@pytest.mark.parametrize("type", [pa.string(), pa.large_string()], ids=str)
def test_an_id_or_a_kept_string_that_is_no_utf8_goes_to_quarantine_too(tmp_path: Path, type: pa.DataType) -> None:
    table = pa.table(
        {
            "id": not_utf8([NOT_UTF8, b"b", b"c"], type),
            "text": ["one", "two", "three"],
            "label": not_utf8([b"x", NOT_UTF8, b"z"], type),
        }
    )
    blocks = blocks_of(written_parquet(tmp_path / "a.parquet", table), columns(kept=[pa.field("label", type)]))
    assert texts_of(blocks) == ["three"]
    assert [(row["id"], row["error"]) for row in quarantine_of(blocks)] == [
        (None, "the id is not valid UTF-8"),
        ("b", "the kept column 'label' is not valid UTF-8"),
    ]


def test_null_ids_and_null_texts_go_to_quarantine(tmp_path: Path) -> None:
    table = pa.table({"id": [1, None, 3, None], "text": ["a", "b", None, None]})
    blocks = blocks_of(written_parquet(tmp_path / "a.parquet", table), columns(pa.int64()))
    assert reasons_of(blocks) == {1: "missing_id", 2: "null_text", 3: "missing_id"}
    assert [(row["id"], row["raw"]) for row in quarantine_of(blocks)] == [
        (None, b"b"),
        ("3", None),
        (None, None),
    ]


def test_a_text_column_of_only_nulls_is_all_quarantine(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b"], "text": pa.nulls(2)})
    assert reasons_of(blocks_of(written_parquet(tmp_path / "a.parquet", table))) == {
        0: "null_text",
        1: "null_text",
    }


def test_empty_texts_pass_or_go_to_quarantine_as_asked(tmp_path: Path) -> None:
    texts = ["", " \t\n", "\u3000\u00a0", "\u200b", " a ", "\x00"]
    file = written_parquet(tmp_path / "a.parquet", pa.table({"id": list("abcdef"), "text": texts}))
    assert texts_of(blocks_of(file)) == texts
    blocks = blocks_of(file, columns(empty_text="quarantine"))
    assert texts_of(blocks) == ["\u200b", " a ", "\x00"]
    assert reasons_of(blocks) == {0: "empty_text", 1: "empty_text", 2: "empty_text"}


def test_an_empty_text_beside_one_that_is_no_utf8_is_still_found(tmp_path: Path) -> None:
    table = pa.table({"id": list("abc"), "text": not_utf8([NOT_UTF8, b" ", b"x"], pa.string())})
    blocks = blocks_of(written_parquet(tmp_path / "a.parquet", table), columns(empty_text="quarantine"))
    assert reasons_of(blocks) == {0: "invalid_utf8", 1: "empty_text"}


def test_raw_is_cut_at_its_limit(tmp_path: Path) -> None:
    table = pa.table({"id": ["a"], "text": not_utf8([b"\xff" * 5000], pa.string())})
    [row] = quarantine_of(blocks_of(written_parquet(tmp_path / "a.parquet", table)))
    assert row["raw"] == b"\xff" * schemas.RAW_BYTES


@pytest.mark.parametrize(
    "array",
    [
        pa.array([1, None], pa.uint8()),
        pa.array([True, None]),
        pa.array([[1.5], None], pa.list_(pa.float32())),
        pa.array([{"a": {"b": [1]}}, None]),
        pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int8())),
        pa.array(["x", None]).dictionary_encode(),
        pa.array([1, None], pa.timestamp("us", tz="UTC")),
        pa.array([b"\x00" * 16, None], pa.uuid()),
        pa.array([b"\xff", None]),
        pa.nulls(2),
    ],
    ids=lambda array: str(array.type),
)
def test_kept_columns_of_any_type_pass_unchanged(tmp_path: Path, array: pa.Array) -> None:
    table = pa.table({"first": array, "text": ["a", "b"], "kept": array, "id": ["1", "2"], "last": array})
    file = written_parquet(tmp_path / "a.parquet", table)
    schema = read_source_schema(file, "id", "text", ("kept",), open_local)
    assert schema is not None
    assert schema.field("kept").type == array.type
    documents = documents_of(blocks_of(file, columns(kept=[schema.field("kept")])))
    assert documents["kept"].combine_chunks().equals(pa.chunked_array([array]).combine_chunks())
    assert documents["id"].to_pylist() == ["1", "2"]


@pytest.mark.parametrize(
    ("array", "lasting"),
    [
        (pa.array(["x", None], pa.string_view()), pa.string()),
        (pa.array([b"\xff", None], pa.binary_view()), pa.binary()),
        (pa.array([["x"], None], pa.list_(pa.string_view())), pa.list_(pa.string())),
        (pa.array([{"a": ["x"]}, None], pa.struct([("a", pa.large_list(pa.string_view()))])), None),
        (pa.array([[("k", "v")], None], pa.map_(pa.string(), pa.string_view())), pa.map_(pa.string(), pa.string())),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_a_kept_view_becomes_what_every_kernel_knows(
    tmp_path: Path, array: pa.Array, lasting: pa.DataType | None
) -> None:
    file = written_parquet(tmp_path / "a.parquet", pa.table({"text": ["a", "b"], "kept": array, "id": ["1", "2"]}))
    schema = read_source_schema(file, "id", "text", ("kept",), open_local)
    assert schema is not None
    assert lasting is None or schema.field("kept").type == lasting
    kept = documents_of(blocks_of(file, columns(kept=[schema.field("kept")])))["kept"]
    assert kept.to_pylist() == array.to_pylist()
    assert kept.take([1, 0]).to_pylist() == array.to_pylist()[::-1]


def test_the_text_and_the_id_can_be_kept_as_well(tmp_path: Path) -> None:
    file = written_parquet(tmp_path / "a.parquet", pa.table({"text": ["a"], "doc": ["1"]}))
    schema = read_source_schema(file, "doc", "text", ("text", "doc"), open_local)
    asked = columns(kept=[pa.field("text", pa.string())])
    assert schema is not None
    assert schema.names[:4] == ["id", "text", "doc", schemas.TEXT]
    asked = type(asked)("doc", "text", ("text", "doc"), schema)
    assert documents_of(blocks_of(file, asked)).select([0, 1, 2, 3]).to_pylist() == [
        {"id": "1", "text": "a", "doc": "1", schemas.TEXT: "a"}
    ]


def test_a_name_with_dots_is_one_column_and_not_a_path(tmp_path: Path) -> None:
    table = pa.table({"a": [{"b": 1}], "a.b": ["dotted"], "text": ["t"], "id": ["1"]})
    file = written_parquet(tmp_path / "a.parquet", table)
    documents = documents_of(blocks_of(file, columns(kept=[pa.field("a.b", pa.string())])))
    assert documents["a.b"].to_pylist() == ["dotted"]


def test_a_name_that_stands_twice_matters_only_where_it_is_asked_for(tmp_path: Path) -> None:
    arrays = [pa.array(["1"]), pa.array(["x"]), pa.array(["t"]), pa.array(["y"])]
    file = written_parquet(tmp_path / "a.parquet", pa.Table.from_arrays(arrays, ["id", "twice", "text", "twice"]))
    assert texts_of(blocks_of(file)) == ["t"]
    [entry] = quarantine_of(blocks_of(file, columns(kept=[pa.field("twice", pa.string())])))
    assert (entry["rows"], entry["reason"]) == (1, "ambiguous_column")
    assert "a.parquet has 2 columns 'twice'" in entry["error"]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (pa.array([1], pa.int32()), pa.int64()),
        (pa.array([1], pa.int64()), pa.int32()),
        (pa.array([1], pa.int64()), pa.float64()),
        (pa.array([1.0], pa.float32()), pa.float64()),
        (pa.array(["x"]).dictionary_encode(), pa.string()),
        (pa.array(["x"], pa.large_string()), pa.string()),
        (pa.array([b"x"]), pa.string()),
        (pa.array(["x"]), pa.dictionary(pa.int32(), pa.string())),
        (pa.array([1], pa.timestamp("s")), pa.timestamp("us")),
        (pa.array([[1]], pa.list_(pa.int32())), pa.list_(pa.int64())),
        (pa.nulls(1), pa.int64()),
    ],
    ids=str,
)
def test_a_kept_column_that_drifted_is_cast_where_no_value_changes(
    tmp_path: Path, found: pa.Array, expected: pa.DataType
) -> None:
    file = written_parquet(tmp_path / "a.parquet", pa.table({"id": ["1"], "text": ["t"], "n": found}))
    kept = documents_of(blocks_of(file, columns(kept=[pa.field("n", expected)])))["n"]
    assert kept.type == expected
    assert str(kept.to_pylist()).strip("b") == str(found.cast(expected).to_pylist())


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (pa.array(["1"]), pa.int64()),
        (pa.array([1]), pa.string()),
        (pa.array([True]), pa.int64()),
        (pa.array([1]), pa.bool_()),
        (pa.array([0.1]), pa.float32()),
        (pa.array([1], pa.timestamp("us")), pa.timestamp("us", tz="UTC")),
        (pa.array([1], pa.timestamp("us")), pa.date32()),
        (pa.array([{"a": 1, "b": 2}]), pa.struct([("a", pa.int64())])),
        (pa.array([1]), pa.list_(pa.int64())),
    ],
    ids=str,
)
def test_a_file_with_a_kept_column_that_drifted_too_far_is_one_stretch(
    tmp_path: Path, found: pa.Array, expected: pa.DataType
) -> None:
    file = written_parquet(tmp_path / "a.parquet", pa.table({"id": ["1"], "text": ["t"], "n": found}))
    [entry] = quarantine_of(blocks_of(file, columns(kept=[pa.field("n", expected)])))
    assert (entry["row"], entry["rows"], entry["reason"]) == (0, 1, "wrong_type")
    assert entry["error"].startswith(f"column 'n' of {file.uri} is {found.type}; expected {expected}.")


@pytest.mark.parametrize(
    ("values", "found", "expected"),
    [
        ([1, 2**40, None, -1], pa.int64(), pa.int32()),
        ([1, 1.5, None, -1], pa.float64(), pa.int64()),
        ([[1], [2**40], None, []], pa.list_(pa.int64()), pa.list_(pa.int32())),
    ],
    ids=str,
)
def test_a_value_that_does_not_fit_its_drifted_column_takes_only_its_own_row(
    tmp_path: Path, values: list[object], found: pa.DataType, expected: pa.DataType
) -> None:
    table = pa.table({"id": list("abcd"), "text": ["t"] * 4, "n": pa.array(values, found)})
    blocks = blocks_of(written_parquet(tmp_path / "a.parquet", table), columns(kept=[pa.field("n", expected)]))
    assert documents_of(blocks)["n"].to_pylist() == [values[0], *values[2:]]
    assert reasons_of(blocks) == {1: "wrong_type"}
    assert quarantine_of(blocks)[0]["raw"] == b"t"


@pytest.mark.parametrize("type", [pa.int8(), pa.uint64(), pa.int64()], ids=str)
def test_integer_ids_keep_their_type(tmp_path: Path, type: pa.DataType) -> None:
    file = written_parquet(tmp_path / "a.parquet", pa.table({"id": pa.array([7], type), "text": ["t"]}))
    schema = read_source_schema(file, "id", "text", (), open_local)
    assert schema is not None
    assert schema.field("id").type == type
    assert documents_of(blocks_of(file, columns(type)))["id"].to_pylist() == [7]


def test_of_string_and_integer_ids_only_those_of_the_run_are_read(tmp_path: Path) -> None:
    texts = written_parquet(tmp_path / "a.parquet", pa.table({"id": ["1"], "text": ["t"]}))
    numbers = written_parquet(tmp_path / "b.parquet", pa.table({"id": [1], "text": ["t"]}))
    for asked, other in ((columns(), numbers), (columns(pa.int64()), texts)):
        blocks = blocks_of([texts, numbers], asked)
        assert texts_of(blocks) == ["t"]
        [entry] = quarantine_of(blocks)
        assert (entry["source_uri"], entry["rows"], entry["reason"]) == (other.uri, 1, "wrong_type")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("id", "txt", ()), r"a\.parquet has no column 'txt'; did you mean 'text'\? It has: id, text"),
        (("key", "text", ()), r"has no column 'key'; It has: id, text"),
        (("id", "text", ("label",)), r"has no column 'label'"),
        (("id", "id", ()), r"column 'id' of .* is double; expected string"),
        (("id", "text", ()), r"column 'id' of .* is double; expected string or integer"),
    ],
)
def test_columns_that_cannot_be_used_are_named_with_what_is_there(
    tmp_path: Path, names: tuple[str, str, tuple[str, ...]], message: str
) -> None:
    file = written_parquet(tmp_path / "a.parquet", pa.table({"id": [1.5], "text": ["t"]}))
    with pytest.raises(SourceError, match=message):
        read_source_schema(file, *names, open_local)


def test_a_file_without_the_column_is_one_stretch_of_as_many_rows_as_its_footer_says(tmp_path: Path) -> None:
    file = written_parquet(tmp_path / "a.parquet", pa.table({"id": list("abc"), "body": ["t"] * 3}))
    blocks = blocks_of(file, rows_per_block=2)
    [entry] = quarantine_of(blocks)
    assert (entry["row"], entry["rows"], entry["reason"]) == (0, 3, "missing_column")
    assert entry["error"].endswith("a.parquet has no column 'text'; It has: id, body")
    assert [block.rows_read for block in blocks] == [3]


def test_a_span_reads_its_row_groups_and_counts_rows_in_the_file(tmp_path: Path) -> None:
    table = pa.table({"id": [str(n) for n in range(10)], "text": [f"t{n}" for n in range(10)]})
    file = written_parquet(tmp_path / "a.parquet", table, row_group_size=3)
    assert [rows for rows, _ in parquet_row_groups(file, open_local)] == [3, 3, 3, 1]
    assert all(0 < size < file.size_bytes for _, size in parquet_row_groups(file, open_local))
    documents = documents_of(blocks_of([Span(file, 1, 2, 6)]))
    assert documents[schemas.ROW].to_pylist() == [3, 4, 5, 6, 7, 8]
    assert documents["id"].to_pylist() == list("345678")


@pytest.mark.parametrize("span", [(3, 2, None), (0, 1, 4)])
def test_a_span_that_is_not_as_planned_is_an_error(tmp_path: Path, span: tuple[int, int, int | None]) -> None:
    table = pa.table({"id": [str(n) for n in range(10)], "text": ["t"] * 10})
    file = written_parquet(tmp_path / "a.parquet", table, row_group_size=3)
    with pytest.raises(SourceError, match="the plan saw"):
        blocks_of([Span(file, *span)])


def test_a_file_without_rows_gives_one_empty_last_block(tmp_path: Path) -> None:
    table = pa.table({"id": pa.array([], pa.string()), "text": pa.array([], pa.string())})
    [block] = blocks_of(written_parquet(tmp_path / "a.parquet", table))
    assert (block.number, block.rows_read, block.is_last) == (0, 0, True)
    assert block.documents.schema.equals(columns().schema)
    assert block.quarantine.schema.equals(schemas.QUARANTINE)


def test_every_cut_of_a_parquet_file_is_one_entry_for_the_whole_file(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": ["a"], "text": ["t"]}), sink)
    whole = sink.getvalue()
    for size in [0, 1, 4, 7, 8, 11, 12, len(whole) // 2, len(whole) - 4, len(whole) - 1]:
        file = written(tmp_path / "a.parquet", whole[:size], "parquet")
        blocks = blocks_of(file)
        [entry] = quarantine_of(blocks)
        assert (entry["row"], entry["rows"], entry["reason"]) == (0, None, "unreadable_file")
        assert (entry["unreadable_bytes"], blocks[0].rows_read) == (size, 1)
        assert "a.parquet is not a whole Parquet file" in entry["error"]


ROWS, GROUP = 30_000, 12_000
PAGES = {"write_page_checksum": True, "data_page_size": 4096, "use_dictionary": False, "row_group_size": GROUP}


def with_a_corrupt_page(path: Path) -> tuple[SourceFile, int]:
    """Write three row groups, flip a bit in a page of the second one's texts; return the file and the page's first row.

    Every text is 15 bytes and 4 of length, and pages are closed every 1,024 rows or less.
    """
    table = pa.table({"id": list(range(ROWS)), "text": [f"text number {n:05}" for n in range(ROWS)]})
    file = written_parquet(path, table, compression="none", **PAGES)
    column = pq.ParquetFile(file.uri).metadata.row_group(1).column(1)
    content = bytearray(path.read_bytes())
    place = content.index(b"text number 17000", column.data_page_offset)
    content[place] ^= 1
    path.write_bytes(content)
    return file, place


def test_a_corrupt_page_costs_the_rest_of_its_row_group_and_no_row_before_or_behind(tmp_path: Path) -> None:
    file, _ = with_a_corrupt_page(tmp_path / "a.parquet")
    blocks = blocks_of(file, columns(pa.int64()), rows_per_block=1000)
    [(row, rows, reason)] = stretches_of(blocks)
    assert (row + (rows or 0), reason) == (2 * GROUP, "unreadable_stretch")
    assert 17_000 - 1024 < row <= 17_000
    assert documents_of(blocks)["id"].to_pylist() == [*range(row), *range(2 * GROUP, ROWS)]
    assert sum(block.rows_read for block in blocks) == ROWS
    assert [entry["error"].split(", after")[0].split("/")[-1] for entry in quarantine_of(blocks)] == [
        "a.parquet is corrupt in row group 1"
    ]


def test_a_block_is_not_cut_within_a_stretch_and_can_be_skipped_like_any_other(tmp_path: Path) -> None:
    file, _ = with_a_corrupt_page(tmp_path / "a.parquet")
    asked = columns(pa.int64())
    blocks = blocks_of(file, asked, rows_per_block=1000)
    large = [block for block in blocks if block.rows_read > 1000]
    assert [block.quarantine.num_rows for block in large] == [1]
    assert [block.metrics.get("unreadable_bytes", 0) > 0 for block in blocks] == [block in large for block in blocks]
    numbers = [block.number for block in blocks]
    assert numbers == list(range(len(blocks)))
    left = blocks_of(file, asked, rows_per_block=1000, skip_blocks=frozenset({0, large[0].number}))
    assert [replace(b, metrics={}) for b in left] == [
        replace(b, metrics={}) for b in blocks if b.number not in (0, large[0].number)
    ]


def test_a_page_that_was_damaged_on_its_way_only_is_read_again(tmp_path: Path) -> None:
    file, place = with_a_corrupt_page(tmp_path / "a.parquet")

    class OnceBroken(io.BytesIO):
        """Gives a flipped bit the first time it is read."""

        reads = 0

        def read(self, size: int | None = -1, /) -> bytes:
            start = self.tell()
            piece = bytearray(super().read(size))
            if start <= place < start + len(piece):
                OnceBroken.reads += 1
                if OnceBroken.reads > 1:
                    piece[place - start] ^= 1
            return bytes(piece)

    def open_once_broken(file: SourceFile) -> AbstractContextManager[BinaryIO]:
        return OnceBroken(Path(file.uri).read_bytes())

    blocks = list(read_shard(Shard("s1", (Span(file),)), columns(pa.int64()), 1000, open_once_broken))
    assert documents_of(blocks)["id"].to_pylist() == list(range(ROWS))
    assert (quarantine_of(blocks), OnceBroken.reads) == ([], 2)


def test_whatever_bit_is_flipped_in_a_parquet_file_every_row_is_a_document_or_in_a_stretch(tmp_path: Path) -> None:
    table = pa.table({"id": [f"r{n}" for n in range(60)], "text": [f"text {n}" for n in range(60)]})
    file = written_parquet(tmp_path / "a.parquet", table, write_page_checksum=True, row_group_size=20)
    whole = Path(file.uri).read_bytes()
    texts = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    found = []
    for position in range(4, footer, 7):
        broken = bytearray(whole)
        broken[position] ^= 1 << position % 8
        Path(file.uri).write_bytes(broken)
        blocks = blocks_of(file)
        documents = documents_of(blocks)
        assert sum(block.rows_read for block in blocks) == 60
        assert {id: texts[id] for id in documents["id"].to_pylist()} == dict(
            zip(documents["id"].to_pylist(), texts_of(blocks), strict=True)
        )
        lost = sum(rows or 0 for _, rows, _ in stretches_of(blocks))
        assert documents.num_rows + lost == 60
        found.append(lost > 0)
    assert sum(found) > 0.9 * len(found), "only in the head of a page are there bits that mean nothing"


FLIP_FOOTER = """
import sys
from pathlib import Path
from tests.reading import blocks_of, open_local, stretches_of
from pipeline.records import SourceFile
from pipeline.storage.readers import BadFile, parquet_row_groups
path = Path(sys.argv[1])
whole = path.read_bytes()
footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
found = set()
for position in range(footer, len(whole)):
    for mask in (1, 6, 0x30, 0x80):
        broken = bytearray(whole)
        broken[position] ^= mask
        path.write_bytes(broken)
        file = SourceFile(str(path), "v1", len(whole), "parquet")
        blocks = blocks_of(file)
        rows = sum(block.rows_read for block in blocks)
        assert rows == 60 or stretches_of(blocks), (position, mask)
        found.add("whole" if rows == 60 else "stretch")
        try:
            parquet_row_groups(file, open_local)
        except BadFile:
            pass
print(sorted(found))
"""


def test_whatever_bit_is_flipped_in_a_footer_the_process_that_reads_it_lives(tmp_path: Path) -> None:
    table = pa.table({"id": [f"r{n}" for n in range(60)], "text": [f"text {n}" for n in range(60)]})
    file = written_parquet(tmp_path / "a.parquet", table, row_group_size=20)
    command = [sys.executable, "-c", FLIP_FOOTER, file.uri]
    run = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert (run.returncode, run.stdout.strip()) == (0, "['stretch', 'whole']"), run.stderr[-1000:]


class BrokenStore(io.BytesIO):
    """A store that fails in the middle of a file."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() < 1000:
            raise ConnectionResetError("the store hung up")
        return super().read(size)


def test_a_fault_of_the_store_is_not_told_as_a_fault_of_the_file(tmp_path: Path) -> None:
    table = pa.table({"id": [str(n) for n in range(1000)], "text": ["t"] * 1000})
    file = written_parquet(tmp_path / "a.parquet", table)

    def open_broken(file: SourceFile) -> AbstractContextManager[BinaryIO]:
        return BrokenStore(Path(file.uri).read_bytes())

    with pytest.raises(ConnectionResetError, match="the store hung up"):
        list(read_shard(Shard("s1", (Span(file),)), columns(), 10, open_broken))


MEASURE = """
import json, resource, sys
from pathlib import Path
from pipeline.records import Shard, SourceFile, Span
from pipeline.storage.readers import read_shard
from tests.reading import columns, open_local
path = Path(sys.argv[1])
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
shard = Shard("s1", (Span(SourceFile(str(path), "v1", path.stat().st_size, sys.argv[2])),))
rows = sum(block.documents.num_rows for block in read_shard(shard, columns(), 16384, open_local))
print(json.dumps({"rows": rows, "grown": peak() - before}))
"""


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_a_giant_row_group_or_line_file_is_streamed(tmp_path: Path, format: str) -> None:
    rows = 200_000
    ids, texts = [f"{n:08}" for n in range(rows)], [f"{n:01000}" for n in range(rows)]
    path = tmp_path / f"giant.{format}"
    if format == "parquet":
        pq.write_table(pa.table({"id": ids, "text": texts}), path, row_group_size=rows, use_dictionary=False)
    else:
        lines = (f'{{"id":"{key}","text":"{text}"}}\n' for key, text in zip(ids, texts, strict=True))
        with path.open("w") as sink:
            sink.writelines(lines)
    command = [sys.executable, "-c", MEASURE, str(path), format]
    root = Path(__file__).parents[1]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout
    measured = json.loads(printed)
    assert measured["rows"] == rows
    assert measured["grown"] < 120 * 2**20, "200 MB of text must not be held"
