"""The loop that feeds an encoder: packed batches in, vectors in the order of the texts out, faults kept small."""

import heapq
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.batching import PASS_TOKENS, computed_tokens, pack_by_tokens, pack_flat
from pipeline.encoder.memory import OUT_OF_MEMORY, fault_of, is_out_of_memory
from pipeline.encoder.protocol import Caching, Encoder, Overlapping
from pipeline.errors import SickDevice
from pipeline.records import TokenBatch

logger = logging.getLogger(__name__)

LEAST_PASS_TOKENS = 256
"""Few texts are shared out evenly between the lanes of an encoder, but not in passes smaller than this."""

EVENED = 8
"""Batches per lane up to which other sizes are tried: of more the last ones do not count for much."""

SLACKS = (1.0, 1.02, 1.05, 1.1, 1.2, 1.4)
"""Those sizes, over that with which all lanes would have equally many full batches if rows could be cut."""


@dataclass(slots=True)
class Encoded:
    """The vectors of many texts, and what they cost."""

    vectors_ND: NDArray[np.float32]
    """Rows without a vector hold NaN."""
    done_N: NDArray[np.bool_]
    """Rows that have a finite vector."""
    failures: dict[int, str] = field(default_factory=dict)
    """Row → name of the error that its forward pass raises even alone, see `fault_of`."""
    safe_batch_tokens: int | None = None
    """Largest budget that is still to be used, once the device has run out of memory."""
    padded_tokens: int = 0
    """Tokens that the passes have computed, those that stand for nothing included."""
    batches: int = 0
    splits: int = 0
    """Batches that failed and were tried again in smaller ones."""
    seconds: float = 0.0


def encode_packed(
    encoder: Encoder, tokens: TokenBatch, batch_tokens: int, witness: TokenBatch | None = None
) -> Encoded:
    """Encode N texts in batches of near-equal length and give the vectors back in the order of the texts.

    A batch that fails is halved, down to the single row, so that one bad text costs some passes and no other text.
    Where the device runs out of memory, all that is left is packed anew under half of the budget, and a row that is
    alone already is tried once more with nothing beside it and no memory kept for later. No text is put aside on the
    word of a device that fails on a good one.

    Args:
        tokens: N rows, each at most `encoder.max_tokens` long.
        batch_tokens: tokens computed per forward pass.
        witness: one text that this process has encoded before; None = the first and last token of the first text,
            which with most tokenizers are the special tokens of an empty one.

    Raises:
        SickDevice: the witness fails too: it is the model or its device, not the texts.
    """
    started = time.perf_counter()
    result = Encoded(np.empty((len(tokens), encoder.dimension), np.float32), np.zeros(len(tokens), np.bool_))
    lengths_N = tokens.lengths_N
    ways = _ways_of(encoder)
    begin, most, budget = ways.begin, ways.most, ways.budget(batch_tokens)
    pending = ways.passes(lengths_N, budget)[::-1]
    under_way: deque[tuple[NDArray[np.int64], Callable[[], NDArray[np.float32]]]] = deque()
    is_cache_full, is_fault_to_come, tried_alone = False, False, set[int]()
    while pending or under_way:
        while pending and len(under_way) < most:
            rows_B = pending.pop()
            try:
                if is_cache_full:  # and nothing is under way
                    is_cache_full = False
                    ways.free_cache()
                under_way.append((rows_B, begin(take(tokens, rows_B))))
            except Exception as error:  # noqa: BLE001  it is told below, when the batches before it are done
                # without its frames, which hold what the pass had computed
                under_way.append((rows_B, partial(_raise, error.with_traceback(None))))
                most, is_fault_to_come = 1, True
        rows_B, vectors_of = under_way.popleft()
        try:
            vectors_BD = vectors_of()
        except Exception as error:  # noqa: BLE001  whatever a model raises must cost one row at most
            is_fault_to_come = False
            name = fault_of(error.with_traceback(None))  # whose frames hold what the pass had computed
            if name == OUT_OF_MEMORY:
                most, is_cache_full = 1, True
                if len(rows_B) == 1 and int(rows_B[0]) not in tried_alone:
                    tried_alone.add(int(rows_B[0]))
                    pending.append(rows_B)
                    continue
            if len(rows_B) == 1 and not result.failures:
                check_health(encoder, _witness(tokens, result, witness), name)
            pending = _after_fault(name, rows_B, pending, lengths_N, budget, result, ways)
            continue
        finite_B = np.isfinite(vectors_BD).all(axis=1)
        if not finite_B.all() and len(rows_B) > 1:
            pending += [np.array([row]) for row in rows_B[~finite_B]]
        result.vectors_ND[rows_B] = vectors_BD
        result.done_N[rows_B] = finite_B
        result.padded_tokens += ways.computed(lengths_N[rows_B])
        result.batches += 1
        if not is_cache_full and not is_fault_to_come:
            most = min(most + 1, ways.most)  # after a fault one alone, then one more each time
    result.vectors_ND[~result.done_N] = np.nan
    if not result.done_N.all():
        how = ", ".join(sorted(set(result.failures.values()))) or "NaN or infinite vectors"
        check_health(encoder, _witness(tokens, result, witness), how)
    result.seconds = time.perf_counter() - started
    return result


