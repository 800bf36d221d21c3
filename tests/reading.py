"""How the tests of the readers make files, and read them."""

import bz2
import gzip
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from pipeline import schemas
from pipeline.records import Block, FileFormat, Shard, SourceFile, Span
from pipeline.storage.readers import ReadColumns, read_shard

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def open_local(file: SourceFile) -> AbstractContextManager[BinaryIO]:
    """Open a local file; the tests' stand-in for the opener that checks versions."""
    return Path(file.uri).open("rb")


def written(path: Path, content: bytes, format: FileFormat) -> SourceFile:
    """Write a file and return it as the plan would."""
    path.write_bytes(content)
    return SourceFile(str(path), "v1", len(content), format)


def written_parquet(path: Path, table: pa.Table, **options: Any) -> SourceFile:
    """Write a Parquet file and return it as the plan would."""
    pq.write_table(table, path, **options)
    return SourceFile(str(path), "v1", path.stat().st_size, "parquet")


def columns(id_type: pa.DataType | None = None, kept: Sequence[pa.Field] = (), **options: Any) -> ReadColumns:
    """Ask for `id` and `text`, and kept columns by their fields; empty texts are documents unless asked otherwise."""
    schema = schemas.document_schema(id_type or pa.string(), kept)
    return ReadColumns("id", "text", tuple(field.name for field in kept), schema, **{"empty_text": "embed"} | options)


def blocks_of(
    files: SourceFile | Iterable[SourceFile | Span],
    asked: ReadColumns | None = None,
    rows_per_block: int = 1000,
    **options: Any,
) -> list[Block]:
    """Read one Shard made of these files."""
    several = [files] if isinstance(files, SourceFile) else files
    spans = tuple(file if isinstance(file, Span) else Span(file) for file in several)
    return list(read_shard(Shard("s1", spans), asked or columns(), rows_per_block, open_local, **options))


def documents_of(blocks: Iterable[Block]) -> pa.Table:
    return pa.concat_tables([block.documents for block in blocks])


def quarantine_of(blocks: Iterable[Block]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.concat_tables([block.quarantine for block in blocks]).to_pylist()
    return rows


def stretches_of(blocks: Iterable[Block]) -> list[tuple[int, int | None, str]]:
    """Return (first row, rows, reason) of what is in quarantine as a stretch."""
    entries = (row for row in quarantine_of(blocks) if row["unreadable_bytes"] is not None)
    return [(row["row"], row["rows"], row["reason"]) for row in entries]


def reasons_of(blocks: Iterable[Block]) -> dict[int, str]:
    """Return row → reason of what is in quarantine."""
    return {row["row"]: row["reason"] for row in quarantine_of(blocks)}


def texts_of(blocks: Iterable[Block]) -> list[str]:
    texts: list[str] = documents_of(blocks)[schemas.TEXT].to_pylist()
    return texts
