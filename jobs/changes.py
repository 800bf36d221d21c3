"""`changes`: write the feeds of changes that are missing, and say which there are."""

import argparse

from pipeline.config_file import output_of
from pipeline.errors import StorageError
from pipeline.units import counted, thousands

TOLD = {"insert": "inserted", "update": "updated", "delete": "deleted"}


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    import orjson

    from pipeline.execution.change_feed import write_feeds
    from pipeline.storage.changes import feed_numbers, load_feed
    from pipeline.storage.filesystem import Store
    from pipeline.storage.snapshots import snapshot_numbers

    output = output_of(options.output, options.overrides)
    store = Store(output.uri)
    store.check_reachable()
    published = snapshot_numbers(store)
    if not published:
        raise StorageError(f"{store.uri}: no snapshot is published there; check the address, or run `embed` first")
    written = [feed.number for feed in write_feeds(store, with_newest=output.changes)]
    numbers = [number for number in feed_numbers(store) if number in published]
    records = [feed.record for number in numbers if (feed := load_feed(store, number))]
    if options.json:
        feeds = [{"number": r.number, "since": r.since, "folder": r.folder, **r.totals} for r in records]
        print(orjson.dumps({"output": store.uri, "written": written, "feeds": feeds}).decode())
        return 0
    print(f"{store.uri}: {counted(len(written), 'feed')} of changes written, {len(records)} there")
    for record in records:
        since = f"since {record.since}" if record.since else "from nothing"
        rows = ", ".join(f"{thousands(record.totals[op])} {told}" for op, told in TOLD.items())
        print(f"  snapshot {record.number}, {since}: {rows}")
    if not records:
        print("  set output.changes: true for a feed with every snapshot from now on")
    return 0
