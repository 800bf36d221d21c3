"""Parts: how embeddings become one Parquet file, and how that file is published exactly once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.arrow import one_array, utf8_view
from pipeline.errors import AttemptsDiffer, StorageError
from pipeline.fingerprint import content_hash
from pipeline.records import Part
from pipeline.storage.faults import patiently, told_as
from pipeline.storage.filesystem import Store

COMPRESSION_LEVEL = 1
"""zstd; higher levels cost time and gain nothing on vectors."""


WHOLE_BYTES = 2**20
"""A Part on object storage of at most so many bytes is fetched whole, whatever is wanted of it."""


@dataclass(frozen=True, slots=True)
class PartName:
    """Where a Part belongs: everything but its content."""

    kind: Literal["embeddings", "quarantine"]
    snapshot_folder: str
    """`<number>-<run_key>`."""
    partition: str
    """`label=pos/`, or empty."""
    shard_id: str
    block: int

    @property
    def path(self) -> str:
        """Path below the snapshot's folder."""
        return f"{self.partition}{self.shard_id}-{self.block:05d}.parquet"

    @property
    def key(self) -> str:
        """Path below the output."""
        return part_key(self.kind, self.snapshot_folder, self.path)


def part_key(kind: str, snapshot_folder: str, path: str) -> str:
    """Return the path below the output of a Part of this kind."""
    return f"{'snapshots' if kind == 'embeddings' else 'quarantine'}/{snapshot_folder}/{path}"


def serialise(table: pa.Table, metadata: Mapping[str, Any]) -> bytes:
    """Return a Parquet file, whole, in memory.

    The vector column goes without dictionary, split by byte and compressed (15 % smaller than raw at 1792
    dimensions, where the default is larger than raw); every page carries a checksum, without which a flipped bit
    passes unseen.

    Args:
        table: in the schema of a Part or of the quarantine.
        metadata: JSON values, written under `pipeline.<key>`.
    """
    encoded = {f"pipeline.{key}": orjson.dumps(value) for key, value in metadata.items()}
    split = _byte_split_columns(table.schema)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(encoded),
        sink,
        row_group_size=max(1, table.num_rows),
        compression="zstd",
        compression_level=COMPRESSION_LEVEL,
        use_dictionary=[f.name for f in table.schema if pa.types.is_string(f.type) and f.name not in ("id", "error")],
        use_byte_stream_split=split or False,
        write_page_checksum=True,
        write_statistics=[f.name for f in table.schema if f.name not in ("embedding", "text_hash", "raw")],
    )
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _byte_split_columns(schema: pa.Schema) -> list[str]:
    if "embedding" not in schema.names:
        return []
    type = schema.field("embedding").type
    return ["embedding.list.element"] if pa.types.is_fixed_size_list(type) else []


def rows_hash(table: pa.Table) -> str:
    """Return the hash of who stands in a Part: its ids, and the hashes of their texts if it has them.

    Two attempts at one Block agree in it, though their vectors may differ in the last bit.
    """
    names = [name for name in ("id", "text_hash", "row", "reason") if name in table.column_names]
    pieces: list[bytes] = []
    for name in names:
        column = table[name]
        if pa.types.is_fixed_size_binary(column.type):
            rows = one_array(column)
            width = rows.type.byte_width
            content = memoryview(rows.buffers()[1] or b"")
            pieces.append(bytes(content[rows.offset * width : (rows.offset + len(rows)) * width]))
            continue
        content, offsets = utf8_view(column.cast(pa.string()).fill_null("\0"))
        pieces += [bytes(content), np.diff(offsets).tobytes()]
    return content_hash(b"\0".join(pieces))


def publish_part(store: Store, name: PartName, table: pa.Table, metadata: Mapping[str, Any]) -> Part:
    """Write a Part under its name, or adopt the one an earlier attempt has written there.

    Args:
        name: deterministic, so that a retry or a forgotten worker meets the same file.
        table: the rows.
        metadata: what the file says of itself; must hold `fingerprint`.

    Raises:
        StorageError: another content stands under this name.
    """
    rows = rows_hash(table)
    own = {**metadata, "shard": name.shard_id, "block": name.block, "content_hash": rows}
    content = serialise(table, own)
    found = store.put_new(name.key, content)
    stat = store.stat(name.key)
    expected_bytes = len(content) if found is None else len(found)
    if stat is None or stat.size_bytes != expected_bytes:
        raise StorageError(f"{store.uri_of(name.key)}: written with {expected_bytes} bytes, found {stat}")
    part = Part(
        name.kind,
        name.path,
        name.shard_id,
        name.block,
        table.num_rows,
        stat.size_bytes,
        stat.version,
        content_hash(content if found is None else found),
        rows,
    )
    return part if found is None else _adopt(part, found, own, store.uri_of(name.key))


