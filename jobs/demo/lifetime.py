"""What makes a child process end with its parent, however the parent ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType

from pipeline.isolation import end_with_parent


@contextlib.contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """Let SIGTERM end the process through its finally clauses; a caller's own handler stays in force."""
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not is_main_thread or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is leave:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def die_with_parent() -> Callable[[], None] | None:
    """Give what a child runs before its program: even kill -9 of this process then ends it (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    return partial(end_with_parent, ctypes.CDLL(None).prctl, os.getpid())
