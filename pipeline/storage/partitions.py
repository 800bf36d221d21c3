"""Hive-style folders: which values can name one, and how they are written so that every tool reads them back."""

import datetime
from collections.abc import Iterator, Sequence
from urllib.parse import quote

import pyarrow as pa

NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"
"""What Hive, Spark, pyarrow, DuckDB and Polars write and read for null."""

MAX_SEGMENT_BYTES = 255
"""Longest file name on common filesystems and S3 gateways."""

MAX_FOLDER_BYTES = 720
"""Of all partitions of a row together: an S3 key has 1,024, and the output, the snapshot and the file need theirs."""

PLAIN = " !$&'()+,;@~-_."
"""ASCII besides letters and digits that stands as it is; all other ASCII is percent-encoded."""


def is_partitionable(type: pa.DataType) -> bool:
    """Whether values of this type can name folders and be read back without loss."""
    return bool(
        pa.types.is_string(type)
        or pa.types.is_large_string(type)
        or pa.types.is_integer(type)
        or pa.types.is_boolean(type)
        or pa.types.is_date32(type)
    )


def segment(column: str, value: object) -> str | None:
    """Return the folder name `column=value`, or None if this value cannot be one.

    Letters beyond ASCII stay readable; `/`, `=`, `%`, control characters and the like are percent-encoded, so
    that no value can leave its folder. pyarrow, pandas, DuckDB and Polars read every accepted value back unchanged;
    refused are those they do not: NUL, the literal name of the null folder, and names beyond 255 bytes.
    """
    if value is None:
        return f"{_escaped(column)}={NULL_FOLDER}"
    text = _text(value)
    if "\0" in text or text == NULL_FOLDER:
        return None
    name = f"{_escaped(column)}={_escaped(text)}"
    return name if len(name.encode()) <= MAX_SEGMENT_BYTES else None


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime.date):
        return value.isoformat()
    return str(value)


def _escaped(text: str) -> str:
    return "".join(c if ord(c) > 0x9F else quote(c, safe=PLAIN) for c in text)


def split_by_partition(table: pa.Table, columns: Sequence[str]) -> Iterator[tuple[str | None, pa.Array]]:
    """Yield each folder a table's rows belong to, with the indices of those rows, in order of first appearance.

    Args:
        table: N rows.
        columns: partition columns, outermost first; none gives one folder, named "".

    Yields:
        (`label=pos/lang=zh/` or None if a value cannot name a folder, row indices int64 ascending); together the
        indices hold every row once.
    """
    if not columns:
        yield "", pa.array(range(table.num_rows), pa.int64())
        return
    keys = table.select(list(columns)).append_column("__index", pa.array(range(table.num_rows), pa.int64()))
    groups = keys.group_by(list(columns), use_threads=False).aggregate([("__index", "list")])
    for row in range(groups.num_rows):
        try:
            segments = [segment(column, groups[column][row].as_py()) for column in columns]
        except (OverflowError, ValueError):  # a date before the year 1 or after 9999
            segments = [None]
        folder = None if None in segments else "".join(f"{name}/" for name in segments)
        if folder is not None and len(folder.encode()) > MAX_FOLDER_BYTES:
            folder = None
        yield folder, groups["__index_list"][row].values
