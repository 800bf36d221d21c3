"""How time and memory grow with the rows: the whole command over 10,000, 100,000 and 1,000,000 rows without a model."""

import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from tests.benchmarks.budget import UNLIMITED, Budget
from tests.benchmarks.data_plane import CONFIG, made_rows
from tests.benchmarks.measuring import DRIVER, MARKS, Measured, embed

Line = dict[str, object]

SIZES = (10_000, 100_000, 1_000_000)
ROWS_PER_FILE = 25_000


def measure(folder: Path, rounds: int, budget: Budget = UNLIMITED) -> Iterator[Line]:
    """Yield a line per number of rows: medians over rounds that take the sizes in turn, and how far they lie apart.

    Args:
        rounds: fewer, if the budget ends before.
    """
    sources = {rows: _corpus(folder / f"growth-{rows}", rows) for rows in SIZES}
    runs: list[dict[int, Measured]] = []
    output, config = folder / "growth-output", folder / "growth.yaml"
    for _ in budget.rounds(rounds):
        runs.append({})
        for rows, source in sources.items():
            config.write_text(CONFIG.format(source=source, output=output), encoding="utf-8")
            runs[-1][rows] = embed(config)
            shutil.rmtree(output, ignore_errors=True)
    for rows in SIZES:
        yield {"benchmark": "growth, hashing://512, files of 25,000 rows on disk", "rows": rows} | _line(runs, rows)


def _line(runs: Sequence[Mapping[int, Measured]], rows: int) -> Line:
    of_size = [run[rows] for run in runs]
    seconds = [run.report["seconds"]["run"] for run in of_size]
    is_middle = rows == SIZES[1]
    bent = [bend({size: one.report["seconds"]["run"] for size, one in run.items()}) for run in runs if is_middle]
    kinds = [kind for kind in (DRIVER, *MARKS) if any(kind in run.peak_bytes for run in of_size)]
    return {
        "run_seconds": round(statistics.median(seconds), 1),
        "lowest": round(min(seconds), 1),
        "highest": round(max(seconds), 1),
        "beside_a_straight_line": spread(bent),
        "start_seconds": round(statistics.median(run.report["seconds"]["start"] for run in of_size), 1),
        "wall_seconds": round(statistics.median(run.wall_seconds for run in of_size), 1),
        **{f"{kind} MB": max(run.peak_bytes.get(kind, 0) for run in of_size) // 10**6 for kind in kinds},
        "rounds": len(runs),
    }


def bend(seconds: Mapping[int, float]) -> float:
    """Return by what share the middle size takes longer than the straight line through the ends says.

    Args:
        seconds: of three numbers of rows, in ascending order.
    """
    (few, middle, many) = seconds
    per_row = (seconds[many] - seconds[few]) / (many - few)
    return seconds[middle] / (seconds[few] + per_row * (middle - few)) - 1


def spread(shares: Sequence[float]) -> str | None:
    """Return the median of one share per round, with the lowest and the highest, in whole percent; None without any."""
    if not shares:
        return None
    return f"{statistics.median(shares):+.0%} ({min(shares):+.0%} to {max(shares):+.0%})"


def _corpus(folder: Path, rows: int) -> Path:
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        table = made_rows(rows)
        for start in range(0, rows, ROWS_PER_FILE):
            pq.write_table(table.slice(start, ROWS_PER_FILE), folder / f"{start:07d}.parquet")
        (folder / "complete").touch()
    return folder
