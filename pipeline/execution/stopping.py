"""SIGTERM as an error within: a run that is asked to end writes its Journal and its claim before it does."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import Stopped


@contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an error within, so that Journal and claim are written before the process ends."""
    before = signal.getsignal(signal.SIGTERM)
    stop_on_sigterm()
    try:
        yield
    finally:
        if _is_in_main_thread():
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def stop_on_sigterm() -> None:
    """Raise Stopped at the next SIGTERM; a run in a thread of a program leaves signals to that program."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped("stopped by SIGTERM; what was encoded is kept, run again to go on")

    if _is_in_main_thread():
        signal.signal(signal.SIGTERM, stop)


def _is_in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
