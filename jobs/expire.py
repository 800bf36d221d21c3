"""`expire`: remove snapshots beyond `output.keep_snapshots`, and what dead runs have left."""

import argparse
import time

from pipeline.config_file import output_of
from pipeline.errors import StorageError
from pipeline.units import byte_size, counted


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    import orjson

    from pipeline.storage.expiry import expire
    from pipeline.storage.filesystem import Store

    output = output_of(options.output, options.overrides)
    store = Store(output.uri)
    expiry = expire(
        store, options.keep or output.keep_snapshots, time.time() - options.grace_hours * 3600, options.dry_run
    )
    if not expiry.kept and not expiry.removals:
        raise StorageError(f"{store.uri}: nothing of this pipeline lies there; check the address")
    files = sum(removal.files for removal in expiry.removals)
    size_bytes = sum(removal.size_bytes for removal in expiry.removals)
    if options.json:
        removed = [{"name": r.name, "files": r.files, "bytes": r.size_bytes} for r in expiry.removals]
        head = {"output": store.uri, "dry_run": options.dry_run, "kept": expiry.kept, "is_partial": expiry.is_partial}
        print(orjson.dumps(head | {"removed": removed, "files": files, "bytes": size_bytes}).decode())
        return 0
    would = "would be removed" if options.dry_run else "removed"
    print(f"{store.uri}: {counted(files, 'file')}, {byte_size(size_bytes)}, {would}")
    for removal in expiry.removals:
        print(f"  {removal.name}: {counted(removal.files, 'file')}, {byte_size(removal.size_bytes)}")
    print(f"  {counted(len(expiry.kept), 'snapshot')} kept: {', '.join(map(str, expiry.kept)) or 'none is published'}")
    if expiry.is_partial:
        print("  a run holds the output: what unfinished runs have left was not looked at")
    return 0
