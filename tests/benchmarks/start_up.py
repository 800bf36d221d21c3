"""From the command to the first vectors and to the prompt: runs over 64 reviews on disk, with warm caches."""

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks import corpora, quiet
from tests.benchmarks.models import m3e_small
from tests.benchmarks.table import Line

ROWS = 64

WAYS = {"process": 2**25, "ray": 0}
"""What executes a run → the limit below which it has no Ray, in bytes."""

FIRST_VECTORS = "progress phase=encoding"
"""What a run logs once a first Block is encoded and written."""


def measure(folder: Path, rounds: int) -> Iterator[Line]:
    """Yield a line per way: seconds until the first vectors are there, and until the command has ended."""
    model, home = m3e_small(), folder / "start-up"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    pq.write_table(pa.table({"id": range(ROWS), "text": corpora.reviews(ROWS)}), home / "reviews.parquet")
    recipe = f"{{model: {json.dumps(str(model.folder))}, compute: {model.compute}}}"
    config = home / "config.yaml"
    config.write_text(f"source: {{uri: {home}/reviews.parquet}}\nrecipe: {recipe}\noutput: {{uri: {home}/out}}\n")
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    since = quiet.now()
    for number in range(rounds + 1):
        for way in sorted(WAYS, reverse=bool(number % 2)):
            output = f"output.uri={home}/out-{number}-{way}"
            seconds = _run(way, config, output, f"runtime.without_ray_bytes={WAYS[way]}")
            if number:  # the first warms the caches
                taken[way].append(seconds)
    others = quiet.cores_of_others(since)
    shutil.rmtree(home)
    for way, of_rounds in taken.items():
        firsts, walls = zip(*of_rounds, strict=True)
        yield {
            "benchmark": f"start-up, {ROWS} reviews on disk, {model.name}, {model.compute}",
            "variant": way,
            "first_vectors_seconds": round(statistics.median(firsts), 1),
            "wall_seconds": round(statistics.median(walls), 1),
            "lowest": round(min(walls), 1),
            "highest": round(max(walls), 1),
            "rounds": rounds,
            "others_cores": round(others, 2),
        }


def _run(way: str, config: Path, *overrides: str) -> tuple[float, float]:
    """Return the seconds of a run until it says that a Block is encoded, and until its end.

    Raises:
        RuntimeError: it failed, or was executed in another way, as on a cluster it is.
    """
    command = [sys.executable, "-m", "jobs", "embed", str(config), *overrides, "--json"]
    started, first, said = time.perf_counter(), None, ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stderr
        for said in child.stderr:
            if FIRST_VECTORS in said:
                first = time.perf_counter() - started
        printed = child.stdout.read()  # once, at the end, and less than a pipe holds
    wall = time.perf_counter() - started
    if child.returncode or first is None:
        raise RuntimeError(said.strip())
    if (executor := json.loads(printed)["executor"]) != way:
        raise RuntimeError(f"a run was to be executed by {way} and was by {executor}")
    return first, wall
