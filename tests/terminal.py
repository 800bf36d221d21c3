"""A job in a terminal of its own, as a person has it: what is shown there, and keys that are pressed in it."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from tests.running import ROOT, SECONDS

CTRL_C = "\x03"


class Terminal:
    """`python -m jobs` with these arguments, from `with` to its end."""

    def __init__(self, *arguments: str, environment: Mapping[str, str]) -> None:
        self._screen, keyboard = pty.openpty()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jobs", *arguments],
            cwd=ROOT,
            env=inherited | dict(environment),
            stdin=keyboard,
            stdout=keyboard,
            stderr=keyboard,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(keyboard)
        self.shown = ""
        self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._screen)

    def wait_for(self, text: str, seconds: float = SECONDS) -> None:
        """Wait until a text is shown behind the last one that was waited for."""
        deadline = time.monotonic() + seconds
        while (at := self.shown.find(text, self._seen)) < 0:
            assert self._has_read(deadline), f"{text!r} is not shown: {self.shown[self._seen :][-2000:]}"
        self._seen = at + len(text)

    def press(self, keys: str) -> None:
        """Press keys; Ctrl-C is one of them."""
        os.write(self._screen, keys.encode())

    def code(self, seconds: float = SECONDS) -> int:
        """Wait for the end of the command and return its exit code."""
        deadline = time.monotonic() + seconds
        while self._has_read(deadline):
            pass
        return self._process.wait(seconds)

    def _has_read(self, deadline: float) -> bool:
        """Read what is shown next; return whether there will be more before the deadline."""
        ready, _, _ = select.select([self._screen], [], [], max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(OSError):  # of a terminal that nobody writes to any more
            read = os.read(self._screen, 65_536) if ready else b""
            self.shown += read.decode(errors="replace")
            return bool(read)
        return False


def _take_terminal() -> None:
    """Let what is pressed in the terminal at hand be signals of this process, as a shell does for what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
