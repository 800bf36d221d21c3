"""A function in a child process, whose death is an exception here and not the end of this process."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")

PR_SET_PDEATHSIG = 1


class ProcessDied(Exception):
    """The child process has ended in the middle of a call: a crash, an exit, or a kill for want of memory."""


class Isolated(Generic[A, B]):
    """Calls a function in a child process that is started anew after each death.

    Args:
        build: makes the function, in the child; both it and what passes through calls must be picklable.
    """

    def __init__(self, build: Callable[[], Callable[[A], B]]) -> None:
        self._build = build
        self._child: ProcessPoolExecutor | None = None

    def __call__(self, argument: A) -> B:
        """Return what the function gives.

        Raises:
            ProcessDied: its process has ended meanwhile. Other exceptions are the function's own.
        """
        if self._child is None:
            # spawn: a fork would copy threads and device handles that do not survive it
            context = multiprocessing.get_context("spawn")
            self._child = ProcessPoolExecutor(1, context, initializer=_begin, initargs=(self._build, os.getpid()))
        try:
            return self._child.submit(_call, argument).result()  # type: ignore[no-any-return]
        except BrokenProcessPool:
            self.close()
            raise ProcessDied("the child process ended in the middle of a call") from None

    def close(self) -> None:
        """End the child process."""
        if self._child is not None:
            self._child.shutdown(wait=True, cancel_futures=True)
            self._child = None


_function: Callable[[Any], Any]


def _begin(build: Callable[[], Callable[[Any], Any]], parent: int) -> None:
    global _function
    if sys.platform.startswith("linux"):
        end_with_parent(ctypes.CDLL(None).prctl, parent)
    _function = build()


def _call(argument: Any) -> Any:
    return _function(argument)


def end_with_parent(prctl: Callable[..., int], parent: int) -> None:
    """Let even a kill -9 of the parent end this process (Linux).

    Args:
        prctl: of the C library.
        parent: process id of the one that started this process.
    """
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call above
        os._exit(1)
