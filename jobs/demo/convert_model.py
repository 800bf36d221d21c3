"""Turn m3e-small as published, with pickled weights, into a sentence-transformers folder of safetensors."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.sentence_transformer.modules.pooling import Pooling

MAX_TOKENS = 512


def convert(raw: Path, built: Path) -> None:
    """Replace the weights of the published files in `raw` by safetensors and save the model to `built`."""
    pickled = raw / "pytorch_model.bin"
    # weights_only: a pickle that wants to run code is an error, never run.
    weights = torch.load(pickled, map_location="cpu", weights_only=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()},
        raw / "model.safetensors",
        {"format": "pt"},
    )
    pickled.unlink()
    transformer = Transformer(str(raw), max_seq_length=MAX_TOKENS)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    model = SentenceTransformer(modules=[transformer, pooling], device="cpu")
    model.save(str(built), create_model_card=False)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
