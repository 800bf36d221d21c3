"""A run, from plan to publish: stream Blocks through Ray, journal what is written, prove, publish, report."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from types import FrameType
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

import pipeline
from pipeline.config import JobConfig
from pipeline.encoder.describe import ModelDescription
from pipeline.errors import AttemptsDiffer, PipelineError, SnapshotConflict, Stopped, StorageError
from pipeline.execution.attempts import RemoteAttempts
from pipeline.execution.change_feed import write_feeds
from pipeline.execution.charts import load_drawing
from pipeline.execution.early_encoder import EarlyEncoder, loading_early
from pipeline.execution.estimate import kept_forecast
from pipeline.execution.guards import check_sources
from pipeline.execution.lending import RemoteLedger
from pipeline.execution.metrics import RunReport
from pipeline.execution.model import describe
from pipeline.execution.plan import Plan, looks_for_repeats, make_plan
from pipeline.execution.positions import positions_of
from pipeline.execution.publish import publish
from pipeline.execution.repeats import look_through, repeated_texts
from pipeline.execution.report import render_html, report_json
from pipeline.execution.reuse import with_index
from pipeline.execution.rounds import planned_redo
from pipeline.execution.settings import output_dimension, recipe_facts, stage_settings
from pipeline.execution.vector_map import VectorMap, read_vectors, vector_map
from pipeline.execution.workload import Workload
from pipeline.records import BlockReceipt, Reason
from pipeline.storage.claim import Claim
from pipeline.storage.filesystem import Store
from pipeline.storage.journal import Journal, is_condemned, read_journal
from pipeline.storage.snapshots import load_snapshot, snapshot_numbers, write_hint

logger = logging.getLogger(__name__)

FENCE_ATTEMPTS = 5
"""How often a new owner of a run tries to get the next Journal entry before the old one does."""

JOURNAL_SECONDS = 3.0
"""At most this much finished work is encoded again after a driver dies."""

NOTHING_TO_RETRY = (
    "of the source as it is now, no row is in quarantine that could be tried again, or none for the reasons asked for; "
    "what was changed in it is done by `embed`"
)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is; given to whoever watches it."""

    phase: str
    rows_done: int = 0
    tokens_done: int = 0
    fraction_done: float = 0.0
    """By tokens, 0 to 1; by bytes of the source while no token is known of."""
    quarantined: int = 0
    rows_total: int | None = None
    """As far as an estimate or the Shards done so far tell."""
    encoder_busy: float | None = None
    """Share of the time so far in which an encoder was computing."""


Watcher = Callable[[Progress], None]


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
    started = time.perf_counter()
    watch(Progress("planning"))
    store = Store(config.output.uri)
    plan = make_plan(config, store, retry)
    report = _open_report(config, plan, store)
    report.seconds["plan"] = time.perf_counter() - started
    try:
        if max_deleted is not None:
            check_sources(plan)
        if plan.is_done or (retry and not plan.redo):
            _report_standing(report, plan)
            if retry:
                report.warnings.append(NOTHING_TO_RETRY)
        else:
            _work(config, plan, store, report, watch, max_deleted)
    except PipelineError as error:
        report.outcome, report.error = "failed", str(error)
        report.seconds["total"] = time.perf_counter() - started
        error.report = report
        if isinstance(error, AttemptsDiffer):
            _record_plan(store, plan, plan.next_run_key)
        if not isinstance(error, SnapshotConflict | StorageError):  # the output is another's, or out of reach
            _save_report(store, report, has_page=not isinstance(error, Stopped))
        raise
    if config.output.changes:
        _write_feeds(store, report)
    report.seconds["total"] = time.perf_counter() - started
    if report.outcome == "published":
        _save_report(store, report, has_page=True)
    return report


