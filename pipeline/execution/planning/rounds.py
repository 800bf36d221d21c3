"""Rounds: how often the quarantined Shards of one plan were done anew, each time by a run with a folder of its own."""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.execution.planning.have import Carried
from pipeline.fingerprint import JsonValue, fingerprint
from pipeline.records import Reason
from pipeline.storage.filesystem import Store


@dataclass(frozen=True, slots=True)
class Round:
    """A run that does some Shards anew; it counts from the moment its plan is written down."""

    run_key: str
    redo: Mapping[str, int]
    """Shard → rows it had in quarantine before."""


KeyOf = Callable[[int], str]
"""Number of a round → its run_key; 0 = the run that the rounds follow."""


def run_key_of(identity: list[JsonValue], condemned: Collection[str], number: int) -> str:
    """Return the run_key of a round, so that its Parts never meet those of another one.

    Args:
        identity: what is to be done: parent, recipe, layout and source.
        condemned: run_keys that an expiry has taken out of use.
        number: of the round; 0 = none yet.
    """
    parts = [*identity, {"round": number}] if number else identity
    keys = (fingerprint([*parts, {"attempt": n}] if n else parts) for n in itertools.count())
    return next(key for key in keys if key not in condemned)


def read_rounds(store: Store, key_of: KeyOf) -> list[Round]:
    """Return the rounds that were begun, the first one first."""
    rounds: list[Round] = []
    while True:
        run_key = key_of(len(rounds) + 1)
        content = store.read(f"_meta/runs/{run_key}/plan.parquet")
        if content is None:
            return rounds
        rounds.append(Round(run_key, planned_redo(content)))


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