def put_or_adopt(store: Store, key: str, table: pa.Table, own: Mapping[str, Any]) -> bytes:
    """Write a file under a name that says what is in it, or adopt the one an earlier attempt has written there.

    Args:
        table: the rows.
        own: what the file says of itself; an earlier one must say the same.

    Returns:
        What stands there.

    Raises:
        StorageError: something else stands under this name.
    """
    content = serialise(table, own)
    found = store.put_new(key, content)
    if found is None:
        return content
    try:
        footer = pq.read_metadata(pa.BufferReader(found))
    except pa.ArrowInvalid as error:
        raise StorageError(f"{store.uri_of(key)} exists and is no Parquet file; remove it and run again") from error
    if footer.num_rows != table.num_rows or read_metadata(footer.metadata or {}) != own:
        raise StorageError(f"{store.uri_of(key)} exists with other rows; remove it and run again")
    return found


def adopt_part(store: Store, key: str, part: Part, fingerprint: str) -> Part:
    """Return a Part as it stands under a key, where another attempt has written it before.

    Args:
        part: as this attempt has it; its rows must be the same.
        fingerprint: of the recipe.

    Raises:
        StorageError: another content stands under this name.
    """
    found, stat = store.read(key), store.stat(key)
    if found is None or stat is None:
        raise StorageError(f"{store.uri_of(key)} was there and is gone: something else deletes in this output")
    own = {"fingerprint": fingerprint, "shard": part.shard_id, "block": part.block, "content_hash": part.content_hash}
    adopted = _adopt(part, found, own, store.uri_of(key))
    return replace(adopted, etag=stat.version, file_hash=content_hash(found))


def _adopt(part: Part, found: bytes, own: Mapping[str, Any], uri: str) -> Part:
    try:
        footer = pq.read_metadata(pa.BufferReader(found))
    except pa.ArrowInvalid as error:
        raise StorageError(f"{uri} exists and is no Parquet file; remove it and run again") from error
    theirs = read_metadata(footer.metadata or {})
    differing = [key for key in ("fingerprint", "shard", "block", "content_hash") if theirs.get(key) != own.get(key)]
    if differing == ["content_hash"]:
        raise AttemptsDiffer(
            f"{uri} exists with other rows: an earlier attempt at this Block has set other rows aside than this one "
            "(what fails in an encoder can fail by chance). What was encoded is kept; run again to go on in a fresh "
            "folder"
        )
    if differing or footer.num_rows != part.rows:
        raise StorageError(
            f"{uri} exists with other rows ({', '.join(differing) or 'row count'} differ); it was not written by this "
            "pipeline from this source; remove it and run again"
        )
    return replace(part, size_bytes=len(found))


def read_columns(store: Store, key: str, names: Sequence[str], size_bytes: int | None = None) -> pa.Table:
    """Return some columns of a Part, reading the footer and these columns only.

    Args:
        size_bytes: of the Part; a small one is fetched whole, which is one request instead of four.

    Raises:
        StorageError: there is no such Part, or it is damaged.
    """

    def read() -> pa.Table:
        if not store.is_local and size_bytes is not None and size_bytes <= WHOLE_BYTES:
            content = store.filesystem.cat_file(store.path_of(key))
            file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
            return file.read(columns=list(names), use_threads=False)
        with store.filesystem.open(store.path_of(key), "rb", cache_type="none") as stream:
            return pq.ParquetFile(stream, page_checksum_verification=True).read(columns=list(names), use_threads=False)

    try:
        with told_as(StorageError, "read", store.uri_of(key)):
            return patiently(read, store.filesystem)
    except pa.ArrowException as error:
        raise StorageError(f"{store.uri_of(key)} is damaged: {error}; `verify` says what else is") from error


def read_metadata(raw: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return what `serialise` wrote into the file, without the `pipeline.` before each key."""
    prefix = b"pipeline."
    return {key[len(prefix) :].decode(): orjson.loads(value) for key, value in raw.items() if key.startswith(prefix)}
