"""The benchmarks themselves: same texts for all, a failure stays its own, figures of one part outlive another's."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from pipeline.encoder.hashing import HashingEncoder
from pipeline.records import TokenBatch
from tests.benchmarks import corpora, gpu, loop_profile
from tests.benchmarks.__main__ import _keep, _kept
from tests.benchmarks.models import m3e_small
from tests.benchmarks.random_model import Shape, texts_of
from tests.benchmarks.rounds import Encode, Outcome, Texts, Timed, Variant, interleave, quiet_rounds, ratios
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


def test_a_variant_that_fails_says_why_and_the_others_are_measured_in_every_round() -> None:
    variants = [Variant(how.__name__, "float32", how) for how in (honest, broken, absent, lying)]
    outcomes = interleave(variants, TEXTS, rounds=3, seconds=0.01, before_round=lambda: None)
    assert [len(outcome.timed) for outcome in outcomes] == [3, 0, 0, 3]
    assert [outcome.failure for outcome in outcomes][1:3] == [
        "RuntimeError: no such instruction",
        "ImportError: not installed",
    ]
    assert len(ratios(outcomes[3], outcomes[0])) == 3
    assert ratios(outcomes[1], outcomes[0]) == []


def test_a_variant_whose_vectors_are_others_is_seen_by_its_cosine() -> None:
    variants = [Variant(how.__name__, "float32", how) for how in (honest, lying, honest)]
    outcomes = interleave(variants, TEXTS, rounds=1, seconds=0.01, before_round=lambda: None)
    assert outcomes[1].timed[0].min_cosine < 0.5
    assert outcomes[2].timed[0].min_cosine == pytest.approx(1)


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


def test_a_variant_with_texts_of_its_own_is_compared_over_those_that_both_have() -> None:
    variants = [Variant("honest", "float32", honest), Variant("mixed", "float32", honest, mixed_texts=60)]
    outcomes = interleave(variants, TEXTS, rounds=2, seconds=0.01, before_round=lambda: None)
    assert [one.texts for one in outcomes[1].timed] == [60, 60]
    assert outcomes[1].timed[0].min_cosine == pytest.approx(1)


def test_rounds_that_others_disturbed_do_not_count_if_three_are_left() -> None:
    def outcome(*others: float) -> Outcome:
        timed = [Timed(1, 1, 1.0, 1.0, cores, 1.0) for cores in others]
        return Outcome(Variant("honest", "float32", honest), timed)

    assert quiet_rounds([outcome(0, 0.5, 0, 0, 0), outcome(0, 0, 0, 0, 0.3)]) == [0, 2, 3]
    assert quiet_rounds([outcome(0, 0.5, 0, 0), outcome(0, 0, 0, 0.3)]) == [0, 1, 2, 3]


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
        shares = loop_profile.shares_of(encoder, tokens_of([3, 9, 40, 7]), rounds=2)
    assert sum(shares.values()) == pytest.approx(1)
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
    assert all(line["min_cosine"] > 0.999 for line in lines if "precision" in line)
    assert "GEMM ceiling" in capsys.readouterr().out


def test_texts_made_for_a_gpu_are_as_long_as_the_reviews_are() -> None:
    lengths_N = gpu.review_lengths(100_000, 512)
    found = np.quantile(lengths_N, list(gpu.REVIEW_QUANTILES))
    assert np.abs(found / list(gpu.REVIEW_QUANTILES.values()) - 1).max() < 0.1
    shape = Shape(vocabulary=300, max_tokens=64)
    assert [len(text.split()) + 2 for text in texts_of(np.array([3, 9, 64]), shape)] == [3, 9, 64]
