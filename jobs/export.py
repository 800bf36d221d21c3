"""`export`: a published snapshot as a Delta table, a Lance dataset or a FAISS index."""

import argparse
import importlib
import sys
import time
from dataclasses import asdict

from pipeline.config_file import output_of
from pipeline.errors import ConfigError
from pipeline.units import duration, thousands

MODULES = {
    "delta": "pipeline.export.delta_table",
    "lance": "pipeline.export.lance_dataset",
    "faiss": "pipeline.export.faiss_index",
}

CHECK_FAILED = 4


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    import orjson

    from pipeline.storage.snapshots import open_snapshot

    to, uri = options.to
    if to not in MODULES:
        raise ConfigError(f"--to {to}: expected {', '.join(MODULES)}, and behind it an address")
    started = time.monotonic()
    snapshot = open_snapshot(output_of(options.output, options.overrides).uri, options.snapshot)
    exported = importlib.import_module(MODULES[to]).export(snapshot, uri)
    seconds = time.monotonic() - started
    if exported.failed_check:
        print(f"error: {exported.uri}: {exported.failed_check}", file=sys.stderr)
    code = CHECK_FAILED if exported.failed_check else 0
    if options.json:
        print(orjson.dumps(asdict(exported) | {"seconds": round(seconds, 3)}).decode())
        return code
    came = f"exported in {duration(seconds)}" if exported.is_new else "stands there; nothing to do"
    print(f"Snapshot {exported.snapshot} of {snapshot.store.uri} {came}")
    print(f"  {to:<10}  {exported.uri}, version {exported.version}, {thousands(exported.rows)} rows")
    facts = [(key, exported.facts[key]) for key in ("recall_at_10", "lists", "lists_searched") if key in exported.facts]
    if facts:
        print(f"  {'index':<10}  {', '.join(f'{key} {value}' for key, value in facts)}")
    return code
