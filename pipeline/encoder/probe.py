"""What shows whether a model gives the same vectors when it is computed another way: rows of random tokens, a bound."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.canary import compare
from pipeline.records import TokenBatch

SHORT = 48
"""Tokens of the longest of the short rows: enough to tell two ways apart, no load for a device short of memory."""

LONG = 1024
"""Tokens of the long row at most."""

PASS_FLOPS = 3.5e9
"""Of the long row on a CPU: under 0.1 s of two cores in float32. Of m3e-small it then has 136 tokens, of a BERT-large
there is none: its short rows cost as much already."""

SAME_VECTORS = {"float32": 0.999999, "bfloat16": 0.999, "float16": 0.9999}
"""Least cosine by `recipe.compute`; below it a way to compute a model differs by more than rounding. Rounding was seen
to cost, on m3e-small, all-MiniLM-L6-v2 and random weights of up to 24 layers of 1,024: in float32 1e-11 with every
engine, in bfloat16 2e-4 beside the same type and 3e-4 beside float32, in float16 2e-6 (2026-11)."""


def probe_of(max_tokens: int, vocabulary: int, prompt_tokens: int = 0, longest: int = 0) -> list[TokenBatch]:
    """Return batches of rows of random tokens with next to no padding, the same for the same model.

    Args:
        prompt_tokens: that stand before every text and are left out of the pooling; each row has more.
        longest: tokens that the long row may have.

    Returns:
        A long row alone, where it is longer than the others; a short row; two shorter ones of one length with one that
        is hardly there.
    """
    short = min(max_tokens, max(SHORT, prompt_tokens + 8))
    middle, least = min(short, max(short // 2, prompt_tokens + 5)), min(short, prompt_tokens + 1)
    long = min(max_tokens, longest, LONG)
    random = np.random.default_rng(1)
    lengths_by_batch = [*([[long]] if long > short else []), [short], [middle, middle, least]]
    return [_random_rows(lengths, vocabulary, random) for lengths in lengths_by_batch]


def _random_rows(lengths: list[int], vocabulary: int, random: np.random.Generator) -> TokenBatch:
    offsets_B1 = np.concatenate(([0], np.cumsum(lengths)))
    return TokenBatch(random.integers(0, vocabulary, int(offsets_B1[-1]), np.int32), offsets_B1)


def affordable_tokens(weights: int) -> int:
    """Return how many tokens a CPU computes in a moment.

    Args:
        weights: numbers in the matrices that every token is multiplied by.
    """
    return int(PASS_FLOPS / max(1, 2 * weights))


@dataclass(frozen=True, slots=True)
class Reference:
    """What a model gives of a probe before anything of it is exchanged."""

    rows: TokenBatch
    """All B rows of the probe."""
    vectors_BD: NDArray[np.float32]
    least_cosine: float

    def why_not(self, encode: Callable[[TokenBatch], NDArray[np.float32]]) -> str:
        """Return what speaks against another way to compute all rows in one batch: nothing, if it gives the vectors."""
        cosine = compare(encode(self.rows), self.vectors_BD).min_cosine
        is_same = cosine >= self.least_cosine
        return "" if is_same else f"other vectors than the model (cosine {cosine:.6f}, at least {self.least_cosine})"


def reference_of(
    probe: Sequence[TokenBatch], encode: Callable[[TokenBatch], NDArray[np.float32]], compute: str
) -> Reference:
    """Compute a probe batch by batch.

    Args:
        compute: float32 | bfloat16 | float16; decides how near other vectors must be.
    """
    lengths_B = np.concatenate([batch.lengths_N for batch in probe])
    ids_T = np.concatenate([batch.token_ids_T for batch in probe])
    rows = TokenBatch(ids_T, np.concatenate(([0], np.cumsum(lengths_B))))
    return Reference(rows, np.concatenate([encode(batch) for batch in probe]), SAME_VECTORS[compute])
