"""Deterministic vectors without a model, to test and measure everything around the encoder."""

import numpy as np
from numpy.typing import NDArray

from pipeline.records import TokenBatch

TABLES, ROWS = 4, 1024
"""A vector is the sum of one row of each table: 2^40 different sums."""

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio: spreads neighbouring integers over all bits."""


class HashingEncoder:
    """Gives each sequence of token ids its own vector, the same in every process and every batch.

    Args:
        dimension: numbers per vector.
    """

    device = "cpu"
    emulates = False
    max_tokens = 1 << 20

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        generator = np.random.Generator(np.random.PCG64(20261123))
        self.tables_KRD = generator.standard_normal((TABLES, ROWS, dimension), np.float32)

    def encode(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Return the vectors, (B, D) float32."""
        hashes_B = self._hash_rows(batch)
        vectors_BD = np.zeros((len(batch), self.dimension), np.float32)
        for table, rows_RD in enumerate(self.tables_KRD):
            vectors_BD += rows_RD[((hashes_B >> np.uint64(10 * table + 14)) % np.uint64(ROWS)).astype(np.int64)]
        return vectors_BD

    def close(self) -> None:
        """Nothing is held."""

    @staticmethod
    def _hash_rows(batch: TokenBatch) -> NDArray[np.uint64]:
        lengths_B = batch.lengths_N
        position_T = np.arange(len(batch.token_ids_T)) - np.repeat(batch.offsets_N1[:-1], lengths_B)
        with np.errstate(over="ignore"):
            mixed_T = (batch.token_ids_T.astype(np.uint64) + np.uint64(1)) * MULTIPLIER
            mixed_T ^= mixed_T >> np.uint64(29)
            mixed_T *= (position_T.astype(np.uint64) * np.uint64(2) + np.uint64(1)) * MULTIPLIER
            mixed_T ^= mixed_T >> np.uint64(32)
            sums_B = np.add.reduceat(mixed_T, batch.offsets_N1[:-1]) if len(batch) else np.zeros(0, np.uint64)
            return np.asarray((sums_B ^ (sums_B >> np.uint64(31))) * MULTIPLIER, np.uint64)
