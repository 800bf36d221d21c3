"""The proof, taken again from the files alone: is a published Snapshot still exactly what it says it is?"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.arrow import hash_strings, one_array, vectors_of
from pipeline.fingerprint import content_hash
from pipeline.storage.parquet import part_key, read_metadata, rows_hash
from pipeline.storage.snapshots import Snapshot

READERS = 4
"""Parts read at once; each is held in memory whole."""

NORM_TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "int8": 2e-2}
"""How far from 1 the length of a stored vector may be, by how it is stored."""

MAX_LISTED = 100
"""Findings listed one by one; beyond that only counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    check: str
    """missing, size, content, stray, rows, recipe, duplicate_id, width, not_finite, norm or zero."""
    path: str
    detail: str


@dataclass(slots=True)
class Verification:
    """What was looked at, and what was found."""

    snapshot: int
    parts: int = 0
    rows: int = 0
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def is_sound(self) -> bool:
        return not self.counts

    def add(self, finding: Finding) -> None:
        """Take in a finding."""
        self.counts[finding.check] += 1
        if len(self.findings) < MAX_LISTED:
            self.findings.append(finding)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        listed = [{"check": f.check, "path": f.path, "detail": f.detail} for f in self.findings]
        head = {"snapshot": self.snapshot, "parts": self.parts, "rows": self.rows, "is_sound": self.is_sound}
        return head | {"counts": dict(self.counts), "findings": listed}


@dataclass(frozen=True, slots=True)
class PartCheck:
    """What one Part has shown."""

    findings: list[Finding]
    id_hashes_N: NDArray[np.void]
    """16 bytes per row that name its id (and chunk): enough to find a duplicate, small enough for 100 M rows."""


def verify(snapshot: Snapshot) -> Verification:
    """Read every Part of a Snapshot and compare it with what the Snapshot says of it.

    Memory: some Parts at a time, and 16 bytes per row to find duplicate ids.
    """
    result = Verification(snapshot.number)
    table = snapshot.parts.to_pylist()
    _check_listing(snapshot, table, result)
    with ThreadPoolExecutor(READERS) as pool:
        hashes = []
        for check in pool.map(lambda part: check_part(snapshot, part), table):
            hashes.append(check.id_hashes_N)
            for finding in check.findings:
                result.add(finding)
    result.parts = sum(part["kind"] == "embeddings" for part in table)
    result.rows = sum(map(len, hashes))
    _check_ids(snapshot, hashes, result)
    _check_totals(snapshot, result)
    return result


def _check_listing(snapshot: Snapshot, table: Sequence[dict[str, Any]], result: Verification) -> None:
    """Look for files in the Snapshot's folders that it does not name."""
    own = {part_key(p["kind"], p["folder"], p["path"]) for p in table}
    for kind in ("snapshots", "quarantine"):
        for key in snapshot.store.files(f"{kind}/{snapshot.record.folder}"):
            if key not in own:
                result.add(Finding("stray", key, "lies in the folder and is not part of the snapshot"))


def check_part(snapshot: Snapshot, part: dict[str, Any]) -> PartCheck:
    """Compare one Part with its line in the Snapshot; every vector is looked at."""
    key = part_key(part["kind"], part["folder"], part["path"])
    none = np.empty(0, "V16")
    content = snapshot.store.read(key)
    if content is None:
        return PartCheck([Finding("missing", key, f"{part['rows']} rows")], none)
    if len(content) != part["size_bytes"]:
        return PartCheck([Finding("size", key, f"{len(content)} bytes, published with {part['size_bytes']}")], none)
    if part["file_hash"] != content_hash(content):
        return PartCheck([Finding("content", key, "the bytes are not those that were published")], none)
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        rows = file.read()
    except (pa.ArrowException, OSError) as error:
        return PartCheck([Finding("content", key, f"cannot be read: {error}")], none)
    facts = read_metadata(file.metadata.metadata or {})
    findings = list(_check_rows(snapshot, part, rows, facts, key))
    is_data = part["kind"] == "embeddings"
    return PartCheck(findings, _id_hashes(rows) if is_data else none)


