"""From a string column to flat token ids, exactly as the model's own tokenizer gives them; without torch."""

import itertools
import os
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrow import utf8_view
from pipeline.records import TokenBatch

TEXTS_PER_CALL = 1024
"""Texts given to the tokenizer at once: enough to amortise the call, few enough to bound its objects."""


class Tokenizer(Protocol):
    """Turns texts into the ids a model takes, special tokens included."""

    def __call__(self, texts: pa.Array, max_tokens: int) -> tuple[TokenBatch, NDArray[np.bool_]]:
        """Tokenise and truncate.

        Args:
            texts: N strings, no nulls, prompt included.
            max_tokens: tokens kept per text, special tokens included.

        Returns:
            The ids, and which of the N texts were cut off.
        """
        ...


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """All a worker needs to tokenise for a model; small, plain, sent to every worker once."""

    max_tokens: int
    """Per text, special tokens included: the recipe's limit or the model's, whichever is lower."""
    prompt: str
    """Put before every text; may be empty."""
    tokenizer_json: str | None
    """The fast tokenizer as the model's own modules configured it; None = one token per UTF-8 byte."""


def load_tokenizer(spec: TokenizerSpec) -> Tokenizer:
    """Return the tokenizer a spec describes."""
    return ByteTokenizer() if spec.tokenizer_json is None else FastTokenizer(spec.tokenizer_json)


class FastTokenizer:
    """A HuggingFace `tokenizers` pipeline, on one core per worker: Ray decides how many there are."""

    def __init__(self, tokenizer_json: str) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from tokenizers import Tokenizer as Backend

        self.backend = Backend.from_str(tokenizer_json)
        self.backend.no_padding()

    def __call__(self, texts: pa.Array, max_tokens: int) -> tuple[TokenBatch, NDArray[np.bool_]]:
        self.backend.enable_truncation(max_tokens)
        ids: list[NDArray[np.int32]] = []
        lengths: list[int] = []
        truncated: list[bool] = []
        for start in range(0, len(texts), TEXTS_PER_CALL):
            encodings = self.backend.encode_batch_fast(texts[start : start + TEXTS_PER_CALL].to_pylist())
            rows = [encoding.ids for encoding in encodings]
            lengths += map(len, rows)
            truncated += [bool(encoding.overflowing) for encoding in encodings]
            ids.append(np.fromiter(itertools.chain.from_iterable(rows), np.int32))
        return (
            TokenBatch(_concatenated(ids), np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))),
            np.array(truncated, np.bool_),
        )


class ByteTokenizer:
    """One token per UTF-8 byte after a leading 256; needs no model and no Python per row."""

    def __call__(self, texts: pa.Array, max_tokens: int) -> tuple[TokenBatch, NDArray[np.bool_]]:
        content, starts_N1 = utf8_view(texts)
        byte_lengths_N = np.diff(starts_N1)
        lengths_N = np.minimum(byte_lengths_N, max_tokens - 1) + 1
        offsets_N1 = np.concatenate(([0], np.cumsum(lengths_N)))
        token_ids_T = np.full(int(offsets_N1[-1]), 256, np.int32)
        is_byte_T = np.ones(len(token_ids_T), np.bool_)
        is_byte_T[offsets_N1[:-1]] = False
        bytes_ = np.frombuffer(content, np.uint8)
        if (byte_lengths_N > max_tokens - 1).any():
            position = np.arange(len(bytes_)) - np.repeat(starts_N1[:-1], byte_lengths_N)
            bytes_ = bytes_[position < max_tokens - 1]
        token_ids_T[is_byte_T] = bytes_
        return TokenBatch(token_ids_T, offsets_N1.astype(np.int64)), byte_lengths_N > max_tokens - 1


def with_prompt(texts: pa.Array, prompt: str) -> pa.Array:
    """Return the texts as they are sent to the model."""
    if not prompt:
        return texts
    import pyarrow.compute as pc

    return pc.binary_join_element_wise(pa.scalar(prompt), texts, "")


def _concatenated(pieces: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate(pieces) if pieces else np.empty(0, np.int32)
