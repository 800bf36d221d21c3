"""The Plan: wanted minus have. First run, resume and nightly are this one subtraction."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import JobConfig
from pipeline.errors import ConfigError
from pipeline.execution.planning.calibrated import with_calibration
from pipeline.execution.planning.have import Carried, find_have, is_complete
from pipeline.execution.planning.model import ModelReference, recipe_fingerprint, resolve_model
from pipeline.execution.planning.rounds import KeyOf, Round, quarantined, read_rounds, run_key_of
from pipeline.execution.planning.shards import READ_AS, cut_shards, row_groups_of, without_rows
from pipeline.execution.planning.witness import document_schema_of
from pipeline.execution.proof.duplicates import find_repeated_rows
from pipeline.fingerprint import JsonValue
from pipeline.records import Reason, Shard, SourceFile
from pipeline.storage.filesystem import Store
from pipeline.storage.journal import condemned_runs
from pipeline.storage.listing import list_source
from pipeline.storage.partitions import is_partitionable
from pipeline.storage.readers import ReadColumns
from pipeline.storage.snapshots import Snapshot, decode_schema, encode_schema, load_snapshot
from pipeline.storage.text_index import IndexReference


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do, and why; making it writes nothing."""

    number: int
    """Of the Snapshot to publish: the parent's plus one."""
    parent: Snapshot | None
    run_key: str
    next_run_key: str
    """Of the round that follows if this one cannot be finished in its folder."""
    model: ModelReference
    recipe_fingerprint: str
    layout: dict[str, Any]
    """Columns and shape of the output; a change of it embeds anew, like a change of the recipe."""
    files: tuple[SourceFile, ...]
    wanted: tuple[Shard, ...]
    embed: tuple[Shard, ...]
    """Shards of which at least one Block is missing."""
    carried: dict[str, tuple[Carried, ...]]
    """By Shard: the Blocks that need no work."""
    duplicate_ids: str
    """`source.duplicate_ids`."""
    dropped: dict[str, NDArray[np.int64]]
    """By Shard: positions of the rows whose id stands before them (`duplicate_ids: keep_first`)."""
    redo: Mapping[str, int]
    """Shards that this run does anew because of their quarantine → rows they had in it; none = a plain run."""
    known: IndexReference | None = None
    """Index of the texts whose vectors the parent holds, once it is written: making a Plan writes nothing."""

    @property
    def folder(self) -> str:
        """Name of the snapshot's folder."""
        return f"{self.number:08d}-{self.run_key}"

    @property
    def is_done(self) -> bool:
        """Whether the parent Snapshot is already exactly what is wanted."""
        if self.parent is None or self.embed or self.redo:
            return False
        if self.parent.record.duplicate_ids == "allow" != self.duplicate_ids:
            return False
        standing = set(self.parent.shards["shard_id"].to_pylist())
        return standing == {shard.shard_id for shard in self.wanted}

    @property
    def source_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def done_blocks(self, shard_id: str) -> frozenset[int]:
        """Return the numbers of the Shard's Blocks that need no work."""
        return frozenset(carried.receipt.block for carried in self.carried.get(shard_id, ()))


def make_plan(config: JobConfig, store: Store, retry: Collection[Reason] = ()) -> Plan:
    """List, cut, and subtract what earlier runs have done.

    Args:
        retry: the reasons for which quarantined rows are tried again, with their whole Shards (`requeue`). A round
            of it that was begun is finished first, also by a plain run that has work to do.

    Raises:
        SourceError: the input cannot be listed or has not the columns the config names.
        ConfigError: a partition column has a type that cannot name folders.
        EncoderError: there is no such model.
        StorageError: the output cannot be read.
    """
    store.check_reachable()
    parent = load_snapshot(store)
    files = list_source(config.source.uri, config.source.format)
    model = with_calibration(store, config.recipe, resolve_model(config.recipe), parent)
    recipe = recipe_fingerprint(config.recipe, model)
    layout = _layout(config, files, parent)
    wanted = cut_shards(files, layout, recipe, config.output.rows_per_part, row_groups_of(files))
    wanted, dropped = _without_repeats(config, wanted, layout, recipe)
    number = parent.number + 1 if parent else 1
    sources: list[JsonValue] = [[file.uri, file.version, file.size_bytes] for file in files]
    # Rows left out are part of what is to be done; without any, the key is that of a run that looks for none.
    read_as = sorted({READ_AS[file.format] for file in files if file.format in READ_AS})
    identity: list[JsonValue] = [number - 1, recipe, layout, sources, *read_as, *sorted(dropped)]
    key_of = partial(run_key_of, identity, condemned_runs(store))
    plan = Plan(
        number=number,
        parent=parent,
        run_key=key_of(0),
        next_run_key=key_of(1),
        model=model,
        recipe_fingerprint=recipe,
        layout=layout,
        files=tuple(files),
        wanted=wanted,
        embed=wanted,
        carried={},
        duplicate_ids=config.source.duplicate_ids,
        dropped=dropped,
        redo={},
    )
    return _in_rounds(store, plan, key_of, retry)


