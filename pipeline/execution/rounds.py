"""Rounds: how often the quarantined Shards of one plan were done anew, each time by a run with a folder of its own."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.execution.have import Carried
from pipeline.fingerprint import JsonValue, fingerprint
from pipeline.records import Reason
from pipeline.storage.filesystem import Store


@dataclass(frozen=True, slots=True)
class Round:
    """A run that does some Shards anew; it counts from the moment its plan is written down."""

    run_key: str
    redo: Mapping[str, int]
    """Shard → rows it had in quarantine before."""


def read_rounds(store: Store, identity: list[JsonValue]) -> list[Round]:
    """Return the rounds that were begun, the first one first.

    Args:
        identity: what names the run that they follow: parent, recipe, layout and source.
    """
    rounds: list[Round] = []
    while True:
        run_key = round_key(identity, len(rounds) + 1)
        content = store.read(f"_meta/runs/{run_key}/plan.parquet")
        if content is None:
            return rounds
        rounds.append(Round(run_key, planned_redo(content)))


def round_key(identity: list[JsonValue], number: int) -> str:
    """Return the run_key of a round; its Parts never meet those of the run or of another round."""
    return fingerprint([*identity, {"round": number}])


def planned_redo(plan: bytes) -> dict[str, int]:
    """Return what a written plan says is done anew."""
    rows = pq.read_table(pa.BufferReader(plan)).drop_columns("spans").to_pylist()
    return {row["shard_id"]: row["redo"] for row in rows if row.get("redo") is not None}


def quarantined(carried: Mapping[str, Sequence[Carried]], reasons: Collection[Reason]) -> dict[str, int]:
    """Return the Shards that have rows in quarantine for one of these reasons, and how many rows for any reason."""
    wanted = {reason.value for reason in reasons}
    return {
        shard_id: sum(one.receipt.quarantined for one in blocks)
        for shard_id, blocks in carried.items()
        if any(wanted & one.receipt.reasons.keys() for one in blocks)
    }