def _work(
    config: JobConfig, plan: Plan, store: Store, report: RunReport, watch: Watcher, max_deleted: float | None
) -> None:
    watch(Progress("opening the output"))
    store.check_writable()
    with _stopping_on_sigterm(), Claim(store, plan.number) as claim:
        if snapshot_numbers(store)[-1:] != ([plan.parent.number] if plan.parent else []):
            raise SnapshotConflict(f"{store.uri}: another run has published meanwhile; run again")
        planned_at = _record_plan(store, plan, plan.run_key)
        journal = _open_journal(store, plan, claim)
        description = describe(plan.model)
        output_dimension(config, description)
        receipts: list[BlockReceipt] = []
        if plan.embed:
            watch(Progress("looking up known texts"))
            looking_up = time.perf_counter()
            plan, warnings = with_index(plan, store)
            if plan.known:
                report.seconds["index"] = time.perf_counter() - looking_up
            report.warnings += warnings
            receipts = _encode_missing(config, plan, description, planned_at, journal, report, watch)
        watch(Progress("publishing", report.rows_read, report.tokens, 1.0, report.quarantined))
        publishing = time.perf_counter()
        publish(config, plan, store, claim, receipts, report, description, max_deleted)
        report.seconds["publish"] = time.perf_counter() - publishing
    report.outcome = "published"


def _open_journal(store: Store, plan: Plan, claim: Claim) -> Journal:
    """Open the Journal with an empty entry: from it on, a driver that held the run before is fenced off.

    Raises:
        SnapshotConflict: that driver goes on writing, faster than it can be fenced.
    """
    for attempt in range(FENCE_ATTEMPTS):
        number = read_journal(store, plan.run_key).next_number
        journal = Journal(store, plan.run_key, plan.folder, claim.driver, number)
        try:
            journal.append([])
        except SnapshotConflict:
            if attempt == FENCE_ATTEMPTS - 1 or claim.is_lost():
                raise
        else:
            break
    if is_condemned(store, plan.run_key):
        raise SnapshotConflict(f"{store.uri}: an expiry removes what this run has left; run again to begin it anew")
    return journal


def _record_plan(store: Store, plan: Plan, run_key: str) -> pa.Scalar:
    """Write down the plan of this run, once, or that of its next round; return when it was first planned.

    A resumed run stamps its rows with the time of the first attempt, so that it matters to no row who wrote it.
    """
    now = int(time.time() * 1_000_000)
    rows = {
        "shard_id": [shard.shard_id for shard in plan.wanted],
        "spans": [orjson.dumps(shard.to_json()["spans"]).decode() for shard in plan.wanted],
        "redo": [plan.redo.get(shard.shard_id) for shard in plan.wanted],
    }
    schema = pa.schema([("shard_id", pa.string()), ("spans", pa.string()), ("redo", pa.int64())])
    table = pa.table(rows, schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"planned_at": str(now)}), sink, compression="zstd")
    found = store.put_new(f"_meta/runs/{run_key}/plan.parquet", sink.getvalue().to_pybytes())
    if found is not None:
        if planned_redo(found) != plan.redo:
            raise SnapshotConflict(f"{store.uri}: another requeue has begun meanwhile; run again to go on with it")
        now = int(pq.read_schema(pa.BufferReader(found)).metadata[b"planned_at"])
    return pa.scalar(now, pa.timestamp("us", tz="UTC"))


def _encode_missing(
    config: JobConfig,
    plan: Plan,
    description: ModelDescription,
    planned_at: pa.Scalar,
    journal: Journal,
    report: RunReport,
    watch: Watcher,
) -> list[BlockReceipt]:
    """Stream the missing Blocks through Ray and journal their receipts; return them."""
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # what outlives a failed run must not start Ray anew
    with loading_early(config, plan, description) as early:
        return _encode_on_ray(config, plan, description, planned_at, journal, report, watch, early)


