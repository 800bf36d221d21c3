"""Run the command line as a user would, and watch what every process of it takes."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 1.0
"""Looking at every process of the machine costs some milliseconds each time, which the run would pay."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of `embed`: its report, its wall time, and the peaks of its processes."""

    report: dict[str, Any]
    wall_seconds: float
    driver_bytes: int
    worker_bytes: int
    """Of the largest worker process; of one of Ray, shared pages of the object store included."""


def embed(config: Path, *overrides: str, command: str = "embed") -> Measured:
    """Run `embed`, or another command, in a child process and sample the memory of its driver and its workers.

    Raises:
        RuntimeError: the run failed; the message holds its last line.
    """
    arguments = [sys.executable, "-m", "jobs", command, str(config), *overrides, "--json"]
    started, driver, worker = time.perf_counter(), 0, 0
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        while child.poll() is None:
            driver = max(driver, _resident_bytes(child.pid))
            worker = max([worker, *map(_resident_bytes, _workers_of(child.pid))])
            time.sleep(SAMPLE_SECONDS)
        wall = time.perf_counter() - started
        out, errors = child.communicate()
    if child.returncode:
        raise RuntimeError(errors.strip().splitlines()[-1])
    return Measured(json.loads(out), wall, driver, worker)


def _resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _workers_of(driver: int) -> list[int]:
    """Return the workers below a driver: those of the Ray that it has started, and its own without Ray."""
    parents: dict[int, int] = {}
    workers = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command = (entry / "cmdline").read_bytes()
                if command.startswith(b"ray::") or b"pipeline.execution." in command:
                    workers.append(int(entry.name))
            except OSError:
                continue
    return [pid for pid in workers if driver in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    seen: set[int] = set()
    while (pid := parents.get(pid, 0)) and pid not in seen:
        seen.add(pid)
    return seen
