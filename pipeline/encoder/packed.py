"""The loop that feeds an encoder: packed batches in, vectors in the order of the texts out, faults kept small."""

import logging
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.batching import pack_by_tokens
from pipeline.encoder.protocol import Encoder
from pipeline.errors import EncoderError
from pipeline.records import TokenBatch

logger = logging.getLogger(__name__)

OUT_OF_MEMORY = "OutOfMemoryError"
"""Name of torch's error; a smaller batch may pass where this one did not."""

FEW_ROWS = 8
"""Of so few rows all may be bad; if all of more fail, it is the encoder that is sick."""


@dataclass(slots=True)
class Encoded:
    """The vectors of many texts, and what they cost."""

    vectors_ND: NDArray[np.float32]
    """Rows without a vector hold NaN."""
    done_N: NDArray[np.bool_]
    """Rows that have a finite vector."""
    failures: dict[int, str] = field(default_factory=dict)
    """Row → name of the error that its forward pass raises even alone."""
    safe_batch_tokens: int | None = None
    """Largest budget that is still to be used, once the device has run out of memory."""
    padded_tokens: int = 0
    batches: int = 0
    seconds: float = 0.0


def encode_packed(encoder: Encoder, tokens: TokenBatch, batch_tokens: int) -> Encoded:
    """Encode N texts in batches of near-equal length and give the vectors back in the order of the texts.

    A batch that fails is halved, down to the single row, so that one bad text costs some passes and no other text.
    Where the device runs out of memory, all that is left is packed anew under half of the budget.

    Args:
        tokens: N rows, each at most `encoder.max_tokens` long.
        batch_tokens: padded tokens per forward pass.

    Raises:
        EncoderError: every row failed: the model or its device is sick, not the texts.
    """
    started = time.perf_counter()
    result = Encoded(np.empty((len(tokens), encoder.dimension), np.float32), np.zeros(len(tokens), np.bool_))
    lengths_N = tokens.lengths_N
    pending = pack_by_tokens(lengths_N, max(batch_tokens, int(lengths_N.max(initial=1))))[::-1]
    while pending:
        rows_B = pending.pop()
        try:
            vectors_BD = encoder.encode(take(tokens, rows_B))
        except Exception as error:  # noqa: BLE001  whatever a model raises must cost one row at most
            if len(rows_B) == 1:
                _check_health(encoder, tokens, result, type(error).__name__)
            pending = _after_fault(type(error).__name__, rows_B, pending, lengths_N, batch_tokens, result)
            continue
        finite_B = np.isfinite(vectors_BD).all(axis=1)
        if not finite_B.all() and len(rows_B) > 1:
            pending += [np.array([row]) for row in rows_B[~finite_B]]
        result.vectors_ND[rows_B] = vectors_BD
        result.done_N[rows_B] = finite_B
        result.padded_tokens += len(rows_B) * int(lengths_N[rows_B].max())
        result.batches += 1
    result.vectors_ND[~result.done_N] = np.nan
    if len(tokens) > FEW_ROWS and not result.done_N.any():
        how = ", ".join(sorted(set(result.failures.values()))) or "NaN or infinite vectors"
        raise EncoderError(
            f"all {len(tokens)} texts of a Block failed ({how}): the model or its device ({encoder.device}) is sick; "
            "nothing of this Block was written"
        )
    result.seconds = time.perf_counter() - started
    return result


def _check_health(encoder: Encoder, tokens: TokenBatch, result: Encoded, error: str) -> None:
    """Encode a text again that passed before: if it fails now, it is not the texts that are bad.

    Raises:
        EncoderError: the device does not recover; no text may be put aside on its word.
    """
    passed = np.flatnonzero(result.done_N)
    if not len(passed):
        return
    try:
        encoder.encode(take(tokens, passed[:1]))
    except Exception as again:
        raise EncoderError(
            f"after a {error} the device ({encoder.device}) fails on texts it has encoded before "
            f"({type(again).__name__}); it is sick, nothing of this Block was written"
        ) from again


def _after_fault(
    error: str,
    rows_B: NDArray[np.int64],
    pending: list[NDArray[np.int64]],
    lengths_N: NDArray[np.int64],
    batch_tokens: int,
    result: Encoded,
) -> list[NDArray[np.int64]]:
    """Return what is to be tried now that a batch has failed; the last one comes first."""
    if len(rows_B) == 1:
        result.failures[int(rows_B[0])] = error
        return pending
    if error == OUT_OF_MEMORY:
        longest = int(lengths_N[rows_B].max())
        budget = max(longest, min(len(rows_B) * longest, result.safe_batch_tokens or batch_tokens) // 2)
        result.safe_batch_tokens = budget
        left = np.concatenate([rows_B, *pending])
        return [left[batch] for batch in pack_by_tokens(lengths_N[left], budget)][::-1]
    half = len(rows_B) // 2
    return [*pending, rows_B[half:], rows_B[:half]]


def take(tokens: TokenBatch, rows_B: NDArray[np.int64]) -> TokenBatch:
    """Return some rows of a TokenBatch, in the order asked for, without a loop over them."""
    lengths_B = tokens.lengths_N[rows_B]
    offsets_B1 = np.concatenate(([0], np.cumsum(lengths_B)))
    shift_T = np.repeat(tokens.offsets_N1[rows_B] - offsets_B1[:-1], lengths_B)
    return TokenBatch(tokens.token_ids_T[np.arange(offsets_B1[-1]) + shift_T], offsets_B1)
