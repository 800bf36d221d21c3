"""`runtime.engine: auto`: other engines are tried on texts of the run, and only where that can pay."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.encoder import engines
from pipeline.encoder.engines import EARNED_BACK_SECONDS, EngineChoice, fastest
from pipeline.encoder.hashing import HashingEncoder
from pipeline.encoder.packed import encode_packed
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
BATCH_TOKENS = 1024


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
    encoder, choice = fastest("torch", slow, {"openvino": lambda: fast}, TOKENS, BATCH_TOKENS, SECONDS)
    assert (encoder, choice.engine, slow.is_closed, fast.is_closed) == (fast, "openvino", True, False)
    assert choice.tokens_per_second["openvino"] > choice.tokens_per_second["torch"] > 0
    assert slow.passes == fast.passes


def test_a_slower_engine_is_closed_and_nothing_changes() -> None:
    fast, slow = Paced(0.0), Paced(0.01)
    encoder, choice = fastest("torch", fast, {"openvino": lambda: slow}, TOKENS, BATCH_TOKENS, SECONDS)
    assert (encoder, choice.engine, slow.is_closed, fast.is_closed) == (fast, "torch", True, False)
    assert choice.passed_over == {}


def test_an_engine_that_cannot_be_had_is_passed_over_with_its_reason_and_costs_no_pass() -> None:
    def missing() -> Paced:
        raise EncoderError("not installed")

    at_work = Paced(0.0)
    others = {"openvino": missing, "other": lambda: Paced(1 / 0)}
    encoder, choice = fastest("torch", at_work, others, TOKENS, BATCH_TOKENS)
    assert (encoder, at_work.passes, at_work.is_closed) == (at_work, 0, False)
    assert choice == EngineChoice(
        "torch", {}, {"openvino": "not installed", "other": "it cannot be loaded: ZeroDivisionError"}
    )


def test_an_engine_that_fails_in_its_trial_is_passed_over() -> None:
    at_work, broken = Paced(0.005), Paced(0.0, fails=True)
    encoder, choice = fastest("torch", at_work, {"openvino": lambda: broken}, TOKENS, BATCH_TOKENS, SECONDS)
    assert (encoder, choice.engine, broken.is_closed) == (at_work, "torch", True)
    assert choice.passed_over == {"openvino": "it fails with RuntimeError"}
    assert choice.tokens_per_second.keys() == {"torch"}


class Noting(HashingEncoder):
    """Lays rows end to end in small passes, and notes the lengths of each."""

    is_flat, fill_tokens, lanes, attention = True, 1, 1, "flat"
    pass_tokens: int | None = 700

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(8)
        self.passes: list[tuple[int, ...]] = []
        self.device, self.under_way, self.most_under_way = device, 0, 0

    def begin(self, batch: TokenBatch) -> Callable[[], NDArray[np.float32]]:
        self.passes.append(tuple(batch.lengths_N.tolist()))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)

        def wait() -> NDArray[np.float32]:
            self.under_way -= 1
            return HashingEncoder.encode(self, batch)

        return wait

    def encode(self, batch: TokenBatch) -> NDArray[np.float32]:
        return self.begin(batch)()


@pytest.mark.parametrize(("pass_tokens", "lanes"), [(700, 1), (None, 1), (700, 2), (700, 3)])
def test_engines_are_measured_by_the_passes_of_the_run(pass_tokens: int | None, lanes: int) -> None:
    padded, flat, in_a_run = Paced(0.0), Noting(), Noting()
    flat.pass_tokens = in_a_run.pass_tokens = pass_tokens
    flat.lanes = in_a_run.lanes = lanes
    encode_packed(in_a_run, TOKENS, BATCH_TOKENS)
    fastest("torch", padded, {"other": lambda: flat}, TOKENS, BATCH_TOKENS, SECONDS)
    if lanes == 1:
        assert set(flat.passes) <= set(in_a_run.passes)
    else:  # a few are cut elsewhere, so that no lane is idle
        of_trial, of_run = ({sum(lengths) for lengths in encoder.passes} for encoder in (flat, in_a_run))
        assert min(of_run) <= max(of_trial) <= max(of_run)
    assert len(set(flat.passes)) > 1, "passes are taken from among all lengths"
    assert flat.most_under_way == (1 if lanes == 1 else lanes + 1)


def test_a_device_beside_the_cpu_computes_in_a_trial_while_the_next_pass_is_begun() -> None:
    gpu = Noting("NVIDIA H200")
    fastest("torch", gpu, {"torch-compile": lambda: Noting("NVIDIA H200")}, TOKENS, BATCH_TOKENS, SECONDS)
    assert (gpu.most_under_way, gpu.under_way) == (2, 0)


def test_an_engine_that_is_slow_with_long_texts_only_is_measured_with_its_share_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    even, uneven = Paced(0.0), Paced(0.0)
    token_seconds = {id(even): {100: 1.0, 10: 1.0}, id(uneven): {100: 3.0, 10: 0.5}}

    def token_seconds_of(encoder: HashingEncoder, turn: TokenBatch, batch_tokens: int) -> float:
        assert len(turn.token_ids_T) <= batch_tokens
        return token_seconds[id(encoder)][int(turn.lengths_N[0])]

    monkeypatch.setattr(engines, "_token_seconds", token_seconds_of)
    tokens = tokens_of([100] * 10 + [10] * 100)  # half of the tokens in either
    _, choice = fastest("torch", even, {"other": lambda: uneven}, tokens, 100, SECONDS)
    assert choice.engine == "torch"
    assert choice.tokens_per_second["other"] == pytest.approx(1 / 1.75, rel=0.1)


def test_what_an_engine_pads_in_all_its_passes_counts_and_not_what_it_pads_in_those_that_were_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines, "_token_seconds", lambda *_: 0.001)
    tokens = tokens_of([*range(1, 101), *[10] * 100])
    padded, flat = Paced(0.0), Noting()
    _, choice = fastest("torch", padded, {"other": lambda: flat}, tokens, 200, SECONDS)
    computed = encode_packed(padded, tokens, 200).padded_tokens
    assert computed > len(tokens.token_ids_T)
    assert choice.tokens_per_second["other"] == pytest.approx(1000.0)
    assert choice.tokens_per_second["torch"] == pytest.approx(1000.0 * len(tokens.token_ids_T) / computed, rel=1e-3)


def test_engines_have_two_turns_at_least_unless_the_first_has_taken_long(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[int] = []

    def token_seconds_of(_: HashingEncoder, turn: TokenBatch, __: int) -> float:
        turns.append(len(turn))
        return 0.001

    monkeypatch.setattr(engines, "_token_seconds", token_seconds_of)
    fastest("torch", Paced(0.0), {"other": lambda: Paced(0.0)}, TOKENS, BATCH_TOKENS, seconds=0.0)
    assert len(turns) == 2 * 2 * engines.LEAST_TURNS
    monkeypatch.setattr(engines, "SLOW_SECONDS", 0.0)
    turns.clear()
    fastest("torch", Paced(0.0), {"other": lambda: Paced(0.0)}, TOKENS, BATCH_TOKENS, seconds=0.0)
    assert len(turns) == 2 * 2


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
