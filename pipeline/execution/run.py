"""A run, from plan to publish: have Blocks worked on, journal what is written, prove, publish, report."""

import logging
import threading
import time
from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pyarrow as pa

from pipeline.config import JobConfig
from pipeline.encoder.describe import ModelDescription
from pipeline.encoder.engines import first_engine
from pipeline.errors import AttemptsDiffer, PipelineError, PlanOutdated, SnapshotConflict, Stopped, StorageError
from pipeline.execution.calibrating import add_calibration, needs_calibration
from pipeline.execution.change_feed import try_to_write_feeds
from pipeline.execution.early_encoder import loading_early
from pipeline.execution.executors.choice import executing
from pipeline.execution.executors.executor import Todo
from pipeline.execution.following import JOURNAL_SECONDS, Progress, Watcher, follow
from pipeline.execution.opening import open_journal, record_plan
from pipeline.execution.planning.model import describe
from pipeline.execution.planning.outdated import check_current
from pipeline.execution.planning.plan import Plan, looks_for_repeats, make_plan
from pipeline.execution.proof.guards import check_sources
from pipeline.execution.publish import publish
from pipeline.execution.repeats import repeated_texts
from pipeline.execution.reporting.charts import load_drawing
from pipeline.execution.reporting.metrics import RunReport
from pipeline.execution.reporting.run_report import open_report, report_standing, save_report
from pipeline.execution.reuse import with_index
from pipeline.execution.settings import output_dimension, stage_settings
from pipeline.execution.stalls import watched
from pipeline.execution.stopping import stopping_on_sigterm
from pipeline.execution.workload import Workload
from pipeline.records import BlockReceipt, Reason
from pipeline.storage.claim import Claim
from pipeline.storage.filesystem import Store
from pipeline.storage.journal import Journal
from pipeline.storage.snapshots import snapshot_numbers

logger = logging.getLogger(__name__)

NOTHING_TO_RETRY = (
    "of the source as it is now, no row is in quarantine that could be tried again, or none for the reasons asked for; "
    "what was changed in it is done by `embed`"
)


def run(
    config: JobConfig, watch: Watcher, retry: Collection[Reason] = (), max_deleted: float | None = None
) -> RunReport:
    """Bring the output up to date with the source, publish it as one Snapshot, and prove it.

    Args:
        config: what to read, what a vector is, where to write, how fast.
        watch: called often, from this thread.
        retry: reasons for which quarantined rows are tried again; with any, nothing else is begun.
        max_deleted: share of the ids of the Snapshot before that may go, and none for want of a readable file; None =
            the source may have lost what it will.

    Returns:
        The report, outcome `published` or `nothing_to_do`.

    Raises:
        PipelineError: the run failed and published nothing; what it has encoded is kept for the next one. The
            report of the failure is on the exception's `report` attribute once there was a plan.
    """
    try:
        return _planned_and_done(config, watch, retry, max_deleted)
    except PlanOutdated as outdated:
        logger.warning("event=planned_again cause=%s", outdated)
        return _planned_and_done(config, watch, retry, max_deleted)


def _planned_and_done(
    config: JobConfig, watch: Watcher, retry: Collection[Reason], max_deleted: float | None
) -> RunReport:
    started = time.perf_counter()
    watch(Progress("planning"))
    store = Store(config.output.uri)
    plan, calibrate_seconds = make_plan(config, store, retry), 0.0
    if needs_calibration(config, plan):
        watch(Progress("calibrating"))
        calibrate_seconds = add_calibration(config, plan, store)
        plan = make_plan(config, store, retry)
    report = open_report(config, plan, store)
    report.seconds["plan"] = time.perf_counter() - started - calibrate_seconds
    if calibrate_seconds:
        report.seconds["calibrate"] = calibrate_seconds
    try:
        if max_deleted is not None:
            check_sources(plan)
        if plan.is_done or (retry and not plan.redo):
            report_standing(report, plan)
            if retry:
                report.warnings.append(NOTHING_TO_RETRY)
        else:
            _work(config, plan, store, report, watch, max_deleted)
    except PipelineError as error:
        report.outcome, report.error = "failed", str(error)
        report.seconds["total"] = time.perf_counter() - started
        error.report = report
        if isinstance(error, AttemptsDiffer):
            record_plan(store, plan, plan.next_run_key)
        if not isinstance(error, SnapshotConflict | StorageError):  # the output is another's, or out of reach
            save_report(store, report, has_page=not isinstance(error, Stopped))
        raise
    if config.output.changes:
        report.warnings += try_to_write_feeds(store, with_newest=True)
    report.seconds["total"] = time.perf_counter() - started
    if report.outcome == "published":
        save_report(store, report, has_page=True)
    return report


