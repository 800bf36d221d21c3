"""A RunReport as a real run leaves it, for the tests of what people see."""

import math

import numpy as np

from pipeline.execution.reporting.metrics import RunReport
from pipeline.execution.reporting.vector_map import VectorMap

FOLDER = "s3://features/reviews/snapshots/00000042-9f2c4be1d0a7"


def example_timeline(blocks: int = 40, seconds: float = 38.4) -> list[tuple[float, int, int]]:
    """Return a run of equal Blocks that starts slowly and has one wait in the middle."""
    points = [(0.0, 0, 0)]
    for number in range(1, blocks + 1):
        share = number / blocks
        moment = seconds * (0.05 + 0.9 * share + 0.012 * math.sin(9 * share) + (0.04 if share > 0.6 else 0.0))
        points.append((round(moment, 3), round(7977 * share), round(580_213 * share)))
    return points


def example_report() -> RunReport:
    """Return the report of a run over 8,000 reviews, 23 of which went to quarantine."""
    return RunReport(
        outcome="published",
        output_uri="s3://features/reviews/",
        run_key="9f2c4be1d0a7",
        snapshot=42,
        folder=FOLDER,
        recipe={
            "model": "lier007/xiaobu-embedding-v2",
            "revision": "5a1cfe9c0fd2",
            "prompt": None,
            "max_tokens": 512,
            "long_text": "truncate",
            "chunk_overlap_tokens": 0,
            "dimensions": None,
            "normalize": True,
            "compute": "bfloat16",
            "stored": "float32",
        },
        fingerprint="c0a8e1f3b7d24c6f9a5e08b1d3f7264e",
        source=["s3://corpus/reviews/"],
        source_files=40,
        source_bytes=1_934_112,
        shards=40,
        shards_reused=3,
        rows_read=8000,
        embedded=7240,
        reused=600,
        quarantined=23,
        deduplicated=137,
        reasons={"invalid_utf8": 4, "empty_text": 17, "null_text": 2},
        positions={"null_text": ["s3://corpus/reviews/part-0003.parquet, row 17"]},
        parts=80,
        bytes_written=52_114_882,
        vectors=7840,
        dimension=1792,
        tokens=580_213,
        padded_tokens=604_880,
        truncated=61,
        token_histogram=[41, 612, 1480, 2115, 1903, 788, 301, 0, 0, 0, 0, 0],
        seconds={"plan": 0.7, "start": 5.9, "run": 38.4, "publish": 0.4, "total": 45.4},
        stage_seconds={"read": 2.1, "tokenize": 6.4, "encode": 67.9, "write": 3.3},
        timeline=example_timeline(),
        batches=480,
        batch_splits=2,
        retries=1,
        executor="ray",
        encoders=2,
        hosts=["node-1 (16 CPUs, 2 GPUs, 64 GB)"],
        device="cpu (2 cores)",
        versions={
            "pipeline": "0.1.0",
            "python": "3.11.7",
            "ray": "2.60.0",
            "torch": "2.13.0",
            "pyarrow": "26.0.1",
        },
        started_at="2026-10-14T02:00:07+00:00",
        estimate={
            "shards": 37,
            "shards_read": 12,
            "tokens": 571_000,
            "truncated_fraction": 0.009,
            "output_bytes": 51_000_000,
            "seconds": {"start": 6.0, "run": 41.0, "total": 47.0},
            "price_per_hour": 2.5,
            "cost": 0.065,
            "notes": ["the machine was busy"],
        },
        report_uri="s3://features/reviews/reports/9f2c4be1d0a7.html",
    )


def example_map(points: int = 300) -> VectorMap:
    """Return three clouds of vectors, two of them with a label of their own."""
    numbers = np.random.default_rng(5)
    centres = {"pos": (1.0, 0.4), "neg": (-1.0, 0.2), "null": (0.1, -0.8)}
    groups = [list(centres)[n % 3] for n in range(points)]
    places = [numbers.normal(centres[group], 0.25).tolist() for group in groups]
    return VectorMap(
        tuple((x, y, group) for (x, y), group in zip(places, groups, strict=True)), "label", tuple(centres), 0.21, 7840
    )
