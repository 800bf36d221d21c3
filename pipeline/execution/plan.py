"""The Plan: wanted minus have. First run, resume and nightly are this one subtraction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import JobConfig
from pipeline.errors import ConfigError
from pipeline.execution.have import Carried, find_have, is_complete
from pipeline.execution.model import ModelReference, recipe_fingerprint, resolve_model
from pipeline.execution.shards import cut_shards, row_groups_of
from pipeline.fingerprint import JsonValue, fingerprint
from pipeline.records import Shard, SourceFile
from pipeline.storage.filesystem import Store, open_source
from pipeline.storage.listing import list_source
from pipeline.storage.partitions import is_partitionable
from pipeline.storage.readers import read_source_schema
from pipeline.storage.snapshots import Snapshot, decode_schema, encode_schema, load_snapshot


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do, and why; making it writes nothing."""

    number: int
    """Of the Snapshot to publish: the parent's plus one."""
    parent: Snapshot | None
    run_key: str
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

    @property
    def folder(self) -> str:
        """Name of the snapshot's folder."""
        return f"{self.number:08d}-{self.run_key}"

    @property
    def is_done(self) -> bool:
        """Whether the parent Snapshot is already exactly what is wanted."""
        if self.parent is None or self.embed:
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


def make_plan(config: JobConfig, store: Store) -> Plan:
    """List, cut, and subtract what earlier runs have done.

    Raises:
        SourceError: the input cannot be listed or has not the columns the config names.
        ConfigError: a partition column has a type that cannot name folders.
        EncoderError: there is no such model.
        StorageError: the output cannot be read.
    """
    store.check_reachable()
    parent = load_snapshot(store)
    files = list_source(config.source.uri, config.source.format)
    model = resolve_model(config.recipe)
    recipe = recipe_fingerprint(config.recipe, model)
    layout = _layout(config, files, parent)
    wanted = cut_shards(files, layout, recipe, config.output.rows_per_part, row_groups_of(files))
    number = parent.number + 1 if parent else 1
    sources: list[JsonValue] = [[file.uri, file.version, file.size_bytes] for file in files]
    run_key = fingerprint([number - 1, recipe, layout, sources])
    carried = find_have(store, parent, {shard.shard_id for shard in wanted}, run_key)
    embed = tuple(shard for shard in wanted if not is_complete(carried.get(shard.shard_id, ())))
    policy = config.source.duplicate_ids
    return Plan(number, parent, run_key, model, recipe, layout, tuple(files), wanted, embed, carried, policy)


def _layout(config: JobConfig, files: Sequence[SourceFile], parent: Snapshot | None) -> dict[str, Any]:
    source, output = config.source, config.output
    names = [source.id_column, source.text_column, *source.keep_columns]
    witness = next((file for file in files if file.format == "parquet"), None)
    if witness is None and parent and parent.record.layout["columns"] == names:
        schema = decode_schema(parent.record.document_schema)
    else:
        witness = witness or next((file for file in files if file.size_bytes), files[0])
        schema = read_source_schema(witness, source.id_column, source.text_column, source.keep_columns, open_source)
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
