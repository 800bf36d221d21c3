"""How fast rows pass through everything but a model, and how much memory that takes, in three shapes of input."""

import gzip
import random
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.measuring import Measured, embed

ROWS = 1_000_000
WORDS = ("红", "苹果", "天气", "很好", "学习", "机器", "向量", "数据", "一", "二", "三", "中文", "short", "text")
SHAPES = ("40 Parquet files", "one row group", "one .jsonl.gz")
CONFIG = """\
source: {{uri: "{source}"}}
recipe: {{model: "hashing://512"}}
output: {{uri: "{output}"}}
runtime: {{without_ray_bytes: 0}}
"""


def made_rows(count: int) -> pa.Table:
    """Return `id` and `text` of so many rows, all different and the same each time."""
    choose = random.Random(7)
    texts = ["".join(choose.choices(WORDS, k=6)) + str(row) for row in range(count)]
    return pa.table({"id": pa.array(range(count)), "text": texts})


def write_corpora(folder: Path) -> dict[str, Path]:
    """Write the same rows three times; return the folder of each shape."""
    corpora = {shape: folder / f"corpus-{number}" for number, shape in enumerate(SHAPES)}
    if (folder / "complete").exists():
        return corpora
    table = made_rows(ROWS)
    for path in corpora.values():
        path.mkdir(parents=True, exist_ok=True)
    for number in range(40):
        rows = table.slice(number * ROWS // 40, ROWS // 40)
        pq.write_table(rows, corpora[SHAPES[0]] / f"{number:02d}.parquet")
    pq.write_table(table, corpora[SHAPES[1]] / "all.parquet", row_group_size=ROWS)
    with gzip.open(corpora[SHAPES[2]] / "all.jsonl.gz", "wb", compresslevel=3) as stream:
        for row, text in enumerate(table["text"].to_pylist()):
            stream.write(orjson.dumps({"id": row, "text": text}) + b"\n")
    (folder / "complete").touch()
    return corpora


def measure(folder: Path, rounds: int) -> Iterator[dict[str, object]]:
    """Yield one line of the table per shape: medians over rounds that take the shapes in turn."""
    corpora = write_corpora(folder)
    runs: dict[str, list[Measured]] = {shape: [] for shape in SHAPES}
    for _ in range(rounds):
        for shape, source in corpora.items():
            output = folder / "output"
            shutil.rmtree(output, ignore_errors=True)
            config = folder / "config.yaml"
            config.write_text(CONFIG.format(source=source, output=output), encoding="utf-8")
            runs[shape].append(embed(config))
            shutil.rmtree(output, ignore_errors=True)
    for shape, measured in runs.items():
        rates = [run.report["rows_read"] / run.report["seconds"]["run"] for run in measured]
        yield {
            "benchmark": f"data plane, 1,000,000 rows, {shape}",
            "rows_per_second": round(statistics.median(rates)),
            "slowest": round(min(rates)),
            "fastest": round(max(rates)),
            "start_seconds": round(statistics.median(run.report["seconds"]["start"] for run in measured), 1),
            "driver_megabytes": max(run.driver_bytes for run in measured) // 10**6,
            "worker_megabytes": max(run.worker_bytes for run in measured) // 10**6,
        }
