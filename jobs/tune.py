"""`tune`: try settings on texts of the source, show how fast each was, and print the lines to paste."""

import argparse
import time
from typing import TYPE_CHECKING

from pipeline.config_file import load_config
from pipeline.units import byte_size, duration, thousands

if TYPE_CHECKING:
    from pipeline.execution.sizing.tune import Tuning


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    deadline = time.monotonic() + options.seconds
    import orjson

    from pipeline.execution.planning.model import describe
    from pipeline.execution.sizing.tune import tune
    from pipeline.execution.sizing.tune_texts import plan_of, read_texts

    config = load_config(options.config, options.overrides)
    plan = plan_of(config)
    tuning = tune(config, plan, read_texts(config, plan, describe(plan.model)), deadline)
    print(orjson.dumps(tuning.to_json()).decode() if options.json else tuning_text(tuning))
    return 0


def tuning_text(tuning: "Tuning") -> str:
    """Return the tables of what was tried, then the lines for the config, in YAML."""
    found = [
        f"{thousands(tuning.texts)} texts of the source, {tuning.tokens_per_text:.0f} tokens each, on "
        f"{tuning.device} with {tuning.cores} cores; one core tokenises "
        f"{thousands(tuning.tokenize_tokens_per_second)} tokens/s",
        "",
        f"{'engine':<13}  {'encoders':>8}  {'threads':>7}  {'batch_tokens':>12}  {'tokens/s':>9}  padding",
    ]
    for trial in tuning.trials:
        result = f"{thousands(trial.tokens_per_second):>9}  {trial.padding:.1%}" if not trial.note else trial.note
        setting = trial.setting
        shape = f"{setting.engine:<13}  {setting.encoders:>8}  {setting.threads:>7}"
        found.append(f"{shape}  {trial.batch_tokens:>12}  {result}")
    found += ["", f"{'rows_per_part':>13}  padding  seconds a Block  vectors of a Part"]
    for layout in tuning.layouts:
        size, seconds = byte_size(layout.part_bytes), duration(layout.block_seconds)
        found.append(f"{layout.rows_per_part:>13}  {layout.padding:>7.1%}  {seconds:>15}  {size:>17}")
    found += ["", *(f"# {note}" for note in tuning.notes), lines_text(tuning)]
    return "\n".join(found)


def lines_text(tuning: "Tuning") -> str:
    """Return the lines to paste, in YAML."""
    sections = []
    for section, keys in tuning.lines.items():
        sections.append(f"{section}:")
        sections += [f"  {key}: {value}" for key, value in keys.items()]
    return "\n".join(sections)
