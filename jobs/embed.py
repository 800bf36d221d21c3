"""`embed`: bring an output up to date with its source, or with --dry-run only say what that would take."""

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from jobs.progress import Progress
from jobs.summary import plan_text, print_summary
from pipeline.config import JobConfig
from pipeline.config_file import load_config

if TYPE_CHECKING:
    from pipeline.execution.reporting.metrics import RunReport
    from pipeline.records import Reason


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    config = load_config(options.config, options.overrides)
    if options.dry_run:
        return show_plan(config, options.json)
    return embed(config, options.json)


def show_plan(config: JobConfig, as_json: bool, retry: "frozenset[Reason]" = frozenset()) -> int:
    """Print what a run would do; with reasons to retry, what a requeue would."""
    import orjson

    from pipeline.execution.planning.estimate import estimate
    from pipeline.execution.planning.plan import make_plan
    from pipeline.execution.run import NOTHING_TO_RETRY
    from pipeline.storage.filesystem import Store

    plan = make_plan(config, Store(config.output.uri), retry)
    summary = estimate(plan)
    if as_json:
        print(orjson.dumps(summary).decode())
    else:
        print(NOTHING_TO_RETRY if retry and not plan.redo else plan_text(summary))
    return 0


def embed(config: JobConfig, as_json: bool, retry: "frozenset[Reason]" = frozenset()) -> int:
    """Run the job and print its report; with reasons to retry, take those rows out of quarantine."""
    from pipeline.execution.reporting.report import report_json

    report = worked(config, retry)
    if as_json:
        sys.stdout.write(report_json(report).decode() + "\n")
    else:
        print_summary(report, sys.stdout)
    return 0


def worked(
    config: JobConfig, retry: "frozenset[Reason]" = frozenset(), max_deleted: float | None = None
) -> "RunReport":
    """Run the job under a progress bar; arguments and errors as `execution.run`."""
    from pipeline.execution import run as execution
    from pipeline.execution.following import Progress as Update

    # Ray prints what befalls workers and nodes on stdout, which belongs to the report
    with Progress("auto") as progress, contextlib.redirect_stdout(sys.stderr):

        def watch(update: Update) -> None:
            if update.phase != progress.status.phase:
                progress.phase(update.phase)
            if update.rows_done:
                progress.update(
                    update.rows_done,
                    update.rows_total,
                    update.tokens_done,
                    update.fraction_done,
                    update.quarantined,
                    update.encoder_busy,
                )

        return execution.run(config, watch, retry, max_deleted)
