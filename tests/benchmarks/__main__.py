"""`make bench`: run the benchmarks, print tables, keep the figures as JSON and as a picture."""

import argparse
import datetime
import json
import math
import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import fsspec
from rich.console import Console

from tests.benchmarks import (
    data_plane,
    encoders,
    faults,
    growth,
    ids,
    loop_profile,
    nights,
    overhead,
    peers,
    planning,
    reading_writing,
    search,
    start_up,
    submitted,
)
from tests.benchmarks.budget import Budget
from tests.benchmarks.chart import write_chart
from tests.benchmarks.table import Line, shown

PEER_ROWS = 100_000

Part = Callable[[Budget], Iterator[Line]]


def main() -> None:
    """Run what was asked for; one that fails says so and does not end the others."""
    options = _parser().parse_args()
    folder = Path(".bench").resolve()
    folder.mkdir(exist_ok=True)
    console = Console(width=None if os.isatty(1) else 170)
    parts = _parts(folder, options)
    names = [options.only] if options.only else [*(parts if options.full else QUICK)]
    budget = Budget.of(options.minutes or (None if options.only or options.full else MINUTES))
    for number, name in enumerate(names):
        share = QUICK.get(name, 0.1) / sum(QUICK.get(one, 0.1) for one in names[number:])
        lines = list(shown(_guarded(name, parts[name], budget.part(share)), console))
        _keep(folder / "results.json", name, lines)
    kept = [line for lines in _kept(folder / "results.json").values() for line in lines["lines"]]
    if write_chart(kept, folder / "encoders.svg"):
        console.print(f"\npicture: {folder / 'encoders.svg'}", highlight=False)
    console.print(f"kept in {folder / 'results.json'}", highlight=False)


QUICK = {"encoders": 0.35, "peers": 0.45, "reading-writing": 0.05, "growth": 0.15}
"""What runs without an option, and its share of the time."""

MINUTES = 19.0
"""For what runs without an option: on two cores it ends within 20 with imports and the picture."""


def _parts(folder: Path, options: argparse.Namespace) -> dict[str, Part]:
    """Return the benchmarks by name, those first that say most."""
    rounds, rows = options.rounds, options.rows or 17_410
    of_encoders = options.seconds or (4.0 if options.only or options.full else 1.5)
    of_peers = options.seconds or (math.inf if options.full else 10 if options.only else 6)
    of_all = 1 if options.full else 5
    return {
        "encoders": lambda budget: encoders.measure(
            folder, rounds or 5, of_encoders, options.model, budget, options.ways
        ),
        "peers": lambda budget: peers.measure(folder, rounds or of_all, of_peers, PEER_ROWS, budget, options.ways),
        "reading-writing": lambda budget: reading_writing.measure(folder, rounds or 5, budget),
        "growth": lambda budget: growth.measure(folder, rounds or 5, budget),
        "profile": lambda _: loop_profile.measure(rounds or 5),
        "ids": lambda _: ids.measure(folder),
        "nights": lambda _: nights.measure(folder, options.rows or 100_000),
        "renamed": lambda _: nights.measure_renamed(folder, options.rows or 5_000_000),
        "planning": lambda _: planning.measure(folder),
        "search": lambda _: search.measure(folder, search.DOCUMENTS if options.full else options.rows or 12_000),
        "data-plane": lambda _: data_plane.measure(folder, rounds or 3),
        "start-up": lambda _: start_up.measure(folder, rounds or 5),
        "overhead": lambda _: overhead.measure(folder, rounds or 2, rows),
        "submitted": lambda _: submitted.measure(folder, rounds or 3),
        "faults": lambda _: faults.measure(folder, rounds or 2, rows // 5),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    unset = argparse.Namespace(rounds=None, rows=None, seconds=None, model=None, ways="", full=False, only=None)
    names = list(_parts(Path(), unset))
    parser.add_argument("--only", choices=names, help=f"one of them (default: {', '.join(QUICK)})")
    parser.add_argument("--full", action="store_true", help="all of them, the comparisons with 100,000 rows")
    minutes = f"rounds end early after so long, but not before the third ({MINUTES:.0f}; with --only or --full: never)"
    parser.add_argument("--minutes", type=float, help=minutes)
    parser.add_argument("--rounds", type=int, help="repetitions")
    parser.add_argument("--seconds", type=float, help="of encoders and peers: per variant and round")
    parser.add_argument("--model", help="of encoders: only m3e-small, or only BERT-large")
    ways = (
        "of encoders and peers: only those whose name (of peers: and precision) holds one of these, with commas between"
    )
    parser.add_argument("--ways", default="", help=ways)
    parser.add_argument("--rows", type=int, help="reviews of the overhead, a fifth for the faults (17410)")
    return parser


def _guarded(name: str, part: Part, budget: Budget) -> Iterator[Line]:
    forget_servers()
    try:
        yield from part(budget)
    except Exception as error:  # noqa: BLE001  the edge of a benchmark: what is left of them goes on
        yield {"benchmark": name, "failed": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}


def forget_servers() -> None:
    """Let no part ask the S3 server of the one before, which is gone: fsspec keeps what was opened with it."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def _kept(path: Path) -> dict[str, dict[str, list[Line]]]:
    results: dict[str, dict[str, list[Line]]] = json.loads(path.read_bytes()) if path.is_file() else {}
    return results if all(isinstance(part, dict) and "lines" in part for part in results.values()) else {}


def _keep(path: Path, name: str, lines: list[Line]) -> None:
    """Put the figures of one benchmark in the place of those it had before."""
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    part = {"measured_at": when, "machine": _machine(), "lines": lines}
    path.write_text(json.dumps(_kept(path) | {name: part}, indent=2), encoding="utf-8")


def _machine() -> dict[str, object]:
    packages = ("ray", "torch", "sentence-transformers", "pyarrow")
    return {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        **{name: version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
