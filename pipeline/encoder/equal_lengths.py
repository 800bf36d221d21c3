"""Attention and sizes of passes on a CPU: rows of one length together, in pieces that stay in its cache."""

import torch

SCORE_BYTES = 1 << 19
"""Of attention scores per thread: what its cache holds beside keys and values (2026-11, Zen 4 with 1 MiB of L2)."""

TOKENS_PER_THREAD, MOST_TOKENS = 1024, 4096
"""In float32; twice as many per thread, but not in all, where numbers take two bytes."""


def pass_tokens_of(threads: int, is_short: bool) -> int:
    """Return the tokens that a forward pass should have on so many threads.

    More gain nothing: between 512 and 4,096 tokens matrix products have the same pace in float32; bfloat16 gains 5 %
    from 1,024 to 2,048. From 32 MiB on (16,384 tokens × 512 float32) glibc fetches each array from the kernel and gives
    it back: additions took 18 times as long, products with a wide output 1.2 times (2026-11, m3e-small, one thread).

    Args:
        is_short: whether it computes in numbers of two bytes or one.
    """
    return min(TOKENS_PER_THREAD * threads * (2 if is_short else 1), MOST_TOKENS)


def attend_equal_lengths(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts_B1: torch.Tensor, longest: int, scale: float
) -> torch.Tensor:
    """Let the tokens of every row attend to those of the same row; neighbours of one length share the products.

    In bfloat16 scores and weights are matrix products of oneDNN, which torch's fused attention does without on a CPU.

    Args:
        query, key, value: (T, heads, D).
        starts_B1: where each row begins; (B + 1,).
        longest: tokens of the longest row; not needed.
        scale: of the scores.

    Returns:
        The attended values, (T, heads, D).
    """
    attend = _attend_in_pieces if query.dtype is torch.bfloat16 else _attend_fused
    attended = torch.empty_like(value, memory_format=torch.contiguous_format)
    lengths_U, rows_U = torch.unique_consecutive(starts_B1.diff(), return_counts=True)
    start = int(starts_B1[0])
    for length, rows in zip(lengths_U.tolist(), rows_U.tolist(), strict=True):
        for first in range(0, rows, per := _rows_at_once(length, query.shape[1])):
            count = min(per, rows - first)
            at = slice(start + first * length, start + (first + count) * length)
            q, k, v = (x[at].unflatten(0, (count, length)).transpose(1, 2) for x in (query, key, value))
            attended[at] = attend(q, k, v, scale).transpose(1, 2).flatten(0, 1)
        start += rows * length
    attended[start:] = 0
    return attended


def _rows_at_once(length: int, heads: int) -> int:
    threads: int = torch.get_num_threads()
    return max(1, SCORE_BYTES * threads // (2 * heads * length * length))


def _attend_in_pieces(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the attention of rows (B, heads, L, D) as two products and a softmax."""
    weights = torch.softmax(torch.matmul(query * scale, key.transpose(-1, -2)), dim=-1)
    return torch.matmul(weights, value)


def _attend_fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)
