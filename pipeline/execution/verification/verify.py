"""The proof, taken again from the files alone: is a published Snapshot still exactly what it says it is?"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.execution.planning.model import fingerprint_of_facts
from pipeline.execution.verification.findings import MAX_LISTED, Finding, Verification
from pipeline.execution.verification.part_check import check_part
from pipeline.execution.verification.recount import recount
from pipeline.execution.verification.resample import check_model, resample
from pipeline.parallel import in_order
from pipeline.storage.parquet import part_key
from pipeline.storage.snapshots import Snapshot, load_snapshot, snapshot_numbers
from pipeline.storage.uniqueness import find_repeats, index_and_row, placed

READERS = 4
"""Parts read at once; each is held in memory whole."""

LINES = 4096
"""Lines of the table of Parts that are Python objects at a time."""


def verify(snapshot: Snapshot, sample: int = 0, seed: int = 0) -> Verification:
    """Read every Part of a Snapshot and compare it with what the Snapshot says of it, and of its source.

    Memory: two Parts per reader and 24 bytes for each of a million ids; more of them go through a temporary folder
    (`uniqueness.find_repeats`). What is listed (files, Parts, Shards) is held, rows are not.

    Args:
        sample: random rows whose texts are encoded again; the model is loaded for them only.
        seed: the same one draws the same rows.

    Raises:
        EncoderError: a sample is asked for, and the model is not the one that the Snapshot was made with.
        StorageError: the output cannot be read.
    """
    result = Verification(snapshot.number)
    model = check_model(snapshot) if sample else None
    _check_record(snapshot, result)
    _check_listing(snapshot, result)
    pieces = _checked_ids(snapshot, result)
    if snapshot.record.duplicate_ids == "allow":
        for _ in pieces:
            pass
    else:
        for repeats_R2 in find_repeats(pieces):
            _add_repeats(snapshot, repeats_R2, result)
        result.ids_are_unique = not result.counts["duplicate_id"]
    _check_totals(snapshot, result)
    recount(snapshot, result)
    if model:
        resample(snapshot, model, sample, seed, result)
    return result


def _lines(snapshot: Snapshot) -> Iterator[dict[str, Any]]:
    """Yield the Parts of the Snapshot, in the order of its table."""
    for batch in snapshot.parts.to_batches(LINES):
        yield from batch.to_pylist()


def _checked_ids(snapshot: Snapshot, result: Verification) -> Iterator[NDArray[np.void]]:
    """Check every Part; yield the hashes of its ids with their places: the line of the Part, and the row in it."""
    checks = in_order(lambda part: check_part(snapshot, part), _lines(snapshot), READERS)
    for index, (check, part) in enumerate(zip(checks, _lines(snapshot), strict=True)):
        result.parts += part["kind"] == "embeddings"
        result.rows += len(check.id_hashes_N)
        for finding in check.findings:
            result.add(finding)
        yield placed(check.id_hashes_N, index)


def _add_repeats(snapshot: Snapshot, repeats_R2: NDArray[np.uint64], result: Verification) -> None:
    for row, (repeat, earlier) in enumerate(repeats_R2[np.argsort(repeats_R2[:, 0])].tolist()):
        if result.counts["duplicate_id"] >= MAX_LISTED:
            result.counts["duplicate_id"] += len(repeats_R2) - row
            return
        (key, row_of_repeat), (other, row_of_earlier) = (_told(snapshot, place) for place in (repeat, earlier))
        detail = f"has the id of row {row_of_earlier} of {other}"
        result.add(Finding("duplicate_id", key, detail, row_of_repeat))


def _told(snapshot: Snapshot, place: int) -> tuple[str, int]:
    index, row = index_and_row(place)
    kind, folder, path = (snapshot.parts[name][index].as_py() for name in ("kind", "folder", "path"))
    return part_key(kind, folder, path), row


def _check_record(snapshot: Snapshot, result: Verification) -> None:
    found = fingerprint_of_facts(snapshot.recipe)
    if found != snapshot.record.fingerprint:
        detail = f"its recipe has the fingerprint {found}, it says {snapshot.record.fingerprint}"
        result.add(Finding("recipe", f"_meta/snapshots/{snapshot.number:08d}.json", detail))


def _check_listing(snapshot: Snapshot, result: Verification) -> None:
    """Look for files that no Snapshot names, in its own folders and in those it refers to (`carry: reference`)."""
    parts, own = snapshot.parts, snapshot.record.folder
    columns = ("kind", "folder", "path")
    named = set(map(part_key, *(parts[name].to_pylist() for name in columns)))
    folders = {own}
    if set(parts["folder"].unique().to_pylist()) - {own}:
        for number in snapshot_numbers(snapshot.store):
            other = load_snapshot(snapshot.store, number)
            if other:  # its Parts may lie beside ours, in a folder that several snapshots share
                named |= set(map(part_key, *(other.parts[name].to_pylist() for name in columns)))
                folders |= {other.record.folder} & set(parts["folder"].unique().to_pylist())
    for folder in sorted(folders):
        for kind in ("snapshots", "quarantine"):
            for key in sorted(snapshot.store.files(f"{kind}/{folder}").keys() - named):
                result.add(Finding("stray", key, "lies among the Parts and belongs to no snapshot"))


def _check_totals(snapshot: Snapshot, result: Verification) -> None:
    """Compare rows found with rows promised, Parts with their Shards, and in each Shard rows read with their fates."""
    totals, whole = snapshot.totals, f"snapshots/{snapshot.record.folder}"
    listed = defaultdict[str, Counter[str]](Counter)
    if result.rows != totals["rows"]:
        result.add(Finding("rows", whole, f"{result.rows} rows, published with {totals['rows']}"))
    for part in _lines(snapshot):
        listed[part["shard_id"]][part["kind"]] += part["rows"]
    chunked, read = snapshot.recipe["long_text"] == "chunk", 0
    for shard in snapshot.shards.to_pylist():
        read += shard["rows_read"]
        fates = {name: shard.get(name) or 0 for name in ("embedded", "quarantined", "deduplicated")}
        if sum(fates.values()) != shard["rows_read"]:
            detail = " + ".join(f"{rows} {fate}" for fate, rows in fates.items())
            result.add(Finding("rows", shard["shard_id"], f"{shard['rows_read']} rows read, {detail}"))
        found = listed.pop(shard["shard_id"], Counter())
        vectors, lines, entries = found["embeddings"], found["quarantine"], shard.get("entries")
        off = vectors < fates["embedded"] if chunked else vectors != fates["embedded"]
        if off or lines != (fates["quarantined"] if entries is None else entries):
            detail = f"its Parts hold {vectors} + {lines} lines for {fates['embedded']} embedded + "
            result.add(Finding("rows", shard["shard_id"], f"{detail}{fates['quarantined']} quarantined rows"))
    for shard_id in sorted(listed):
        result.add(Finding("rows", shard_id, "has Parts and is no Shard of the snapshot"))
    if read != totals["rows_read"]:
        result.add(Finding("rows", whole, f"its Shards have read {read} rows, it says {totals['rows_read']}"))
