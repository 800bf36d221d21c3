"""What else the machine did while something was measured: the cores that others took."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

QUIET_CORES = 0.2
"""More than this taken by others, and a ratio between two measurements says little."""


@dataclass(frozen=True, slots=True)
class Moment:
    """CPU seconds since the machine has started, at one moment."""

    wall: float
    busy: float
    """Of all programs, and of the host's other guests."""
    own: float
    """Of this process and of all that it has started and that lives or was waited for."""


def now() -> Moment:
    """Look at the clocks."""
    ticks = [int(value) for value in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]]
    busy = sum(ticks[:8]) - ticks[3] - ticks[4]
    return Moment(time.perf_counter(), busy / TICKS_PER_SECOND, _own_seconds())


def cores_of_others(since: Moment) -> float:
    """Return how many cores others had on average since then; stolen ones count."""
    end = now()
    taken = (end.busy - since.busy) - (end.own - since.own)
    return max(0.0, taken / max(end.wall - since.wall, 1e-9))


def _own_seconds() -> float:
    """Sum the CPU time of this process and all its descendants."""
    seconds: dict[int, float] = {}
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
            seconds[int(entry.name)] = sum(map(int, fields[11:15])) / TICKS_PER_SECOND
    own = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    return sum(seconds.get(pid, 0.0) for pid in own)
