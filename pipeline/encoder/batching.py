"""Which rows share a forward pass: packed by exact token length under a budget, longest first."""

import numpy as np
from numpy.typing import NDArray

PASS_TOKENS = 64
"""What one more forward pass costs, in padded tokens: its fixed price on two CPU cores is that of about so many."""


FILL_TOKENS = 256
"""Rows that lie end to end are filled up to a multiple of so many tokens: then the shapes of passes repeat."""


def pack_flat(
    lengths_N: NDArray[np.int64], batch_tokens: int, fill_tokens: int = FILL_TOKENS
) -> list[NDArray[np.int64]]:
    """Group rows into batches whose tokens, end to end and filled up, stay within a budget.

    Args:
        lengths_N: tokens per row, at least 1.
        batch_tokens: budget per batch: the sum of its rows, the filling included unless one row alone needs it all.
        fill_tokens: batches are filled up to a multiple of so many; 1 = not at all.

    Returns:
        Row indices per batch, each (B,), longest rows first; together they hold every row once.

    Raises:
        ValueError: one row alone exceeds the budget; the message names the row.
    """
    order_N = np.argsort(-lengths_N, kind="stable")
    _check_longest(lengths_N, order_N, batch_tokens)
    room = max(batch_tokens - batch_tokens % fill_tokens, int(lengths_N.max(initial=0)))
    ends_N = np.cumsum(lengths_N[order_N])
    batches, start = [], 0
    while start < len(order_N):
        before = int(ends_N[start - 1]) if start else 0
        end = int(np.searchsorted(ends_N, before + room, side="right"))
        batches.append(order_N[start:end])
        start = end
    return batches


def filled(tokens: int, fill_tokens: int = FILL_TOKENS) -> int:
    """Return how many tokens a pass computes of so many that lie end to end."""
    return -(-tokens // fill_tokens) * fill_tokens


def computed_tokens(lengths_B: NDArray[np.int64], is_flat: bool, fill_tokens: int = FILL_TOKENS) -> int:
    """Return how many tokens a pass over these rows computes: padded to the longest, or laid end to end."""
    return filled(int(lengths_B.sum()), fill_tokens) if is_flat else len(lengths_B) * int(lengths_B.max())


def pack_by_tokens(
    lengths_N: NDArray[np.int64], batch_tokens: int, pass_tokens: int = PASS_TOKENS
) -> list[NDArray[np.int64]]:
    """Group rows into batches whose padded size stays within a token budget, at little total cost.

    Rows are sorted by length; where one batch ends is chosen so that padding plus the fixed price of the passes is
    least (a shortest path over the distinct lengths, so its own price does not grow with the rows; cuts between
    equal lengths are not weighed).
    The longest rows come first: a device that is too small fails at once and not after hours.

    Args:
        lengths_N: tokens per row, at least 1.
        batch_tokens: budget per batch after padding: rows times longest row.
        pass_tokens: fixed price of a batch, in padded tokens; higher means fewer, larger batches.

    Returns:
        Row indices per batch, each (B,), longest rows first; together they hold every row once.

    Raises:
        ValueError: one row alone exceeds the budget; the message names the row.
    """
    order_N = np.argsort(-lengths_N, kind="stable")
    if not len(order_N):
        return []
    _check_longest(lengths_N, order_N, batch_tokens)
    longest_U, rows_U = (values[::-1] for values in np.unique(lengths_N, return_counts=True))
    batches = []
    for first, end, longest in _cut_points(longest_U, rows_U, batch_tokens, pass_tokens):
        rows = batch_tokens // longest
        batches += [order_N[start : min(start + rows, end)] for start in range(first, end, rows)]
    return batches


def _check_longest(lengths_N: NDArray[np.int64], order_N: NDArray[np.int64], batch_tokens: int) -> None:
    if len(order_N) and lengths_N[order_N[0]] > batch_tokens:
        row = int(order_N[0])
        raise ValueError(f"row {row} has {lengths_N[row]} tokens, more than the {batch_tokens} of a batch")


def _cut_points(
    longest_U: NDArray[np.int64], rows_U: NDArray[np.int64], batch_tokens: int, pass_tokens: int
) -> list[tuple[int, int, int]]:
    """Return the cheapest cut of the sorted rows as (first row, end row, longest length) per stretch.

    Args:
        longest_U: the distinct lengths, descending.
        rows_U: how many rows have each.
    """
    first_row_U1 = np.concatenate(([0], np.cumsum(rows_U)))
    groups = len(longest_U)
    cost_U1, next_U = np.zeros(groups + 1), np.zeros(groups, np.int64)
    for group in range(groups - 1, -1, -1):
        longest = int(longest_U[group])
        rows = first_row_U1[group + 1 :] - first_row_U1[group]
        passes = -(-rows // (batch_tokens // longest))
        total = rows * longest + passes * pass_tokens + cost_U1[group + 1 :]
        best = int(np.argmin(total))
        cost_U1[group], next_U[group] = total[best], group + 1 + best
    cuts, group = [], 0
    while group < groups:
        end = int(next_U[group])
        cuts.append((int(first_row_U1[group]), int(first_row_U1[end]), int(longest_U[group])))
        group = end
    return cuts


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
