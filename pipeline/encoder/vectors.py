"""From what a model gives to what is stored: truncated, normalised, and in the number type of the recipe."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrow import fixed_size_binary, fixed_size_list
from pipeline.schemas import embedding_fields


def finish(vectors_ND: NDArray[np.float32], dimensions: int | None, normalize: bool) -> NDArray[np.float32]:
    """Truncate to the first `dimensions` numbers and scale to length 1; a zero vector stays zero."""
    vectors = vectors_ND if dimensions is None else vectors_ND[:, :dimensions]
    if not normalize:
        return np.ascontiguousarray(vectors)
    norms_N1 = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]  # without a temporary as large as they
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