def _encode_on_ray(
    config: JobConfig,
    plan: Plan,
    description: ModelDescription,
    planned_at: pa.Scalar,
    journal: Journal,
    report: RunReport,
    watch: Watcher,
    early: EarlyEncoder | None,
) -> list[BlockReceipt]:
    from pipeline.execution.cluster import configure_data, divide, hosts, ray_cores, short_of_cores, start_ray, stop_ray
    from pipeline.execution.streaming import Todo, stream_healthy, watched

    watch(Progress("starting Ray"))
    starting = time.perf_counter()
    report.warnings += start_ray(config.runtime)
    _stop_on_sigterm()  # Ray has put a handler of its own in the place of ours
    try:
        configure_data()
        shares = divide(config.runtime)
        report.hosts = hosts()
        report.warnings += short_of_cores(shares, ray_cores())
        report.encoders, report.device = shares.encoders, "gpu" if shares.encoder_gpus else "cpu"
        if plan.model.kind != "hashing":
            report.engine = "torch" if config.runtime.engine == "auto" else config.runtime.engine
        attempts = RemoteAttempts()
        settings = stage_settings(config, plan, description, planned_at, shares.encoder_threads)
        settings = replace(settings, attempts=attempts)
        if early and (shares.encoder_gpus, shares.encoder_threads) == (0, early.threads):
            settings = replace(settings, early_encoder=early.address)
        nothing = np.empty(0, np.int64)
        todo = [
            Todo(shard, plan.done_blocks(shard.shard_id), plan.dropped.get(shard.shard_id, nothing))
            for shard in plan.embed
        ]
        if looks_for_repeats(config, plan):
            watch(Progress("looking for repeated texts"))
            looking = time.perf_counter()
            patience_seconds = config.runtime.stall_minutes * 60
            shards = [(one.shard, one.done_blocks) for one in todo]
            found = look_through(shards, settings, shares.stage_cpus, patience_seconds)
            halves_R2, new_texts = repeated_texts(found)
            if not new_texts and early:
                early.close()
            settings = replace(settings, has_new_texts=new_texts > 0)
            if len(halves_R2):
                settings = replace(settings, ledger=RemoteLedger(halves_R2, description.dimension))
            report.seconds["look through"] = time.perf_counter() - looking
            starting += report.seconds["look through"]
        threading.Thread(target=load_drawing, name="drawing", daemon=True).start()  # this process has time now
        workload = Workload(plan.embed, report.estimate)
        stream = stream_healthy(todo, settings, config.runtime, shares)
        blocks = watched(stream, config.runtime.stall_minutes * 60, JOURNAL_SECONDS, attempts.standing)
        receipts = _follow(blocks, workload, journal, report, watch, starting)
        report.engine_choices = attempts.engine_choices()
        report.attention = attempts.attentions_told()
        for place, error in attempts.excluded().items():
            node, _, gpus = place.partition("/")
            what = f"GPU {gpus} of node {node}" if gpus else f"node {node}"
            report.warnings.append(f"{what} was left out, its encoders failed on good texts ({error})")
        return receipts
    finally:
        if not isinstance(sys.exception(), Stopped):
            stopping = time.perf_counter()
            stop_ray()
            report.seconds["stop"] = time.perf_counter() - stopping


@contextmanager
def _stopping_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an error within, so that Journal and claim are written before the process ends."""
    before = signal.getsignal(signal.SIGTERM)
    _stop_on_sigterm()
    try:
        yield
    finally:
        if _is_in_main_thread():
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _stop_on_sigterm() -> None:
    """Raise Stopped at the next SIGTERM; a run in a thread of a program leaves signals to that program."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped("stopped by SIGTERM; what was encoded is kept, run again to go on")

    if _is_in_main_thread():
        signal.signal(signal.SIGTERM, stop)


def _is_in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _follow(
    blocks: Iterator[BlockReceipt | None],
    workload: Workload,
    journal: Journal,
    report: RunReport,
    watch: Watcher,
    starting: float,
) -> list[BlockReceipt]:
    """Take in receipts as they come: count, show, and journal them every few seconds.

    Args:
        workload: of the Shards that are worked on.
        starting: when Ray was started, on the performance counter.
    """
    receipts: list[BlockReceipt] = []
    journalled, last_entry = 0, time.perf_counter()
    try:
        for receipt in blocks:
            now = time.perf_counter()
            if receipt is not None:
                if not receipts:
                    report.seconds["start"] = max(0.0, now - starting - _first_seconds(receipt))
                    report.timeline.append((report.seconds["start"], 0, 0))
                receipts.append(receipt)
                if receipt.reasons.keys() - report.reasons.keys():  # the first of its reason; more would be a flood
                    logger.warning("event=quarantined %s", _told_of(receipt))
                report.add(receipt)
                report.timeline.append((round(now - starting, 3), report.rows_read, report.tokens))
                workload.add(receipt)
                watch(_progress(report, workload, now - starting))
            if receipts[journalled:] and now - last_entry >= JOURNAL_SECONDS:
                journal.append(receipts[journalled:])
                journalled, last_entry = len(receipts), now
    finally:
        if receipts[journalled:]:
            journal.append(receipts[journalled:])
    report.seconds["run"] = time.perf_counter() - starting - report.seconds.get("start", 0.0)
    return receipts


