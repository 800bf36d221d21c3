"""`plan --estimate`: what it says of rows, tokens and bytes, against what the run then does."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from jobs.plan import forecast_text
from pipeline.config import JobConfig, Runtime
from pipeline.config_file import load_config
from pipeline.errors import ConfigError
from pipeline.execution.planning.estimate import keep_forecast, kept_forecast
from pipeline.execution.planning.model import describe
from pipeline.execution.planning.plan import Plan, make_plan
from pipeline.execution.sizing import corpus_sample, forecast, start_up
from pipeline.execution.sizing.corpus_sample import CorpusSample, expected, read_sample, relative_error, spread
from pipeline.storage.filesystem import Store
from tests.inline import run_inline
from tests.running import written_config

FILES, ROWS = 40, 120


@pytest.fixture
def config_path(tmp_path: Path) -> str:
    """A corpus of 40 files of very different texts; every tenth text stands in another file before."""
    numbers = np.random.default_rng(3)
    (tmp_path / "in").mkdir()
    for number in range(FILES):
        words = [f"w{row}-{number if row % 10 else 0} " * int(numbers.integers(1, 9)) for row in range(ROWS)]
        ids = [f"{number}-{row}" for row in range(ROWS)]
        pq.write_table(
            pa.table({"id": ids, "text": words, "label": ["a", "b"] * 60}), tmp_path / "in" / f"{number}.parquet"
        )
    return written_config(
        tmp_path / "job.yaml",
        source={"uri": str(tmp_path / "in"), "keep_columns": ["label"]},
        recipe={"model": "hashing://64"},
        output={"uri": str(tmp_path / "out"), "partition_by": ["label"], "rows_per_part": 100},
    )


@pytest.fixture
def config(config_path: str) -> JobConfig:
    return load_config(config_path)


def planned(config: JobConfig) -> Plan:
    return make_plan(config, Store(config.output.uri))


def sampled(config: JobConfig, plan: Plan, shards: int) -> CorpusSample:
    """Return a sample of so many Shards."""
    with patch.object(corpus_sample, "LEAST_SHARDS", shards):
        return read_sample(config, plan, describe(plan.model), seconds=0.0)


@pytest.mark.parametrize("count", [1, 2, 5, 40, 64])
def test_shards_are_taken_from_all_over_the_source(count: int) -> None:
    order = spread(count)
    assert sorted(order) == list(range(count))
    if count > 8:
        gaps = np.diff(sorted([*order[: count // 4], count]))
        assert gaps.max() <= 8


def test_a_source_that_is_read_whole_is_known_to_the_token(config: JobConfig) -> None:
    plan = planned(config)
    made = forecast.forecast(config, plan, tokens_per_second=1e6)
    report = run_inline(config)
    assert (made.shards_read, made.tokens_error) == (made.shards, 0.0)
    assert made.rows == report.rows_read
    assert made.truncated_fraction * report.embedded == report.truncated
    assert made.output_bytes == pytest.approx(report.bytes_written, rel=0.15)


def test_a_sample_is_right_within_the_error_that_it_tells(config: JobConfig) -> None:
    plan = planned(config)
    sample, whole = sampled(config, plan, len(plan.embed) - 1), sampled(config, plan, 10**6)
    assert sample.shards_read == whole.shards_read - 1 >= 2
    truth = expected(whole, plan.embed).tokens
    assert 0 < relative_error(sample) < 0.5
    often = 4 * relative_error(sample)  # which files share a Shard depends on the folder's name
    assert expected(sample, plan.embed).tokens == pytest.approx(truth, rel=often)
    assert relative_error(whole) == 0


def test_repeated_texts_are_counted_and_not_encoded(config: JobConfig) -> None:
    plan = planned(config)
    whole = sampled(config, plan, 10**6)
    assert whole.repeated > 0
    assert len(whole.tokens) + whole.repeated == whole.vectors
    assert sum(seen.tokens for seen in whole.by_kind.values()) == whole.tokens.offsets_N1[-1]


def test_texts_that_the_snapshot_before_has_are_not_estimated_as_work(config: JobConfig, tmp_path: Path) -> None:
    run_inline(config)
    for path in (tmp_path / "in").iterdir():
        path.rename(path.with_name(f"renamed-{path.name}"))
    plan = planned(config)
    made = forecast.forecast(config, plan, tokens_per_second=1e6)
    assert (made.tokens, made.rows, made.known_fraction) == (0, FILES * ROWS, 1.0)
    assert "100 % known" in forecast_text(made, 100, 16384)
    new = pa.table({"id": ["new"], "text": ["a text of seven words at last"], "label": ["a"]})
    pq.write_table(new, tmp_path / "in" / "new.parquet")
    made = forecast.forecast(config, planned(config), tokens_per_second=1e6)
    report = run_inline(config)
    assert (report.encoded_texts, report.taken_over) == (1, FILES * ROWS)
    assert made.tokens == report.tokens > 0


def test_hours_and_cost_follow_from_a_given_rate(config: JobConfig) -> None:
    plan = planned(config)
    slow = forecast.forecast(config, plan, tokens_per_second=100.0, price_per_hour=2.0)
    assert slow.seconds["run"] == pytest.approx(slow.tokens / 100.0, rel=0.01)
    assert slow.cost == pytest.approx(2.0 * slow.encoder_hours)
    many = config.model_copy(update={"runtime": config.runtime.model_copy(update={"encoders": 10})})
    assert forecast.forecast(many, plan, tokens_per_second=100.0).seconds["run"] == pytest.approx(
        slow.seconds["run"] / 10
    )
    text = forecast_text(slow, 100, 16384)
    assert "as given" in text
    assert f"{slow.tokens:,} of 4,800 rows" in text


def test_an_encoder_on_a_gpu_takes_more_cores_the_faster_it_is(config: JobConfig) -> None:
    plan = planned(config)
    made = [forecast.forecast(config, plan, tokens_per_second=rate) for rate in (1.0, 1e9)]
    few, many = (one.cores_per_encoder for one in made)
    assert few is not None
    assert many is not None
    assert 1 < few < 1.01 < many
    assert "for an encoder on a GPU" in forecast_text(made[0], 100, 16384)


def test_no_budget_is_tried_beside_that_of_the_config_that_comes_to_the_same_passes(config: JobConfig) -> None:
    assert forecast._budgets(config, None) == [8192, 32768]
    assert forecast._budgets(config, 2048) == []
    assert forecast._budgets(config, 10_000) == [8192]


@pytest.mark.slow
def test_this_machine_is_measured_and_the_estimate_is_kept_for_the_report(
    config_path: str, config: JobConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "MEASURED_SECONDS", 0.1)
    monkeypatch.setattr(forecast, "TRYING_SECONDS", 0.0)
    assert main(["plan", config_path, "--estimate", "--price", "3", "--json"]) == 0
    told = orjson.loads(capsys.readouterr().out)
    assert told["rows"] == told["estimate"]["rows"] == FILES * ROWS
    assert told["estimate"]["is_measured"]
    assert told["estimate"]["tokens_per_second"] > 0
    assert told["estimate"]["cores_per_encoder"] is None
    assert 0 < told["estimate"]["seconds"]["start"] != start_up.START_SECONDS
    assert told["estimate"]["seconds"]["finish"] > 0
    assert start_up.ASSUMED not in told["estimate"]["notes"]
    report = run_inline(config)
    assert report.estimate == told["estimate"]
    assert report.cost == pytest.approx(3 * report.encoder_hours)


def test_a_start_that_cannot_be_measured_here_is_said_to_be_assumed(config: JobConfig) -> None:
    plan = planned(config)
    assert start_up.ASSUMED in forecast.forecast(config, plan, tokens_per_second=100.0).notes
    for_gpus = config.model_copy(update={"runtime": Runtime(encoders=2, gpus_per_encoder=1)})
    with patch.object(start_up, "_measured", side_effect=ConfigError("no GPUs")):
        around, notes = start_up.seconds_around(for_gpus, plan, is_here=True)
    assert (around["start"], notes) == (start_up.START_SECONDS, [start_up.ASSUMED])


def test_a_run_starts_as_the_last_one_of_its_output_did(config: JobConfig) -> None:
    last = run_inline(config).seconds
    around, notes = start_up.seconds_around(config, planned(config), is_here=True)
    assert around == {"start": last["start"], "finish": last["publish"] + last.get("stop", 0.0)}
    assert notes == []


def test_an_estimate_of_other_work_is_not_taken_for_one_of_this_run(config: JobConfig) -> None:
    plan = planned(config)
    store = Store(config.output.uri)
    keep_forecast(store, plan.run_key, {"shards": len(plan.embed) + 1, "by_kind": {}})
    assert kept_forecast(store, plan.run_key) is not None
    assert run_inline(config).estimate is None


def test_plan_alone_prints_what_a_dry_run_prints(config_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", config_path]) == 0
    planned_text = capsys.readouterr().out
    assert main(["embed", config_path, "--dry-run"]) == 0
    assert capsys.readouterr().out == planned_text
    assert not Path(load_config(config_path).output.uri).exists()
