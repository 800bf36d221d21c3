"""The probe: rows that tell two ways to compute a model apart, and the bound of what counts as the same vectors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.encoder import flat, prepacked, sentence_transformer
from pipeline.encoder.flat import EQUAL_LENGTHS, PADDED, REFERENCE
from pipeline.encoder.hashing import HashingEncoder
from pipeline.encoder.prepacked import PrepackedLinear, can_prepack
from pipeline.encoder.probe import LONG, SAME_VECTORS, Reference, affordable_tokens, probe_of, reference_of
from pipeline.encoder.sentence_transformer import SentenceTransformerEncoder
from pipeline.records import TokenBatch
from tests.benchmarks.random_model import Shape, make_model
from tests.test_batching import tokens_of

SMALL = Shape(layers=2, hidden=64, heads=4, inner=128, dimensions=24, vocabulary=500, max_tokens=256)
TOKENS = tokens_of([1, 2, 3, 64, 5, 200, 41, 13, 3, 256], vocabulary=1400)
TOKENS.token_ids_T[:] %= SMALL.vocabulary


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "small", SMALL)


def lengths(*asked: int) -> list[list[int]]:
    return [batch.lengths_N.tolist() for batch in probe_of(*asked)]


def test_a_probe_has_rows_of_one_length_one_that_is_hardly_there_and_a_long_one_where_that_is_cheap() -> None:
    assert lengths(512, 1000) == [[48], [24, 24, 1]]
    assert lengths(512, 1000, 0, 198) == [[198], [48], [24, 24, 1]]
    assert lengths(512, 1000, 0, LONG) == [[512], [48], [24, 24, 1]]
    assert lengths(1 << 60, 1000, 0, 1 << 60) == [[LONG], [48], [24, 24, 1]]
    assert lengths(32, 1000, 0, LONG) == [[32], [16, 16, 1]]


def test_every_row_of_a_probe_is_longer_than_the_prompt_as_far_as_the_model_reads() -> None:
    assert lengths(512, 1000, 100, 300) == [[300], [108], [105, 105, 101]]
    assert lengths(104, 1000, 100) == [[104], [104, 104, 101]]


def test_a_probe_is_the_same_each_time_and_of_tokens_that_the_model_knows() -> None:
    first, second = probe_of(512, 7, 0, 200), probe_of(512, 7, 0, 200)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.token_ids_T, b.token_ids_T)
        assert set(a.token_ids_T) <= set(range(7))


def test_the_long_row_is_as_long_as_a_model_is_small() -> None:
    m3e_small, bert_large = 4 * 12 * 512**2, 24 * 12 * 1024**2
    assert 128 < affordable_tokens(m3e_small) < 256
    assert affordable_tokens(bert_large) < 48


def turned(vectors_BD: NDArray[np.float32], cosine: float) -> NDArray[np.float32]:
    """Return vectors that have this cosine to those given, all of length 1."""
    across_BD = np.roll(vectors_BD, 1, axis=1)
    across_BD -= vectors_BD * (across_BD * vectors_BD).sum(axis=1, keepdims=True)
    across_BD /= np.linalg.norm(across_BD, axis=1, keepdims=True)
    return np.float32(cosine) * vectors_BD + np.float32((1 - cosine**2) ** 0.5) * across_BD


@pytest.mark.parametrize(
    ("compute", "same", "other"),
    [("float32", 0.9999998, 0.999997), ("bfloat16", 0.9995, 0.998), ("float16", 0.99995, 0.9998)],
)
def test_what_differs_by_more_than_rounding_is_refused(compute: str, same: float, other: float) -> None:
    vectors_BD = np.random.default_rng(2).standard_normal((5, 64)).astype(np.float32)
    vectors_BD /= np.linalg.norm(vectors_BD, axis=1, keepdims=True)
    reference = Reference(tokens_of([1] * 5), vectors_BD, SAME_VECTORS[compute])
    assert reference.why_not(lambda _: turned(vectors_BD, same)) == ""
    assert "other vectors" in reference.why_not(lambda _: turned(vectors_BD, other))
    assert "other vectors" in reference.why_not(lambda _: vectors_BD * np.float32("nan"))


def test_the_reference_is_computed_batch_by_batch_and_what_is_compared_with_it_in_one() -> None:
    seen: list[list[int]] = []

    def encode(batch: TokenBatch) -> NDArray[np.float32]:
        seen.append(batch.lengths_N.tolist())
        return HashingEncoder(8).encode(batch)

    reference = reference_of(probe_of(512, 1000, 0, 100), encode, "float32")
    assert reference.why_not(encode) == ""
    assert seen == [[100], [48], [24, 24, 1], [100, 48, 24, 24, 1]]


def opened(folder: Path, attention: str | None = None) -> SentenceTransformerEncoder:
    return SentenceTransformerEncoder(str(folder), "float32", threads=1, attention=attention)


def test_a_kernel_that_errs_on_long_rows_only_is_passed_over(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = flat.KERNELS[REFERENCE]

    def short_sighted(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts_B1: torch.Tensor, longest: int, scale: float
    ) -> torch.Tensor:
        attended = right(query, key, value, starts_B1, longest, scale)
        return attended * 5 if longest > 128 else attended

    monkeypatch.setitem(flat.KERNELS, REFERENCE, short_sighted)
    encoder = opened(small, REFERENCE)
    assert encoder.attention.name == PADDED
    assert "reference_varlen" in encoder.attention.reason
    assert "gives other vectors than the model (cosine 0." in encoder.attention.reason


def test_a_kernel_that_errs_by_little_more_than_rounding_is_passed_over(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = flat.KERNELS[REFERENCE]

    def careless(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts_B1: torch.Tensor, longest: int, scale: float
    ) -> torch.Tensor:
        attended = right(query, key, value, starts_B1, longest, scale)
        return attended + attended.roll(1, 2)

    monkeypatch.setitem(flat.KERNELS, REFERENCE, careless)
    encoder = opened(small, REFERENCE)
    assert encoder.attention.name == PADDED
    assert "(cosine 0.999" in encoder.attention.reason


def prepacked_layers(encoder: SentenceTransformerEncoder) -> int:
    return sum(isinstance(module, PrepackedLinear) for module in encoder._modules[0].modules())


@pytest.mark.skipif(not can_prepack(), reason="oneDNN's kernels are not those of this CPU")
def test_prepacked_layers_that_give_other_vectors_are_not_used_and_it_is_told(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepacked_layers(opened(small)) > 0
    with monkeypatch.context() as another_cpu:
        another_cpu.setattr(sentence_transformer, "can_prepack", lambda: False)
        plain = opened(small)
    assert prepacked_layers(plain) == 0

    def without_gelu(body: torch.nn.Module, dtype: torch.dtype) -> None:
        prepacked.prepack(body, dtype)
        for layer in body.modules():
            if isinstance(layer, PrepackedLinear):
                layer.has_gelu = False

    monkeypatch.setattr(sentence_transformer, "prepack", without_gelu)
    encoder = opened(small)
    assert prepacked_layers(encoder) == 0
    assert encoder.attention.name == EQUAL_LENGTHS
    why = encoder.attention.reason
    assert why.startswith("equal_lengths gives other vectors than the model (cosine 0."), why
    assert why.endswith("so its layers are not prepacked; on a CPU rows of one length are attended to together"), why
    np.testing.assert_array_equal(encoder.encode(TOKENS), plain.encode(TOKENS))