def _in_rounds(store: Store, plan: Plan, key_of: KeyOf, retry: Collection[Reason]) -> Plan:
    """Return the Plan of the round that is to be worked on: the one that was begun, a new one, or none."""
    rounds = read_rounds(store, key_of)
    current = _subtract(store, plan, key_of, rounds)
    if not retry:
        plain = _subtract(store, plan, key_of, []) if rounds else current
        return plain if plain.is_done else current
    is_unfinished = any(shard.shard_id in current.redo for shard in current.embed)
    redo = quarantined(current.carried, retry)
    if is_unfinished or not redo:
        return current
    return _subtract(store, plan, key_of, [*rounds, Round(key_of(len(rounds) + 1), redo)])


def _subtract(store: Store, plan: Plan, key_of: KeyOf, rounds: Sequence[Round]) -> Plan:
    """Return the Plan without what earlier runs have done; of a Shard done anew its last round's word counts."""
    run_key = rounds[-1].run_key if rounds else plan.run_key
    next_run_key = key_of(len(rounds) + 1)
    redone = {shard_id: one.run_key for one in rounds for shard_id in one.redo}
    carried = find_have(store, plan.parent, {shard.shard_id for shard in plan.wanted}, run_key, redone)
    embed = tuple(shard for shard in plan.wanted if not is_complete(carried.get(shard.shard_id, ())))
    redo = rounds[-1].redo if rounds else {}
    return replace(plan, run_key=run_key, next_run_key=next_run_key, carried=carried, embed=embed, redo=redo)


def _without_repeats(
    config: JobConfig, wanted: tuple[Shard, ...], layout: dict[str, Any], recipe: str
) -> tuple[tuple[Shard, ...], dict[str, NDArray[np.int64]]]:
    """Look for repeated ids if they are to be left out; return the Shards without their rows, and these rows."""
    if config.source.duplicate_ids != "keep_first":
        return wanted, {}
    rows = find_repeated_rows(wanted, read_columns_of(layout))
    pairs = [
        (without_rows(shard, layout, recipe, r) if len(r) else shard, r) for shard, r in zip(wanted, rows, strict=True)
    ]
    return tuple(shard for shard, _ in pairs), {shard.shard_id: r for shard, r in pairs if len(r)}


def looks_for_repeats(config: JobConfig, plan: Plan) -> bool:
    """Whether repeated texts are looked for; what the chunks of a text are is known only when it is tokenised."""
    asked = config.runtime.look_for_repeats
    return config.recipe.long_text != "chunk" and (plan.model.kind != "hashing" if asked == "auto" else asked)


def read_columns_of(layout: dict[str, Any]) -> ReadColumns:
    """Return what the readers of a source are asked for, by the layout of a Plan or a Snapshot."""
    id_column, text_column, *kept = layout["columns"]
    schema = decode_schema(layout["document_schema"])
    return ReadColumns(id_column, text_column, tuple(kept), schema, layout["empty_text"])


def _layout(config: JobConfig, files: Sequence[SourceFile], parent: Snapshot | None) -> dict[str, Any]:
    source, output = config.source, config.output
    names = [source.id_column, source.text_column, *source.keep_columns]
    is_as_before = parent is not None and parent.record.layout["columns"] == names
    standing = decode_schema(parent.record.document_schema) if parent and is_as_before else None
    schema = document_schema_of(files, source, standing)
    for column in output.partition_by:
        if not is_partitionable(schema.field(column).type):
            raise ConfigError(
                f"output.partition_by names {column}, which is {schema.field(column).type}; folders can be named by "
                "string, integer, bool and date columns"
            )
    return {
        "columns": names,
        "document_schema": encode_schema(schema),
        "empty_text": source.empty_text,
        "partition_by": list(output.partition_by),
        "rows_per_part": output.rows_per_part,
    }
