"""A corpus as one meets it in object storage: many shards, several formats, the same rows every time."""

from __future__ import annotations

import gzip
import io

import fsspec
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
ROW_GROUPS_PER_FILE = 4


def write_corpus(reviews: pa.Table, filesystem: fsspec.AbstractFileSystem, folder: str, files: int = 40) -> list[str]:
    """Write the reviews as shards of about equal size and alternating format; the same bytes every time.

    Args:
        reviews: any table whose values JSON can carry.
        filesystem: where to; it has its credentials already.
        folder: such as bucket/reviews; made if it is not there.
        files: how many shards.

    Returns:
        The path of every shard, in the order of the rows.
    """
    content_of: dict[str, bytes] = {}
    for number in range(files):
        start, end = (reviews.num_rows * edge // files for edge in (number, number + 1))
        suffix = SUFFIXES[number % len(SUFFIXES)]
        path = f"{folder.rstrip('/')}/reviews-{number:05d}{suffix}"
        content_of[path] = shard_bytes(reviews.slice(start, end - start), suffix)
    filesystem.makedirs(folder, exist_ok=True)
    filesystem.pipe(content_of)
    return list(content_of)


def shard_bytes(rows: pa.Table, suffix: str) -> bytes:
    """Give the content of one shard in the format its suffix names."""
    if suffix == ".parquet":
        sink = io.BytesIO()
        pq.write_table(rows, sink, row_group_size=max(1, -(-rows.num_rows // ROW_GROUPS_PER_FILE)))
        return sink.getvalue()
    lines = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows.to_pylist())
    if suffix == ".jsonl.gz":
        return gzip.compress(lines, mtime=0)
    if suffix == ".jsonl.zst":
        return zstandard.ZstdCompressor(level=3).compress(lines)
    return lines
