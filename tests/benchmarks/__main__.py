"""`make bench`: run the benchmarks, print tables, keep the figures as JSON and as a picture."""

import argparse
import datetime
import json
import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

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
    submitted,
)
from tests.benchmarks.chart import write_chart
from tests.benchmarks.table import Line, shown

PEER_ROWS = 100_000

Part = Callable[[], Iterator[Line]]


def main() -> None:
    """Run what was asked for; one that fails says so and does not end the others."""
    options = _parser().parse_args()
    folder = Path(".bench").resolve()
    folder.mkdir(exist_ok=True)
    console = Console(width=None if os.isatty(1) else 170)
    parts = _parts(folder, options)
    for name in [options.only] if options.only else (parts if options.full else QUICK):
        lines = list(shown(_guarded(name, parts[name]), console))
        _keep(folder / "results.json", name, lines)
    kept = [line for lines in _kept(folder / "results.json").values() for line in lines["lines"]]
    if write_chart(kept, folder / "encoders.svg"):
        console.print(f"\npicture: {folder / 'encoders.svg'}", highlight=False)
    console.print(f"kept in {folder / 'results.json'}", highlight=False)


QUICK = ("encoders", "peers", "reading-writing", "growth")
"""What runs without an option: within 20 minutes on two cores."""


def _parts(folder: Path, options: argparse.Namespace) -> dict[str, Part]:
    """Return the benchmarks by name, those first that say most."""
    rounds, rows = options.rounds, options.rows or 17_410
    seconds = options.seconds
    return {
        "encoders": lambda: encoders.measure(folder, rounds or 5, seconds or 4.0, options.model),
        "peers": lambda: peers.measure(folder, rounds or 1, seconds or (600 if options.full else 10), PEER_ROWS),
        "reading-writing": lambda: reading_writing.measure(folder, rounds or 5),
        "growth": lambda: growth.measure(folder, rounds or (3 if options.full else 1)),
        "profile": lambda: loop_profile.measure(rounds or 3),
        "ids": lambda: ids.measure(folder),
        "nights": lambda: nights.measure(folder, options.rows or 100_000),
        "renamed": lambda: nights.measure_renamed(folder, options.rows or 5_000_000),
        "planning": lambda: planning.measure(folder),
        "search": lambda: search.measure(folder, search.DOCUMENTS if options.full else options.rows or 12_000),
        "data-plane": lambda: data_plane.measure(folder, rounds or 3),
        "overhead": lambda: overhead.measure(folder, rounds or 2, rows),
        "submitted": lambda: submitted.measure(folder, rounds or 3),
        "faults": lambda: faults.measure(folder, rounds or 2, rows // 5),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    names = list(_parts(Path(), argparse.Namespace(rounds=None, rows=None, seconds=None, model=None, full=False)))
    parser.add_argument("--only", choices=names, help=f"one of them (default: {', '.join(QUICK)})")
    parser.add_argument("--full", action="store_true", help="all of them, the comparisons with 100,000 rows")
    parser.add_argument("--rounds", type=int, help="repetitions")
    parser.add_argument("--seconds", type=float, help="of encoders and peers: per variant and round")
    parser.add_argument("--model", help="of encoders: only m3e-small, or only BERT-large")
    parser.add_argument("--rows", type=int, help="reviews of the overhead, a fifth for the faults (17410)")
    return parser


def _guarded(name: str, part: Part) -> Iterator[Line]:
    try:
        yield from part()
    except Exception as error:  # noqa: BLE001  the edge of a benchmark: what is left of them goes on
        yield {"benchmark": name, "failed": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}


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
