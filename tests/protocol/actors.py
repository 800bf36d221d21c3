"""Actors: programs in threads of their own, of which one moves at a time, from one store operation to the next."""

import faulthandler
import threading
from collections.abc import Callable
from typing import Any

from pipeline.storage.filesystem import Stat, Store

SECONDS = 30.0
"""Longest wait for an actor to reach its next store operation; beyond it the test itself is broken."""

_here = threading.local()


class Crashed(BaseException):
    """The process is dead: nothing it would still do reaches the store."""


class Actor:
    """A program that waits before each of its store operations until it is told to go on.

    Args:
        number: stands for its process id.
        program: what it does; built of the code that is tested.
    """

    def __init__(self, number: int, program: Callable[[], Any]) -> None:
        self.number, self.program = number, program
        self.pending: tuple[str, str] = ("", "")
        """Name and key of the operation it waits before."""
        self.is_over, self.has_crashed, self.loses_answer = False, False, False
        self.result: Any = None
        self.error: BaseException | None = None
        self._may_go, self._waits = threading.Semaphore(0), threading.Semaphore(0)

    def begin(self) -> None:
        """Let it come before its first store operation."""
        threading.Thread(target=self._run, name=f"actor {self.number}", daemon=True).start()
        self._await()

    def step(self, loses_answer: bool = False) -> None:
        """Let it do one operation, and what comes between that and the next.

        Args:
            loses_answer: if that is a put-if-absent, it takes effect, its answer is lost, and it is sent again.
        """
        if not self.is_over:
            self.loses_answer = loses_answer
            self._may_go.release()
            self._await()

    def run_to(self, operation: str, key: str) -> bool:
        """Let it go on until it waits before such an operation; return whether it does (and did not end before)."""
        while not self.is_over:
            if self.pending[0] == operation and key in self.pending[1]:
                return True
            self.step()
        return False

    def run_to_end(self) -> None:
        """Let it go on until it is over."""
        self.run_to("nothing", "")

    def crash(self) -> None:
        """End it between two operations, as SIGKILL would: no clean-up of its own reaches the store."""
        if not self.is_over:
            self.has_crashed = True
            self._may_go.release()
            self._await()

    def wait_before(self, operation: str, key: str) -> None:
        """Called by the actor's own thread, before each store operation.

        Raises:
            Crashed: the process is dead.
        """
        if self.has_crashed:
            raise Crashed
        self.pending = (operation, key)
        self._waits.release()
        self._may_go.acquire()
        if self.has_crashed:
            raise Crashed

    def _await(self) -> None:
        if not self._waits.acquire(timeout=SECONDS):
            faulthandler.dump_traceback()
            raise AssertionError(f"actor {self.number} hangs after {self.pending}")

    def _run(self) -> None:
        _here.actor = self
        try:
            self.result = self.program()
        except BaseException as error:  # noqa: BLE001  the test looks at it
            self.error = error
        self.is_over = True
        self._waits.release()


def current_actor() -> Actor | None:
    """Return the actor whose thread this is; None = the test itself."""
    actor: Actor | None = getattr(_here, "actor", None)
    return actor


class SteppedStore(Store):
    """A Store whose user waits for its turn before every operation; the test itself never waits."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.actor = current_actor()

    def read(self, key: str) -> bytes | None:
        self._wait("read", key)
        return super().read(key)

    def stat(self, key: str) -> Stat | None:
        self._wait("stat", key)
        return super().stat(key)

    def files(self, prefix: str) -> dict[str, Stat]:
        self._wait("files", prefix)
        return super().files(prefix)

    def folders(self, prefix: str) -> list[str]:
        self._wait("folders", prefix)
        return super().folders(prefix)

    def put_new(self, key: str, content: bytes) -> bytes | None:
        self._wait("put_new", key)
        if self.actor and self.actor.loses_answer:
            super().put_new(key, content)
        return super().put_new(key, content)

    def put(self, key: str, content: bytes) -> None:
        self._wait("put", key)
        super().put(key, content)

    def copy_new(self, source_key: str, key: str) -> bool:
        self._wait("copy_new", key)
        return super().copy_new(source_key, key)

    def delete(self, key: str) -> None:
        self._wait("delete", key)
        super().delete(key)

    def _wait(self, operation: str, key: str) -> None:
        if self.actor:
            self.actor.wait_before(operation, key)
