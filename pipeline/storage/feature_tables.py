"""Feature tables: numbered and immutable like Snapshots, one folder of Parquet each, one object that makes it true."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.dataset

from pipeline.errors import SnapshotConflict, StorageError
from pipeline.fingerprint import content_hash
from pipeline.storage.filesystem import Store
from pipeline.storage.parquet import put_or_adopt
from pipeline.storage.snapshots import arrow_filesystem, decode_schema

VIEW = "feature_view.py"
"""Key of the Feast definition of the newest table."""


@dataclass(frozen=True, slots=True)
class FeatureFile:
    """One Parquet file of a feature table: all rows of some of the entities."""

    path: str
    """Below the table's folder."""
    rows: int
    size_bytes: int
    file_hash: str


@dataclass(frozen=True, slots=True)
class FeatureTableRecord:
    """The metadata object whose one conditional PUT publishes a feature table."""

    number: int
    key: str
    """Fingerprint of the Snapshot and the settings it was made from."""
    snapshot: dict[str, Any]
    """`output`, `number`, `folder` and `model` of the Snapshot."""
    fingerprint: str
    """Of the recipe."""
    settings: dict[str, Any]
    """The `features` section of the config."""
    transform: str | None
    """Key of the fitted transform."""
    table_schema: str
    """Arrow IPC schema, base64."""
    totals: dict[str, int]
    """rows, documents, unkeyed, superseded, bytes."""
    files: list[dict[str, Any]]
    """A FeatureFile each."""
    published_at: str
    pipeline_version: str
    transform_hash: str | None = None
    """Of the file of the fitted transform; None in records of before it was kept."""

    @property
    def folder(self) -> str:
        """Name below `tables/`."""
        return table_folder(self.number, self.key)


class FeatureTable:
    """A published feature table, open for reading."""

    def __init__(self, store: Store, record: FeatureTableRecord) -> None:
        self.store, self.record = store, record

    @property
    def folder(self) -> str:
        """URI of the folder that holds exactly the committed rows."""
        return self.store.uri_of(f"tables/{self.record.folder}")

    @property
    def address(self) -> str:
        """The folder as other tools find it from anywhere: an absolute path where it is local."""
        return f"{self.store.root}/tables/{self.record.folder}" if self.store.is_local else self.folder

    @property
    def schema(self) -> pa.Schema:
        return decode_schema(self.record.table_schema)

    def dataset(self) -> pyarrow.dataset.Dataset:
        """Return the rows as a pyarrow dataset: lazy, filters and projections pushed down."""
        if not self.record.files:
            return pyarrow.dataset.dataset(self.schema.empty_table())
        paths = [f"{self.store.root}/tables/{self.record.folder}/{file['path']}" for file in self.record.files]
        folders = [self.schema.field(name) for name in self.record.settings.get("partition_by", [])]
        return pyarrow.dataset.dataset(
            paths,
            schema=self.schema,
            format="parquet",
            filesystem=arrow_filesystem(self.store),
            partitioning=pyarrow.dataset.partitioning(pa.schema(folders), flavor="hive"),
            partition_base_dir=f"{self.store.root}/tables/{self.record.folder}",
        )


def table_folder(number: int, key: str) -> str:
    """Return the name of a table's folder below `tables/`."""
    return f"{number:08d}-{key}"


def transform_path(key: str) -> str:
    """Return the key of a fitted transform below `features.uri`."""
    return f"_meta/transforms/{key}.npz"


def table_key_of(number: int) -> str:
    """Return the key of the object that publishes a feature table."""
    return f"_meta/tables/{number:08d}.json"


def table_numbers(store: Store) -> list[int]:
    """Return the numbers of all published feature tables, ascending; of one that expired an empty object is left."""
    found = store.files("_meta/tables").items()
    matches = (re.fullmatch(r"_meta/tables/(\d{8})\.json", key) for key, stat in found if stat.size_bytes)
    return sorted(int(match[1]) for match in matches if match)


def load_feature_table(store: Store, number: int | None = None) -> FeatureTable | None:
    """Return the feature table of this number, or the newest; None if there is none."""
    if number is None:
        numbers = table_numbers(store)
        if not numbers:
            return None
        number = numbers[-1]
    content = store.read(table_key_of(number))
    if not content:
        return None
    try:
        return FeatureTable(store, FeatureTableRecord(**orjson.loads(content)))
    except (TypeError, ValueError) as error:
        raise StorageError(
            f"{store.uri_of(table_key_of(number))} is damaged, or of another version: {error}"
        ) from error


def made_with(store: Store, transform: str) -> FeatureTableRecord | None:
    """Return the record of the newest table that was made with this fitted transform; None if none stands.

    Args:
        transform: its key.
    """
    for number in reversed(table_numbers(store)):
        table = load_feature_table(store, number)
        if table is not None and table.record.transform == transform:
            return table.record
    return None


def open_feature_table(uri: str) -> FeatureTable:
    """Open the newest feature table for reading.

    Args:
        uri: as in `features.uri`.

    Raises:
        StorageError: none is published there.
    """
    store = Store(uri)
    store.check_reachable()
    table = load_feature_table(store)
    if table is None:
        raise StorageError(f"{store.uri}: no feature table is published there; check the address, or run `features`")
    return table


def write_feature_file(
    store: Store, folder: str, path: str, table: pa.Table, metadata: Mapping[str, Any]
) -> FeatureFile:
    """Write one file of a table under its name, or adopt the one an earlier attempt has written there.

    Args:
        folder: as `table_folder` gives it; it follows from Snapshot and settings, and so do the rows of the file.

    Raises:
        StorageError: something else stands under this name.
    """
    content = put_or_adopt(store, f"tables/{folder}/{path}", table, {**metadata, "table": folder})
    return FeatureFile(path, table.num_rows, len(content), content_hash(content))


def publish_feature_table(store: Store, record: FeatureTableRecord, view: str) -> FeatureTable:
    """Write the one object that makes a table true, then what points to it: LATEST and the Feast definition.

    Raises:
        SnapshotConflict: this number was published with other content.
        StorageError: the folder holds a file that the table does not name.
    """
    named = {f"tables/{record.folder}/{file['path']}" for file in record.files}
    strays = sorted(store.files(f"tables/{record.folder}").keys() ^ named)
    if strays:
        raise StorageError(f"{store.uri_of(strays[0])}: files written and files found differ; remove the folder")
    found = store.put_new(table_key_of(record.number), orjson.dumps(asdict(record)))
    if found is not None and (not found or orjson.loads(found)["key"] != record.key):
        raise SnapshotConflict(
            f"feature table {record.number} of {store.uri} was published by another run meanwhile; run again"
        )
    with suppress(StorageError):  # the table stands whether or not these do; the next run mends them
        write_pointers(store, record, view)
    return FeatureTable(store, record if found is None else FeatureTableRecord(**orjson.loads(found)))


def write_pointers(store: Store, record: FeatureTableRecord, view: str) -> None:
    """Let LATEST name the folder of this table and the Feast definition read it, if they do not yet."""
    for key, text in (("LATEST", f"{record.folder}\n"), (VIEW, view)):
        if store.read(key) != text.encode():
            store.put(key, text.encode())
