"""`tune`: what it tries, on CPUs and GPUs, how it measures it, and what it says of it."""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import orjson
import pytest

import jobs.tune
from pipeline.config import JobConfig
from pipeline.config_file import load_config
from pipeline.encoder.hashing import HashingEncoder
from pipeline.errors import EncoderError
from pipeline.execution.planning.model import describe
from pipeline.execution.sizing import trials as trials_module
from pipeline.execution.sizing import tune as tune_module
from pipeline.execution.sizing import tune_texts
from pipeline.execution.sizing.trials import Lab, Setting, Trial, _Answer, _Team, distinct_budgets, padding_of
from pipeline.execution.sizing.tune import BATCH_TOKENS, Tuning, _lines, layout_of, tune
from pipeline.execution.sizing.tune_texts import Texts, plan_of, read_texts
from pipeline.records import TokenBatch
from tests.running import jobs as run_jobs
from tests.test_batching import tokens_of
from tests.test_tune import FailingLab, config, trial

__all__ = ["config"]


def tuned(config: str, deadline_seconds: float = 60.0) -> Tuning:
    """Tune in this process."""
    loaded = load_config(config)
    plan = plan_of(loaded)
    return tune(loaded, plan, read_texts(loaded, plan, describe(plan.model)), time.monotonic() + deadline_seconds)


LIMIT = 3000
"""Tokens of a pass of the encoder below, as of one on a CPU."""


class Limited(HashingEncoder):
    """Takes no more tokens in a pass than it likes."""

    is_flat, fill_tokens, pass_tokens, lanes, attention = False, 1, LIMIT, 1, "padded"

    def begin(self, batch: TokenBatch) -> Callable[[], Any]:
        return partial(self.encode, batch)


def open_limited(*_: object, **__: object) -> Limited:
    return Limited(8)


def test_budgets_that_come_to_the_same_passes_are_one_candidate_and_the_configs_own_stands_for_them() -> None:
    assert distinct_budgets(BATCH_TOKENS, 2048, own=16384) == [16384]
    assert distinct_budgets(BATCH_TOKENS, 4096, own=16384) == [2048, 16384]
    assert distinct_budgets([5000, *BATCH_TOKENS], 4096, own=5000) == [2048, 5000]
    assert distinct_budgets(BATCH_TOKENS, 4096, own=2048) == [2048, 4096]
    assert distinct_budgets(BATCH_TOKENS, None, own=16384) == list(BATCH_TOKENS)


@pytest.mark.long
def test_where_a_cpu_makes_the_same_passes_of_all_budgets_they_are_tried_once_and_it_says_so(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials_module, "open_encoder", open_limited)
    monkeypatch.setattr(trials_module, "TRIAL_SECONDS", 0.1)
    tuning = tuned(config)
    alone = [trial for trial in tuning.trials if trial.setting.encoders == 1]
    assert [(trial.batch_tokens, trial.pass_tokens) for trial in alone] == [(2048, 2048), (16384, LIMIT)]
    assert tuning.notes[0].startswith("on this CPU a pass has 3,000 tokens at most")
    monkeypatch.setattr(tune_module, "BATCH_TOKENS", (4096, 8192, 16384))
    tuning = tuned(config)
    assert [trial.batch_tokens for trial in tuning.trials if trial.setting.encoders == 1] == [16384]
    assert tuning.notes[0].startswith("on this CPU a pass has 3,000 tokens whatever runtime.batch_tokens is")
    assert tuning.lines["runtime"]["batch_tokens"] == 16384


def texts_of(lengths: list[int]) -> Texts:
    return Texts(tokens_of(lengths), "", 1e6, len(lengths), 32.0)


def test_padding_is_that_of_the_passes_that_are_made() -> None:
    texts = texts_of(list(range(1, 201)))
    asked, small = (Trial(Setting("torch", 1, 2), budget, 1000.0) for budget in (65536, 512))
    limited = replace(asked, pass_limit=512)
    assert layout_of(1000, texts, limited).padding == layout_of(1000, texts, small).padding
    assert layout_of(1000, texts, limited).padding != layout_of(1000, texts, asked).padding
    assert layout_of(1000, texts, replace(limited, pass_limit=100)).padding >= 0, "a row of 200 is a pass of its own"


def test_a_budget_is_left_out_for_what_a_pass_takes_and_not_for_what_was_asked(config: str) -> None:
    lab = lab_of(config)

    def team(asked: Sequence[tuple[int, int, int]]) -> list[_Answer]:
        return [_Answer("cpu", 3000, 3000, 3.0, False, True, 2048, 2) for _ in asked]

    setting = Setting("torch", 1, 2)
    limited = lab._trial(Trial(setting, 65536, pass_limit=2048), team, 1000.0)
    assert (limited.tokens_per_second, limited.note) == (1000.0, "")
    assert lab._trial(Trial(setting, 65536), team, 1000.0).note == "not tried: one batch takes 66 s"
    slow = lab._trial(Trial(setting, 65536, pass_limit=2048, lanes=2), team, 100.0)
    assert slow.note == "not tried: one batch takes 41 s", "each lane has half of the pace"


