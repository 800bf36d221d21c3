"""`diff`: what one snapshot has that another has not, by ids, and how far the vectors of the same texts lie apart."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.config_file import output_of
from pipeline.errors import ConfigError
from pipeline.units import counted, percent, thousands

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from pipeline.execution.proof.drift import Drift, Side

KINDS = ("added", "changed", "removed")


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    import orjson

    from pipeline.execution.proof.difference import difference, ids_that_differ, parts_of
    from pipeline.execution.proof.drift import drift
    from pipeline.storage.snapshots import open_snapshot

    uri = output_of(options.output, options.overrides).uri
    before, after = (open_snapshot(uri, number) for number in (options.before, options.after))
    found = difference(after.store, parts_of(before), parts_of(after))
    moved = drift(before, after) if options.vectors else None
    if options.ids:
        _write_ids(options.ids, ids_that_differ(after.store, parts_of(before), parts_of(after)))
    if options.json:
        head = {"output": after.store.uri, "before": before.number, "after": after.number}
        vectors = {"vectors": asdict(moved)} if moved else {}
        print(orjson.dumps(head | asdict(found) | vectors).decode())
        return 0
    print(f"{after.store.uri}: from snapshot {before.number} to {after.number}")
    for kind in KINDS:
        ids = found.examples.get(kind, [])
        some = f", for instance {', '.join(ids)}" if ids else ""
        print(f"  {kind:<10} {counted(getattr(found, kind), 'id')}{some}")
    same = f"{thousands(found.carried)} rows in the same ones"
    print(f"  unchanged  {counted(found.unchanged, 'id')} in other Parts, {same}")
    if options.ids:
        print(f"  all ids    {options.ids}")
    if moved:
        print(drift_text(moved))
    return 0


def _write_ids(path: str, found: "Iterator[tuple[str, pa.Array]]") -> None:
    """Write every id that is not the same in both snapshots into a Parquet file: `change` and `id`.

    Raises:
        ConfigError: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    of_parts = list(found)
    types = {ids.type for _, ids in of_parts}
    told = types.pop() if len(types) == 1 else pa.string()  # the source may have changed the type of its ids
    tables = [pa.table({"change": pa.repeat(kind, len(ids)), "id": ids.cast(told)}) for kind, ids in of_parts]
    try:
        pq.write_table(pa.concat_tables(tables) if tables else pa.table({"change": [], "id": []}), path)
    except OSError as error:
        raise ConfigError(f"--ids: {path} cannot be written: {error}") from error


def drift_text(drift: "Drift") -> str:
    """Return what was found of the vectors, a line for each thing that could be compared."""
    looked_at, same = thousands(drift.looked_at), f"{thousands(drift.same_ids)} of them under one id"
    lines = [f"vectors of {counted(drift.texts, 'text')} that both have ({same}), out of {looked_at} that were sought"]
    lines += [_side_text(drift.before), _side_text(drift.after)] if drift.texts else []
    if drift.cosines:
        least = f"least {drift.cosines.least:.6f}, for instance {', '.join(drift.cosines.farthest)}"
        below = ", ".join(f"{percent(float(share))} below {at:.6f}" for share, at in drift.cosines.quantiles.items())
        lines.append(f"  cosine     mean {drift.cosines.mean:.6f}; {below}; {least}")
        lines.append(f"  mean       of all, cosine {drift.mean_cosine:.6f}, {drift.mean_distance:.6f} apart")
    elif drift.texts:
        lines.append("  cosine     none between vectors of different dimensions")
    if drift.overlap is not None:
        lines.append(f"  neighbours {percent(drift.overlap)} of the {drift.neighbours} nearest are the same")
    return "\n".join(lines)


def _side_text(side: "Side") -> str:
    least, mean, greatest = side.norms or (0.0, 0.0, 0.0)
    recipe = f"{side.model} in {side.compute}, {thousands(side.dimension)} × {side.stored}"
    return f"  snapshot {side.snapshot}: {recipe}, lengths {least:.4f} to {greatest:.4f}, mean {mean:.4f}"
