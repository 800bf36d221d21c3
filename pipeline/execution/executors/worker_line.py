"""The line between a driver and its worker process, as the worker has it: results go out, the book is asked."""

import socket
import threading
from multiprocessing.connection import Connection
from typing import Any

from pipeline.encoder.engines import EngineChoice
from pipeline.execution.attempts import Verdict, Work

_lines: list["WorkerLine"] = []
"""That of this process, if it is a worker."""


class WorkerLine:
    """Messages to the driver, from whichever thread.

    Args:
        connection: to the driver; it is this process's only one.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()
        _lines.append(self)

    def asked(self) -> Any:
        """Return what the driver wants done next."""
        return self._connection.recv()

    def tell(self, kind: str, content: Any = None) -> None:
        """Send a result, an error, or that there is no more."""
        with self._lock:
            self._connection.send((kind, content))

    def ask(self, question: str, *arguments: Any) -> Any:
        """Return what a method of the driver's book gives."""
        with self._lock:
            self._connection.send(("ask", (question, arguments)))
            return self._connection.recv()


class MarksByLine:
    """The marks of a worker process: its driver keeps the book."""

    def begin(self, work: Work) -> Verdict:
        verdict: Verdict = self._ask("begin", work)
        return verdict

    def end(self, work: Work) -> None:
        self._ask("end", work)

    def strike(self, error: str) -> bool:
        host = socket.gethostname()
        return bool(self._ask("strike", f"{host}: {error}", host))

    def forgive(self) -> None:
        self._ask("forgive", socket.gethostname())

    def lower(self, batch_tokens: int) -> None:
        self._ask("lower", batch_tokens)

    def begin_trial(self) -> bool:
        return bool(self._ask("begin_trial"))

    def end_trial(self, choice: EngineChoice) -> None:
        self._ask("end_trial", choice)

    def note_attention(self, told: str) -> None:
        self._ask("note_attention", told)

    def _ask(self, question: str, *arguments: Any) -> Any:
        (line,) = _lines
        return line.ask(question, *arguments)
