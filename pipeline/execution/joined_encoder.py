"""The process that has loaded a model early, and the Encoder of whoever joins it there.

What this imports delays the model: it is as little as an encoder needs.
"""

import os
import pickle
import shutil
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.protocol import Encoder
from pipeline.encoder.quick_import import importing_quickly
from pipeline.execution.attempts import replace_process
from pipeline.records import TokenBatch

FAMILY = "AF_UNIX"
FACTS = ("dimension", "max_tokens", "device", "emulates", "is_flat", "fill_tokens", "pass_tokens", "attention")
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
    with importing_quickly():
        address, load = pickle.load(sys.stdin.buffer)  # noqa: S301  it is the driver who writes there
        threading.Thread(target=_end_with_stdin, args=(Path(address).parent,), daemon=True).start()
        listener = Listener(address, FAMILY)  # before the model: who joins waits for it
        encoder: Encoder = load()
    with listener:
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


def _end_with_stdin(folder: Path) -> None:
    """End with the driver, which has not closed stdin itself but died, and could not clear up."""
    sys.stdin.buffer.read()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    serve()
