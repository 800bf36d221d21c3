"""What only a GPU can show: kernels, number types, memory that runs out. Skipped where there is none.

On a machine with nothing but torch, sentence-transformers, pyarrow and pytest:
`python -m pytest -c /dev/null --rootdir . --noconftest --import-mode=importlib tests/test_on_gpu.py`.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.encoder.canary import compare
from pipeline.encoder.flat import PADDED, REFERENCE, TORCH_VARLEN
from pipeline.encoder.packed import encode_packed
from pipeline.encoder.sentence_transformer import SentenceTransformerEncoder
from pipeline.records import TokenBatch
from tests.benchmarks.random_model import Shape, make_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")

SHAPE = Shape(layers=4, hidden=256, heads=4, inner=1024, dimensions=96, vocabulary=2000)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "model", SHAPE)


@pytest.fixture(scope="module")
def tokens() -> TokenBatch:
    random = np.random.default_rng(3)
    lengths_N = np.clip(random.lognormal(3.8, 0.9, 1000).astype(np.int64), 1, 512)
    offsets_N1 = np.concatenate(([0], np.cumsum(lengths_N)))
    return TokenBatch(random.integers(4, SHAPE.vocabulary, int(offsets_N1[-1]), np.int32), offsets_N1)


def opened(
    model: Path, compute: str, attention: str | None = None, engine: str = "torch"
) -> SentenceTransformerEncoder:
    encoder = SentenceTransformerEncoder(str(model), compute, engine=engine, attention=attention)
    assert encoder.device == torch.cuda.get_device_name()
    return encoder


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
@pytest.mark.parametrize("attention", [None, TORCH_VARLEN, REFERENCE])
def test_rows_without_padding_have_the_vectors_of_padded_rows_in_float32(
    model: Path, tokens: TokenBatch, compute: str, attention: str | None
) -> None:
    expected = encode_packed(opened(model, "float32", PADDED), tokens, 16384)
    encoder = opened(model, compute, attention)
    assert encoder.is_flat, encoder.attention
    found = encode_packed(encoder, tokens, 16384)
    assert found.done_N.all()
    assert compare(expected.vectors_ND, found.vectors_ND).min_cosine >= 0.999


def test_float32_on_a_gpu_is_that_of_a_cpu_and_not_tf32(
    model: Path, tokens: TokenBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = encode_packed(opened(model, "float32"), tokens, 16384)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cpu = SentenceTransformerEncoder(str(model), "float32")
    assert cpu.device == "cpu"
    assert compare(encode_packed(cpu, tokens, 16384).vectors_ND, found.vectors_ND).min_cosine >= 0.999999


def test_compiled_layers_give_the_same_vectors(model: Path, tokens: TokenBatch) -> None:
    plain, compiled = (
        encode_packed(opened(model, "bfloat16", engine=engine), tokens, 16384) for engine in ("torch", "torch-compile")
    )
    assert compare(plain.vectors_ND, compiled.vectors_ND).min_cosine >= 0.999


def test_memory_that_runs_out_lowers_the_budget_and_loses_no_row(model: Path, tokens: TokenBatch) -> None:
    encoder = opened(model, "bfloat16")
    expected = encode_packed(encoder, tokens, 4096)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 96 * 2**20) / total)
    try:
        found = encode_packed(encoder, tokens, 1 << 20)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert found.safe_batch_tokens is not None
    assert (found.failures, bool(found.done_N.all())) == ({}, True)
    assert compare(expected.vectors_ND, found.vectors_ND).min_cosine >= 0.999
