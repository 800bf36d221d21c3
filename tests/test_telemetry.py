"""What a run tells Prometheus: every metric from the stages, and a dashboard that asks for no other."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.execution import telemetry
from pipeline.execution.telemetry import METRICS, BusyGauge, tell_block
from pipeline.records import BlockReceipt, Part

DASHBOARD = Path(__file__).parents[1] / "docker" / "grafana" / "batch-embeddings.json"

METRICS_OF_A_BLOCK = {
    "tokens": 900.0,
    "padded_tokens": 1000.0,
    "batches": 4.0,
    "batch_splits": 1.0,
    "retries": 1.0,
    "source_bytes": 5000.0,
    "reused": 10.0,
    "read_seconds": 0.1,
    "tokenize_seconds": 0.2,
    "encode_seconds": 3.0,
    "write_seconds": 0.4,
}
PART = Part("embeddings", "a-0.parquet", "a", 0, 90, 12_345, "", "", "")
RECEIPT = BlockReceipt(
    "a", 0, True, 103, 90, 3, (PART,), METRICS_OF_A_BLOCK, {"empty_text": 2, "not_finite": 1}, deduplicated=10
)


class Recorder:
    """Stands for a series of Ray's."""

    def __init__(self, name: str, told: list[tuple[str, float, dict[str, str]]]) -> None:
        self.name, self.told = name, told

    def record(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == {"output", *METRICS[self.name].tags}
        self.told.append((self.name, value, tags))

    inc = set = observe = record


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, dict[str, str]]]:
    """What is told, in a process that believes to be of a cluster."""
    heard: list[tuple[str, float, dict[str, str]]] = []
    monkeypatch.setattr(telemetry, "_has_ray", lambda: True)
    monkeypatch.setattr(telemetry, "_series", lambda name: Recorder(name, heard))
    return heard


def test_a_written_block_tells_every_metric_but_the_gauge(told: list[tuple[str, float, dict[str, str]]]) -> None:
    tell_block(RECEIPT, "s3://out")
    assert {name for name, *_ in told} == METRICS.keys() - {"embedding_encoder_busy_fraction"}
    rows = {tags["fate"]: value for name, value, tags in told if name == "embedding_rows"}
    assert rows == {"embedded": 80, "reused": 10, "quarantined": 3, "deduplicated": 10}
    stages = {tags["stage"]: value for name, value, tags in told if name == "embedding_stage_seconds"}
    assert stages == {"read": 0.1, "tokenize": 0.2, "encode": 3.0, "write": 0.4}
    assert ("embedding_written_bytes", 12_345, {"output": "s3://out"}) in told


def test_the_gauge_is_the_share_of_the_time_since_the_block_before(
    told: list[tuple[str, float, dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("pipeline.execution.telemetry.time.perf_counter", lambda: now)
    gauge = BusyGauge("out")
    now = 110.0
    assert gauge.tell(8.0) == pytest.approx(0.8)
    now = 112.0
    assert gauge.tell(5.0) == 1.0, "a clock that is read late makes no encoder busier than always"
    assert [value for _, value, _ in told] == pytest.approx([0.8, 1.0])


def test_without_ray_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(telemetry, "_series", lambda name: pytest.fail(name))
    tell_block(RECEIPT, "out")
    BusyGauge("out").tell(1.0)


def queries() -> list[str]:
    panels: list[dict[str, Any]] = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def served_names() -> dict[str, str]:
    """Return the names under which Ray serves our metrics, and which metric each is of."""
    suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    return {f"ray_{name}{end}": name for name, metric in METRICS.items() for end in suffixes[metric.kind]}


def test_the_dashboard_asks_for_metrics_that_are_registered_and_for_each_of_them() -> None:
    asked = {name for query in queries() for name in re.findall(r"ray_\w+", query)}
    assert asked <= served_names().keys()
    assert {served_names()[name] for name in asked} == METRICS.keys()


def test_the_dashboard_groups_by_tags_that_the_metrics_have() -> None:
    for query in queries():
        metrics = [METRICS[served_names()[name]] for name in re.findall(r"ray_\w+", query)]
        grouped = {tag.strip() for tags in re.findall(r"by \(([^)]*)\)", query) for tag in tags.split(",")}
        assert all(grouped <= {"le", *metric.tags} for metric in metrics), query
        assert query.count('output=~"$output"') == len(metrics)
