"""The models that are measured: m3e-small, and a BERT-large shape with a Dense head and random weights."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.demo.fetch import fetch_model
from pipeline.config import JobConfig, Output, Recipe, Source
from pipeline.encoder.describe import ModelDescription
from pipeline.execution.calibrating import calibrated
from pipeline.execution.planning.calibrated import with_calibration
from pipeline.execution.planning.model import ModelReference, describe, open_encoder, resolve_model
from pipeline.fingerprint import fingerprint
from pipeline.storage.filesystem import Store
from pipeline.storage.folder_cache import cache_root
from pipeline.text.tokenizer import Tokenizer, TokenizerSpec, load_tokenizer
from tests.benchmarks import corpora

DENSE_DIMENSIONS = 1792


@dataclass(frozen=True)
class Model:
    """A BERT in a folder, and what its arithmetic costs."""

    name: str
    folder: Path

    @cached_property
    def reference(self) -> ModelReference:
        return resolve_model(Recipe(model=str(self.folder)))

    @cached_property
    def quantised(self) -> ModelReference:
        """The model with an int8 calibration on reviews, made once and kept where models are cached."""
        place = cache_root() / "benchmarks" / fingerprint(["int8-1", self.reference.identity])
        place.mkdir(parents=True, exist_ok=True)
        texts = corpora.reviews(17_410)
        pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), place / "reviews.parquet")
        config = JobConfig(
            source=Source(uri=(str(place / "reviews.parquet"),)),
            recipe=Recipe(model=str(self.folder), compute="int8"),
            output=Output(uri=str(place / "out")),
        )
        return with_calibration(Store(config.output.uri), calibrated(config).recipe, self.reference, None)

    @cached_property
    def compute(self) -> str:
        """The fastest number type that all engines share: bfloat16, or float32 where this CPU only imitates that."""
        encoder = open_encoder(self.reference, "bfloat16", "", 1, "torch")
        return "float32" if encoder.emulates else "bfloat16"

    @cached_property
    def description(self) -> ModelDescription:
        return describe(self.reference)

    @cached_property
    def tokenize(self) -> Tokenizer:
        return load_tokenizer(TokenizerSpec(self.description.max_tokens, "", self.description.tokenizer_json))

    @cached_property
    def _sizes(self) -> dict[str, int]:
        found = next(path for path in self.folder.rglob("config.json") if b"num_hidden_layers" in path.read_bytes())
        sizes: dict[str, int] = orjson.loads(found.read_bytes())
        return sizes

    @property
    def gemms(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the matrix products of one layer, each once per token."""
        hidden, inner = self._sizes["hidden_size"], self._sizes["intermediate_size"]
        return [(hidden, hidden)] * 4 + [(hidden, inner), (inner, hidden)]

    def flops(self, lengths_N: NDArray[np.int64]) -> float:
        """Return the multiplications and additions of texts of these lengths: what is useful, no padding.

        Per token and layer twice the weights, and for attention 4 × length × hidden; pooling and what follows it
        is once per text and left out.
        """
        weights = sum(inputs * outputs for inputs, outputs in self.gemms)
        lengths = lengths_N.astype(np.float64)
        per_layer = 2 * weights * lengths.sum() + 4 * self._sizes["hidden_size"] * (lengths**2).sum()
        return float(self._sizes["num_hidden_layers"] * per_layer)


def m3e_small() -> Model:
    """Return the real model: 4 layers × 512."""
    return Model("m3e-small", fetch_model())


def bert_large(folder: Path) -> Model:
    """Return a model of 24 layers × 1024 with a Dense head to 1792, made once, with the tokenizer of m3e-small."""
    target = folder / "models" / "bert-large-dense"
    if not (target / "modules.json").is_file():
        with _staged(target) as staging:
            _make_bert_large(staging)
    return Model("BERT-large shape", target)


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    staging = target.with_suffix(".unfinished")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    yield staging
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)


def _make_bert_large(folder: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules.transformer import Transformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(fetch_model())
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=512,
    )
    torch.manual_seed(20261124)
    body = folder / "body"
    BertModel(config).save_pretrained(body)
    tokenizer.save_pretrained(body)
    transformer = Transformer(str(body))
    modules = [transformer, Pooling(1024, "mean"), Dense(1024, DENSE_DIMENSIONS), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    shutil.rmtree(body)
