"""One `ray start` on this machine, a session of its own: begun, waited for, and ended whole."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from jobs.demo.lifetime import die_with_parent
from jobs.demo.processes import Process, kill_session, members
from pipeline.errors import PipelineError

START_SECONDS = 90.0
ATTEMPTS = 3
OBJECT_STORE_BYTES = 200_000_000

SYSTEM = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "10",
    "RAY_worker_niceness": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Only who holds the token of the cluster is served. A node that is dead is noticed after five seconds, not twenty."""


@dataclass(frozen=True, slots=True)
class RayNode:
    """A `ray start` and all that it has started."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Killing this process ends the node with all its workers."""
        return self.process.pid

    def processes(self) -> list[Process]:
        """Return every process of the node."""
        return members(self.pid)

    def workers(self, word: str) -> list[Process]:
        """Return its Ray workers whose title has this word."""
        return [one for one in self.processes() if one.title.startswith("ray::") and word in one.title]

    def kill(self) -> None:
        """End the node and its workers at once, as a machine that loses its power."""
        kill_session(self.pid)
        self.process.wait()

    @property
    def is_up(self) -> bool:
        """Whether it has joined the cluster."""
        return "Ray runtime started" in self.log.read_text(errors="replace")

    def wait_until_up(self) -> None:
        """Wait until the node has joined.

        Raises:
            PipelineError: it did not; the message ends with the end of its log.
        """
        deadline = time.monotonic() + START_SECONDS
        while not self.is_up:
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = self.log.read_text(errors="replace")[-1500:]
                raise PipelineError(f"a Ray node did not start; see {self.log}:\n{said}")
            time.sleep(0.05)


def started_node(
    address: str, log: Path, variables: Mapping[str, str], arguments: Sequence[str], prefix: Sequence[str] = ()
) -> RayNode:
    """Begin a node; it joins some seconds later.

    Args:
        address: of this machine, the node's own.
        variables: beside the environment of this process without its RAY_ variables.
        arguments: of `ray start`, beside those that every node has.
        prefix: what the command is run by.
    """
    programs = Path(sys.executable).parent
    command = [*prefix, str(programs / "ray"), "start", "--block", "--no-monitor", f"--node-ip-address={address}"]
    command += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--min-worker-port=0", "--max-worker-port=0"]
    command += ["--dashboard-agent-listen-port=0", "--include-log-monitor=false", "--disable-usage-stats", *arguments]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}"  # a submitted run says `python`
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=inherited | dict(variables) | {"PATH": path},
            start_new_session=True,
            preexec_fn=die_with_parent(),  # Ray's processes die with this one, workers with their raylet
        )
    return RayNode(address, process, log)


class Joining(Protocol):
    """A node that was begun."""

    def wait_until_up(self) -> None:
        """Wait until it has joined; raises PipelineError if it does not."""


Begun = TypeVar("Begun", bound=Joining)


def join_patiently(add: Callable[[], Begun], lose: Callable[[Begun], None]) -> None:
    """Add a node and wait for it; Ray's own patience with one is 30 s, too short on a machine that is busy.

    Raises:
        PipelineError: it does not join, however often another is begun.
    """
    for attempt in range(1, ATTEMPTS + 1):
        node = add()
        try:
            node.wait_until_up()
        except PipelineError:
            lose(node)
            if attempt == ATTEMPTS:
                raise
        else:
            return
