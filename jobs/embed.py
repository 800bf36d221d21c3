"""`embed`: bring an output up to date with its source, or with --dry-run only say what that would take."""

import argparse
import sys

from jobs.progress import Progress
from jobs.summary import plan_text, print_summary
from pipeline.config import JobConfig
from pipeline.config_file import load_config


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    config = load_config(options.config, options.overrides)
    if options.dry_run:
        return show_plan(config, options.json)
    return embed(config, options.json)


def show_plan(config: JobConfig, as_json: bool) -> int:
    """Print what a run would do."""
    import orjson

    from pipeline.execution.estimate import estimate
    from pipeline.execution.plan import make_plan
    from pipeline.storage.filesystem import Store

    plan = make_plan(config, Store(config.output.uri))
    summary = estimate(plan)
    print(orjson.dumps(summary).decode() if as_json else plan_text(summary))
    return 0


def embed(config: JobConfig, as_json: bool) -> int:
    """Run the job and print its report."""
    from pipeline.execution import run as execution
    from pipeline.execution.report import report_json

    with Progress("auto") as progress:

        def watch(update: execution.Progress) -> None:
            if update.phase != progress.status.phase:
                progress.phase(update.phase)
            if update.rows_done:
                progress.update(update.rows_done, None, update.tokens_done, update.fraction_done, update.quarantined)

        report = execution.run(config, watch)
    if as_json:
        sys.stdout.write(report_json(report).decode() + "\n")
    else:
        print_summary(report, sys.stdout)
    return 0
