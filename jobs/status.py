"""`status`: what is published in an output, and what the newest snapshot holds."""

import argparse

from pipeline.config_file import output_of
from pipeline.units import byte_size, counted, thousands

FATES = ("embedded", "reused", "quarantined", "deduplicated")


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    import orjson

    from pipeline.storage.filesystem import Store
    from pipeline.storage.snapshots import load_snapshot, open_snapshot, snapshot_numbers

    uri = output_of(options.output, options.overrides).uri
    newest = open_snapshot(uri)
    store = Store(uri)
    snapshots = [load_snapshot(store, number) for number in snapshot_numbers(store)]
    records = [snapshot.record for snapshot in snapshots if snapshot]
    if options.json:
        facts = [
            {"number": r.number, "published_at": r.published_at, "fingerprint": r.fingerprint, "totals": r.totals}
            for r in records
        ]
        print(orjson.dumps({"output": store.uri, "folder": newest.folder, "snapshots": facts}).decode())
        return 0
    print(f"{store.uri}: {counted(len(records), 'snapshot')}, newest {newest.number}")
    for record in records:
        rows, parts, size = (record.totals[name] for name in ("rows", "parts", "bytes"))
        fates = ", ".join(f"{thousands(record.totals[fate])} {fate}" for fate in FATES)
        holds = f"{thousands(rows)} rows in {counted(parts, 'Part')}, {byte_size(size)}"
        print(f"  {record.number:>8}  {record.published_at}  {holds}; {fates}")
    recipe = newest.recipe
    print(
        f"  recipe    {recipe['model']}, {newest.record.dimension} dimensions, {recipe['compute']}, {recipe['stored']}"
    )
    print(f"  rows in   {newest.folder}")
    return 0
