"""What bench-gpu compares: SentenceTransformer.encode, and our loop from texts to vectors with its tokenising ahead."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.encoder.batching import computed_tokens
from pipeline.encoder.packed import encode_packed
from pipeline.encoder.sentence_transformer import SentenceTransformerEncoder
from pipeline.encoder.vectors import finish
from pipeline.text.tokenizer import FastTokenizer
from tests.benchmarks.rounds import Encode

BLOCK_TEXTS = 16384
"""As `output.rows_per_part` is by default."""

Opened = Callable[[], AbstractContextManager[Encode]]


class Counting:
    """What opens a variant; with it, of its last call, the tokens that passes have computed and those of texts."""

    def __init__(self, opens: Callable[[dict[str, int]], AbstractContextManager[Encode]]) -> None:
        self._opens = opens
        self.counted = {"computed": 0, "real": 0}

    def __call__(self) -> AbstractContextManager[Encode]:
        return self._opens(self.counted)


def theirs(folder: Path, device: str, precision: str, batch_texts: int) -> Opened:
    """Return SentenceTransformer.encode on the whole list, which it sorts; flattened where flash-attn is installed."""

    @contextmanager
    def opened(counted: dict[str, int]) -> Iterator[Encode]:
        model = _loaded(folder, device, precision)

        def encode(texts: list[str]) -> NDArray[np.float32]:
            _count(counted, texts, batch_texts)
            vectors = model.encode(
                texts,
                batch_size=batch_texts,
                convert_to_tensor=True,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
            return cast("NDArray[np.float32]", vectors.float().cpu().numpy())

        yield encode

    return Counting(opened)


def _loaded(folder: Path, device: str, precision: str) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    is_flash = device == "cuda" and precision == "bfloat16" and find_spec("flash_attn")
    how = {"dtype": torch.bfloat16, "attn_implementation": "flash_attention_2"} if is_flash else {}
    model = SentenceTransformer(str(folder), device=device, local_files_only=True, model_kwargs=how)
    if precision == "bfloat16":
        model.bfloat16()
    torch.set_float32_matmul_precision("highest")
    return model.eval()


def _count(counted: dict[str, int], texts: list[str], batch_texts: int) -> None:
    """Count what batches of texts sorted by their characters come to: words of a text are its tokens, but for two."""
    lengths_N = np.array([len(text.split()) + 2 for text in texts])[np.argsort([-len(text) for text in texts])]
    starts = range(0, len(texts), batch_texts)
    counted["computed"] = sum(computed_tokens(lengths_N[at : at + batch_texts], is_flat=False) for at in starts)
    counted["real"] = int(lengths_N.sum())


def ours(folder: Path, precision: str, batch_tokens: int, engine: str, attention: str | None) -> Opened:
    """Return our loop: Blocks of texts, tokenised by a thread while the Block before is encoded."""

    @contextmanager
    def opened(counted: dict[str, int]) -> Iterator[Encode]:
        encoder = SentenceTransformerEncoder(str(folder), precision, engine=engine, attention=attention)
        tokenize = FastTokenizer(encoder._modules[0].tokenizer.backend_tokenizer.to_str())
        with ThreadPoolExecutor(1) as ahead:

            def encode(texts: list[str]) -> NDArray[np.float32]:
                blocks = [texts[start : start + BLOCK_TEXTS] for start in range(0, len(texts), BLOCK_TEXTS)]
                vectors = []
                counted["real"] = counted["computed"] = 0
                for tokens, _ in ahead.map(lambda block: tokenize(pa.array(block), encoder.max_tokens), blocks):
                    encoded = encode_packed(encoder, tokens, batch_tokens)
                    counted["computed"] += encoded.padded_tokens
                    counted["real"] += len(tokens.token_ids_T)
                    vectors.append(finish(encoded.vectors_ND, None, normalize=True))
                return np.concatenate(vectors)

            yield encode
        encoder.close()

    return Counting(opened)
