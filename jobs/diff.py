"""`diff`: what one snapshot has that another has not, by ids."""

import argparse
from dataclasses import asdict

from pipeline.config_file import output_of
from pipeline.units import counted, thousands

KINDS = ("added", "changed", "removed")


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    import orjson

    from pipeline.execution.proof.difference import difference, parts_of
    from pipeline.storage.snapshots import open_snapshot

    uri = output_of(options.output, options.overrides).uri
    before, after = (open_snapshot(uri, number) for number in (options.before, options.after))
    found = difference(after.store, parts_of(before), parts_of(after))
    if options.json:
        head = {"output": after.store.uri, "before": before.number, "after": after.number}
        print(orjson.dumps(head | asdict(found)).decode())
        return 0
    print(f"{after.store.uri}: from snapshot {before.number} to {after.number}")
    for kind in KINDS:
        ids = found.examples.get(kind, [])
        some = f", for instance {', '.join(ids)}" if ids else ""
        print(f"  {kind:<10} {counted(getattr(found, kind), 'id')}{some}")
    same = f"{thousands(found.carried)} rows in the same ones"
    print(f"  unchanged  {counted(found.unchanged, 'id')} in other Parts, {same}")
    return 0
