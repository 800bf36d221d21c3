"""The process that has loaded a model early, and the Encoder of whoever joins it there.

What this imports delays the model: it is as little as an encoder needs.
"""

import os
import pickle
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from queue import Queue
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.memory import fault_of
from pipeline.encoder.protocol import Encoder, Overlapping
from pipeline.encoder.quick_import import importing_quickly
from pipeline.execution.attempts import replace_process
from pipeline.execution.child_process import end_with_driver, run_and_exit
from pipeline.records import TokenBatch

FAMILY = "AF_UNIX"
LISTENS_WITHIN_SECONDS = 1.0
"""Between the two calls of a process that makes a socket and listens at it."""

FACTS = ("dimension", "max_tokens", "device", "emulates", "is_flat", "fill_tokens", "pass_tokens", "lanes", "attention")
"""What `Encoder` and `Overlapping` say of a model: whoever joins packs its batches by them."""


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
    lanes: int
    attention: object

    def __init__(self, address: str) -> None:
        self._connection = Client(address, FAMILY)
        self._sent, self._received = 0, 0
        self._answers: dict[int, Any] = {}
        """Number of a batch → its vectors or the name of an error, of batches that nobody has asked for yet."""
        for name, value in self._connection.recv().items():
            setattr(self, name, value)

    def begin(self, batch: TokenBatch) -> Callable[[], NDArray[np.float32]]:
        """Send a batch; return what waits for its vectors, (B, D), or raises an error named as that of the model."""
        with _dying_with_it():
            self._connection.send(batch)
        self._sent += 1
        return partial(self._answer_to, self._sent)

    def encode(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Return the vectors of one batch, (B, D); raises an error that is named as `fault_of` names the model's."""
        return self.begin(batch)()

    def _answer_to(self, number: int) -> NDArray[np.float32]:
        while number not in self._answers:
            with _dying_with_it():
                answer = self._connection.recv()
            self._received += 1  # they come in the order of the batches
            self._answers[self._received] = answer
        vectors_BD, error_name = self._answers.pop(number)
        if error_name is not None:
            raise type(error_name, (RuntimeError,), {})
        vectors: NDArray[np.float32] = vectors_BD
        return vectors

    def close(self) -> None:
        """End the process."""
        self._connection.close()


@contextmanager
def _dying_with_it() -> Iterator[None]:
    """End this process if a message is lost, be the other one dead or be it that there is no memory to read it."""
    try:
        yield
    except Exception:  # noqa: BLE001  from then on no answer would belong to the batch it is taken for
        replace_process()


def joined(address: str) -> JoinedEncoder | None:
    """Return the encoder that waits at an address, None if there is none."""
    until = time.monotonic() + LISTENS_WITHIN_SECONDS
    while True:
        try:
            return JoinedEncoder(address)
        except ConnectionRefusedError:  # its process has made the address and does not listen yet, or is dead
            if time.monotonic() > until:
                return None
            time.sleep(0.02)
        except (OSError, EOFError):
            return None


def serve() -> None:
    """Load the model that stdin names and encode for the first who joins, until that one leaves or stdin closes."""
    with importing_quickly():
        address, load = pickle.load(sys.stdin.buffer)  # noqa: S301  it is the driver who writes there
        end_with_driver(partial(shutil.rmtree, Path(address).parent, ignore_errors=True))
        listener = Listener(address, FAMILY)  # before the model: who joins waits for it
        encoder: Encoder = load()
    with listener:
        connection = listener.accept()
    with connection:
        facts = {name: getattr(encoder, name, None) for name in FACTS}
        connection.send(facts | {"attention": str(facts["attention"])})  # its type is one of torch's
        _answer(encoder, connection)


def _answer(encoder: Encoder, connection: Connection) -> None:
    """Encode what comes until nobody asks any more; one batch is told of while the next ones are computed."""
    begin = encoder.begin if isinstance(encoder, Overlapping) else partial(partial, encoder.encode)
    begun: Queue[Callable[[], NDArray[np.float32]]] = Queue()
    threading.Thread(target=_tell, args=(begun, connection), daemon=True).start()
    with suppress(EOFError, ConnectionError):
        while True:
            batch = connection.recv()
            try:
                begun.put(begin(batch))
            except Exception as error:  # noqa: BLE001  whatever a model raises is told to whoever has asked
                begun.put(partial(_raise, error))


def _tell(begun: Queue[Callable[[], NDArray[np.float32]]], connection: Connection) -> None:
    try:
        while True:
            vectors_of, vectors_BD, error_name = begun.get(), None, None
            try:
                vectors_BD = vectors_of()
            except Exception as error:  # noqa: BLE001  see above
                error_name = fault_of(error.with_traceback(None))  # whose frames hold what the pass had computed
            connection.send((vectors_BD, error_name))
    finally:  # whoever has joined waits for an answer that does not come
        os._exit(1)


def _raise(error: Exception) -> NoReturn:
    raise error


if __name__ == "__main__":
    run_and_exit(serve)
