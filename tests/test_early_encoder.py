"""A model that is loaded while Ray starts: who joins it has its vectors, and dies with it."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import JobConfig, Runtime
from pipeline.encoder.describe import hashing_description
from pipeline.encoder.hashing import HashingEncoder
from pipeline.encoder.lanes import Lanes
from pipeline.encoder.packed import encode_packed
from pipeline.encoder.protocol import Encoder, Overlapping
from pipeline.errors import EncoderError, Stopped
from pipeline.execution import early_encoder, joined_encoder
from pipeline.execution.early_encoder import EarlyEncoder, loading_early, threads_of_only_encoder
from pipeline.execution.joined_encoder import joined
from pipeline.execution.planning.model import ModelReference
from pipeline.execution.planning.plan import Plan
from pipeline.records import TokenBatch
from tests.test_batching import tokens_of

TOKENS = tokens_of([3, 9, 40])
DEADLY, BAD = tokens_of([5, 5, 5, 5]), tokens_of([7])


class Frail(HashingEncoder):
    """Runs out of memory on a batch of one row, as torch on a CPU puts it, and ends its process over one of four."""

    def encode(self, batch: TokenBatch) -> NDArray[np.float32]:
        if len(batch) == len(BAD):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.")
        if len(batch) == len(DEADLY):
            os._exit(1)
        return super().encode(batch)


class EndToEnd(HashingEncoder):
    """Takes rows without padding, 32 tokens a pass."""

    is_flat, fill_tokens, pass_tokens, lanes = True, 1, 32, 1
    attention = "none: there is none"

    def begin(self, batch: TokenBatch) -> Callable[[], NDArray[np.float32]]:
        return partial(self.encode, batch)


class SideBySide(EndToEnd):
    """Computes a batch only together with another one, but for one of a single row."""

    lanes = 2

    def __init__(self, dimension: int) -> None:
        super().__init__(dimension)
        self._lanes, self._meeting = Lanes(2), threading.Barrier(2)

    def begin(self, batch: TokenBatch) -> Callable[[], NDArray[np.float32]]:
        return self._lanes.begin(self._met, batch)

    def _met(self, batch: TokenBatch) -> NDArray[np.float32]:
        if len(batch) > 1:
            self._meeting.wait(60)
        return self.encode(batch)


def failing() -> Encoder:
    raise EncoderError("no such model")


@contextmanager
def listening(load: Callable[[], Encoder]) -> Iterator[EarlyEncoder]:
    early = EarlyEncoder(load, 1)
    while not Path(early.address).exists() and early._process.poll() is None:
        time.sleep(0.02)
    try:
        yield early
    finally:
        early.close()


def test_who_joins_packs_as_the_model_wants_it() -> None:
    tokens = tokens_of([3, 9, 20, 20, 31])
    plain = encode_packed(EndToEnd(16), tokens, 1000)
    with listening(partial(EndToEnd, 16)) as early:
        encoder = joined(early.address)
        assert isinstance(encoder, Overlapping)
        packed = encode_packed(encoder, tokens, 1000)
    assert (packed.padded_tokens, packed.batches) == (plain.padded_tokens, plain.batches) == (83, 3)
    np.testing.assert_array_equal(packed.vectors_ND, plain.vectors_ND)


def test_who_joins_has_the_vectors_and_the_facts_of_the_model() -> None:
    plain = HashingEncoder(16)
    with listening(partial(HashingEncoder, 16)) as early:
        encoder = joined(early.address)
        assert encoder is not None
        facts = (encoder.dimension, encoder.max_tokens, encoder.device, encoder.emulates)
        assert facts == (16, plain.max_tokens, plain.device, plain.emulates)
        assert np.array_equal(encoder.encode(TOKENS), plain.encode(TOKENS))
        first, second = encoder.begin(TOKENS), encoder.begin(BAD)
        assert [len(first()), len(second())] == [len(TOKENS), len(BAD)]
        assert joined(early.address) is None, "there is one model, for one encoder"
        encoder.close()


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a process that ends to be replaced say so instead."""

    def end() -> None:
        raise SystemExit("replaced")

    monkeypatch.setattr(joined_encoder, "replace_process", end)


@pytest.mark.usefixtures("replaced")
def test_want_of_memory_is_told_as_such_and_a_death_ends_whoever_has_joined() -> None:
    with listening(partial(Frail, 16)) as early:
        encoder = joined(early.address)
        assert encoder is not None
        with pytest.raises(RuntimeError) as told:
            encoder.encode(BAD)
        assert type(told.value).__name__ == "OutOfMemoryError"
        assert encoder.encode(TOKENS).shape == (3, 16)
        with pytest.raises(SystemExit, match="replaced"):
            encoder.encode(DEADLY)


