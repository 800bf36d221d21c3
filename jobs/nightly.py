"""`nightly`: embed what has changed, refuse to lose what nobody meant to delete, remove old snapshots."""

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from jobs.embed import show_plan, worked
from jobs.summary import print_summary
from pipeline.config_file import load_config
from pipeline.errors import ConfigError, PipelineError
from pipeline.units import byte_size, counted

if TYPE_CHECKING:
    from pipeline.config import JobConfig
    from pipeline.execution.reporting.metrics import RunReport


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    config = load_config(options.config, options.overrides)
    if options.rollback is not None:
        if options.dry_run:
            raise ConfigError("--rollback writes one small object and copies nothing; it has no --dry-run, see `diff`")
        return _roll_back(config.output.uri, options.rollback, options.json)
    if options.dry_run:
        return show_plan(config, options.json)
    report = worked(config, max_deleted=None if options.allow_deletes else config.output.max_deleted_fraction)
    expired = _expired(config, options.grace_hours, report)
    if options.json:
        import orjson

        from pipeline.execution.reporting.report import report_facts

        sys.stdout.write(orjson.dumps(report_facts(report) | {"expired": expired}).decode() + "\n")
        return 0
    print_summary(report, sys.stdout)
    if expired["removed"]:
        size = f"{counted(expired['files'], 'file')}, {byte_size(expired['bytes'])}"
        print(f"  expired     {', '.join(expired['removed'])} ({size})")
    return 0


def _roll_back(uri: str, number: int, as_json: bool) -> int:
    """Publish an older snapshot as the newest one."""
    from pipeline.execution.change_feed import try_to_write_feeds
    from pipeline.storage.filesystem import Store
    from pipeline.storage.rollback import roll_back

    store = Store(uri)
    published = roll_back(store, number)
    warnings = try_to_write_feeds(store)
    facts = {"output": store.uri, "snapshot": published.number, "rolled_back_to": number, "folder": published.folder}
    if as_json:
        print(json.dumps(facts | {"warnings": warnings}))
    else:
        rows = f"{counted(published.totals['rows'], 'row')} in {published.folder}"
        print(f"{store.uri}: snapshot {published.number} is what snapshot {number} was, {rows}")
        for warning in warnings:
            print(f"  warning     {warning}")
    return 0


def _expired(config: "JobConfig", grace_hours: float, report: "RunReport") -> dict[str, Any]:
    """Remove old snapshots and what dead runs have left; what hinders that is a warning, the night's work is done."""
    from pipeline.storage.expiry import expire
    from pipeline.storage.filesystem import Store

    older_than = time.time() - grace_hours * 3600
    try:
        expiry = expire(Store(config.output.uri), config.output.keep_snapshots, older_than, is_dry_run=False)
    except PipelineError as error:
        report.warnings.append(f"old snapshots were not removed: {error}")
        return {"removed": [], "files": 0, "bytes": 0}
    return {
        "removed": [removal.name for removal in expiry.removals],
        "files": expiry.files,
        "bytes": expiry.size_bytes,
    }
