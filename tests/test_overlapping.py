"""An encoder whose device computes while the host goes on: the same vectors, and faults stay with their rows."""

import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.encoder.batching import FILL_TOKENS
from pipeline.encoder.hashing import HashingEncoder
from pipeline.encoder.packed import encode_packed
from pipeline.encoder.transfer import Transfer
from pipeline.records import TokenBatch
from tests.test_faults_of_an_encoder import BAD, ROWS, SICK, SOME_BAD, OutOfMemoryError, tokens_of


class Device(HashingEncoder):
    """Begins with batches at once and ends them when asked; runs out of memory, and fails, as told."""

    attention = "told in the report"

    def __init__(self, is_flat: bool = False, memory_tokens: int = 1 << 30, fails_at: str = "") -> None:
        super().__init__(8)
        self.is_flat, self.memory_tokens, self.fails_at = is_flat, memory_tokens, fails_at
        self.fill_tokens, self.pass_tokens, self.lanes = FILL_TOKENS, None, 1
        self.under_way, self.most_under_way, self.out_of_memory = 0, 0, 0

    def begin(self, batch: TokenBatch) -> Callable[[], NDArray[np.float32]]:
        if len(batch.token_ids_T) > self.memory_tokens:
            self.out_of_memory += 1
            raise OutOfMemoryError("too large")
        is_bad = bool((batch.token_ids_T == BAD).any())
        if is_bad and self.fails_at == "begin":
            raise RuntimeError("launch failure")
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)

        def wait() -> NDArray[np.float32]:
            self.under_way -= 1
            if is_bad and self.fails_at == "end":
                raise RuntimeError("device-side assert")
            return super(Device, self).encode(batch)

        return wait

    def encode(self, batch: TokenBatch) -> NDArray[np.float32]:
        return self.begin(batch)()


@pytest.mark.parametrize("is_flat", [False, True])
def test_the_next_batch_is_begun_before_the_vectors_of_the_last_are_taken(is_flat: bool) -> None:
    device = Device(is_flat)
    encoded = encode_packed(device, tokens_of(ROWS), 32)
    np.testing.assert_array_equal(encoded.vectors_ND, HashingEncoder(8).encode(tokens_of(ROWS)))
    assert (device.most_under_way, device.under_way) == (2, 0)


@pytest.mark.parametrize("is_flat", [False, True])
@pytest.mark.parametrize("fails_at", ["begin", "end"])
def test_a_fault_costs_only_the_rows_that_have_it_whenever_it_shows(fails_at: str, is_flat: bool) -> None:
    encoded = encode_packed(Device(is_flat, fails_at=fails_at), tokens_of(SOME_BAD), 64)
    assert encoded.failures == dict.fromkeys(SICK, "RuntimeError")
    good = [row for row in range(40) if row not in SICK]
    np.testing.assert_array_equal(encoded.vectors_ND[good], HashingEncoder(8).encode(tokens_of(SOME_BAD))[good])


@pytest.mark.parametrize("is_flat", [False, True])
def test_out_of_memory_halves_the_budget_once_and_not_once_per_batch_under_way(is_flat: bool) -> None:
    device = Device(is_flat, memory_tokens=600)
    rows = [[row % 5 + 10] * 50 for row in range(200)]
    encoded = encode_packed(device, tokens_of(rows), 1024)
    assert (device.out_of_memory, encoded.failures, len(np.flatnonzero(encoded.done_N))) == (1, {}, 200)
    assert encoded.safe_batch_tokens in (500, 512)  # half of what was tried: 20 rows of 50, or 1,024


class Crowded(Device):
    """Computes three batches side by side, and notices that they are too large when they are at it."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = 3

    def begin(self, batch: TokenBatch) -> Callable[[], NDArray[np.float32]]:
        wait = super().begin(batch)

        def wait_for_memory() -> NDArray[np.float32]:
            vectors_BD = wait()
            if len(batch.token_ids_T) > 600:
                raise MemoryError
            return vectors_BD

        return wait_for_memory


def test_batches_that_were_under_way_when_the_budget_was_halved_halve_it_no_further() -> None:
    encoded = encode_packed(Crowded(), tokens_of([[row % 5 + 10] * 50 for row in range(200)]), 1024)
    assert (encoded.failures, bool(encoded.done_N.all())) == ({}, True)
    assert encoded.safe_batch_tokens == 425  # half of what was tried: 17 rows of 50, 4 batches for each lane


def test_a_long_row_that_waits_for_its_second_attempt_is_not_packed_under_the_budget_of_short_ones() -> None:
    device = Hoarding()
    encoded = encode_packed(device, tokens_of([[1] * 100, [2] * 100, *([[3] * 20] * 20)]), 100)
    assert (encoded.failures, bool(encoded.done_N.all())) == ({}, True)


class Computed:
    """What a pass holds while it runs."""


class Hoarding(Device):
    """Keeps the memory of its passes until it is told to give it back; has 150 tokens of it."""

    def __init__(self) -> None:
        super().__init__()
        self.kept_tokens, self.under_way_when_freed = 0, list[int]()
        self.passes = list["weakref.ref[Computed]"]()
        """What was computed in passes that failed."""

    def begin(self, batch: TokenBatch) -> Callable[[], NDArray[np.float32]]:
        assert not any(one() for one in self.passes), "a failed pass holds memory still"
        if self.kept_tokens + len(batch.token_ids_T) > 150:
            computed = Computed()
            self.passes.append(weakref.ref(computed))
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        self.kept_tokens += len(batch.token_ids_T)
        return super().begin(batch)

    def free_cache(self) -> None:
        self.under_way_when_freed.append(self.under_way)
        self.kept_tokens = 0


def test_a_row_that_runs_out_of_memory_is_tried_once_more_alone_with_the_cache_given_back() -> None:
    device, tokens = Hoarding(), tokens_of([[number] * 100 for number in range(4)])
    encoded = encode_packed(device, tokens, 100)
    assert (encoded.failures, encoded.splits, encoded.safe_batch_tokens) == ({}, 0, None)
    np.testing.assert_array_equal(encoded.vectors_ND, HashingEncoder(8).encode(tokens))
    assert device.under_way_when_freed == [0, 0, 0]


def test_a_row_that_is_too_large_for_an_empty_device_is_put_aside_under_the_name_of_its_fault() -> None:
    device = Hoarding()
    encoded = encode_packed(device, tokens_of([[5] * 200, [6] * 100, [7] * 100]), 200)
    assert encoded.failures == {0: "OutOfMemoryError"}
    assert encoded.done_N.tolist() == [False, True, True]


def test_tokens_that_are_filled_up_count_as_computed() -> None:
    assert encode_packed(Device(is_flat=True), tokens_of([[1], [2, 3]]), 1024).padded_tokens == 256
    assert encode_packed(Device(is_flat=False), tokens_of([[1], [2, 3]]), 1024).padded_tokens in (3, 4)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")),
    ],
)
def test_what_goes_to_a_device_and_comes_back_is_the_same_whatever_is_under_way(device: str) -> None:
    transfer = Transfer(torch.device(device))
    arrays = [np.random.default_rng(number).standard_normal((50, 64), np.float32) for number in range(20)]
    waiting = [transfer.to_host(transfer.to_device({"x": array})["x"] * 2) for array in arrays]
    for wait, array in zip(waiting, arrays, strict=True):
        np.testing.assert_array_equal(wait(), array * 2)
