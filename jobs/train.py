"""`train`: train the model of the recipe on sets of examples, and put the result into a folder to embed with."""

import argparse
from typing import TYPE_CHECKING

from jobs.comparison import compare_after, comparison_settings, score_before
from pipeline.config_file import load_config
from pipeline.optional import library
from pipeline.units import counted, duration

if TYPE_CHECKING:
    from pipeline.evaluation.comparison import Comparison
    from pipeline.execution.train import TrainingPlan, TrainingResult

PACKAGES = ("accelerate", "datasets", "pandas", "tensorboardX")
"""Of the extra `training`."""


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    import orjson

    for package in PACKAGES:
        library(package, "training", "train")
    from pipeline.execution.train import plan_training, train_model

    config = load_config(options.config, options.overrides)
    plan = plan_training(config)
    settings = comparison_settings(config)
    if options.dry_run:
        print(orjson.dumps(plan_facts(plan)).decode() if options.json else plan_text(plan))
        return 0
    before = score_before(config, settings) if settings else None
    result = train_model(config)
    compared = compare_after(config, settings, before, result.record) if settings and before else None
    print(orjson.dumps(training_facts(result, compared)).decode() if options.json else training_text(result, compared))
    return 0


def plan_facts(plan: "TrainingPlan") -> dict[str, object]:
    """Return what a machine reads of a dry run."""
    return {"fingerprint": plan.fingerprint, "base": plan.base.identity, "files": [len(files) for files in plan.files]}


def plan_text(plan: "TrainingPlan") -> str:
    """Return what a person reads of a dry run."""
    training = plan.training
    sets = [
        f"  {examples.kind:<10}  {counted(len(files), 'file')}"
        + (f", weight {examples.weight:g}" if examples.weight else "")
        for examples, files in zip(training.sets, plan.files, strict=True)
    ]
    steps = (
        f"{counted(training.steps, 'step')} of {training.batch_rows} examples on {counted(training.workers, 'worker')}"
    )
    return "\n".join([f"{plan.base_name} would be trained for {steps}, into {training.uri}", *sets])


def training_facts(result: "TrainingResult", compared: "Comparison | None") -> dict[str, object]:
    """Return what a machine reads."""
    outcome = "published" if result.is_new else "nothing to do"
    facts = {"outcome": outcome, "model": result.uri, "seconds": round(result.seconds, 3), "training": result.record}
    if compared is None:
        return facts
    lines = (*compared.kinds, compared.average)
    return facts | {"compared": {line.name: {"before": line.reference, "after": line.ours} for line in lines}}


def training_text(result: "TrainingResult", compared: "Comparison | None") -> str:
    """Return what a person reads: how the loss went, what it is worth, and how to embed with the result."""
    losses = result.record["losses"]
    came = f"trained in {duration(result.seconds)}" if result.is_new else "stands; nothing to do"
    ends = f"{losses[0]['loss']:.3f} at step {losses[0]['step']}, {losses[-1]['loss']:.3f} at step {losses[-1]['step']}"
    return "\n".join(
        [
            f"Model {came}",
            f"  base        {result.record['base']['model']}",
            *([f"  loss        {ends}"] if losses else []),
            *([_comparison_text(compared)] if compared else []),
            f"  folder      {result.uri}",
            f"  embed with  python -m jobs embed … recipe.model={result.uri}",
        ]
    )


def _comparison_text(compared: "Comparison") -> str:
    from pipeline.evaluation.trained_card import comparison_text

    return comparison_text(compared)
