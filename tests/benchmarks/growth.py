"""How time and memory grow with the rows: the whole command over 10,000, 100,000 and 1,000,000 rows without a model."""

import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from tests.benchmarks.data_plane import CONFIG, made_rows
from tests.benchmarks.measuring import Measured, embed

Line = dict[str, object]

SIZES = (10_000, 100_000, 1_000_000)
ROWS_PER_FILE = 25_000


def measure(folder: Path, rounds: int) -> Iterator[Line]:
    """Yield a line per number of rows: medians over rounds that take the sizes in turn."""
    sources = {rows: _corpus(folder / f"growth-{rows}", rows) for rows in SIZES}
    runs: dict[int, list[Measured]] = {rows: [] for rows in SIZES}
    output, config = folder / "growth-output", folder / "growth.yaml"
    for _ in range(rounds):
        for rows, source in sources.items():
            config.write_text(CONFIG.format(source=source, output=output), encoding="utf-8")
            runs[rows].append(embed(config))
            shutil.rmtree(output, ignore_errors=True)
    seconds = {rows: statistics.median(run.report["seconds"]["run"] for run in runs[rows]) for rows in SIZES}
    per_row = (seconds[SIZES[-1]] - seconds[SIZES[0]]) / (SIZES[-1] - SIZES[0])
    for rows, measured in runs.items():
        straight = seconds[SIZES[0]] + per_row * (rows - SIZES[0])
        yield {
            "benchmark": "growth, hashing://512, files of 25,000 rows on disk",
            "rows": rows,
            "run_seconds": round(seconds[rows], 1),
            "beside_a_straight_line": f"{seconds[rows] / straight - 1:+.1%}",
            "start_seconds": round(statistics.median(run.report["seconds"]["start"] for run in measured), 1),
            "wall_seconds": round(statistics.median(run.wall_seconds for run in measured), 1),
            "driver_megabytes": max(run.driver_bytes for run in measured) // 10**6,
            "largest_worker_megabytes": max(run.worker_bytes for run in measured) // 10**6,
        }


def _corpus(folder: Path, rows: int) -> Path:
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        table = made_rows(rows)
        for start in range(0, rows, ROWS_PER_FILE):
            pq.write_table(table.slice(start, ROWS_PER_FILE), folder / f"{start:07d}.parquet")
        (folder / "complete").touch()
    return folder
