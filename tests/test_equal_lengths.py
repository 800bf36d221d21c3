"""Rows of one length, attended to together on a CPU: what torch gives for each row alone, and passes of a good size."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.encoder import equal_lengths
from pipeline.encoder.equal_lengths import attend_equal_lengths, pass_tokens_of
from pipeline.encoder.packed import encode_packed
from pipeline.encoder.sentence_transformer import SentenceTransformerEncoder
from tests.benchmarks.random_model import Shape, make_model
from tests.test_batching import tokens_of, unit

HEADS, WIDTH = 3, 8


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("score_bytes", [1, 1 << 19], ids=["row by row", "all at once"])
def test_every_row_attends_to_itself_alone(
    dtype: torch.dtype, error: float, score_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(equal_lengths, "SCORE_BYTES", score_bytes)
    torch.manual_seed(4)
    lengths = [5, 5, 5, 2, 7, 5, 1, 1]
    query, key, value = (torch.randn(sum(lengths) + 2, HEADS, WIDTH).to(dtype) for _ in range(3))
    starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    attended = attend_equal_lengths(query, key, value, starts, max(lengths), 0.3)
    for start, end in pairwise(starts.tolist()):
        q, k, v = (one[start:end].transpose(0, 1).float() for one in (query, key, value))
        alone = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(0, 1)
        assert (attended[start:end].float() - alone).abs().max() <= error
    assert attended[sum(lengths) :].abs().max() == 0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = Shape(layers=2, hidden=64, heads=4, inner=128, dimensions=24, vocabulary=20_000, max_tokens=64)
    return make_model(tmp_path_factory.mktemp("models") / "small", shape)


def test_a_cpu_computes_no_padding(small: Path) -> None:
    tokens = tokens_of([1, 2, 3, 64, 5, 40, 41, 13])
    by_attention = {
        name: encode_packed(SentenceTransformerEncoder(str(small), "float32", threads=1, attention=name), tokens, 512)
        for name in (None, "padded")
    }
    assert by_attention[None].padded_tokens == tokens.lengths_N.sum() < by_attention["padded"].padded_tokens
    vectors = [unit(encoded.vectors_ND) for encoded in by_attention.values()]
    assert np.einsum("nd,nd->n", *vectors).min() >= 0.999999


def test_a_pass_on_a_cpu_is_no_larger_than_its_cache_likes_whatever_the_budget(small: Path) -> None:
    tokens = tokens_of([64] * 200)
    encoder = SentenceTransformerEncoder(str(small), "float32", threads=1)
    assert encode_packed(encoder, tokens, 1 << 20).batches == -(-200 // (pass_tokens_of(1, is_short=False) // 64))
    assert encode_packed(encoder, tokens, 640).batches == 20


@pytest.mark.parametrize(
    ("threads", "is_short", "tokens"),
    [(1, False, 1024), (1, True, 2048), (3, False, 3072), (3, True, 4096), (16, False, 4096)],
)
def test_a_pass_has_more_tokens_with_more_threads_and_shorter_numbers_up_to_a_limit(
    threads: int, is_short: bool, tokens: int
) -> None:
    assert pass_tokens_of(threads, is_short) == tokens
