"""The benchmarks themselves: same texts for all, a failure stays its own, figures of one part outlive another's."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np
import orjson
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from pipeline.encoder.hashing import HashingEncoder
from pipeline.records import TokenBatch
from tests.benchmarks import corpora, gpu, loop_profile
from tests.benchmarks.__main__ import QUICK, _keep, _kept, forget_servers
from tests.benchmarks.budget import Budget
from tests.benchmarks.models import m3e_small
from tests.benchmarks.random_model import Shape, texts_of
from tests.benchmarks.rounds import (
    Encode,
    Outcome,
    Timed,
    Variant,
    interleave,
    least,
    loaded,
    min_cosine,
    quiet_rounds,
    ratios,
)
from tests.benchmarks.samples import Texts
from tests.test_batching import tokens_of

TEXTS = Texts([f"text {n}" for n in range(100)], np.full(100, 100), lambda lengths_N: float(lengths_N.sum()))


def vectors_of(texts: list[str]) -> NDArray[np.float32]:
    return np.array([[1.0, float(text.split()[1])] for text in texts], np.float32)


@contextmanager
def honest() -> Iterator[Encode]:
    yield vectors_of


@contextmanager
def broken() -> Iterator[Encode]:
    def encode(texts: list[str]) -> NDArray[np.float32]:
        raise RuntimeError("no such instruction")

    yield encode


@contextmanager
def absent() -> Iterator[Encode]:
    raise ImportError("not installed")
    yield vectors_of


@contextmanager
def lying() -> Iterator[Encode]:
    yield lambda texts: vectors_of(texts)[:, ::-1]


def compared(variants: list[Variant], rounds: int, texts: Texts = TEXTS) -> list[Outcome]:
    with loaded(variants) as ways:
        return interleave(ways, texts, rounds, seconds=0.01, before_round=lambda: None)


def test_a_variant_that_fails_says_why_and_the_others_are_measured_in_every_round() -> None:
    outcomes = compared([Variant(how.__name__, "float32", how) for how in (honest, broken, absent, lying)], rounds=3)
    assert [len(outcome.timed) for outcome in outcomes] == [3, 0, 0, 3]
    assert [outcome.failure for outcome in outcomes][1:3] == [
        "RuntimeError: no such instruction",
        "ImportError: not installed",
    ]
    assert len(ratios(outcomes[3], outcomes[0])) == 3
    assert ratios(outcomes[1], outcomes[0]) == []


def test_a_variant_whose_vectors_are_others_is_seen_by_its_cosine() -> None:
    outcomes = compared([Variant(how.__name__, "float32", how) for how in (honest, lying, honest)], rounds=1)
    reference, other, same = (outcome.timed[0].min_cosine for outcome in outcomes)
    assert reference is None
    assert other is not None
    assert other < 0.5
    assert same == pytest.approx(1)


def test_the_texts_of_a_round_sort_into_batches_of_the_whole_corpus_and_each_round_has_others() -> None:
    texts = Texts(["x" * (n * n % 997) for n in range(1000)], np.ones(1000, np.int64), lambda lengths_N: 0.0, 10)
    whole = sorted(map(len, texts.texts), reverse=True)
    batches = {tuple(whole[start : start + 10]) for start in range(0, 1000, 10)}
    rounds = [texts.like_all(number, 3, 100) for number in range(3)]
    for rows_B in rounds:
        assert len(set(rows_B.tolist())) == 100
        lengths = sorted((len(texts.texts[row]) for row in rows_B), reverse=True)
        assert {tuple(lengths[start : start + 10]) for start in range(0, 100, 10)} <= batches
    assert not set(rounds[0].tolist()) & set(rounds[1].tolist())


def test_a_variant_with_texts_of_its_own_is_compared_over_some_that_the_reference_has() -> None:
    def far_from_all(texts: Texts, number: int, rounds: int, count: int) -> NDArray[np.int64]:
        return np.array([len(texts.texts) - 1])

    variants = [Variant(how.__name__, "float32", how, far_from_all) for how in (honest, lying)]
    _, same, other = compared([Variant("encode", "float32", honest), *variants], rounds=1)
    assert same.timed[0].texts == other.timed[0].texts == 1
    assert same.timed[0].min_cosine == pytest.approx(1)
    assert other.timed[0].min_cosine is not None
    assert other.timed[0].min_cosine < 0.5


def test_vectors_without_any_to_compare_them_with_have_no_cosine() -> None:
    none_ND = np.empty((0, 2), np.float32)
    assert min_cosine(none_ND, none_ND) is None
    assert least([None, 0.5, None, 0.25]) == 0.25
    assert least([None]) is None


def test_without_its_reference_a_comparison_has_no_cosines() -> None:
    outcomes = compared([Variant(how.__name__, "float32", how) for how in (broken, honest, lying)], rounds=1)
    assert [one.min_cosine for outcome in outcomes for one in outcome.timed] == [None, None]


def test_the_texts_of_a_pool_sort_into_batches_of_the_chunk_that_each_process_has() -> None:
    texts = Texts(["x" * (n * n % 997) for n in range(1000)], np.ones(1000, np.int64), lambda lengths_N: 0.0, 10)
    rows_B = texts.in_chunks(number=1, rounds=3, count=80, chunks=2, chunk_texts=200)
    assert len(rows_B) == 80
    for process, start in ((rows_B[:40], 400), (rows_B[40:], 600)):
        whole = sorted((len(text) for text in texts.texts[start : start + 200]), reverse=True)
        batches = {tuple(whole[at : at + 10]) for at in range(0, 200, 10)}
        lengths = sorted((len(texts.texts[row]) for row in process), reverse=True)
        assert {tuple(lengths[at : at + 10]) for at in range(0, 40, 10)} <= batches
        assert ((process >= start) & (process < start + 200)).all()


def test_a_variant_is_loaded_once_for_all_corpora() -> None:
    begun: list[str] = []

    @contextmanager
    def counted() -> Iterator[Encode]:
        begun.append("loaded")
        yield vectors_of

    with loaded([Variant("counted", "float32", counted)]) as ways:
        for _ in range(2):
            outcomes = interleave(ways, TEXTS, 1, seconds=0.01, before_round=lambda: None)
            assert len(outcomes[0].timed) == 1
    assert begun == ["loaded"]


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("seconds", "rounds"), [(10, 5), (12, 5), (15, 4), (25, 3), (100, 3)])
def test_rounds_end_before_their_time_is_over_but_not_below_three(seconds: float, rounds: int) -> None:
    clock, done = Clock(), 0
    for _ in Budget.of(1, clock).rounds(5):
        clock.now += seconds
        done += 1
    assert done == rounds


def test_time_that_a_part_leaves_over_is_for_those_after_it() -> None:
    clock = Clock()
    budget = Budget.of(1, clock)
    assert budget.part(0.5).until == 130
    clock.now += 20
    assert budget.part(0.5).until == 140
    clock.now += 100
    assert budget.part(0.5).until == 220


def test_without_a_limit_all_rounds_are_done() -> None:
    budget = Budget.of(None)
    assert not budget.part(0.1).is_limited
    assert list(budget.part(0.1).rounds(7)) == [*range(7)]
    assert list(budget.rounds(1)) == [0]
    assert sum(QUICK.values()) == pytest.approx(1)


def test_rounds_that_others_disturbed_do_not_count_if_three_are_left() -> None:
    def disturbed(*others: float) -> Outcome:
        timed = [Timed(1, 1, 1.0, 1.0, cores, 1.0) for cores in others]
        return Outcome(Variant("honest", "float32", honest), timed)

    assert quiet_rounds([disturbed(0, 0.5, 0, 0, 0), disturbed(0, 0, 0, 0, 0.3)]) == [0, 2, 3]
    assert quiet_rounds([disturbed(0, 0.5, 0, 0), disturbed(0, 0, 0, 0.3)]) == [0, 1, 2, 3]


def test_made_reviews_are_distinct_and_about_as_long_as_the_real_ones() -> None:
    texts = corpora.reviews(25_000)
    assert len(set(texts)) == 25_000
    assert texts[:17_410] == corpora.reviews(17_410)
    real, made = (np.array([len(text) for text in part]) for part in (texts[:17_410], texts[17_410:]))
    assert 0.8 < made.mean() / real.mean() < 1.2
    assert 0.8 < made.std() / real.std() < 1.2


def test_queries_have_16_tokens_and_documents_fill_the_model() -> None:
    tokenize = m3e_small().tokenize
    queries, _ = tokenize(pa.array(corpora.queries(50, tokenize)), 512)
    documents, is_cut_N = tokenize(pa.array(corpora.documents(20)), 512)
    assert queries.lengths_N.tolist() == [16] * 50
    assert documents.lengths_N.tolist() == [512] * 20
    assert is_cut_N.all()


def test_the_arithmetic_of_a_token_is_that_of_its_matrix_products() -> None:
    layers, hidden, inner, length = 4, 512, 2048, 100
    by_hand = layers * (length * (8 * hidden**2 + 4 * hidden * inner) + 4 * hidden * length**2)
    assert m3e_small().flops(np.array([length])) == by_hand


def test_the_figures_of_one_benchmark_outlive_another_run(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    _keep(path, "encoders", [{"benchmark": "a"}])
    _keep(path, "ids", [{"benchmark": "b"}])
    _keep(path, "encoders", [{"benchmark": "c"}])
    assert {name: part["lines"] for name, part in _kept(path).items()} == {
        "encoders": [{"benchmark": "c"}],
        "ids": [{"benchmark": "b"}],
    }


def test_a_benchmark_does_not_ask_the_s3_server_of_the_one_before() -> None:
    before = fsspec.filesystem("s3", anon=True)
    assert fsspec.filesystem("s3", anon=True) is before
    forget_servers()
    assert fsspec.filesystem("s3", anon=True) is not before


class Doubling(HashingEncoder):
    """An encoder with a module of torch in it."""

    def __init__(self) -> None:
        super().__init__(8)
        self.module = torch.nn.Linear(8, 8)

    def encode(self, batch: TokenBatch) -> NDArray[np.float32]:
        with torch.inference_mode():
            vectors_BD: NDArray[np.float32] = self.module(torch.from_numpy(super().encode(batch))).numpy()
        return vectors_BD


def test_a_profile_of_the_encoder_loop_leaves_no_time_out_and_tells_kernels_from_what_is_around_them() -> None:
    encoder = Doubling()
    with loop_profile.marked([encoder.module]):
        shares = loop_profile.shares_of(encoder, tokens_of([3, 9, 40, 7]))
    assert sum(shares[name] for name in loop_profile.KINDS) == pytest.approx(1)
    assert 0 < shares["linear_layers"] <= shares["kernels"]
    assert shares["attention"] == 0
    assert all(shares[name] > 0 for name in ("kernels", "shapes", "python_of_the_model", "bookkeeping"))


def test_the_gpu_benchmark_says_that_there_is_no_gpu_and_measures_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main(["--folder", str(tmp_path)]) == 0
    assert "finds no CUDA device here; nothing was measured" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_gpu_benchmark_measures_every_way_on_a_cpu_with_the_same_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    arguments = "--device cpu --layers 1 --hidden 64 --corpus reviews --rounds 1 --seconds 0.02 --without-compiler"
    assert gpu.main([*arguments.split(), "--folder", str(tmp_path)]) == 0
    lines = orjson.loads((tmp_path / "gpu.json").read_bytes())["lines"]
    rates = {(line["variant"], line["precision"]): line["tokens_per_second"] for line in lines if "precision" in line}
    assert len(rates) == 8
    assert all(rate > 0 for rate in rates.values())
    assert [line["min_cosine"] > 0.999 for line in lines if line.get("min_cosine")] == [True] * 7
    assert "GEMM ceiling" in capsys.readouterr().out


def test_texts_made_for_a_gpu_are_as_long_as_the_reviews_are() -> None:
    lengths_N = gpu.review_lengths(100_000, 512)
    found = np.quantile(lengths_N, list(gpu.REVIEW_QUANTILES))
    assert np.abs(found / list(gpu.REVIEW_QUANTILES.values()) - 1).max() < 0.1
    shape = Shape(vocabulary=300, max_tokens=64)
    assert [len(text.split()) + 2 for text in texts_of(np.array([3, 9, 64]), shape)] == [3, 9, 64]
