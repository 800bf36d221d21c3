"""Rows without padding: laid end to end they have the vectors of padded rows, or rows are padded and it is told why."""

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from pipeline.encoder import flat
from pipeline.encoder.batching import FILL_TOKENS, computed_tokens, pack_flat
from pipeline.encoder.flat import (
    EQUAL_LENGTHS,
    FLASH,
    PADDED,
    REFERENCE,
    TORCH_VARLEN,
    attentions_to_try,
    lay_end_to_end,
)
from pipeline.encoder.packed import encode_packed
from pipeline.encoder.sentence_transformer import SentenceTransformerEncoder
from pipeline.records import TokenBatch
from tests.benchmarks.random_model import Shape, make_model
from tests.test_batching import BUDGETS, LENGTHS, tokens_of, unit

SMALL = Shape(layers=2, hidden=64, heads=4, inner=128, dimensions=24, vocabulary=500, max_tokens=64)
TOKENS = tokens_of([1, 2, 3, 64, 5, 40, 41, 13, 3, 64, 17, 8], vocabulary=20_000)
FEW_TOKENS = TokenBatch((TOKENS.token_ids_T % SMALL.vocabulary).astype(np.int32), TOKENS.offsets_N1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "small", SMALL)


def opened(folder: Path, attention: str, compute: str = "float32", prompt: str = "") -> SentenceTransformerEncoder:
    return SentenceTransformerEncoder(str(folder), compute, prompt, threads=1, attention=attention)


def furthest(folder: Path, tokens: TokenBatch, prompt: str = "") -> float:
    """Return the largest difference between any number of a vector of length 1 and the same one of padded rows."""
    padded, end_to_end = opened(folder, PADDED, prompt=prompt), opened(folder, REFERENCE, prompt=prompt)
    assert (padded.is_flat, end_to_end.is_flat) == (False, True)
    vectors = [encode_packed(encoder, tokens, 512) for encoder in (padded, end_to_end)]
    assert all(encoded.done_N.all() for encoded in vectors)
    return float(np.abs(unit(vectors[0].vectors_ND) - unit(vectors[1].vectors_ND)).max())


def test_rows_end_to_end_have_the_vectors_of_padded_rows(m3e_small: Path) -> None:
    assert furthest(m3e_small, tokens_of([1, 2, 3, 5, 8, 13, 40, 41, 100, 200, 511, 512, 17])) <= 1e-5


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "lasttoken", "weightedmean"])
def test_every_pooling_is_the_models_own(small: Path, tmp_path: Path, pooling: str) -> None:
    modules = [Transformer(str(small)), Pooling(64, pooling, include_prompt=False)]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "model"), create_model_card=False)
    assert furthest(tmp_path / "model", FEW_TOKENS) <= 1e-5
    longer = tokens_of([4, 30, 5, 64, 64, 64, 64, 64, 64, 64, 64, 4, 9], vocabulary=1500)
    with_prompt = TokenBatch((longer.token_ids_T % SMALL.vocabulary).astype(np.int32), longer.offsets_N1)
    assert furthest(tmp_path / "model", with_prompt, prompt="w1 w2") <= 1e-5


