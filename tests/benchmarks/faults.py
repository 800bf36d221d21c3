"""What a bad storage costs: the same run through the fault proxy, honest and with a fifth of its answers faulty."""

import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from jobs.demo.corpus import write_corpus
from jobs.demo.fetch import fetch_model, fetch_reviews
from jobs.demo.local_s3 import local_s3
from tests.benchmarks.measuring import Measured, embed
from tests.chaos.proxy import Fault, FaultProxy, Rule

CONFIG = """\
source: {{uri: "s3://bench/reviews/", keep_columns: [label]}}
recipe: {{model: "{model}", compute: float32}}
output: {{uri: "s3://bench/features-{stamp}/", rows_per_part: 256}}
runtime: {{without_ray_bytes: 0}}
"""

A_FIFTH = (
    Rule(Fault.SLOW_DOWN, probability=0.015, burst=4),
    Rule(Fault.INTERNAL_ERROR, probability=0.04),
    Rule(Fault.RESET, probability=0.04),
    Rule(Fault.LOST_RESPONSE, frozenset({"PUT"}), probability=0.06),
    Rule(Fault.TRUNCATED, frozenset({"GET"}), probability=0.04),
    Rule(Fault.STALLED, frozenset({"GET"}), probability=0.01, seconds=2),
    Rule(Fault.SLOW, probability=0.04, seconds=1),
)
"""Bursts of four 503s included, one answer in five is not what was asked for."""


def measure(folder: Path, rounds: int, rows: int) -> Iterator[dict[str, object]]:
    """Yield one line: seconds of both runs, taken in turn, and the median of their ratios."""
    model, reviews = fetch_model(), fetch_reviews().slice(0, rows)
    honest: list[Measured] = []
    faulty: list[Measured] = []
    answers, faults = 0, 0
    with local_s3(folder / "s3") as server, FaultProxy(server.endpoint_url, seed=rounds) as proxy:
        os.environ.update(proxy.environment(server.environment))
        if not server.filesystem().exists("bench"):
            server.create_bucket("bench")
        write_corpus(reviews, server.filesystem(), "bench/reviews")
        for repetition in range(rounds):
            for measured, rules in ((honest, ()), (faulty, A_FIFTH)):
                config = folder / "faults.yaml"
                stamp = f"faults-{int(time.time())}-{repetition}-{bool(rules)}"
                config.write_text(CONFIG.format(model=model, stamp=stamp), encoding="utf-8")
                before = proxy.requests
                proxy.set_rules(rules)
                measured.append(embed(config))
                proxy.set_rules([])
                answers += (proxy.requests - before) if rules else 0
        faults = proxy.hits.total()
    ratios = [bad.wall_seconds / good.wall_seconds for bad, good in zip(faulty, honest, strict=True)]
    yield {
        "benchmark": f"faulty storage, m3e-small float32, {rows:,} reviews, S3 to S3",
        "undisturbed_seconds": [round(one.wall_seconds, 1) for one in honest],
        "disturbed_seconds": [round(one.wall_seconds, 1) for one in faulty],
        "answers": answers,
        "faulty_answers": f"{faults} ({faults / answers:.0%})",
        "faults": dict(proxy.hits.most_common()),
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
    }