def _work(
    config: JobConfig, plan: Plan, store: Store, report: RunReport, watch: Watcher, max_deleted: float | None
) -> None:
    watch(Progress("opening the output"))
    store.check_writable()
    with stopping_on_sigterm(), Claim(store, plan.number) as claim:
        if snapshot_numbers(store)[-1:] != ([plan.parent.number] if plan.parent else []):
            raise SnapshotConflict(f"{store.uri}: another run has published meanwhile; run again")
        check_current(store, plan)
        planned_at = record_plan(store, plan, plan.run_key)
        journal = open_journal(store, plan, claim)
        watch(Progress("reading the model"))
        reading = time.perf_counter()
        description = describe(plan.model)
        output_dimension(config, description)
        report.seconds["model"] = time.perf_counter() - reading
        receipts: list[BlockReceipt] = []
        if plan.embed:
            receipts = _encode_missing(config, plan, store, description, planned_at, journal, report, watch)
        watch(Progress("publishing", report.rows_read, report.tokens, 1.0, report.quarantined))
        publishing = time.perf_counter()
        publish(config, plan, store, claim, receipts, report, description, max_deleted)
        report.seconds["publish"] = time.perf_counter() - publishing
    report.outcome = "published"


def _encode_missing(
    config: JobConfig,
    plan: Plan,
    store: Store,
    description: ModelDescription,
    planned_at: pa.Scalar,
    journal: Journal,
    report: RunReport,
    watch: Watcher,
) -> list[BlockReceipt]:
    """Have the missing Blocks worked on and journal their receipts; return them."""
    watch(Progress("starting workers"))
    with loading_early(config, plan, description) as early:
        starting = time.perf_counter()
        with executing(config, plan, early, report) as executor:
            plan, index_seconds = _with_index(plan, store, report, watch)
            starting += index_seconds
            if plan.model.kind != "hashing":
                report.engine = first_engine(config.runtime.engine, config.recipe.compute)
            settings = stage_settings(config, plan, description, planned_at, executor.encoder_threads)
            settings = replace(settings, attempts=executor.marks, early_encoder=executor.early_encoder)
            nothing, stall_seconds = np.empty(0, np.int64), config.runtime.stall_minutes * 60
            todo = [
                Todo(shard, plan.done_blocks(shard.shard_id), plan.dropped.get(shard.shard_id, nothing))
                for shard in plan.embed
            ]
            repeated_R2 = np.empty((0, 2), np.uint64)
            if looks_for_repeats(config, plan):
                watch(Progress("looking for repeated texts"))
                looking = time.perf_counter()
                repeated_R2, new_texts = repeated_texts(executor.look_through(todo, settings, stall_seconds))
                if not new_texts and early:
                    early.close()
                settings = replace(settings, has_new_texts=new_texts > 0)
                report.seconds["look through"] = time.perf_counter() - looking
                starting += report.seconds["look through"]
            threading.Thread(target=load_drawing, name="drawing", daemon=True).start()  # this process has time now
            workload = Workload(plan.embed, report.estimate)
            stream = executor.stream(todo, settings, repeated_R2)
            blocks = watched(stream, stall_seconds, JOURNAL_SECONDS, executor.book.standing)
            receipts = follow(blocks, workload, executor.book, journal, report, watch, starting)
            report.engine_choices = executor.book.engine_choices()
            report.attention = executor.book.attentions_told()
            report.warnings += [_told_as_left_out(*one) for one in executor.book.excluded().items()]
            return receipts


def _with_index(plan: Plan, store: Store, report: RunReport, watch: Watcher) -> tuple[Plan, float]:
    """Return the Plan with the index of known texts, and the seconds it took; workers start meanwhile."""
    watch(Progress("looking up known texts"))
    began = time.perf_counter()
    plan, warnings = with_index(plan, store)
    report.warnings += warnings
    seconds = time.perf_counter() - began
    if plan.known:
        report.seconds["index"] = seconds
    return plan, seconds


def _told_as_left_out(place: str, error: str) -> str:
    node, _, gpus = place.partition("/")
    what = f"GPU {gpus} of node {node}" if gpus else f"node {node}"
    return f"{what} was left out, its encoders failed on good texts ({error})"
