"""`expire`: remove snapshots beyond `output.keep_snapshots`, old feature tables, and what dead runs have left."""

import argparse
import time
from typing import TYPE_CHECKING, Any

from pipeline.config import Features, Output
from pipeline.config_file import load_config, output_of
from pipeline.errors import StorageError
from pipeline.units import byte_size, counted

if TYPE_CHECKING:
    from pipeline.storage.expiry import Expiry


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    import orjson

    from pipeline.storage.expiry import expire
    from pipeline.storage.feature_expiry import expire_tables
    from pipeline.storage.feature_tables import table_numbers
    from pipeline.storage.filesystem import Store

    output, features = _asked(options)
    older_than, dry = time.time() - options.grace_hours * 3600, options.dry_run
    store = Store(output.uri)
    if features is None and table_numbers(store):  # the address of a feature table
        features = Features.model_construct(uri=output.uri)
    told = []
    if features is None or features.uri != output.uri:
        expiry = expire(store, options.keep or output.keep_snapshots, older_than, dry)
        if not expiry.kept and not expiry.removals:
            raise StorageError(f"{store.uri}: nothing of this pipeline lies there; check the address")
        told.append((store.uri, expiry, "snapshot"))
    if features is not None:
        tables = Store(features.uri)
        of_tables = expire_tables(tables, options.keep or features.keep_tables, older_than, dry)
        told.append((tables.uri, of_tables, "feature table"))
    if options.json:
        facts, *more = (_facts(uri, expiry, dry) for uri, expiry, _ in told)
        print(orjson.dumps(facts | ({"features": more[0]} if more else {})).decode())
        return 0
    for uri, expiry, kind in told:
        _print(uri, expiry, dry, kind)
    return 0


def _asked(options: argparse.Namespace) -> tuple[Output, Features | None]:
    """Return the output that is meant and, of a config file, its features."""
    output = output_of(options.output, options.overrides)
    is_config = options.output.endswith((".yaml", ".yml"))
    return output, load_config(options.output, options.overrides).features if is_config else None


def _facts(uri: str, expiry: "Expiry", is_dry_run: bool) -> dict[str, Any]:
    """Return what a machine reads of an expiry."""
    removed = [{"name": r.name, "files": r.files, "bytes": r.size_bytes} for r in expiry.removals]
    head = {"output": uri, "dry_run": is_dry_run, "kept": expiry.kept, "is_partial": expiry.is_partial}
    sums = {"files": expiry.files, "bytes": expiry.size_bytes}
    return head | {"removed": removed} | sums


def _print(uri: str, expiry: "Expiry", is_dry_run: bool, kind: str) -> None:
    would = "would be removed" if is_dry_run else "removed"
    print(f"{uri}: {counted(expiry.files, 'file')}, {byte_size(expiry.size_bytes)}, {would}")
    for removal in expiry.removals:
        print(f"  {removal.name}: {counted(removal.files, 'file')}, {byte_size(removal.size_bytes)}")
    print(f"  {counted(len(expiry.kept), kind)} kept: {', '.join(map(str, expiry.kept)) or 'none is published'}")
    if expiry.is_partial:
        print("  a run holds the output: what unfinished runs have left was not looked at")
