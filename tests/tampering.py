"""How the tests tamper with a published snapshot, on any store."""

import io
from collections.abc import Callable
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.fingerprint import content_hash
from pipeline.storage.filesystem import Store
from pipeline.storage.parquet import part_key, rows_hash
from pipeline.storage.snapshots import Snapshot, load_snapshot


def part_keys(store: Store) -> list[str]:
    """Return the keys of the embeddings of the newest snapshot, in the order of its table."""
    snapshot = load_snapshot(store)
    assert snapshot is not None
    rows = snapshot.parts.to_pylist()
    return [part_key(row["kind"], row["folder"], row["path"]) for row in rows if row["kind"] == "embeddings"]


def content_of(store: Store, key: str) -> bytes:
    content = store.read(key)
    assert content is not None
    return content


def rewrite(store: Store, key: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the rows of a Part and write it again, as somebody does who knows the format."""
    table = pq.read_table(pa.BufferReader(content_of(store, key)))
    metadata = table.schema.metadata
    sink = io.BytesIO()
    pq.write_table(change(table).replace_schema_metadata(metadata), sink, write_page_checksum=True)
    store.put(key, sink.getvalue())


def vouch(store: Store) -> None:
    """Write the snapshot's metadata anew, so that it says of every Part what now lies there."""
    snapshot = load_snapshot(store)
    assert snapshot is not None
    lines = snapshot.parts.to_pylist()
    for line in lines:
        content = content_of(store, part_key(line["kind"], line["folder"], line["path"]))
        rows = pq.read_table(pa.BufferReader(content))
        line |= {"size_bytes": len(content), "file_hash": content_hash(content), "rows": rows.num_rows}
        line |= {"content_hash": rows_hash(rows)}
    forge_parts(snapshot, lines)


def forge_parts(snapshot: Snapshot, lines: list[dict[str, Any]]) -> None:
    """Put these lines in place of the snapshot's table of Parts."""
    store, sink = snapshot.store, io.BytesIO()
    pq.write_table(pa.Table.from_pylist(lines, schema=snapshot.parts.schema), sink)
    key = f"_meta/snapshots/{snapshot.number:08d}.json"
    record = orjson.loads(content_of(store, key))
    record["tables"]["parts"] = "_meta/snapshots/forged.parts.parquet"
    store.put(record["tables"]["parts"], sink.getvalue())
    store.put(key, orjson.dumps(record))
