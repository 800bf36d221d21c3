"""torch's compiler: the same vectors, with rows padded and end to end, or an error that says why not."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.encoder import compiled
from pipeline.encoder.flat import PADDED, REFERENCE
from pipeline.encoder.packed import encode_packed, take
from pipeline.encoder.sentence_transformer import SentenceTransformerEncoder
from pipeline.errors import EncoderError
from tests.benchmarks.random_model import Shape, make_model
from tests.test_batching import tokens_of, unit

TINY = Shape(layers=2, hidden=32, heads=2, inner=64, dimensions=16, vocabulary=100, max_tokens=32)
TOKENS = tokens_of([1, 2, 30, 5, 17, 8, 31, 29, 3, *range(16, 32), *range(4, 12)], vocabulary=1100)
TOKENS.token_ids_T[:] %= TINY.vocabulary


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny", TINY)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch's compiler needs a C++ compiler for a CPU; g++ is not here")
def test_compiled_layers_give_the_vectors_of_the_model_and_new_lengths_are_not_compiled_anew(tiny: Path) -> None:
    plain = SentenceTransformerEncoder(str(tiny), "float32", threads=1, attention=PADDED)
    fast = SentenceTransformerEncoder(str(tiny), "float32", threads=1, engine="torch-compile", attention=REFERENCE)
    for rows in (2, 5, 9, 20):
        encode_packed(fast, take(TOKENS, np.arange(rows)), 512)
    compilations = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    vectors = [encode_packed(encoder, TOKENS, 320).vectors_ND for encoder in (plain, fast)]
    assert np.abs(unit(vectors[0]) - unit(vectors[1])).max() <= 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compilations > 0


def test_a_model_that_cannot_be_compiled_is_told_with_the_config_key(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.encoder.sentence_transformer.compile_layers", lambda _: 1 / 0)
    with pytest.raises(EncoderError, match=r"runtime\.engine: torch-compile cannot compile this model here: division"):
        SentenceTransformerEncoder(str(tiny), "float32", threads=1, engine="torch-compile")


def test_only_what_repeats_is_compiled(tiny: Path) -> None:
    encoder = SentenceTransformerEncoder(str(tiny), "float32", threads=1)
    assert compiled.compile_layers(encoder._modules[0]) == TINY.layers
    assert compiled.compile_layers(torch.nn.Linear(2, 2)) == 0


def test_float32_is_never_computed_in_tf32_whatever_the_process_has_set(tiny: Path) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        SentenceTransformerEncoder(str(tiny), "float32", threads=1)
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)