def test_an_engine_that_pads_is_measured_with_the_padding_of_a_block_and_not_of_the_few_texts_of_a_trial(
    config: str,
) -> None:
    lab = lab_of(config)

    def team(asked: Sequence[tuple[int, int, int]]) -> list[_Answer]:
        return [_Answer("cpu", 3000, 6000, 3.0, False, False, None, 1) for _ in asked]

    found = lab._trial(Trial(Setting("torch", 1, 2), 4096), team, 1000.0)
    assert found.padding == padding_of(lab.tokens.lengths_N, 4096) < 0.1
    assert found.tokens_per_second == pytest.approx(2000.0 / (1 + found.padding))


def test_one_encoder_per_node_is_auto_and_more_are_said_to_be_of_this_machine(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = trial(1, 16384, 1000.0), trial(2, 16384, 1200.0)
    assert _lines("cpu", [one], one, 1024)["runtime"]["encoders"] == "auto"
    assert _lines("cpu", [one, two], two, 1024)["runtime"]["encoders"] == 2

    class TwoAreFaster(FakeLab):
        two = 1500.0

    monkeypatch.setattr(tune_module, "Lab", TwoAreFaster)
    monkeypatch.setattr(tune_module, "_encoder_counts", lambda device, cores: [2])
    tuning = tuned(config)
    assert tuning.lines["runtime"]["encoders"] == 2
    assert any("on a cluster of such machines write 2 times their number" in note for note in tuning.notes)


class FakeLab(FailingLab):
    """Knows the rate of every setting."""

    device, two, compiled = "cpu", 1000.0, 1.0

    def __init__(self, *_: object) -> None:
        pass

    def batches(self, setting: Setting, budgets: Sequence[int]) -> list[Trial]:
        rate = self.two if setting.encoders == 2 else 1000.0
        faster = self.compiled if setting.engine == "torch-compile" else 1.0
        return [Trial(setting, budget, rate * faster) for budget in budgets]


def test_on_a_gpu_the_compiler_is_tried_and_the_cores_beside_it_are_named(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gpu(FakeLab):
        device, compiled = "NVIDIA H200", 1.5

    monkeypatch.setattr(tune_module, "Lab", Gpu)
    loaded = load_config(config)
    plan = plan_of(loaded)
    model = replace(plan.model, kind="local")
    texts = replace(read_texts(loaded, plan, describe(plan.model)), tokens_per_second=700.0)
    tuning = tune(loaded, replace(plan, model=model), texts, time.monotonic() + 60)
    assert [trial.setting.engine for trial in tuning.trials].count("torch-compile") == 2, "alone, and two on a GPU"
    wanted = {"encoders": "auto", "gpus_per_encoder": 1.0, "batch_tokens": 16384, "engine": "torch-compile"}
    assert tuning.lines["runtime"] == wanted
    assert any(note.startswith("beside each GPU some 5 cores: 3 to tokenise") for note in tuning.notes)


def test_a_gpu_is_warmed_before_it_is_measured_and_has_no_threads(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials_module, "open_encoder", open_on_gpu)
    monkeypatch.setattr(trials_module, "TRIAL_SECONDS", 0.1)
    asked: list[int] = []
    plain = _Team.__call__

    def noting(team: _Team, calls: Sequence[tuple[int, int, int]]) -> list[_Answer]:
        asked.append(calls[0][1])
        return plain(team, calls)

    monkeypatch.setattr(_Team, "__call__", noting)
    (trial,) = lab_of(config).batches(Setting("torch", 1, 8), [4096])
    assert trial.setting.threads == 0
    assert asked[1] == asked[2] > 3 * asked[0]


class OnGpu(HashingEncoder):
    """Says that it is one."""

    device = "NVIDIA H200"


def open_on_gpu(*_: object, **__: object) -> OnGpu:
    return OnGpu(8)


def lab_of(config: str) -> Lab:
    loaded = load_config(config)
    plan = plan_of(loaded)
    lab = Lab(loaded, plan, read_texts(loaded, plan, describe(plan.model)), time.monotonic() + 60)
    lab._has_figures = True
    return lab


def test_the_time_runs_from_the_start_of_the_command_on(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planned_at, deadlines = [], []

    def planning(config: JobConfig) -> Any:
        planned_at.append(time.monotonic())
        return plan_of(config)

    def noted(config: JobConfig, plan: Any, texts: Texts, deadline: float) -> Any:
        deadlines.append(deadline)
        raise EncoderError("enough")

    monkeypatch.setattr(tune_texts, "plan_of", planning)
    monkeypatch.setattr(tune_module, "tune", noted)
    with pytest.raises(EncoderError, match="enough"):
        jobs.tune.run(argparse.Namespace(config=config, overrides=[], seconds=90.0, json=False))
    assert deadlines[0] - 90.0 <= planned_at[0]


def test_where_no_time_is_left_one_setting_is_tried_all_the_same(config: str) -> None:
    finished = run_jobs("tune", config, "--json", "--seconds", "0")
    assert finished.code == 0, finished.stderr
    tried = [trial for trial in orjson.loads(finished.stdout)["trials"] if not trial["note"]]
    assert len(tried) == 1
