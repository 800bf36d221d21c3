"""`make bench`: run the benchmarks, print a table, keep the figures as JSON."""

import argparse
import datetime
import json
import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks import data_plane, faults, ids, overhead


def main() -> None:
    """Run what was asked for and print each line as it is known."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--only", choices=["data-plane", "overhead", "faults", "ids"], help="one of them (default: all)"
    )
    parser.add_argument("--rounds", type=int, help="repetitions (default: 3 of the data plane, 2 of the others)")
    parser.add_argument(
        "--rows",
        type=int,
        default=17_410,
        help="reviews of the overhead, a fifth for the faults (%(default)s)",
    )
    options = parser.parse_args()
    folder = Path(".bench").resolve()
    folder.mkdir(exist_ok=True)
    lines: list[dict[str, object]] = []
    if options.only in (None, "ids"):
        lines += _shown(ids.measure(folder))
    if options.only in (None, "data-plane"):
        lines += _shown(data_plane.measure(folder, options.rounds or 3))
    if options.only in (None, "overhead"):
        lines += _shown(overhead.measure(folder, options.rounds or 2, options.rows))
    if options.only in (None, "faults"):
        lines += _shown(faults.measure(folder, options.rounds or 2, options.rows // 5))
    result = {"measured_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "machine": _machine()}
    (folder / "results.json").write_text(json.dumps(result | {"results": lines}, indent=2), encoding="utf-8")
    print(f"\nkept in {folder / 'results.json'}")


def _shown(lines: Iterable[dict[str, object]]) -> list[dict[str, object]]:
    kept = []
    for line in lines:
        print(f"\n{line['benchmark']}")
        for name, value in line.items():
            if name != "benchmark":
                print(f"  {name.replace('_', ' '):<24} {value}", flush=True)
        kept.append(line)
    return kept


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
