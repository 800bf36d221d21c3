"""Mixes of lengths that packing might get wrong: each text has the vector that `SentenceTransformer.encode` gives."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from pipeline.encoder.packed import encode_packed
from pipeline.encoder.sentence_transformer import SentenceTransformerEncoder
from pipeline.encoder.vectors import finish
from tests.benchmarks.models import Model
from tests.minilm import fetch_minilm
from tests.test_vectors import cosines

SHORT = [str(number) for number in range(1200)]
GIANT = "a very long text 很长的一段话 " * 400

BATCH_TEXTS = 8
"""Of the reference, which pads all of a batch to the giant in it."""

MIXES = {
    "all short": SHORT[:100],
    "all long": [f"{number} {GIANT}" for number in range(3)],
    "one giant among a thousand short": [*SHORT[:1111], GIANT, *SHORT[1111:]],
}


@dataclass(frozen=True)
class Both:
    """A model as sentence-transformers encodes with it, and as we do."""

    theirs: Callable[[list[str]], NDArray[Any]]
    ours: Callable[[list[str]], NDArray[Any]]


@pytest.fixture(scope="module", params=["m3e-small", "all-MiniLM-L6-v2"])
def both(request: pytest.FixtureRequest, m3e_small: Path) -> Both:
    folder = m3e_small if request.param == "m3e-small" else fetch_minilm()
    model = Model(request.param, folder)
    encoder = SentenceTransformerEncoder(str(folder), "float32", threads=1)
    reference = SentenceTransformer(str(folder), device="cpu", local_files_only=True)

    def ours(texts: list[str]) -> NDArray[Any]:
        tokens, _ = model.tokenize(pa.array(texts), model.description.max_tokens)
        return finish(encode_packed(encoder, tokens, 16384).vectors_ND, None, normalize=True)

    def theirs(texts: list[str]) -> NDArray[Any]:
        return np.asarray(
            reference.encode(texts, batch_size=BATCH_TEXTS, normalize_embeddings=True, show_progress_bar=False)
        )

    return Both(theirs, ours)


@pytest.mark.parametrize("texts", MIXES.values(), ids=MIXES.keys())
def test_vectors_are_those_of_sentence_transformers_whatever_lengths_meet(both: Both, texts: list[str]) -> None:
    found_ND, expected_ND = both.ours(texts), both.theirs(texts)
    assert found_ND.shape == expected_ND.shape
    assert cosines(found_ND, expected_ND).min() >= 0.999999