def test_positions_begin_where_the_model_counts_from(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", SMALL, "XLMRobertaConfig")
    assert opened(folder, REFERENCE)._modules[0]._infer_flatten_position_offset() == 1
    assert furthest(folder, FEW_TOKENS) <= 1e-5


def test_in_bfloat16_they_differ_by_rounding_only(m3e_small: Path) -> None:
    vectors = [opened(m3e_small, attention, "bfloat16").encode(TOKENS) for attention in (PADDED, REFERENCE)]
    assert np.einsum("nd,nd->n", unit(vectors[0]), unit(vectors[1])).min() >= 0.9999


def test_a_kernel_that_lets_rows_see_each_other_is_passed_over(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts_B1: torch.Tensor, longest: int, scale: float
    ) -> torch.Tensor:
        shuffled = value[torch.randperm(len(value), generator=torch.Generator().manual_seed(1))]
        return shuffled * 5

    expected_BD = opened(small, PADDED).encode(FEW_TOKENS)
    monkeypatch.setitem(flat.KERNELS, REFERENCE, careless)
    encoder = opened(small, REFERENCE)
    assert encoder.attention.name == PADDED
    assert "reference_varlen gives other vectors than the model" in encoder.attention.reason
    np.testing.assert_array_equal(encoder.encode(FEW_TOKENS), expected_BD)


def test_a_kernel_that_the_device_has_not_is_passed_over_and_the_reason_told(small: Path) -> None:
    encoder = opened(small, FLASH)
    assert encoder.attention.name == PADDED
    assert "flash_attention_2 fails on this model" in encoder.attention.reason
    assert np.isfinite(encoder.encode(FEW_TOKENS)).all()


def test_a_model_that_looks_one_way_keeps_its_padding(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "model")
    encoder = opened(tmp_path / "model", PADDED)
    for module in encoder._modules[0].model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = True
    tried = [flat.Attention(REFERENCE, "asked for"), flat.Attention(PADDED, "")]
    encoder._attend(tried, encoder._reference("float32"), [])
    assert "looks one way only" in encoder.attention.reason


def names_of(*arguments: object) -> list[str]:
    return [attention.name for attention in attentions_to_try(*arguments)]  # type: ignore[arg-type]


def test_the_best_attention_that_a_device_has_is_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {"flash_attn", "torch.nn.attention.varlen"}
    monkeypatch.setattr(flat, "find_spec", lambda package: package in packages or None)
    assert names_of("cpu", "bfloat16") == [EQUAL_LENGTHS, PADDED]
    assert names_of("cuda", "float32", (9, 0)) == [PADDED]
    assert names_of("cuda", "float16", (7, 5)) == [PADDED]
    assert names_of("cuda", "bfloat16", (9, 0)) == [FLASH, TORCH_VARLEN, PADDED]
    packages.remove("flash_attn")
    assert names_of("cuda", "float16", (8, 0)) == [TORCH_VARLEN, PADDED]
    packages.clear()
    assert names_of("cuda", "bfloat16", (9, 0)) == [PADDED]
    assert all(attention.reason for attention in attentions_to_try("cuda", "bfloat16", (9, 0)))


@given(LENGTHS, BUDGETS)
def test_rows_end_to_end_are_each_in_one_batch_within_the_budget_longest_first(lengths: list[int], budget: int) -> None:
    lengths_N = np.array(lengths, np.int64)
    batches = pack_flat(lengths_N, budget)
    assert sorted(row for rows_B in batches for row in rows_B.tolist()) == list(range(len(lengths)))
    assert all(lengths_N[rows_B].sum() <= budget for rows_B in batches)
    assert all(lengths_N[a].min() >= lengths_N[b].max() for a, b in pairwise(batches))
    if budget >= FILL_TOKENS:
        assert all(computed_tokens(lengths_N[rows_B], is_flat=True) <= budget for rows_B in batches)


def test_a_row_beyond_the_budget_is_named() -> None:
    with pytest.raises(ValueError, match="row 1 has 65 tokens, more than the 64 of a batch"):
        pack_flat(np.array([3, 65, 4]), 64)


def test_the_filling_at_the_end_belongs_to_no_row(small: Path) -> None:
    laid = lay_end_to_end(tokens_of([2, 3]), pad_token_id=9, first_position=5)
    assert laid["input_ids"].shape == laid["position_ids"].shape == (1, FILL_TOKENS)
    assert laid["position_ids"][0, :7].tolist() == [5, 6, 5, 6, 7, 5, 5]
    assert set(laid["input_ids"][0, 5:].tolist()) == {9}
    assert laid["cu_seq_lens_q"].tolist() == [0, 2, 5]
    assert laid["seq_idx"].tolist() == [[0, 0, 1, 1, 1]]
    encoder = opened(small, REFERENCE)
    expected_BD = encoder.encode(FEW_TOKENS)
    encoder._pad_token_id = 400
    np.testing.assert_array_equal(encoder.encode(FEW_TOKENS), expected_BD)
