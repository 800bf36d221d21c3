"""One Part, compared with its line in the Snapshot: its bytes, its rows, its metadata, and every vector."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.arrow import dequantised
from pipeline.errors import in_a_line
from pipeline.execution.proof.duplicates import id_hashes
from pipeline.execution.verification.findings import Finding
from pipeline.fingerprint import content_hash
from pipeline.storage.parquet import part_key, read_metadata, rows_hash
from pipeline.storage.snapshots import Snapshot

NORM_TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "int8": 2e-2}
"""How far from 1 the length of a stored vector may be. float32: sums of 4096 squares err by less than 1e-6. float16 has
11 bits: each number is off by up to 2^-11 of itself. int8: by up to half a step, 1/254 of the largest in the row."""


@dataclass(frozen=True, slots=True)
class PartCheck:
    """What one Part has shown."""

    findings: list[Finding]
    id_hashes_N: NDArray[np.void]
    """16 bytes per row that name its id (and chunk); none for a Part of the quarantine or one that cannot be read."""


def check_part(snapshot: Snapshot, part: dict[str, Any]) -> PartCheck:
    """Compare one Part with its line in the Snapshot; a file that is another one is looked into all the same."""
    key, none = part_key(part["kind"], part["folder"], part["path"]), np.empty(0, "V16")
    content = snapshot.store.read(key)
    if content is None:
        return PartCheck([Finding("missing", key, f"published with {part['rows']} rows")], none)
    findings = list(_check_bytes(part, content, key))
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        rows = file.read()
    except (pa.ArrowException, OSError) as error:
        findings.append(Finding("content", key, f"cannot be read: {in_a_line(error)}"))
        return PartCheck(findings, none)
    findings += _check_rows(snapshot, part, rows, read_metadata(file.metadata.metadata or {}), key)
    has_ids = part["kind"] == "embeddings" and "id" in rows.column_names
    return PartCheck(findings, id_hashes(rows) if has_ids else none)


def _check_bytes(part: dict[str, Any], content: bytes, key: str) -> Iterator[Finding]:
    if len(content) != part["size_bytes"]:
        yield Finding("size", key, f"{len(content)} bytes, published with {part['size_bytes']}")
    elif content_hash(content) != part["file_hash"]:
        yield Finding("content", key, "the bytes are not those that were published")


def _check_rows(
    snapshot: Snapshot, part: dict[str, Any], rows: pa.Table, facts: dict[str, Any], key: str
) -> Iterator[Finding]:
    if rows.num_rows != part["rows"] or rows_hash(rows) != part["content_hash"]:
        yield Finding("rows", key, f"{rows.num_rows} rows, or other ones; published with {part['rows']}")
    if facts.get("fingerprint") != snapshot.record.fingerprint:
        yield Finding("recipe", key, f"made by recipe {facts.get('fingerprint')}, not {snapshot.record.fingerprint}")
    if (facts.get("shard"), facts.get("block")) != (part["shard_id"], part["block"]):
        yield Finding("place", key, f"says of itself that it is Block {facts.get('block')} of {facts.get('shard')}")
    if part["kind"] == "embeddings":
        yield from _check_vectors(snapshot, rows, key)


def _check_vectors(snapshot: Snapshot, rows: pa.Table, key: str) -> Iterator[Finding]:
    stored, names = snapshot.recipe["stored"], ["embedding", "scale"]
    found, expected = (pa.schema([f for f in s if f.name in names]) for s in (rows.schema, snapshot.schema))
    if not found.equals(expected):
        yield Finding("width", key, f"its vectors are {_types(found)}, the snapshot says {_types(expected)}")
        return
    is_empty_N = rows["tokens"].to_numpy() == 0  # an empty text under `empty_text: zero`, and no other
    if stored == "binary":
        zero = b"\0" * (snapshot.record.dimension // 8)  # also the signs of a vector without a positive number
        for row in np.flatnonzero(is_empty_N).tolist():
            if rows["embedding"][row].as_py() != zero:
                yield Finding("zero", key, "no tokens, and another vector than zero", row)
        return
    vectors_ND = dequantised(rows, stored)
    norms_N = np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND))  # without a temporary as large as they
    checks = {"not_finite": ~np.isfinite(norms_N), "zero": (norms_N == 0) != is_empty_N}
    if snapshot.recipe["normalize"]:
        off_N = np.abs(norms_N - 1) > NORM_TOLERANCE[stored]
        checks["norm"] = off_N & ~checks["not_finite"] & (norms_N != 0)
    for name, bad_N in checks.items():
        for row in np.flatnonzero(bad_N).tolist():
            yield Finding(name, key, f"length {norms_N[row]:.6g}", row)


def _types(schema: pa.Schema) -> str:
    return " + ".join(str(field.type) for field in schema) or "not there"
