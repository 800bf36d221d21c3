"""Arrow schemas of everything that is many and large."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.arrow import one_array

RESERVED_COLUMNS = frozenset(
    [
        "id",
        "chunk",
        "char_start",
        "char_end",
        "tokens",
        "truncated",
        "text_hash",
        "event_timestamp",
        "created_timestamp",
        "embedding",
        "scale",
    ]
)
"""Names a Part uses itself; a kept column cannot have them."""

TEXT, SPAN, ROW, BYTE_OFFSET, TOKEN_IDS = "_text", "_span", "_row", "_byte_offset", "_token_ids"
"""Columns of a Block that never reach a Part: the text, and where the row came from."""

STORED, FATE = "_stored", "_fate"
"""More of them: what is stored of a known text (a list of one struct, or of none), and a number of `known.Fate`."""

SPANS_PER_SHARD = 1 << 20
"""`_row` times this plus `_span` is one number per source row of a Shard."""

QUARANTINE = pa.schema(
    [
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("byte_offset", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field("raw", pa.binary()),
        pa.field("rows", pa.int64()),
        pa.field("raw_bytes", pa.int64()),
        pa.field("raw_hash", pa.string()),
        pa.field("unreadable_bytes", pa.int64()),
    ]
)
"""One entry per bad row, or per stretch of a file that gives no rows at all.

`row` counts from 0 in its file; `raw` is the row as found, cut at RAW_BYTES, `raw_bytes` its whole size and `raw_hash`
the SHA-256 of all of it, as sha256sum prints it. A stretch begins with `row`, holds `rows` rows (null = unknown,
counted as one) and has `unreadable_bytes`, which a single bad row has not.
"""

RAW_BYTES = 1024
"""How much of a quarantined row is kept as evidence."""


def rows_counted(quarantine: pa.Table | pa.RecordBatch) -> pa.Array:
    """Return for how many source rows each entry counts: a stretch of unknown length for one."""
    return pc.fill_null(one_array(quarantine["rows"]), 1)


def document_schema(id_type: pa.DataType, kept: Sequence[pa.Field]) -> pa.Schema:
    """Return the schema of a Block's documents as the reader gives them.

    Args:
        id_type: string or an integer type.
        kept: the kept columns, in the order of the config.
    """
    return pa.schema(
        [
            pa.field("id", id_type, nullable=False),
            *kept,
            pa.field(TEXT, pa.string(), nullable=False),
            pa.field(SPAN, pa.int32(), nullable=False),
            pa.field(ROW, pa.int64(), nullable=False),
            pa.field(BYTE_OFFSET, pa.int64()),
        ]
    )


def embedding_fields(dimension: int, stored: str) -> list[pa.Field]:
    """Return the vector column(s) of a Part: plain Arrow types that every Parquet reader knows.

    Args:
        dimension: numbers per vector; a multiple of 8 for `binary`.
        stored: float32 | float16 | int8 | binary.
    """
    if stored == "binary":
        return [pa.field("embedding", pa.binary(dimension // 8), nullable=False)]
    element = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}[stored]
    vector = pa.field("embedding", pa.list_(pa.field("element", element, nullable=False), dimension), nullable=False)
    if stored == "int8":
        return [vector, pa.field("scale", pa.float32(), nullable=False)]
    return [vector]


def part_schema(
    id_type: pa.DataType,
    kept: Sequence[pa.Field],
    dimension: int,
    stored: str,
    chunked: bool,
) -> pa.Schema:
    """Return the schema of a Part, without the columns that its Hive folder says.

    Args:
        id_type: as in the source.
        kept: the kept columns that are not partition columns.
        dimension: numbers per vector.
        stored: as in `embedding_fields`.
        chunked: whether a row is one chunk of a document (`long_text: chunk`).
    """
    chunk = [pa.field(name, pa.int32(), nullable=False) for name in ("chunk", "char_start", "char_end")]
    return pa.schema(
        [
            pa.field("id", id_type, nullable=False),
            *(chunk if chunked else []),
            *kept,
            pa.field("tokens", pa.int32(), nullable=False),
            pa.field("truncated", pa.bool_(), nullable=False),
            pa.field("text_hash", pa.binary(16), nullable=False),
            pa.field("event_timestamp", pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field("created_timestamp", pa.timestamp("us", tz="UTC"), nullable=False),
            *embedding_fields(dimension, stored),
        ]
    )
