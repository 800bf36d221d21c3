"""Snapshots: numbered, immutable statements «the dataset is these Parts», and how to read one."""

import base64
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import fsspec.implementations.local
import orjson
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from pipeline.errors import SnapshotConflict, StorageError
from pipeline.fingerprint import content_hash
from pipeline.records import Part
from pipeline.storage.filesystem import Stat, Store
from pipeline.storage.parquet import part_key

if TYPE_CHECKING:
    import pyarrow.dataset

PARTS = pa.schema(
    [
        ("kind", pa.string()),
        ("folder", pa.string()),
        ("path", pa.string()),
        ("shard_id", pa.string()),
        ("block", pa.int32()),
        ("rows", pa.int64()),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),
        ("file_hash", pa.string()),
        ("content_hash", pa.string()),
    ]
)
"""`folder` is the snapshot's own, or an older one's where the Part is carried by reference."""

SHARDS = pa.schema(
    [
        ("shard_id", pa.string()),
        ("sources", pa.string()),
        ("blocks", pa.int32()),
        ("rows_read", pa.int64()),
        ("embedded", pa.int64()),
        ("quarantined", pa.int64()),
        ("reasons", pa.string()),
        ("deduplicated", pa.int64()),
        ("entries", pa.int64()),
        ("unreadable_bytes", pa.int64()),
    ]
)
"""The proof, per Shard; `sources` ([uri, version, stretch, format, bytes] each) and `reasons` are JSON. `entries` are
the lines of its quarantine Parts, of which one may stand for a stretch of rows."""


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """The metadata object whose one conditional PUT publishes a Snapshot."""

    number: int
    parent: int | None
    run_key: str
    folder: str
    """Name below `snapshots/` and `quarantine/`."""
    fingerprint: str
    recipe: dict[str, Any]
    layout: dict[str, Any]
    totals: dict[str, int]
    """rows, rows_read, embedded, reused, quarantined, deduplicated, parts, bytes."""
    dimension: int
    document_schema: str
    """Arrow IPC schema of the source's columns, base64."""
    part_schema: str
    """Arrow IPC schema of the dataset, partition columns included, base64."""
    published_at: str
    pipeline_version: str
    driver: str
    duplicate_ids: str = "error"
    """`source.duplicate_ids` of the run; `allow` says that an id may stand twice."""
    has_changes: bool = False
    """`output.changes` of the run: a feed of what has changed belongs to this Snapshot, and is written after it."""
    tables: dict[str, str] = field(default_factory=dict)
    """Keys of the tables `parts` and `shards`; named by their content, so that no other run can change them."""


