"""Run the command line as a user would, and watch what every process of it takes."""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 1.0
"""Looking at every process of the machine costs some milliseconds each time, which the run would pay."""

DRIVER, ENCODER, STAGES, OTHER_WORKER, RAY = "driver", "encoder", "stages", "other worker", "Ray itself"
"""Kinds of processes: the command; who holds the model; who reads, tokenises and writes; keepers of state and idle
workers; raylet and GCS."""

MARKS = {
    ENCODER: ("EncodeBlocks", "pipeline.execution.joined_encoder"),
    STAGES: ("read_blocks", "tokenize_blocks", "write_blocks", "pipeline.execution.executors.process_worker"),
    OTHER_WORKER: ("ray::", "pipeline.execution."),
    RAY: ("raylet", "gcs_server"),
}
"""What stands in the command line of each kind; the first that fits counts."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of `embed`: its report, its wall time, and the peaks of its processes."""

    report: dict[str, Any]
    wall_seconds: float
    peak_bytes: dict[str, int]
    """Of the largest process of each kind there was; of workers of Ray, shared pages of the object store included."""

    @property
    def driver_bytes(self) -> int:
        return self.peak_bytes.get(DRIVER, 0)

    @property
    def worker_bytes(self) -> int:
        """Of the largest worker process."""
        return max(self.peak_bytes.get(kind, 0) for kind in (ENCODER, STAGES, OTHER_WORKER))


class Watch:
    """What is known of the processes of a run after some looks at them."""

    def __init__(self) -> None:
        self._kinds: dict[int, str] = {}
        self._bytes: dict[int, int] = defaultdict(int)

    def note(self, pid: int, kind: str, resident_bytes: int) -> None:
        """Add one look at a process: it is of the most telling kind that it ever was, since workers of Ray idle too."""
        self._kinds[pid] = min(self._kinds.get(pid, kind), kind, key=[DRIVER, *MARKS].index)
        self._bytes[pid] = max(self._bytes[pid], resident_bytes)

    def peak_bytes(self) -> dict[str, int]:
        """Return the peak of the largest process of each kind."""
        peaks: dict[str, int] = defaultdict(int)
        for pid, kind in self._kinds.items():
            peaks[kind] = max(peaks[kind], self._bytes[pid])
        return dict(peaks)


def embed(config: Path, *overrides: str, command: str = "embed") -> Measured:
    """Run `embed`, or another command, in a child process and sample the memory of its driver and its workers.

    Raises:
        RuntimeError: the run failed; the message holds its last line.
    """
    arguments = [sys.executable, "-m", "jobs", command, str(config), *overrides, "--json"]
    started, watch = time.perf_counter(), Watch()
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        while child.poll() is None:
            for pid, kind in {child.pid: DRIVER, **_workers_of(child.pid)}.items():
                watch.note(pid, kind, _resident_bytes(pid))
            time.sleep(SAMPLE_SECONDS)
        wall = time.perf_counter() - started
        out, errors = child.communicate()
    if child.returncode:
        raise RuntimeError(errors.strip().splitlines()[-1])
    return Measured(json.loads(out), wall, watch.peak_bytes())


def kind_of(command_line: bytes) -> str | None:
    """Return what kind of worker has such a command line, or title; None for what is no part of a run."""
    told = command_line.decode(errors="replace")
    return next((kind for kind, marks in MARKS.items() if any(mark in told for mark in marks)), None)


def _resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _workers_of(driver: int) -> dict[int, str]:
    """Return the processes below a driver with their kinds: those of the Ray that it has started, and its own."""
    parents: dict[int, int] = {}
    kinds: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if kind := kind_of((entry / "cmdline").read_bytes()):
                    kinds[int(entry.name)] = kind
            except OSError:
                continue
    return {pid: kind for pid, kind in kinds.items() if driver in _ancestors(pid, parents)}


def _ancestors(pid: int, parents: Mapping[int, int]) -> set[int]:
    seen: set[int] = set()
    while (pid := parents.get(pid, 0)) and pid not in seen:
        seen.add(pid)
    return seen
