"""`runtime.engine: auto`: other engines are tried on texts of the run, and only where that can pay."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.encoder import engines
from pipeline.encoder.engines import EARNED_BACK_SECONDS, EngineChoice, fastest
from pipeline.encoder.hashing import HashingEncoder
from pipeline.errors import EncoderError
from pipeline.execution import attempts, encode_stage
from pipeline.execution.attempts import MAX_DEATHS, Attempts
from pipeline.execution.reporting.report import render_html
from pipeline.records import TokenBatch
from tests.example_report import example_report
from tests.running import written_config
from tests.test_batching import tokens_of
from tests.test_engines import headed
from tests.test_vectors import cosines
from tests.without_ray import published_in_process, run_in_process

__all__ = ["headed"]

TOKENS = tokens_of([3, 9, 40, 40, 300, 7] * 20)
SECONDS = 0.05


class Paced(HashingEncoder):
    """Takes its time, and knows whether it was closed."""

    def __init__(self, seconds: float, fails: bool = False) -> None:
        super().__init__(8)
        self.seconds, self.fails, self.passes, self.is_closed = seconds, fails, 0, False

    def encode(self, batch: TokenBatch) -> NDArray[np.float32]:
        self.passes += 1
        if self.fails and self.passes > 2:
            raise RuntimeError("broken")
        time.sleep(self.seconds)
        return super().encode(batch)

    def close(self) -> None:
        self.is_closed = True


def test_the_faster_engine_goes_on_and_the_other_is_closed() -> None:
    slow, fast = Paced(0.01), Paced(0.0)
    encoder, choice = fastest("torch", slow, {"openvino": lambda: fast}, TOKENS, SECONDS)
    assert (encoder, choice.engine, slow.is_closed, fast.is_closed) == (fast, "openvino", True, False)
    assert choice.tokens_per_second["openvino"] > choice.tokens_per_second["torch"] > 0
    assert slow.passes == fast.passes


def test_a_slower_engine_is_closed_and_nothing_changes() -> None:
    fast, slow = Paced(0.0), Paced(0.01)
    encoder, choice = fastest("torch", fast, {"openvino": lambda: slow}, TOKENS, SECONDS)
    assert (encoder, choice.engine, slow.is_closed, fast.is_closed) == (fast, "torch", True, False)
    assert choice.passed_over == {}


def test_an_engine_that_cannot_be_had_is_passed_over_with_its_reason_and_costs_no_pass() -> None:
    def missing() -> Paced:
        raise EncoderError("not installed")

    at_work = Paced(0.0)
    encoder, choice = fastest("torch", at_work, {"openvino": missing, "other": lambda: Paced(1 / 0)}, TOKENS)
    assert (encoder, at_work.passes, at_work.is_closed) == (at_work, 0, False)
    assert choice == EngineChoice(
        "torch", {}, {"openvino": "not installed", "other": "it cannot be loaded: ZeroDivisionError"}
    )


def test_an_engine_that_fails_in_its_trial_is_passed_over() -> None:
    at_work, broken = Paced(0.005), Paced(0.0, fails=True)
    encoder, choice = fastest("torch", at_work, {"openvino": lambda: broken}, TOKENS, SECONDS)
    assert (encoder, choice.engine, broken.is_closed) == (at_work, "torch", True)
    assert choice.passed_over == {"openvino": "it fails with RuntimeError"}
    assert choice.tokens_per_second.keys() == {"torch"}


def test_a_trial_that_kills_encoders_is_not_begun_a_fourth_time_and_one_that_ended_clears_the_others() -> None:
    book = Attempts(seconds_left=EARNED_BACK_SECONDS)
    assert [book.begin_trial("a") for _ in range(MAX_DEATHS + 1)] == [True] * MAX_DEATHS + [False]
    assert book.begin_trial("b")
    book.end_trial(EngineChoice("torch"), "a")
    assert book.begin_trial("a")
    assert book.engine_choices() == [EngineChoice("torch")]


def test_no_trial_is_begun_before_what_is_left_is_known_nor_where_it_is_too_little() -> None:
    book = Attempts()
    assert not book.begin_trial()
    book.expect(EARNED_BACK_SECONDS - 1)
    assert not any(book.begin_trial() for _ in range(2 * MAX_DEATHS))
    book.expect(EARNED_BACK_SECONDS)
    assert book.begin_trial()


def test_an_estimate_counts_on_another_engine_only_where_a_run_would_try_it_and_counts_what_the_trial_costs() -> None:
    rate = 1000.0
    short, long = rate * (engines.TRIAL_AFTER_SECONDS + EARNED_BACK_SECONDS - 1), rate * 3600
    assert not engines.trial_pays(short, rate)
    assert engines.trial_pays(long, rate)
    seconds = long / engines.rate_with_trial(long, rate, 2 * rate)
    assert seconds == pytest.approx(
        engines.TRIAL_AFTER_SECONDS + engines.TRIAL_COST_SECONDS + (3600 - engines.TRIAL_AFTER_SECONDS) / 2
    )


def config_of(folder: Path, model: Path, name: str) -> str:
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in" / "a.txt").write_text("\n".join(f"第 {n} 条评论" * (n % 7 + 1) for n in range(60)))
    recipe = {"model": str(model), "compute": "float32"}
    output = {"uri": str(folder / name), "rows_per_part": 20}
    return written_config(
        folder / f"{name}.yaml", source={"uri": str(folder / "in")}, recipe=recipe, output=output, runtime={}
    )


def test_a_long_run_tries_the_engines_once_and_its_vectors_stay_the_same(
    headed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    expected = published_in_process(config_of(tmp_path, headed, "torch"), "runtime.engine=torch").to_table()
    monkeypatch.setattr(encode_stage, "TRIAL_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(attempts, "EARNED_BACK_SECONDS", 0.0)
    monkeypatch.setattr(engines, "WORTHWHILE", 0.0)  # whichever is faster, one of both goes on
    config = config_of(tmp_path, headed, "auto")
    report = run_in_process(config)
    (choice,) = report.engine_choices
    assert choice.tokens_per_second.keys() == {"torch", *engines.engines_to_try("float32", is_cpu=True)}
    assert choice.passed_over == {}
    assert (report.embedded, report.quarantined) == (60, 0)
    found = published_in_process(config).to_table()
    assert found["id"].to_pylist() == expected["id"].to_pylist()
    ours_ND, theirs_ND = (np.stack(table["embedding"].to_numpy()) for table in (found, expected))
    assert cosines(ours_ND, theirs_ND).min() >= 0.999999


def test_only_engines_of_the_same_number_type_are_tried() -> None:
    pytest.importorskip("onnxruntime")
    tried = {compute: engines.engines_to_try(compute, is_cpu=True) for compute in ("float32", "bfloat16")}
    assert tried == {"float32": ("openvino", "onnx"), "bfloat16": ("openvino",)}
    assert engines.engines_to_try("float32", is_cpu=False) == ("torch-compile",)


def test_a_run_that_ends_soon_tries_nothing(headed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any) -> Any:
        raise AssertionError("a trial was begun")

    monkeypatch.setattr(encode_stage, "fastest", refused)
    monkeypatch.setattr(encode_stage, "TRIAL_AFTER_SECONDS", 0.0)
    report = run_in_process(config_of(tmp_path, headed, "out"))
    assert (report.embedded, report.engine_choices) == (60, [])


def test_the_report_tells_what_trials_came_to_in_json_and_on_its_page() -> None:
    report = example_report()
    report.engine = "torch"
    assert "<td>torch</td>" in render_html(report)
    report.engine_choices = [
        EngineChoice("openvino", {"torch": 10_000.0, "openvino": 12_000.0}),
        EngineChoice("openvino", {"torch": 11_000.0, "openvino": 13_000.0}),
        EngineChoice("torch", {}, {"openvino": "it is not installed"}),
    ]
    said = "torch; by trial: openvino 2, torch 1; openvino 12,500 tokens/s, torch 10,500 tokens/s; "
    assert f"{said}openvino passed over: it is not installed" in render_html(report)
    assert report.to_json()["engine_choices"][0] == {
        "engine": "openvino",
        "tokens_per_second": {"torch": 10_000.0, "openvino": 12_000.0},
        "passed_over": {},
    }
