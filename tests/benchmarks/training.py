"""What a loss is worth: six kinds before and after, the circle loss against InfoNCE and CoSENT, over seeds."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pipeline.config_file import load_config
from pipeline.errors import ConfigError
from pipeline.training.loop import Hyperparameters
from tests.benchmarks.ablation import CHOSEN, WEIGHTS, Ablation
from tests.benchmarks.table import shown


def main() -> None:
    """Run what was asked for; what is kept from before is not done again."""
    parser = _parser()
    options = parser.parse_args()
    if options.overrides and not options.config:
        parser.error(f"{options.overrides[0]} changes a value of a --config, and none is given")
    folder = Path(options.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    chosen = of_config(options.config, options.overrides) if options.config else (CHOSEN, WEIGHTS)
    ablation = Ablation(folder, *chosen, options.threads)
    ablation.run(range(options.seeds))
    list(shown(ablation.lines(), Console(width=170)))


def of_config(path: str, overrides: Sequence[str]) -> tuple[Hyperparameters, dict[str, float]]:
    """Return the hyperparameters of a config and how often a batch is of each kind; its sets are not read."""
    training = load_config(path, overrides).training
    if training is None:
        raise ConfigError(f"{path} has no section training")
    weights: dict[str, float] = {examples.kind: examples.weight or 1.0 for examples in training.sets}
    return Hyperparameters(**training.model_dump(include=set(Hyperparameters.__dataclass_fields__))), weights


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.training", description=__doc__)
    parser.add_argument("--config", help="hyperparameters and weights, for instance configs/train_mini.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change one value of the config")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each loss (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of a step (%(default)s)")
    parser.add_argument("--folder", default=".bench/training", help="what is kept (%(default)s)")
    return parser


if __name__ == "__main__":
    main()
