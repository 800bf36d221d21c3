"""The end of a run: reconcile, carry the old Parts over, check the folder, publish the Snapshot."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

import pipeline
from pipeline.config import JobConfig
from pipeline.encoder.describe import ModelDescription
from pipeline.errors import AttemptsDiffer, ReconciliationError, SnapshotConflict, StorageError
from pipeline.execution.planning.have import Carried
from pipeline.execution.planning.plan import Plan
from pipeline.execution.proof.difference import compared
from pipeline.execution.proof.duplicates import check_ids
from pipeline.execution.proof.guards import check_deletes
from pipeline.execution.proof.reconcile import reconcile
from pipeline.execution.reporting.metrics import RunReport
from pipeline.execution.settings import output_dimension, output_schema, recipe_facts
from pipeline.records import BlockReceipt, Part
from pipeline.storage.claim import Claim
from pipeline.storage.filesystem import Stat, Store
from pipeline.storage.parquet import adopt_part, part_key
from pipeline.storage.snapshots import SnapshotRecord, decode_schema, encode_schema, files_of, publish_snapshot
from pipeline.units import percent

COPIERS = 32
"""Parts of the parent carried at once; each is one request that moves no bytes through this machine."""

REFERENCES = (
    "output.carry: reference left some Parts in the folders of older snapshots: read the whole through "
    "pipeline.open_snapshot, not from the folder alone"
)


def publish(
    config: JobConfig,
    plan: Plan,
    store: Store,
    claim: Claim,
    new: list[BlockReceipt],
    report: RunReport,
    description: ModelDescription,
    max_deleted: float | None,
) -> None:
    """Prove that nothing is missing, bring the Parts together, and make them the next Snapshot.

    Args:
        new: receipts of the Blocks this run has written.
        description: of the model.
        max_deleted: as for `run`.

    Raises:
        DeletionRefused: more of the Snapshot before would go.
        ReconciliationError: counts, files or the share of quarantined rows are not as they must be.
        SourceError: an id stands more than once, and `source.duplicate_ids` does not allow it.
        SnapshotConflict: another driver was faster.
    """
    carried = [one for blocks in plan.carried.values() for one in blocks]
    for one in carried:
        report.add_reused(one.receipt)
    chunked = config.recipe.long_text == "chunk"
    shards = reconcile(plan.wanted, [*new, *(one.receipt for one in carried)], chunked)
    check_quarantine(config, report, store, plan.folder)
    _check_redone(plan, shards)
    if config.source.duplicate_ids != "allow":
        check_ids(store, plan.wanted, _where_they_lie(plan, new, carried), chunked, _proven(plan))
    if max_deleted is not None:
        coming = [compared(folder, part) for folder, part in _where_they_lie(plan, new, carried)]
        check_deletes(plan, coming, max_deleted)
    parts = [(plan.folder, part) for receipt in new for part in receipt.parts]
    parts += _carry(config, plan, store, carried)
    _check_folders(plan, store, parts)
    if claim.is_lost():
        raise SnapshotConflict(f"another driver has taken over the output {store.uri}; it goes on, this one stops")
    record = _record(config, plan, report, claim.driver, parts, description)
    publish_snapshot(store, record, parts, shards)
    report.snapshot = plan.number
    if any(folder != plan.folder for folder, _ in parts):
        report.warnings.append(REFERENCES)


def _proven(plan: Plan) -> list[tuple[str, Part]]:
    """Return the Parts of the Snapshot before, if it was seen that no id stands twice in them."""
    parent = plan.parent
    return parent.placed_parts() if parent and parent.record.duplicate_ids != "allow" else []


def _where_they_lie(plan: Plan, new: list[BlockReceipt], carried: list[Carried]) -> list[tuple[str, Part]]:
    """Return every Part of the coming Snapshot with the folder it is in now."""
    written = [(plan.folder, part) for receipt in new for part in receipt.parts]
    return written + [pair for one in carried for pair in zip(one.folders, one.receipt.parts, strict=True)]


def check_quarantine(config: JobConfig, report: RunReport, store: Store, folder: str) -> None:
    allowed = config.runtime.max_quarantined_fraction
    shares = (
        (report.quarantined, report.rows_read, "rows went to quarantine"),
        (report.unreadable_bytes, report.source_bytes, "bytes of the source could not be read"),
    )
    if all(count <= allowed * whole for count, whole, _ in shares):
        return
    told = " and ".join(f"{count} of {whole} {what}" for count, whole, what in shares if count)
    largest = max(count / whole for count, whole, _ in shares if whole)
    reasons = ", ".join(f"{reason} {rows}" for reason, rows in sorted(report.reasons.items()))
    raise ReconciliationError(
        f"{told} ({reasons}): {percent(largest)}, more than runtime.max_quarantined_fraction {allowed:g} allows; "
        "nothing was published, what was encoded is kept. What is bad stands in "
        f"{store.uri_of('quarantine/' + folder)}. Mend the source, or raise the limit."
    )


def _check_redone(plan: Plan, shards: list[dict[str, Any]]) -> None:
    """Refuse to publish Shards that were done anew if fewer of their rows have vectors than before."""
    if plan.parent is None or not plan.redo:
        return
    before = {row["shard_id"]: row["quarantined"] for row in plan.parent.shards.to_pylist()}
    kept = [row for row in shards if row["shard_id"] in before]
    was, now = sum(before[row["shard_id"]] for row in kept), sum(row["quarantined"] for row in kept)
    if now > was:
        raise ReconciliationError(
            f"{now} rows are in quarantine after the requeue, in snapshot {plan.parent.number} they were {was}; "
            "nothing was published. Mend what made it worse and requeue again"
        )


def _carry(config: JobConfig, plan: Plan, store: Store, carried: list[Carried]) -> list[tuple[str, Part]]:
    """Bring the Parts of earlier runs into this snapshot's folder, or name them where they are.

    Only the folders of Snapshots are referred to. What a dead run has left is always copied: a worker of this run that
    was forgotten must find its own Part's name taken.
    """
    published = set(plan.parent.parts["folder"].to_pylist()) if plan.parent else set()
    standing = {} if store.is_local else files_of(store, [plan.folder])

    def carry(folder: str, part: Part) -> tuple[str, Part]:
        if folder == plan.folder or (config.output.carry == "reference" and folder in published):
            return folder, part
        source, target = (part_key(part.kind, where, part.path) for where in (folder, plan.folder))
        if not store.is_local and folder in published and target not in standing:
            store.copy(source, target)  # no worker of this run was ever given a Shard that its parent holds
            return plan.folder, part
        if not store.copy_new(source, target):
            return plan.folder, adopt_part(store, target, part, plan.recipe_fingerprint)
        stat = store.stat(target)
        if stat is None or stat.size_bytes != part.size_bytes:
            raise _changed(store, source, part, stat)
        return plan.folder, replace(part, etag=stat.version)

    pairs = [pair for one in carried for pair in zip(one.folders, one.receipt.parts, strict=True)]
    with ThreadPoolExecutor(COPIERS) as pool:
        brought = list(pool.map(lambda pair: carry(*pair), pairs))
    return brought if store.is_local else _as_listed(plan, store, brought, pairs)


def _as_listed(
    plan: Plan, store: Store, brought: list[tuple[str, Part]], pairs: list[tuple[str, Part]]
) -> list[tuple[str, Part]]:
    """Return the Parts that were carried with the versions of their copies.

    Raises:
        StorageError: one has been changed since it was written.
    """
    found = files_of(store, [plan.folder])
    listed: list[tuple[str, Part]] = []
    for (folder, part), (origin, _) in zip(brought, pairs, strict=True):
        stat = found.get(part_key(part.kind, folder, part.path))
        if folder == plan.folder != origin and (stat is None or stat.size_bytes != part.size_bytes):
            raise _changed(store, part_key(part.kind, origin, part.path), part, stat)
        listed.append((folder, replace(part, etag=stat.version) if stat and folder == plan.folder else part))
    return listed


def _changed(store: Store, source: str, part: Part, stat: Stat | None) -> StorageError:
    return StorageError(
        f"{store.uri_of(source)} has been changed since it was written with {part.size_bytes} bytes (its copy: "
        f"{stat}); remove it and its snapshots, or run under another output.uri"
    )


def _check_folders(plan: Plan, store: Store, parts: list[tuple[str, Part]]) -> None:
    """Compare the folders with the Parts: what tools will read there is what was counted."""
    expected = {part_key(part.kind, folder, part.path): part.size_bytes for folder, part in parts}
    found = files_of(store, {plan.folder, *(folder for folder, _ in parts)})
    wrong = [key for key, size in expected.items() if key not in found or found[key].size_bytes != size]
    strays = [key for key in found if key not in expected and key.split("/")[1] == plan.folder]
    if not wrong and strays and all(_is_of(plan, key) for key in strays):
        raise AttemptsDiffer(
            f"{store.uri}: {len(strays)} files are of attempts that have set other rows aside than the ones that count "
            f"(for instance {strays[0]}). What was encoded is kept; run again to publish it from a fresh folder"
        )
    if wrong or strays:
        raise ReconciliationError(
            f"{store.uri}: {len(wrong)} Parts are missing or of another size, {len(strays)} files belong to nobody "
            f"(for instance {(wrong + strays)[0]}); nothing was published"
        )


def _is_of(plan: Plan, key: str) -> bool:
    """Whether a file is named as a Part of this Plan."""
    return key.rpartition("/")[2].partition("-")[0] in {shard.shard_id for shard in plan.wanted}


def _record(
    config: JobConfig,
    plan: Plan,
    report: RunReport,
    driver: str,
    parts: list[tuple[str, Part]],
    description: ModelDescription,
) -> SnapshotRecord:
    documents = decode_schema(plan.layout["document_schema"])
    report.dimension = output_dimension(config, description)
    folders = [documents.field(name) for name in config.output.partition_by]
    schema = encode_schema(pa.schema([*output_schema(config, plan, description), *folders]))
    embeddings = [part for _, part in parts if part.kind == "embeddings"]
    return SnapshotRecord(
        number=plan.number,
        parent=plan.parent.number if plan.parent else None,
        run_key=plan.run_key,
        folder=plan.folder,
        fingerprint=plan.recipe_fingerprint,
        recipe=recipe_facts(config, plan),
        layout=plan.layout,
        totals={
            "rows": sum(part.rows for part in embeddings),
            "rows_read": report.rows_read,
            "embedded": report.embedded,
            "reused": report.reused,
            "quarantined": report.quarantined,
            "deduplicated": report.deduplicated,
            "parts": len(embeddings),
            "bytes": sum(part.size_bytes for part in embeddings),
        },
        dimension=report.dimension,
        document_schema=plan.layout["document_schema"],
        part_schema=schema,
        published_at=datetime.now(UTC).isoformat(timespec="seconds"),
        pipeline_version=pipeline.__version__,
        driver=driver,
        duplicate_ids=config.source.duplicate_ids,
        has_changes=config.output.changes,
    )
