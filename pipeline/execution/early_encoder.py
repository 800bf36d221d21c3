"""A model that is loaded while Ray starts, in a process of its own, which the encoder actor joins.

Torch and sentence-transformers take five seconds of a core to import, as long as everything before them takes on two
cores. Only for the one CPU encoder of a local run; whoever finds nobody to join loads the model as ever.
"""

import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import JobConfig, Runtime
from pipeline.encoder.describe import ModelDescription
from pipeline.encoder.engines import first_engine
from pipeline.encoder.protocol import Encoder
from pipeline.errors import Stopped
from pipeline.execution.attempts import replace_process
from pipeline.execution.clusters.worker_environment import WORKER_ENVIRONMENT
from pipeline.execution.planning.model import open_encoder
from pipeline.execution.planning.plan import Plan
from pipeline.execution.settings import tokenizer_spec
from pipeline.records import TokenBatch

FAMILY = "AF_UNIX"
FACTS = ("dimension", "max_tokens", "device", "emulates", "is_flat", "fill_tokens", "pass_tokens", "attention")
"""What `Encoder` and `Overlapping` say of a model: whoever joins packs its batches by them."""
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Where a GPU of NVIDIA, of AMD, or of a Windows host shows itself."""

NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}

ENDING_SECONDS = 5.0


def threads_of_only_encoder(runtime: Runtime, environment: Mapping[str, str]) -> int:
    """Return the CPU threads of the only encoder of a local run without GPUs; 0 = it is none, or perhaps none."""
    is_local = not (runtime.ray_address or environment.get("RAY_ADDRESS"))
    may_hold_gpu = runtime.gpus_per_encoder != 0 and any(Path(driver).exists() for driver in GPU_DRIVERS)
    if not is_local or may_hold_gpu or runtime.encoders not in ("auto", 1) or not hasattr(os, "sched_getaffinity"):
        return 0
    return len(os.sched_getaffinity(0))


class EarlyEncoder:
    """The driver's side: starts the process, and ends it if nobody has.

    Args:
        load: loads the model, in that process; picklable.
        threads: that it will compute with.
    """

    def __init__(self, load: Callable[[], Encoder], threads: int) -> None:
        self.threads = threads
        self._folder = tempfile.TemporaryDirectory(prefix="encoder-")  # nobody but this user may enter it
        self.address = str(Path(self._folder.name, "socket"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env=WORKER_ENVIRONMENT | os.environ | NO_GPU,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(pickle.dumps((self.address, load)))
            self._process.stdin.flush()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # it ends when this closes, be it with the driver's own death
        try:
            self._process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


@contextmanager
def loading_early(config: JobConfig, plan: Plan, description: ModelDescription) -> Iterator[EarlyEncoder | None]:
    """Load the model in a process of its own from here on, where that pays; it ends at the latest with this block."""
    threads = threads_of_only_encoder(config.runtime, os.environ)
    if not threads or plan.model.kind == "hashing":
        yield None
        return
    prompt = tokenizer_spec(config.recipe, description).prompt
    compute = config.recipe.compute
    engine = first_engine(config.runtime.engine, compute)
    early = EarlyEncoder(partial(open_encoder, plan.model, compute, prompt, threads, engine), threads)
    try:
        yield early
    finally:
        if not isinstance(sys.exception(), Stopped):  # there is no time left to wait, and it ends with this process
            early.close()


class JoinedEncoder:
    """The actor's side: an Encoder whose model is in the process that the driver has started.

    Where that process dies over a batch, this one ends too: the death counts as one of the Block it was at.

    Args:
        address: of the process.

    Raises:
        OSError, EOFError: nobody is there, or another has joined, or the model could not be loaded.
    """

    dimension: int
    max_tokens: int
    device: str
    emulates: bool
    is_flat: bool
    fill_tokens: int
    pass_tokens: int | None
    attention: object

    def __init__(self, address: str) -> None:
        self._connection = Client(address, FAMILY)
        for name, value in self._connection.recv().items():
            setattr(self, name, value)

    def begin(self, batch: TokenBatch) -> Callable[[], NDArray[np.float32]]:
        """Return what encodes a batch when it is called: a CPU gains nothing by an earlier begin."""
        return partial(self.encode, batch)

    def encode(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Return the vectors of one batch, (B, D); raises an error that is named as that of the model."""
        try:
            self._connection.send(batch)
            vectors_BD, error_name = self._connection.recv()
        except (EOFError, ConnectionError):
            replace_process()
        if error_name is not None:
            raise type(error_name, (RuntimeError,), {})
        answer: NDArray[np.float32] = vectors_BD
        return answer

    def close(self) -> None:
        """End the process."""
        self._connection.close()


def joined(address: str) -> JoinedEncoder | None:
    """Return the encoder that waits at an address, None if there is none."""
    try:
        return JoinedEncoder(address)
    except (OSError, EOFError):
        return None


def serve() -> None:
    """Load the model that stdin names and encode for the first who joins, until that one leaves or stdin closes."""
    address, load = pickle.load(sys.stdin.buffer)  # noqa: S301  it is the driver who writes there
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    with Listener(address, FAMILY) as listener:  # before the model: who joins waits for it
        encoder: Encoder = load()
        connection = listener.accept()
    with connection:
        facts = {name: getattr(encoder, name, None) for name in FACTS}
        connection.send(facts | {"attention": str(facts["attention"])})  # its type is one of torch's
        with suppress(EOFError, ConnectionError):
            while True:
                _answer(encoder, connection)
    os._exit(0)


def _answer(encoder: Encoder, connection: Connection) -> None:
    batch, vectors_BD, error_name = connection.recv(), None, None
    try:
        vectors_BD = encoder.encode(batch)
    except Exception as error:  # noqa: BLE001  whatever a model raises is told to whoever has asked
        error_name = type(error).__name__
    connection.send((vectors_BD, error_name))


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    serve()