class Snapshot:
    """A published Snapshot, open for reading."""

    def __init__(self, store: Store, record: SnapshotRecord) -> None:
        self.store, self.record = store, record

    @property
    def number(self) -> int:
        return self.record.number

    @property
    def folder(self) -> str:
        """URI of the folder that holds exactly the committed rows."""
        return self.store.uri_of(f"snapshots/{self.record.folder}")

    @property
    def recipe(self) -> dict[str, Any]:
        return self.record.recipe

    @property
    def totals(self) -> dict[str, int]:
        return self.record.totals

    @cached_property
    def parts(self) -> pa.Table:
        """Every Part of the Snapshot, in the schema PARTS."""
        return self._table("parts")

    def placed_parts(self) -> list[tuple[str, Part]]:
        """Return every Part with the folder it lies in, as `publish_snapshot` takes them."""
        return [(row.pop("folder"), Part(**row)) for row in self.parts.to_pylist()]

    @cached_property
    def shards(self) -> pa.Table:
        """Every Shard of the Snapshot, in the schema SHARDS."""
        return self._table("shards")

    @property
    def schema(self) -> pa.Schema:
        """Schema of the rows, partition columns included."""
        return decode_schema(self.record.part_schema)

    def dataset(self) -> "pyarrow.dataset.Dataset":
        """Return the rows as a pyarrow dataset: lazy, filters and projections pushed down."""
        import pyarrow.dataset as arrow_dataset  # a run needs it not, and it imports much

        names = self.record.layout["partition_by"]
        partitioning = arrow_dataset.partitioning(pa.schema([self.schema.field(name) for name in names]), flavor="hive")
        paths = [f"{self.store.root}/{key}" for key, _ in self.vector_parts()]
        if not paths:
            return arrow_dataset.dataset(self.schema.empty_table())
        return arrow_dataset.dataset(
            paths,
            schema=self.schema,
            format="parquet",
            filesystem=arrow_filesystem(self.store),
            partitioning=partitioning,
            partition_base_dir=self.store.root,
        )

    def vector_parts(self) -> list[tuple[str, int]]:
        """Return key and rows of every Part that holds vectors, in the order in which `dataset` reads them."""
        columns = (self.parts[name].to_pylist() for name in ("kind", "folder", "path", "rows"))
        found = (part for part in zip(*columns, strict=True) if part[0] == "embeddings")
        return sorted((part_key(kind, folder, path), rows) for kind, folder, path, rows in found)

    def to_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows in memory.

        Args:
            columns: names to read; None = all.
        """
        return self.dataset().to_table(columns=list(columns) if columns is not None else None)

    def _table(self, name: str) -> pa.Table:
        key = self.record.tables[name]
        content = self.store.read(key)
        if content is None:
            raise StorageError(f"{self.store.uri_of(key)} is missing; snapshot {self.number} cannot be read without it")
        return pq.read_table(pa.BufferReader(content))


def arrow_filesystem(store: Store) -> pa.fs.FileSystem:
    """Return the store's filesystem for pyarrow: its own for local folders, else fsspec's behind its interface."""
    if isinstance(store.filesystem, fsspec.implementations.local.LocalFileSystem):
        return pa.fs.LocalFileSystem()
    return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(store.filesystem))


def snapshot_key(number: int) -> str:
    """Return the key of the object that publishes a Snapshot."""
    return f"_meta/snapshots/{number:08d}.json"


def snapshot_numbers(store: Store) -> list[int]:
    """Return the numbers of all published Snapshots, ascending; of one that was withdrawn an empty object is left."""
    pattern = re.compile(r"_meta/snapshots/(\d{8})\.json")
    found = store.files("_meta/snapshots").items()
    return sorted(int(match[1]) for key, stat in found if stat.size_bytes and (match := pattern.fullmatch(key)))


def load_snapshot(store: Store, number: int | None = None) -> Snapshot | None:
    """Return the Snapshot of this number, or the newest; None if there is none."""
    if number is None:
        numbers = snapshot_numbers(store)
        if not numbers:
            return None
        number = numbers[-1]
    content = store.read(snapshot_key(number))
    if not content:
        return None
    try:
        return Snapshot(store, SnapshotRecord(**orjson.loads(content)))
    except (TypeError, ValueError) as error:
        uri = store.uri_of(snapshot_key(number))
        raise StorageError(f"{uri} is damaged, or of another version of this pipeline: {error}") from error


def files_of(store: Store, folders: Iterable[str]) -> dict[str, Stat]:
    """Return what lies in these folders of snapshots, and in those of their quarantine."""
    found: dict[str, Stat] = {}
    for folder in folders:
        found |= store.files(f"snapshots/{folder}") | store.files(f"quarantine/{folder}")
    return found


def withdraw_snapshot(store: Store, number: int) -> None:
    """Take a published Snapshot back; its number stays taken, so that no forgotten driver can publish it anew."""
    store.put(snapshot_key(number), b"")


def open_snapshot(uri: str, number: int | None = None) -> Snapshot:
    """Open a published Snapshot of an output for reading.

    Args:
        uri: the output, as in `output.uri`.
        number: which; None = the newest.

    Raises:
        StorageError: nothing is published there, or not under this number.
    """
    store = Store(uri)
    store.check_reachable()
    snapshot = load_snapshot(store, number)
    if snapshot is None:
        if there := snapshot_numbers(store):
            told = ", ".join(map(str, there))
            raise StorageError(f"{store.uri}: snapshot {number} is not published there; these are: {told}")
        raise StorageError(f"{store.uri}: no snapshot is published there; check the address, or run `embed` first")
    return snapshot


def publish_snapshot(
    store: Store, record: SnapshotRecord, parts: Sequence[tuple[str, Part]], shards: Sequence[dict[str, Any]]
) -> Snapshot:
    """Write the tables, then the one object that makes them true, then the hint LATEST.

    Args:
        record: what to publish.
        parts: (folder, Part) of every Part.
        shards: rows of SHARDS.

    Raises:
        SnapshotConflict: this number was published by another run.
    """
    rows = [asdict(part) | {"folder": folder} for folder, part in sorted(parts, key=lambda p: (p[0], p[1].path))]
    stem, tables = f"_meta/snapshots/{record.number:08d}", {}
    for name, table_rows, schema in (("parts", rows, PARTS), ("shards", list(shards), SHARDS)):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(table_rows, schema=schema), sink, compression="zstd")
        content = sink.getvalue().to_pybytes()
        tables[name] = f"{stem}-{content_hash(content)}.{name}.parquet"
        store.put_new(tables[name], content)
    record = replace(record, tables=tables)
    if store.put_new(snapshot_key(record.number), orjson.dumps(asdict(record), option=orjson.OPT_INDENT_2)) is not None:
        raise SnapshotConflict(
            f"snapshot {record.number} of {store.uri} was published by another run meanwhile; run again, what was "
            "encoded is kept"
        )
    with suppress(StorageError):  # the snapshot stands whether or not the hint does; the next run mends it
        write_hint(store, record)
    published = load_snapshot(store, record.number)
    return cast(Snapshot, published)


def write_hint(store: Store, record: SnapshotRecord) -> None:
    """Let LATEST name the folder of this Snapshot, if it does not yet."""
    hint = f"{record.folder}\n".encode()
    if store.read("LATEST") != hint:
        store.put("LATEST", hint)


def encode_schema(schema: pa.Schema) -> str:
    """Return an Arrow schema as text."""
    return base64.b64encode(schema.remove_metadata().serialize().to_pybytes()).decode()


def decode_schema(text: str) -> pa.Schema:
    """Return the Arrow schema that `encode_schema` wrote."""
    return pa.ipc.read_schema(pa.BufferReader(base64.b64decode(text)))