def _check_rows(
    snapshot: Snapshot, part: dict[str, Any], rows: pa.Table, facts: dict[str, Any], key: str
) -> Iterator[Finding]:
    if rows.num_rows != part["rows"] or rows_hash(rows) != part["content_hash"]:
        yield Finding("rows", key, f"{rows.num_rows} rows, or other ones; published with {part['rows']}")
    if facts.get("fingerprint") != snapshot.record.fingerprint:
        yield Finding("recipe", key, f"made by recipe {facts.get('fingerprint')}")
    if part["kind"] == "embeddings":
        yield from _check_vectors(snapshot, rows, key)


def _check_vectors(snapshot: Snapshot, rows: pa.Table, key: str) -> Iterator[Finding]:
    stored, dimension = snapshot.recipe["stored"], snapshot.record.dimension
    if stored == "binary":
        if rows.schema.field("embedding").type != pa.binary(dimension // 8):
            yield Finding("width", key, str(rows.schema.field("embedding").type))
        return
    vectors_ND = vectors_of(rows["embedding"]).astype(np.float32)
    if vectors_ND.shape[1] != dimension:
        yield Finding("width", key, f"{vectors_ND.shape[1]} numbers a vector, the snapshot says {dimension}")
    if stored == "int8":
        vectors_ND *= rows["scale"].to_numpy()[:, None]
    norms_N = np.linalg.norm(vectors_ND, axis=1)
    checks = {"not_finite": ~np.isfinite(norms_N), "zero": norms_N == 0}
    if snapshot.recipe["normalize"]:
        off = np.abs(norms_N - 1) > NORM_TOLERANCE[stored]
        checks["norm"] = off & ~checks["not_finite"] & ~checks["zero"]
    for name, bad_N in checks.items():
        for row in np.flatnonzero(bad_N):
            yield Finding(name, key, f"row {row}, length {norms_N[row]:.6g}")


def _id_hashes(rows: pa.Table) -> NDArray[np.void]:
    ids = rows["id"].cast(pa.string())
    if "chunk" in rows.column_names:
        ids = pc.binary_join_element_wise(ids, rows["chunk"].cast(pa.string()), "\0")
    hashes = one_array(hash_strings(one_array(ids)))
    return np.frombuffer(hashes.buffers()[1], "V16", count=len(hashes))


def _check_ids(snapshot: Snapshot, hashes: list[NDArray[np.void]], result: Verification) -> None:
    if not hashes:
        return
    all_M2 = np.concatenate(hashes).view("<u8").reshape(-1, 2)
    ordered_M2 = all_M2[np.lexsort((all_M2[:, 1], all_M2[:, 0]))]
    twice = int((ordered_M2[1:] == ordered_M2[:-1]).all(axis=1).sum())
    if twice:
        result.add(Finding("duplicate_id", snapshot.folder, f"{twice} rows have the id of another row"))


def _check_totals(snapshot: Snapshot, result: Verification) -> None:
    totals, shards = snapshot.totals, snapshot.shards
    if result.rows != totals["rows"]:
        result.add(Finding("rows", snapshot.folder, f"{result.rows} rows, published with {totals['rows']}"))
    read, embedded, quarantined = (sum(shards[n].to_pylist()) for n in ("rows_read", "embedded", "quarantined"))
    if read != embedded + quarantined or read != totals["rows_read"]:
        detail = f"{read} rows read by the Shards, {embedded} embedded + {quarantined} quarantined"
        result.add(Finding("rows", snapshot.folder, detail))


def verification_json(result: Verification) -> bytes:
    """Return the verification as one JSON object."""
    return orjson.dumps(result.to_json(), option=orjson.OPT_INDENT_2)
