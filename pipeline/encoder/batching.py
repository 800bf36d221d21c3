"""Which rows share a forward pass: packed by exact token length under a budget, longest first."""

import numpy as np
from numpy.typing import NDArray


def pack_by_tokens(lengths_N: NDArray[np.int64], batch_tokens: int) -> list[NDArray[np.int64]]:
    """Group rows into batches whose padded size stays within a token budget.

    Rows are sorted by length, so that a batch holds near-equal lengths and little padding; the longest come
    first, so that a device that is too small fails at once and not after hours.

    Args:
        lengths_N: tokens per row, at least 1.
        batch_tokens: budget per batch after padding: rows times longest row.

    Returns:
        Row indices per batch, each (B,), longest rows first; together they hold every row once.

    Raises:
        ValueError: one row alone exceeds the budget; the message names the row.
    """
    order_N = np.argsort(-lengths_N, kind="stable")
    if len(order_N) and lengths_N[order_N[0]] > batch_tokens:
        row = int(order_N[0])
        raise ValueError(f"row {row} has {lengths_N[row]} tokens, more than the {batch_tokens} of a batch")
    batches, start = [], 0
    while start < len(order_N):
        rows = batch_tokens // int(lengths_N[order_N[start]])
        batches.append(order_N[start : start + rows])
        start += rows
    return batches


def pad(
    token_ids_T: NDArray[np.int32], offsets_N1: NDArray[np.int64], rows_B: NDArray[np.int64], pad_token_id: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lay the rows of a batch side by side, padded on the right to the longest.

    Args:
        token_ids_T: ids of all rows, flat.
        offsets_N1: where each row begins in it.
        rows_B: which rows, in which order.
        pad_token_id: what stands where a row has ended.

    Returns:
        Token ids and attention mask (1 = token, 0 = padding), both (B, T) int64.
    """
    starts_B = offsets_N1[rows_B]
    lengths_B = offsets_N1[rows_B + 1] - starts_B
    positions_T = np.arange(lengths_B.max(initial=0))
    mask_BT = positions_T < lengths_B[:, None]
    source_BT = np.minimum(starts_B[:, None] + positions_T, len(token_ids_T) - 1)
    return np.where(mask_BT, token_ids_T[source_BT], pad_token_id).astype(np.int64), mask_BT.astype(np.int64)
