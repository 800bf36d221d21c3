"""The processes of a program that was started in a session of its own, as /proc tells of them."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """A live process."""

    pid: int
    title: str
    """Its command line; Ray workers write there what they are busy with: `ray::MapBatches(read_blocks)`."""

    def kill(self) -> bool:
        """End it at once; return whether it was still there."""
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True


def members(session: int) -> list[Process]:
    """Return the live processes of a session: whoever adopts an orphan, its session stays."""
    return [Process(pid, _title(pid)) for pid in _pids() if _session(pid) == session]


def kill_session(session: int) -> None:
    """End every process of a session, those included that are born meanwhile."""
    while processes := members(session):
        for process in processes:
            process.kill()


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _session(pid: int) -> int | None:
    """Return the session of a process, None if it has ended."""
    try:
        state, _, _, session, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(session)


def _title(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""
