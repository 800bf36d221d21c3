"""The report of a run: what it says at the beginning, of an output that stands, and how it is written at the end."""

import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pipeline
from pipeline.config import JobConfig
from pipeline.errors import StorageError
from pipeline.execution.planning.calibrated import told_of
from pipeline.execution.planning.estimate import kept_forecast
from pipeline.execution.planning.plan import Plan
from pipeline.execution.proof.positions import positions_of
from pipeline.execution.reporting.metrics import RunReport
from pipeline.execution.reporting.report import render_html, report_json
from pipeline.execution.reporting.vector_map import VectorMap, read_vectors, vector_map
from pipeline.execution.settings import recipe_facts
from pipeline.storage.filesystem import Store
from pipeline.storage.snapshots import load_snapshot, write_hint

logger = logging.getLogger(__name__)


def open_report(config: JobConfig, plan: Plan, store: Store) -> RunReport:
    """Return the report of a run that has a plan and has done nothing yet."""
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
        calibration=told_of(store, config.recipe, plan.model),
    )


def _estimate_of(store: Store, plan: Plan) -> dict[str, Any] | None:
    """Return what was estimated of exactly this work; None where a run has done some of it since."""
    kept = kept_forecast(store, plan.run_key) if plan.embed else None
    return kept if kept and kept["shards"] == len(plan.embed) else None


def report_standing(report: RunReport, plan: Plan) -> None:
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


def save_report(store: Store, report: RunReport, has_page: bool) -> None:
    """Write the report beside the output; a report that cannot be written fails no run.

    Args:
        has_page: a page takes seconds to draw, which a run that was asked to end does not have.
    """
    page, facts = (f"reports/{report.run_key}.{kind}" for kind in ("html", "json"))
    with suppress(StorageError):
        report.positions = positions_of(store, report.folder.rpartition("/")[2]) if report.reasons else {}
    report.report_uri = store.uri_of(page)
    if not has_page or not _is_saved(store, page, lambda: render_html(report, _map_of(store, report)).encode()):
        report.report_uri = store.uri_of(facts)
    if not _is_saved(store, facts, lambda: report_json(report)):
        report.report_uri = None


def _is_saved(store: Store, key: str, drawn: Callable[[], bytes]) -> bool:
    try:
        store.put(key, drawn())
    except Exception as error:  # noqa: BLE001  a page that cannot be drawn must not make a published run a failed one
        logger.warning("event=report_failed uri=%s error=%s", store.uri_of(key), type(error).__name__)
        return False
    return True


def _map_of(store: Store, report: RunReport) -> VectorMap | None:
    """Return the vectors of the Snapshot that was published, laid flat."""
    snapshot = load_snapshot(store, report.snapshot) if report.outcome == "published" else None
    sample = read_vectors(snapshot) if snapshot else None
    return vector_map(sample) if sample else None