def _progress(report: RunReport, workload: Workload, seconds: float) -> Progress:
    """Return how far a run is, so many seconds after Ray was started."""
    available = report.encoders * (seconds - report.seconds["start"])
    return Progress(
        "encoding",
        report.rows_read,
        report.tokens,
        workload.fraction,
        report.quarantined,
        workload.rows_total,
        min(1.0, report.stage_seconds["encode"] / available) if available > 0 else None,
    )


def _told_of(receipt: BlockReceipt) -> str:
    """Return which rows of a Block went to quarantine, as `key=value`."""
    reasons = ",".join(f"{reason}:{rows}" for reason, rows in receipt.reasons.items())
    where = f" first={receipt.first_bad}" if receipt.first_bad else ""
    return f"shard={receipt.shard_id} block={receipt.block} reasons={reasons}{where}"


def _first_seconds(receipt: BlockReceipt) -> float:
    """Return how long the first Block was worked on: start-up is what came before it."""
    return sum(receipt.metrics.get(f"{stage}_seconds", 0.0) for stage in ("read", "tokenize", "encode", "write"))


def _open_report(config: JobConfig, plan: Plan, store: Store) -> RunReport:
    names = ("ray", "torch", "sentence-transformers", "transformers", "pyarrow", "s3fs")
    return RunReport(
        outcome="failed",
        output_uri=store.uri,
        run_key=plan.run_key,
        folder=store.uri_of(f"snapshots/{plan.folder}"),
        recipe=recipe_facts(config, plan),
        fingerprint=plan.recipe_fingerprint,
        source=list(config.source.uri),
        source_files=len(plan.files),
        source_bytes=plan.source_bytes,
        shards=len(plan.wanted),
        shards_reused=len(plan.wanted) - len(plan.embed),
        shards_redone=len(plan.redo),
        rows_retried=sum(plan.redo.values()),
        versions={"pipeline": pipeline.__version__} | {name: version(name) for name in names},
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        estimate=_estimate_of(store, plan),
    )


def _estimate_of(store: Store, plan: Plan) -> dict[str, Any] | None:
    """Return what was estimated of exactly this work; None where a run has done some of it since."""
    kept = kept_forecast(store, plan.run_key) if plan.embed else None
    return kept if kept and kept["shards"] == len(plan.embed) else None


def _report_standing(report: RunReport, plan: Plan) -> None:
    """Fill the report of a run that finds everything done: the counts of the Snapshot that stands."""
    for blocks in plan.carried.values():
        for one in blocks:
            report.add_reused(one.receipt)
    report.outcome = "nothing_to_do"
    if plan.parent is None:
        return
    record = plan.parent.record
    report.snapshot, report.run_key = record.number, record.run_key
    report.folder, report.dimension = plan.parent.folder, record.dimension
    with suppress(StorageError):  # a driver may have died between the publish and the hint
        write_hint(plan.parent.store, record)


def _write_feeds(store: Store, report: RunReport) -> None:
    """Write the feeds that are missing; one that cannot be written now is written by the next run."""
    try:
        write_feeds(store, with_newest=True)
    except PipelineError as error:
        report.warnings.append(f"a feed of changes is not written yet, the next run or `changes` does it: {error}")


def _save_report(store: Store, report: RunReport, has_page: bool) -> None:
    """Write the report beside the output; a report that cannot be written fails no run.

    Args:
        has_page: a page takes seconds to draw, which a run that was asked to end does not have.
    """
    report.report_uri = store.uri_of(f"reports/{report.run_key}.{'html' if has_page else 'json'}")
    try:
        if report.reasons:
            report.positions = positions_of(store, report.folder.rpartition("/")[2])
        if has_page:
            store.put(f"reports/{report.run_key}.html", render_html(report, _map_of(store, report)).encode())
        store.put(f"reports/{report.run_key}.json", report_json(report))
    except Exception as error:  # noqa: BLE001  a page that cannot be drawn must not make a published run a failed one
        logger.warning("event=report_failed uri=%s error=%s", report.report_uri, type(error).__name__)
        report.report_uri = None


def _map_of(store: Store, report: RunReport) -> VectorMap | None:
    """Return the vectors of the Snapshot that was published, laid flat."""
    snapshot = load_snapshot(store, report.snapshot) if report.outcome == "published" else None
    sample = read_vectors(snapshot) if snapshot else None
    return vector_map(sample) if sample else None
