"""`tune`: what it prints is a table of what it tried, and lines that load as a config."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.config import JobConfig
from pipeline.errors import EncoderError
from pipeline.execution.sizing.trials import Lab, Setting, Trial
from pipeline.execution.sizing.tune import (
    Layout,
    _chosen,
    _faster,
    _lines,
    _rows_per_part,
    _with_engine,
    engines_beside_torch,
)
from tests.running import jobs, written_config


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A corpus of 3,000 rows in three files, and vectors without a model."""
    (tmp_path / "in").mkdir()
    for number in range(3):
        rows = range(number * 1000, (number + 1) * 1000)
        texts = [f"text {row} " * (1 + row % 20) for row in rows]
        pq.write_table(pa.table({"id": list(rows), "text": texts}), tmp_path / "in" / f"{number}.parquet")
    return written_config(
        tmp_path / "job.yaml",
        source={"uri": str(tmp_path / "in")},
        recipe={"model": "hashing://64"},
        output={"uri": str(tmp_path / "out")},
    )


def sections_of(config: str) -> dict[str, Any]:
    sections: dict[str, Any] = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    return sections


def test_the_lines_it_prints_load_as_a_config(config: str, tmp_path: Path) -> None:
    finished = jobs("tune", config, "--seconds", "3")
    assert finished.code == 0, finished.stderr
    tables, _, lines = finished.stdout.partition("\n# ")
    assert "batch_tokens" in tables
    assert "rows_per_part" in tables
    found = yaml.safe_load(f"# {lines}")
    sections = sections_of(config)
    merged = JobConfig.model_validate(sections | {name: sections.get(name, {}) | found[name] for name in found})
    assert merged.runtime.encoders == found["runtime"]["encoders"]
    assert merged.runtime.batch_tokens == found["runtime"]["batch_tokens"]
    assert merged.output.rows_per_part == found["output"]["rows_per_part"]
    assert not (tmp_path / "out").exists()


def test_json_is_one_object_with_every_setting_that_was_tried(config: str) -> None:
    finished = jobs("tune", config, "runtime.batch_tokens=5000", "--json", "--seconds", "3")
    assert finished.code == 0, finished.stderr
    tuning = orjson.loads(finished.stdout)
    assert tuning["outcome"] == "tuned"
    assert tuning["texts"] == 3000
    assert {trial["batch_tokens"] for trial in tuning["trials"]} >= {2048, 5000, 16384}
    assert {trial["setting"]["encoders"] for trial in tuning["trials"]} >= {1}
    tried = [trial for trial in tuning["trials"] if not trial["note"]]
    assert all(trial["tokens_per_second"] > 0 and trial["padding"] >= 0 for trial in tried)
    assert tried
    paddings = [layout["padding"] for layout in tuning["layouts"]]
    assert paddings == sorted(paddings, reverse=True)
    assert set(tuning["lines"]) == {"runtime", "output"}


def test_rows_per_part_stays_where_something_is_published(config: str) -> None:
    assert jobs("embed", config, "output.rows_per_part=700").code == 0
    finished = jobs("tune", config, "output.rows_per_part=700", "--json", "--seconds", "1")
    tuning = orjson.loads(finished.stdout)
    assert tuning["lines"]["output"] == {"rows_per_part": 700}
    assert any("anew" in note for note in tuning["notes"])


def test_a_config_that_is_wrong_ends_with_2_and_a_source_without_text_with_1(config: str, tmp_path: Path) -> None:
    assert jobs("tune", config, "runtime.batch_token=1").code == 2
    pq.write_table(pa.table({"id": [1], "text": [" "]}), tmp_path / "empty.parquet")
    finished = jobs("tune", config, f"source.uri={tmp_path / 'empty.parquet'}")
    assert finished.code == 1
    assert "no text" in finished.errors[0]


def trial(encoders: int, batch_tokens: int, rate: float) -> Trial:
    return Trial(Setting("torch", encoders, 1), batch_tokens, rate)


def test_what_is_hardly_faster_changes_nothing() -> None:
    trials = [trial(1, 2048, 990.0), trial(1, 16384, 1000.0), trial(1, 32768, 1020.0)]
    assert _chosen(trials, present=16384).batch_tokens == 16384
    assert _chosen([*trials, trial(1, 65536, 1100.0)], present=16384).batch_tokens == 65536
    assert _faster([*trials, trial(2, 16384, 1020.0)], trials[1]).setting.encoders == 1
    assert _faster([*trials, trial(2, 16384, 1200.0)], trials[1]).setting.encoders == 2


def test_an_engine_is_named_only_where_another_was_measured_too() -> None:
    torch, openvino = trial(1, 2048, 1000.0), Trial(Setting("openvino", 1, 2), 2048, 1500.0)
    untried = Trial(Setting("openvino", 1, 2), 2048, note="not tried: no time left")
    assert "engine" not in _lines("cpu", [torch, untried], torch, 1024)["runtime"]
    assert _lines("cpu", [torch, openvino], openvino, 1024)["runtime"]["engine"] == "openvino"


class FailingLab(Lab):
    """Cannot load ONNX Runtime's model, and knows the rate of any other."""

    def __init__(self) -> None:
        self.device = "cpu"

    def batches(self, setting: Setting, budgets: Sequence[int]) -> list[Trial]:
        if setting.engine == "onnx":
            raise EncoderError("too large")
        return [Trial(setting, budget, 1000.0) for budget in budgets]


def test_every_engine_of_the_same_number_type_is_tried_and_one_that_fails_says_why() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    kind = "local"
    engines = engines_beside_torch("cpu", kind, "float32")
    trials = [one for engine in engines for one in _with_engine(FailingLab(), engine, 2, 2048)]
    found = {one.setting.engine: (one.tokens_per_second, one.note) for one in trials}
    assert found == {"openvino": (1000.0, ""), "onnx": (0.0, "failed: too large")}
    assert engines_beside_torch("cpu", kind, "bfloat16") == ("openvino",)
    assert engines_beside_torch("NVIDIA H200", kind, "bfloat16") == ("torch-compile",)
    assert engines_beside_torch("cpu", "hashing", "float32") == ()


def test_a_block_is_long_enough_to_be_worth_it_and_there_are_enough_of_them() -> None:
    layouts = [Layout(rows, 0.0, rows / 1000, 0) for rows in (500, 4000, 16000, 500_000)]
    one = trial(1, 16384, 1.0)
    assert _rows_per_part(layouts, 10**6, one) == 16000
    assert _rows_per_part(layouts, 10_000, one) == 4000
    assert _rows_per_part(layouts, 100, one) == 4000
