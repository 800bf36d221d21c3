"""What a loss is worth: six kinds before and after, the circle loss against InfoNCE and CoSENT, over seeds."""

import argparse
from pathlib import Path

from rich.console import Console

from tests.benchmarks.ablation import CHOSEN, Ablation
from tests.benchmarks.table import shown


def main() -> None:
    """Run what was asked for; what is kept from before is not done again."""
    options = _parser().parse_args()
    folder = Path(options.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    ablation = Ablation(folder, CHOSEN, options.threads)
    ablation.run(range(options.seeds))
    list(shown(ablation.lines(), Console(width=170)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.training", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each loss (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of a step (%(default)s)")
    parser.add_argument("--folder", default=".bench/training", help="what is kept (%(default)s)")
    return parser


if __name__ == "__main__":
    main()
