"""`requeue`: embed anew what went to quarantine, after its cause was mended; everything else is kept."""

import argparse
import difflib

from jobs.embed import embed, show_plan
from pipeline.config_file import load_config
from pipeline.errors import ConfigError


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    from pipeline.records import Reason

    config = load_config(options.config, options.overrides)
    names = [reason.value for reason in Reason]
    for name in options.reason:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"
            raise ConfigError(f"argument --reason {name}: no row is quarantined for that; {hint}")
    reasons = frozenset(map(Reason, options.reason or names))
    return show_plan(config, options.json, reasons) if options.dry_run else embed(config, options.json, reasons)
