"""A few rows of random tokens, on which two ways of computing a model are compared."""

import numpy as np

from pipeline.records import TokenBatch

LONGEST = 48
"""Tokens of the longest row: enough to tell two ways apart, and no load for a device that is short of memory."""


def probe_of(max_tokens: int, vocabulary: int, prompt_tokens: int = 0) -> TokenBatch:
    """Return a batch of four rows of random tokens, of very different lengths, the same for the same model.

    Args:
        prompt_tokens: that stand before every text and are left out of the pooling; each row has more.
    """
    longest = min(max_tokens, max(LONGEST, prompt_tokens + 8))
    lengths_B = np.minimum(
        [longest, max(longest // 2, prompt_tokens + 5), prompt_tokens + 3, prompt_tokens + 1], longest
    )
    offsets_B1 = np.concatenate(([0], np.cumsum(lengths_B)))
    ids_T = np.random.default_rng(1).integers(0, vocabulary, int(offsets_B1[-1]), np.int32)
    return TokenBatch(ids_T, offsets_B1)
