"""The contract of an encoder, the loop that feeds it, and what becomes of its vectors."""

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrow import fixed_size_binary, fixed_size_list
from pipeline.encoder.batching import pack_by_tokens
from pipeline.records import TokenBatch
from pipeline.schemas import embedding_fields


class Encoder(Protocol):
    """Holds a model on a device; takes token ids, gives vectors."""

    @property
    def dimension(self) -> int:
        """Numbers per vector, as the model's last module gives them."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest row it takes, special tokens included."""
        ...

    @property
    def device(self) -> str:
        """Where it runs, for the report: `cpu`, or the name of the GPU."""
        ...

    @property
    def emulates(self) -> bool:
        """Whether the device imitates the number type it was asked to compute in, slowly."""
        ...

    def encode(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Return the vectors of one batch, (B, D), in its order, not yet truncated or normalised."""
        ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """The vectors of many texts, and what they cost."""

    vectors_ND: NDArray[np.float32]
    padded_tokens: int
    batches: int
    seconds: float


def encode_packed(encoder: Encoder, tokens: TokenBatch, batch_tokens: int) -> Encoded:
    """Encode N texts in batches of near-equal length and give the vectors back in the order of the texts.

    Args:
        tokens: N rows, each at most `encoder.max_tokens` long.
        batch_tokens: padded tokens per forward pass.
    """
    started = time.perf_counter()
    vectors_ND = np.empty((len(tokens), encoder.dimension), np.float32)
    lengths_N = tokens.lengths_N
    batches = pack_by_tokens(lengths_N, batch_tokens)
    for rows_B in batches:
        vectors_ND[rows_B] = encoder.encode(take(tokens, rows_B))
    padded = sum(len(rows_B) * int(lengths_N[rows_B[0]]) for rows_B in batches)
    return Encoded(vectors_ND, padded, len(batches), time.perf_counter() - started)


def take(tokens: TokenBatch, rows_B: NDArray[np.int64]) -> TokenBatch:
    """Return some rows of a TokenBatch, in the order asked for, without a loop over them."""
    lengths_B = tokens.lengths_N[rows_B]
    offsets_B1 = np.concatenate(([0], np.cumsum(lengths_B)))
    shift_T = np.repeat(tokens.offsets_N1[rows_B] - offsets_B1[:-1], lengths_B)
    return TokenBatch(tokens.token_ids_T[np.arange(offsets_B1[-1]) + shift_T], offsets_B1)


def finish(vectors_ND: NDArray[np.float32], dimensions: int | None, normalize: bool) -> NDArray[np.float32]:
    """Truncate to the first `dimensions` numbers and scale to length 1; a zero vector stays zero."""
    vectors = vectors_ND if dimensions is None else vectors_ND[:, :dimensions]
    if not normalize:
        return np.ascontiguousarray(vectors)
    norms_N1 = np.linalg.norm(vectors.astype(np.float32, copy=False), axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms_N1, np.float32(1e-12)), np.float32)


def to_stored(vectors_ND: NDArray[np.float32], stored: str) -> list[pa.Array]:
    """Return the vector column(s) of a Part, in the order of `schemas.embedding_fields`.

    int8 is symmetric per row: `vector ≈ embedding · scale`, with scale = largest magnitude / 127. binary keeps one
    bit per dimension, 1 where the number is positive, the first dimension in the highest bit.

    Args:
        vectors_ND: finite.
        stored: float32 | float16 | int8 | binary.
    """
    fields = embedding_fields(vectors_ND.shape[1], stored)
    if stored == "binary":
        return [fixed_size_binary(np.packbits(vectors_ND > 0, axis=1))]
    if stored == "int8":
        scale_N = np.abs(vectors_ND).max(axis=1, initial=0.0).astype(np.float32) / np.float32(127)
        codes_ND = np.rint(vectors_ND / np.where(scale_N > 0, scale_N, 1)[:, None]).astype(np.int8)
        return [fixed_size_list(codes_ND, fields[0].type), pa.array(scale_N, pa.float32())]
    values_ND = vectors_ND.astype(np.float16 if stored == "float16" else np.float32, copy=False)
    return [fixed_size_list(np.ascontiguousarray(values_ND), fields[0].type)]
