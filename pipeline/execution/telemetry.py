"""What a run tells Prometheus while it runs: counters, gauges and histograms that Ray's own exporter serves."""

import sys
import time
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pipeline.records import BlockReceipt

BOUNDARIES_SECONDS = (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
"""Upper bounds of the histogram of what one stage takes for one Block."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One family of time series. Ray serves it as `ray_<name>`, a counter as `ray_<name>_total`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    tags: tuple[str, ...] = ()
    """Beside `output`, the address that the run writes to."""


METRICS = {
    metric.name: metric
    for metric in (
        Metric("embedding_rows", "counter", "Rows of written Blocks, by what became of them", ("fate",)),
        Metric("embedding_quarantined_rows", "counter", "Rows in quarantine", ("reason",)),
        Metric("embedding_tokens", "counter", "Tokens that were encoded, without padding"),
        Metric("embedding_padded_tokens", "counter", "Tokens that devices computed, with padding"),
        Metric("embedding_batches", "counter", "Forward passes that gave vectors"),
        Metric("embedding_batch_splits", "counter", "Forward passes that failed and were tried again in smaller ones"),
        Metric("embedding_retries", "counter", "Blocks begun again because a worker had died over them"),
        Metric("embedding_read_bytes", "counter", "Bytes read from source files"),
        Metric("embedding_written_bytes", "counter", "Bytes of written Parts"),
        Metric("embedding_stage_seconds", "histogram", "What a stage took for one Block", ("stage",)),
        Metric("embedding_encoder_busy_fraction", "gauge", "Share of its time that an encoder computed, of late"),
    )
}

COUNTED = {
    "tokens": "embedding_tokens",
    "padded_tokens": "embedding_padded_tokens",
    "batches": "embedding_batches",
    "batch_splits": "embedding_batch_splits",
    "retries": "embedding_retries",
    "source_bytes": "embedding_read_bytes",
}
"""Counter of a Block → metric."""

STAGES = ("read", "tokenize", "encode", "write")


def tell_block(receipt: BlockReceipt, output_uri: str) -> None:
    """Tell of a Block that was written; without Ray nobody is told."""
    if not _has_ray():
        return
    metrics, tags = receipt.metrics, {"output": output_uri}
    reused = metrics.get("reused", 0.0)
    fates = {
        "embedded": receipt.embedded - reused,
        "reused": reused,
        "quarantined": receipt.quarantined,
        "deduplicated": receipt.deduplicated,
    }
    for fate, rows in fates.items():
        _count("embedding_rows", rows, tags | {"fate": fate})
    for reason, rows in receipt.reasons.items():
        _count("embedding_quarantined_rows", rows, tags | {"reason": reason})
    for counter, name in COUNTED.items():
        _count(name, metrics.get(counter, 0.0), tags)
    _count("embedding_written_bytes", sum(part.size_bytes for part in receipt.parts), tags)
    for stage in STAGES:
        _series("embedding_stage_seconds").observe(metrics.get(f"{stage}_seconds", 0.0), tags | {"stage": stage})


class BusyGauge:
    """Tells after every Block which share of the time since the Block before an encoder has computed."""

    def __init__(self, output_uri: str) -> None:
        self.output_uri, self.last_end = output_uri, time.perf_counter()

    def tell(self, encoding_seconds: float) -> float:
        """Tell of a Block that is encoded; return the share, 0 to 1."""
        now = time.perf_counter()
        passed, self.last_end = now - self.last_end, now
        fraction = min(1.0, encoding_seconds / passed) if passed > 0 else 1.0
        if _has_ray():
            _series("embedding_encoder_busy_fraction").set(fraction, {"output": self.output_uri})
        return fraction


def _has_ray() -> bool:
    """Whether this process is part of a Ray cluster; asking does not import Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _count(name: str, amount: float, tags: dict[str, str]) -> None:
    if amount > 0:  # Ray refuses a counter that does not grow
        _series(name).inc(amount, tags)


@cache
def _series(name: str) -> Any:
    """Return the series of a metric in this process; Ray sends them off by itself."""
    from ray.util import metrics as ray_metrics

    metric = METRICS[name]
    keys = ("output", *metric.tags)
    if metric.kind == "counter":
        return ray_metrics.Counter(name, description=metric.description, tag_keys=keys)
    if metric.kind == "gauge":
        return ray_metrics.Gauge(name, description=metric.description, tag_keys=keys)
    return ray_metrics.Histogram(
        name, description=metric.description, boundaries=list(BOUNDARIES_SECONDS), tag_keys=keys
    )
