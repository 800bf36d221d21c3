"""What submitting costs: a short run on a cluster of this machine, started on it directly and from outside."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from jobs.demo.local_cluster import LocalCluster, Offer

CONFIG = """\
source: {{uri: "{folder}/corpus.jsonl"}}
recipe: {{model: "hashing://64"}}
output: {{uri: "{folder}/out"}}
"""
ROWS = 100


def measure(folder: Path, rounds: int) -> Iterator[dict[str, object]]:
    """Yield one line: seconds of both, and the median of what the submitted run takes longer."""
    place = folder / "submitted"
    place.mkdir(exist_ok=True)
    (place / "corpus.jsonl").write_text("".join(f'{{"id": {row}, "text": "text {row}"}}\n' for row in range(ROWS)))
    config = place / "job.yaml"
    config.write_text(CONFIG.format(folder=place))
    direct: list[float] = []
    submitted: list[float] = []
    with LocalCluster({}, (Offer(2),)) as cluster:
        environment = os.environ | cluster.environment
        for number in range(rounds):
            stamp = f"{int(time.time())}-{number}"
            address = f"runtime.ray_address={cluster.ray_address}"
            direct.append(_seconds(environment, "embed", str(config), f"output.uri={place}/direct-{stamp}", address))
            other = ("submit", "embed", str(config), f"output.uri={place}/submitted-{stamp}", "--name", stamp)
            submitted.append(_seconds(environment, *other))
    yield {
        "benchmark": f"a run of {ROWS} rows on a cluster",
        "direct_seconds": [round(seconds, 1) for seconds in direct],
        "submitted_seconds": [round(seconds, 1) for seconds in submitted],
        "longer_seconds": round(statistics.median(b - a for a, b in zip(direct, submitted, strict=True)), 1),
    }


def _seconds(environment: dict[str, str], *arguments: str) -> float:
    started = time.perf_counter()
    finished = subprocess.run(
        [sys.executable, "-m", "jobs", *arguments], check=False, capture_output=True, text=True, env=environment
    )
    if finished.returncode:
        raise RuntimeError(f"{finished.stdout}{finished.stderr}".strip().splitlines()[-1])
    return time.perf_counter() - started
