"""A model that fails, gives NaN or runs out of memory costs the rows that are bad, and no other."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.encoder.hashing import HashingEncoder
from pipeline.encoder.packed import encode_packed
from pipeline.errors import SickDevice
from pipeline.records import TokenBatch

BAD = 7
"""A token that makes a forward pass fail."""


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


class Frail(HashingEncoder):
    """Fails as told, and counts how often it was asked."""

    def __init__(self, raises: bool = False, nan: bool = False, memory_tokens: int = 1 << 30) -> None:
        super().__init__(8)
        self.raises, self.nan, self.memory_tokens = raises, nan, memory_tokens
        self.calls = 0

    def encode(self, batch: TokenBatch) -> NDArray[np.float32]:
        self.calls += 1
        if len(batch) * int(batch.lengths_N.max()) > self.memory_tokens:
            raise OutOfMemoryError("too large")
        if self.raises and (batch.token_ids_T == BAD).any():
            raise RuntimeError("device-side assert")
        vectors_BD = super().encode(batch)
        if self.nan:
            vectors_BD[[BAD in row for row in np.split(batch.token_ids_T, batch.offsets_N1[1:-1])]] = np.nan
        return vectors_BD


def tokens_of(rows: list[list[int]]) -> TokenBatch:
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
    return TokenBatch(np.concatenate([np.array(row, np.int32) for row in rows]), offsets.astype(np.int64))


ROWS = [[row % 5 + 10] * (row % 9 + 1) for row in range(40)]
SICK = {3, 17, 38}
SOME_BAD = [[BAD] * len(row) if number in SICK else row for number, row in enumerate(ROWS)]


def test_a_forward_that_raises_costs_only_the_rows_that_make_it_raise() -> None:
    encoder, healthy = Frail(raises=True), HashingEncoder(8)
    result = encode_packed(encoder, tokens_of(SOME_BAD), 64)
    assert result.failures == dict.fromkeys(SICK, "RuntimeError")
    assert encoder.calls > result.batches  # it did fail, and was split
    good = [row for row in range(40) if row not in SICK]
    expected = encode_packed(healthy, tokens_of(SOME_BAD), 64).vectors_ND
    np.testing.assert_array_equal(result.vectors_ND[good], expected[good])
    assert np.isnan(result.vectors_ND[sorted(SICK)]).all()


def test_nan_stays_with_the_row_that_has_it() -> None:
    result = encode_packed(Frail(nan=True), tokens_of(SOME_BAD), 64)
    assert result.failures == {}
    assert set(np.flatnonzero(~np.isfinite(result.vectors_ND).all(axis=1))) == SICK


def test_out_of_memory_lowers_the_budget_and_loses_nothing() -> None:
    result = encode_packed(Frail(memory_tokens=20), tokens_of(ROWS), 64)
    assert result.failures == {}
    assert result.safe_batch_tokens is not None
    assert 10 <= result.safe_batch_tokens <= 20
    np.testing.assert_array_equal(result.vectors_ND, encode_packed(HashingEncoder(8), tokens_of(ROWS), 64).vectors_ND)


def test_a_row_too_large_for_the_device_fails_alone() -> None:
    result = encode_packed(Frail(memory_tokens=8), tokens_of(ROWS), 64)
    too_long = {row for row, ids in enumerate(ROWS) if len(ids) > 8}
    assert result.failures == dict.fromkeys(too_long, "OutOfMemoryError")
    assert np.isfinite(np.delete(result.vectors_ND, sorted(too_long), axis=0)).all()


@pytest.mark.parametrize("encoder", [Frail(raises=True), Frail(nan=True)], ids=["raises", "nan"])
@pytest.mark.parametrize("rows", [1, 20])
def test_an_encoder_that_fails_on_everything_is_called_sick(encoder: Frail, rows: int) -> None:
    with pytest.raises(SickDevice, match="is sick"):
        encode_packed(encoder, tokens_of([[BAD]] * rows), 64)


@pytest.mark.parametrize("encoder", [Frail(raises=True), Frail(nan=True)], ids=["raises", "nan"])
def test_if_all_texts_of_a_block_are_bad_a_healthy_encoder_says_so(encoder: Frail) -> None:
    result = encode_packed(encoder, tokens_of([[BAD]] * 20), 64, witness=tokens_of([[1, 2]]))
    assert not result.done_N.any()


class Dying(HashingEncoder):
    """A device that breaks for good after some passes."""

    def __init__(self, passes: int, nan: bool) -> None:
        super().__init__(8)
        self.passes, self.nan = passes, nan

    def encode(self, batch: TokenBatch) -> NDArray[np.float32]:
        self.passes -= 1
        if self.passes < 0 and not self.nan:
            raise RuntimeError("unspecified launch failure")
        return super().encode(batch) * (np.float32(np.nan) if self.passes < 0 else np.float32(1))


@pytest.mark.parametrize("nan", [False, True], ids=["raises", "nan"])
def test_a_device_that_breaks_in_the_middle_of_a_block_puts_no_text_aside(nan: bool) -> None:
    with pytest.raises(SickDevice, match="is sick"):
        encode_packed(Dying(2, nan), tokens_of(ROWS), 32)