class Unreadable:
    """A connection whose answer is too large for the memory that is left."""

    def send(self, batch: TokenBatch) -> None: ...

    def recv(self) -> object:
        raise MemoryError


@pytest.mark.usefixtures("replaced")
def test_an_answer_that_cannot_be_read_ends_whoever_has_joined_since_the_next_would_be_taken_for_it() -> None:
    with listening(partial(HashingEncoder, 16)) as early:
        encoder = joined(early.address)
        assert encoder is not None
        connection, encoder._connection = encoder._connection, cast("Connection", Unreadable())
        with pytest.raises(SystemExit, match="replaced"):
            encoder.encode(TOKENS)
        connection.close()


def test_who_joins_between_the_birth_of_the_address_and_its_ear_waits_and_does_not_wait_for_the_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joined_encoder, "LISTENS_WITHIN_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(address := str(tmp_path / "address"))
        assert joined(address) is None
        monkeypatch.setattr(joined_encoder, "LISTENS_WITHIN_SECONDS", 60.0)
        with ThreadPoolExecutor(1) as pool:
            joining = pool.submit(joined, address)
            made.listen(1)
            made.accept()[0].close()  # whoever has come is told nothing, and leaves
            assert joining.result(60) is None


def test_a_model_that_cannot_be_loaded_is_left_to_whoever_would_have_joined() -> None:
    with listening(failing) as early:
        assert joined(early.address) is None
        assert early._process.wait(30) == 1  # by its own exit, not by a signal


def test_the_process_ends_when_it_is_not_needed_any_more_and_leaves_nothing() -> None:
    with listening(partial(HashingEncoder, 16)) as early:
        assert Path(early.address).exists()
    assert early._process.returncode is not None
    assert not Path(early.address).parent.exists()
    assert joined(early.address) is None


def test_the_process_of_a_driver_that_was_killed_ends_and_leaves_nothing() -> None:
    with listening(partial(HashingEncoder, 16)) as early:
        assert early._process.stdin is not None
        early._process.stdin.close()
        assert early._process.wait(30) == 0
        assert not Path(early.address).parent.exists()


def test_a_run_that_is_asked_to_end_leaves_nothing_of_a_model_that_is_being_loaded() -> None:
    sections = {"source": {"uri": "a"}, "recipe": {"model": "b/c"}, "output": {"uri": "d"}}
    config = JobConfig.model_validate(sections | {"runtime": {"gpus_per_encoder": 0}})
    plan = cast("Plan", SimpleNamespace(model=ModelReference("local", "/nowhere", "none", False, False)))
    with suppress(Stopped), loading_early(config, plan, hashing_description(8)) as early:
        raise Stopped("stopped")
    assert early is not None
    assert early._process.returncode is not None
    assert not Path(early.address).parent.exists()


@pytest.mark.parametrize(
    ("runtime", "environment"),
    [
        (Runtime(ray_address="10.0.0.1:6379"), {}),
        (Runtime(), {"RAY_ADDRESS": "10.0.0.1:6379"}),
        (Runtime(encoders=2), {}),
    ],
)
def test_only_the_one_encoder_of_a_local_run_is_loaded_early(runtime: Runtime, environment: dict[str, str]) -> None:
    assert threads_of_only_encoder(runtime, environment) == 0
    assert threads_of_only_encoder(Runtime(gpus_per_encoder=0), {}) == len(os.sched_getaffinity(0))


def test_a_gpu_may_be_for_the_encoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(early_encoder, "GPU_DRIVERS", (str(tmp_path),))
    assert threads_of_only_encoder(Runtime(), {}) == 0
    assert threads_of_only_encoder(Runtime(gpus_per_encoder=0), {}) > 0


def test_batches_are_computed_side_by_side_and_each_who_asks_has_the_vectors_of_its_own() -> None:
    batches = [tokens_of([number, number + 3]) for number in range(1, 5)]
    with listening(partial(SideBySide, 16)) as early:
        encoder = joined(early.address)
        assert encoder is not None
        assert encoder.lanes == 2
        waiting = [encoder.begin(batch) for batch in batches]
        alone = tokens_of([9])
        np.testing.assert_array_equal(encoder.encode(alone), HashingEncoder(16).encode(alone))
        for vectors_of, batch in reversed(list(zip(waiting, batches, strict=True))):
            np.testing.assert_array_equal(vectors_of(), HashingEncoder(16).encode(batch))
        encoder.close()
