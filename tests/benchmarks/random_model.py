"""A BERT with random weights and a tokenizer of invented words, both made in place: nothing is fetched."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a BERT whose vectors go through a Dense head."""

    layers: int = 24
    hidden: int = 1024
    heads: int = 16
    inner: int = 4096
    dimensions: int = 1792
    vocabulary: int = 21_128
    max_tokens: int = 512

    def flops(self, lengths_N: NDArray[np.int64]) -> float:
        """Return the multiplications and additions of texts of these lengths: what is useful, no padding.

        Per token and layer twice the weights of the matrix products (4 × hidden² + 2 × hidden × inner), and for
        attention 4 × length × hidden; pooling and head come once per text and are left out.
        """
        weights = 4 * self.hidden**2 + 2 * self.hidden * self.inner
        lengths = lengths_N.astype(np.float64)
        return float(self.layers * (2 * weights * lengths.sum() + 4 * self.hidden * (lengths**2).sum()))


def word(number: int) -> str:
    """Return a word of the tokenizer's vocabulary that is one token."""
    return f"w{number}"


def texts_of(lengths_N: NDArray[np.int64], shape: Shape, seed: int = 0) -> list[str]:
    """Return texts of random words that have so many tokens each, [CLS] and [SEP] included (at least 3)."""
    words = np.array([word(number) for number in range(shape.vocabulary - len(SPECIAL))])
    random = np.random.default_rng(seed)
    return [" ".join(words[random.integers(0, len(words), max(1, length - 2))]) for length in lengths_N.tolist()]


def make_model(folder: Path, shape: Shape, config_class: str = "BertConfig") -> Path:
    """Save a sentence-transformers model: Transformer → mean pooling → Dense → Normalize.

    Args:
        folder: where it is to be; left alone if it is there.
        config_class: of transformers; any whose fields are named as those of BERT.
    """
    if (folder / "modules.json").is_file():
        return folder
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules.transformer import Transformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

    transformers.utils.logging.disable_progress_bar()
    staging = folder.with_suffix(".unfinished")
    shutil.rmtree(staging, ignore_errors=True)
    body = staging / "body"
    config = getattr(transformers, config_class)(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.inner,
        max_position_embeddings=shape.max_tokens + 2,
        pad_token_id=0,
    )
    torch.manual_seed(20261124)
    transformers.AutoModel.from_config(config).save_pretrained(body)
    _tokenizer(shape).save_pretrained(body)
    pooling = Pooling(shape.hidden, "mean")
    modules = [Transformer(str(body)), pooling, Dense(shape.hidden, shape.dimensions), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(staging), create_model_card=False)
    shutil.rmtree(body)
    staging.rename(folder)
    return folder


def _tokenizer(shape: Shape) -> Any:
    import tokenizers
    import transformers
    from tokenizers import models, pre_tokenizers, processors

    names = [*SPECIAL, *(word(number) for number in range(shape.vocabulary - len(SPECIAL)))]
    backend = tokenizers.Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(name, names.index(name)) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=shape.max_tokens,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