def tokens_of_a_pass(batch_tokens: int, pass_tokens: int | None) -> int:
    """Return the budget of a pass: `batch_tokens`, or what the encoder's `pass_tokens` leaves of it.

    A single row that is longer is a pass of its own all the same.
    """
    return min(batch_tokens, pass_tokens or batch_tokens)


def passes_of(encoder: Encoder, lengths_N: NDArray[np.int64], batch_tokens: int) -> list[NDArray[np.int64]]:
    """Return the rows of each pass that `encode_packed` makes where nothing fails, each (B,), longest rows first."""
    ways = _ways_of(encoder)
    return ways.passes(lengths_N, ways.budget(batch_tokens))


def lanes_of(encoder: Encoder) -> int:
    """Return how many passes an encoder computes side by side."""
    return max(1, _ways_of(encoder).lanes)


def computed_by(encoder: Encoder, lengths_B: NDArray[np.int64]) -> int:
    """Return how many tokens an encoder computes in a pass over these rows, those that stand for nothing included."""
    return _ways_of(encoder).computed(lengths_B)


@dataclass(frozen=True, slots=True)
class _Ways:
    """How an encoder is fed."""

    begin: Callable[[TokenBatch], Callable[[], NDArray[np.float32]]]
    lanes: int = 0
    """Batches that it computes at once; 0 = it begins with one when it is asked for the vectors."""
    is_flat: bool = False
    fill_tokens: int = 1
    pass_tokens: int | None = None
    free_cache: Callable[[], None] = lambda: None

    @property
    def most(self) -> int:
        """Batches that have begun at once: all lanes compute while the vectors of the batch before are put away."""
        return self.lanes + 1

    def budget(self, batch_tokens: int) -> int:
        """Return the most tokens of a batch."""
        return tokens_of_a_pass(batch_tokens, self.pass_tokens)

    def passes(self, lengths_N: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
        """Return the rows of each batch under a budget, which a single row may exceed.

        A few batches are smaller, where full ones would leave lanes idle.
        """
        longest = int(lengths_N.max(initial=1))
        most = max(budget, longest)
        full = self.packed(lengths_N, most)
        if self.lanes < 2 or len(full) > EVENED * self.lanes:
            return full
        each = int(lengths_N.sum()) / self.lanes / -(-max(1, len(full)) // self.lanes)
        sizes = dict.fromkeys(max(LEAST_PASS_TOKENS, longest, math.ceil(each * slack)) for slack in SLACKS)
        even = (self.packed(lengths_N, size) for size in sizes if size < most)
        return min([full, *even], key=partial(self.span, lengths_N))

    def span(self, lengths_N: NDArray[np.int64], batches: Sequence[NDArray[np.int64]]) -> int:
        """Return the tokens of the lane that has the most to compute, the fixed price of its batches included."""
        of_lanes = [0] * self.lanes
        for rows_B in batches:
            heapq.heapreplace(of_lanes, of_lanes[0] + self.computed(lengths_N[rows_B]) + PASS_TOKENS)
        return max(of_lanes)

    def packed(self, lengths_N: NDArray[np.int64], batch_tokens: int) -> list[NDArray[np.int64]]:
        if self.is_flat:
            return pack_flat(lengths_N, batch_tokens, self.fill_tokens)
        return pack_by_tokens(lengths_N, batch_tokens)

    def computed(self, lengths_B: NDArray[np.int64]) -> int:
        return computed_tokens(lengths_B, self.is_flat, self.fill_tokens)


def _ways_of(encoder: Encoder) -> _Ways:
    ways = _Ways(partial(partial, encoder.encode))
    if isinstance(encoder, Overlapping):
        ways = _Ways(encoder.begin, encoder.lanes, encoder.is_flat, encoder.fill_tokens, encoder.pass_tokens)
    return replace(ways, free_cache=encoder.free_cache) if isinstance(encoder, Caching) else ways


def _raise(error: Exception) -> NoReturn:
    raise error


def bearable_batch_tokens(encoder: Encoder, batch_tokens: int, longest: int) -> int:
    """Return a budget, halved until a batch of the longest rows, which takes the most memory of all, passes under it.

    Whatever else is wrong with the device is left to real texts.

    Args:
        batch_tokens: budget to begin with.
        longest: tokens of the longest row of a run; no budget is smaller.
    """
    ways = _ways_of(encoder)
    while batch_tokens > longest:
        rows = batch_tokens // longest
        batch = TokenBatch(np.zeros(rows * longest, np.int32), np.arange(rows + 1, dtype=np.int64) * longest)
        try:
            ways.begin(batch)()
            break
        except Exception as error:  # noqa: BLE001  whatever a model raises
            if not is_out_of_memory(error):
                break
        ways.free_cache()
        batch_tokens = max(longest, batch_tokens // 2)
    return batch_tokens


def encode_or_zero(
    encoder: Encoder, tokens: TokenBatch, batch_tokens: int, witness: TokenBatch | None = None
) -> Encoded:
    """Encode N texts like `encode_packed`; rows without tokens get a zero vector and never reach the encoder."""
    rows_M = np.flatnonzero(tokens.lengths_N)
    if len(rows_M) == len(tokens):
        return encode_packed(encoder, tokens, batch_tokens, witness)
    encoded = encode_packed(encoder, take(tokens, rows_M), batch_tokens, witness)
    vectors_ND = np.zeros((len(tokens), encoder.dimension), np.float32)
    done_N = np.ones(len(tokens), np.bool_)
    vectors_ND[rows_M], done_N[rows_M] = encoded.vectors_ND, encoded.done_N
    failures = {int(rows_M[row]): error for row, error in encoded.failures.items()}
    return replace(encoded, vectors_ND=vectors_ND, done_N=done_N, failures=failures)


def _witness(tokens: TokenBatch, result: Encoded, witness: TokenBatch | None) -> TokenBatch:
    """Return a text that is known to be good: one of this call, else of an earlier one, else nearly an empty one."""
    passed = np.flatnonzero(result.done_N)
    if len(passed):
        return take(tokens, passed[-1:])
    return witness or TokenBatch(tokens.token_ids_T[[0, int(tokens.offsets_N1[1]) - 1]], np.array([0, 2]))


def check_health(encoder: Encoder, witness: TokenBatch, fault: str) -> None:
    """Encode a good text after a fault, with no memory kept for later: if that fails too, it is not the texts.

    Raises:
        SickDevice: the device does not recover.
    """
    try:
        _ways_of(encoder).free_cache()
        how = "" if np.isfinite(encoder.encode(witness)).all() else "NaN or infinite vectors"
    except Exception as error:  # noqa: BLE001  what a sick device raises is anybody's guess
        how = type(error).__name__
    if how:
        raise SickDevice(
            f"after {fault} the device ({encoder.device}) fails on a good text too ({how}): the model or the device is "
            "sick; nothing of this Block was written"
        )


def _after_fault(
    error: str,
    rows_B: NDArray[np.int64],
    pending: list[NDArray[np.int64]],
    lengths_N: NDArray[np.int64],
    batch_tokens: int,
    result: Encoded,
    ways: _Ways,
) -> list[NDArray[np.int64]]:
    """Return what is to be tried now that a batch has failed; the last one comes first."""
    if len(rows_B) == 1:
        result.failures[int(rows_B[0])] = error
        return pending
    result.splits += 1
    if error == OUT_OF_MEMORY:
        left, safe = np.concatenate([rows_B, *pending]), result.safe_batch_tokens or batch_tokens
        budget = min(ways.computed(lengths_N[rows_B]), safe) // 2
        if computed_tokens(lengths_N[rows_B], ways.is_flat, 1) > safe:  # it had begun when the budget was halved
            budget = safe
        result.safe_batch_tokens = budget = max(int(lengths_N[left].max()), budget)
        return [left[batch] for batch in ways.packed(lengths_N[left], budget)][::-1]
    half = len(rows_B) // 2
    return [*pending, rows_B[half:], rows_B[:half]]


def take(tokens: TokenBatch, rows_B: NDArray[np.int64]) -> TokenBatch:
    """Return some rows of a TokenBatch, in the order asked for, without a loop over them."""
    lengths_B = tokens.lengths_N[rows_B]
    offsets_B1 = np.concatenate(([0], np.cumsum(lengths_B)))
    shift_T = np.repeat(tokens.offsets_N1[rows_B] - offsets_B1[:-1], lengths_B)
    return TokenBatch(tokens.token_ids_T[np.arange(offsets_B1[-1]) + shift_T], offsets_B1)


def only(tokens: TokenBatch, is_kept_N: NDArray[np.bool_]) -> TokenBatch:
    """Return as many rows, without the tokens of those that are not kept."""
    lengths_N = tokens.lengths_N
    token_ids_T = tokens.token_ids_T[np.repeat(is_kept_N, lengths_N)]
    return TokenBatch(token_ids_T, np.concatenate(([0], np.cumsum(lengths_N * is_kept_N))))
