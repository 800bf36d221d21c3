"""A real Ray cluster on this machine: a head without CPUs and workers, each a raylet that can be killed alone."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from jobs.demo.lifetime import die_with_parent
from jobs.demo.processes import Process, kill_session, members
from tests.chaos.network import Network, Place, plug_in, unplug

START_SECONDS = 90.0
ATTEMPTS = 3
OBJECT_STORE_BYTES = 200_000_000

SYSTEM = {
    "RAY_AUTH_MODE": "token",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "10",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    "RAY_idle_worker_killing_time_threshold_ms": "120000",
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Only with the cluster's token is one served. A dead node is noticed after five seconds instead of twenty, a dead head
after ten instead of sixty; a node that is only slow, as on a busy machine, is given as long as ever."""


@dataclass(frozen=True, slots=True)
class Node:
    """One `ray start` and what it has started; a session of its own."""

    place: Place
    process: subprocess.Popen[bytes]
    log: Path

    def processes(self) -> list[Process]:
        return members(self.process.pid)

    def workers(self, word: str) -> list[Process]:
        """Return the Ray workers of this node whose title has this word."""
        return [process for process in self.processes() if process.title.startswith("ray::") and word in process.title]

    def cut_off(self) -> None:
        """Let nobody hear of it, though it works on; without a cable of its own it stands still instead."""
        if self.place.link:
            unplug(self.place.link)
        else:
            self._signal(signal.SIGSTOP)

    def come_back(self) -> None:
        if self.place.link:
            plug_in(self.place.link)
        else:
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def kill(self) -> None:
        """End the raylet and all its workers at once, as a machine that loses its power."""
        kill_session(self.process.pid)
        self.process.wait()

    @property
    def is_up(self) -> bool:
        """Whether it has joined the cluster."""
        return "Ray runtime started" in self.log.read_text(errors="replace")

    def wait_until_up(self) -> None:
        """Wait until the node has joined.

        Raises:
            RuntimeError: it did not; the message is the end of its log.
        """
        deadline = time.monotonic() + START_SECONDS
        while not self.is_up:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"a Ray node did not start:\n{self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)


class RayCluster:
    """Head and workers, from `with` to its end; nothing of it outlives the test process.

    Args:
        network: where the nodes live.
        environment: what Ray workers see, the way to the S3 server above all.
        workers: how many, each with `cpus`.
    """

    def __init__(self, network: Network, environment: Mapping[str, str], workers: int = 2, cpus: int = 2) -> None:
        self._network, self._count, self._cpus = network, workers, cpus
        self._variables = {**environment, **SYSTEM, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.workers: list[Node] = []
        self.head: Node | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """What a driver gives as runtime.ray_address."""
        return f"{self._network.head.address}:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a driver needs in its environment to be let in."""
        return {name: value for name, value in self._variables.items() if name.startswith("RAY_")}

    def start(self) -> None:
        """Start the head, then one worker after the other, until all have joined; a new cluster each time."""
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets lie there: their paths have 107 bytes
        self._port = _free_port(self._network.head.address)
        self.head = self._start_node(
            self._network.head,
            "--head",
            f"--port={self._port}",
            "--num-cpus=0",
            "--include-dashboard=false",
            "--no-monitor",
            f"--temp-dir={self._folder}",
        )
        self.head.wait_until_up()
        for _ in range(self._count):
            self._join_patiently()

    def _join_patiently(self) -> None:
        """Add a worker and wait for it; Ray's own patience with a node is 30 s, too short on a machine that is busy."""
        for attempt in range(ATTEMPTS):
            node = self.add_worker()
            try:
                node.wait_until_up()
            except RuntimeError:
                self.kill_worker(node)
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                break

    def stop(self) -> None:
        """End every process of the cluster, and remove what it has left on disk."""
        for node in [*self.workers, *([self.head] if self.head else [])]:
            node.kill()
        self.workers, self.head = [], None
        shutil.rmtree(self._folder, ignore_errors=True)

    def add_worker(self) -> Node:
        """Start one more worker; it joins some seconds later."""
        place = self._network.new_place()
        node = self._start_node(place, f"--address={self.address}", f"--num-cpus={self._cpus}")
        self.workers.append(node)
        return node

    def kill_worker(self, node: Node) -> None:
        """Lose one worker node."""
        node.kill()
        self.workers.remove(node)

    def find(self, word: str, generator: random.Random) -> Process | None:
        """Return one of the Ray workers whose title has this word, on any worker node; None if there is none now."""
        found = [process for node in self.workers for process in node.workers(word)]
        return generator.choice(sorted(found, key=lambda process: process.pid)) if found else None

    def _start_node(self, place: Place, *arguments: str) -> Node:
        log = self._folder / f"{place.address}.log"
        command = [*place.prefix, str(Path(sys.executable).with_name("ray")), "start", "--block"]
        command += [f"--node-ip-address={place.address}", f"--object-store-memory={OBJECT_STORE_BYTES}", *arguments]
        command += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        command += ["--include-log-monitor=false", "--disable-usage-stats"]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=inherited | self._variables,
                start_new_session=True,
                preexec_fn=die_with_parent(),  # Ray's processes die with this one, workers with their raylet
            )
        return Node(place, process, log)


def _free_port(address: str) -> int:
    with socket.socket() as free:
        free.bind((address, 0))
        return int(free.getsockname()[1])
