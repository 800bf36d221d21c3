"""What a run writes before its first row: the plan it goes by, and the entry that fences off who held its Journal."""

import time

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PlanOutdated, SnapshotConflict
from pipeline.execution.planning.plan import Plan
from pipeline.execution.planning.rounds import planned_redo
from pipeline.storage.claim import Claim
from pipeline.storage.filesystem import Store
from pipeline.storage.journal import Journal, is_condemned, read_journal

FENCE_ATTEMPTS = 5
"""How often a new owner of a run tries to get the next Journal entry before the old one does."""


def open_journal(store: Store, plan: Plan, claim: Claim) -> Journal:
    """Open the Journal with an empty entry: from it on, a driver that held the run before is fenced off.

    Raises:
        SnapshotConflict: that driver goes on writing, faster than it can be fenced.
    """
    for attempt in range(FENCE_ATTEMPTS):
        number = read_journal(store, plan.run_key).next_number
        journal = Journal(store, plan.run_key, plan.folder, claim.driver, number)
        try:
            journal.append([])
        except SnapshotConflict:
            if attempt == FENCE_ATTEMPTS - 1 or claim.is_lost():
                raise
        else:
            break
    if is_condemned(store, plan.run_key):
        raise PlanOutdated(f"{store.uri}: an expiry removes what this run has left; run again to begin it anew")
    return journal


def record_plan(store: Store, plan: Plan, run_key: str) -> pa.Scalar:
    """Write down the plan of this run, once, or that of its next round; return when it was first planned.

    A resumed run stamps its rows with the time of the first attempt, so that it matters to no row who wrote it.
    """
    now = int(time.time() * 1_000_000)
    rows = {
        "shard_id": [shard.shard_id for shard in plan.wanted],
        "spans": [orjson.dumps(shard.to_json()["spans"]).decode() for shard in plan.wanted],
        "redo": [plan.redo.get(shard.shard_id) for shard in plan.wanted],
    }
    schema = pa.schema([("shard_id", pa.string()), ("spans", pa.string()), ("redo", pa.int64())])
    table = pa.table(rows, schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"planned_at": str(now)}), sink, compression="zstd")
    found = store.put_new(f"_meta/runs/{run_key}/plan.parquet", sink.getvalue().to_pybytes())
    if found is not None:
        if planned_redo(found) != plan.redo:
            raise SnapshotConflict(f"{store.uri}: another requeue has begun meanwhile; run again to go on with it")
        now = int(pq.read_schema(pa.BufferReader(found)).metadata[b"planned_at"])
    return pa.scalar(now, pa.timestamp("us", tz="UTC"))
