"""A Ray cluster on this machine without containers: a head without CPUs, and workers that can come and go."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import orjson

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
"""Only who holds the token of this cluster is served. A node that is dead is noticed after five seconds."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a worker node has for the stages of a run."""

    cpus: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)

    def arguments(self) -> list[str]:
        """Give what `ray start` is told of it."""
        labels = ",".join(f"{name}={value}" for name, value in self.labels.items())
        return [
            f"--num-cpus={self.cpus}",
            *([f"--labels={labels}"] if labels else []),
            *([f"--resources={orjson.dumps(dict(self.resources)).decode()}"] if self.resources else []),
        ]


@dataclass(frozen=True, slots=True)
class Node:
    """One `ray start` and all that it has started, a session of its own."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Killing this process ends the node with all its workers."""
        return self.process.pid

    def workers(self, word: str) -> list[Process]:
        """Return the Ray workers of this node whose title has this word."""
        return [one for one in members(self.pid) if one.title.startswith("ray::") and word in one.title]

    def kill(self) -> None:
        """End the node and its workers at once, as a machine that loses its power."""
        kill_session(self.pid)
        self.process.wait()

    def wait_until_up(self) -> None:
        """Wait until the node has joined the cluster.

        Raises:
            PipelineError: it did not; the message ends with the end of its log.
        """
        deadline = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in (said := self.log.read_text(errors="replace")):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise PipelineError(f"a Ray node did not start; see {self.log}:\n{said[-1500:]}")
            time.sleep(0.05)


class LocalCluster:
    """Head and workers, from `with` to its end; nothing of it outlives this process, however that ends.

    Every node has an address of its own in 127/8, which nothing outside this machine can reach.

    Args:
        environment: what the nodes see, the way to the object storage above all.
        workers: what each worker has at the start; more can be added.
    """

    def __init__(self, environment: Mapping[str, str], workers: tuple[Offer, ...]) -> None:
        self._offers, self._count = workers, 1
        self._net = f"127.{64 + os.getpid() // 250 % 128}.{1 + os.getpid() % 250}"
        self._variables = {**environment, **SYSTEM, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.head: Node | None = None
        self.workers: list[Node] = []

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets lie there: their paths have 107 bytes
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def ray_address(self) -> str:
        """Where a driver that runs on a node of the cluster finds it."""
        return f"{self._net}.1:{self._port}"

    @property
    def dashboard_url(self) -> str:
        """Where runs are submitted, and where one may look."""
        return f"http://{self._net}.1:{self._dashboard_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process outside needs to be let in, and to find where to submit."""
        let_in = {name: self._variables[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
        return let_in | {"RAY_API_SERVER_ADDRESS": self.dashboard_url}

    def add_worker(self, offer: Offer) -> Node:
        """Start one more worker; it joins some seconds later."""
        self._count += 1
        node = self._start_node(f"{self._net}.{self._count}", f"--address={self.ray_address}", *offer.arguments())
        self.workers.append(node)
        return node

    def stop(self) -> None:
        """End every process of the cluster, and remove what it has left on disk."""
        for node in [*self.workers, *([self.head] if self.head else [])]:
            node.kill()
        self.workers, self.head = [], None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        address = f"{self._net}.1"
        self._port, self._dashboard_port = _free_ports(address)
        self.head = self._start_node(
            address,
            "--head",
            f"--port={self._port}",
            "--num-cpus=0",
            "--include-dashboard=true",
            f"--dashboard-host={address}",
            f"--dashboard-port={self._dashboard_port}",
        )
        self.head.wait_until_up()
        for offer in self._offers:
            self._join_patiently(offer)

    def _join_patiently(self, offer: Offer) -> None:
        """Add a worker and wait for it; Ray's own patience with a node is 30 s, too short on a machine that is busy."""
        for attempt in range(1, ATTEMPTS + 1):
            node = self.add_worker(offer)
            try:
                node.wait_until_up()
            except PipelineError:
                node.kill()
                self.workers.remove(node)
                if attempt == ATTEMPTS:
                    raise
            else:
                break

    def _start_node(self, address: str, *arguments: str) -> Node:
        programs = Path(sys.executable).parent
        log = self._folder / f"{address}.log"
        command = [str(programs / "ray"), "start", "--block", "--no-monitor", f"--node-ip-address={address}"]
        command += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--min-worker-port=0", "--max-worker-port=0"]
        own = (
            self._folder / address.rpartition(".")[2]
        )  # as on machines of their own: each node unpacks code for itself
        command += [f"--temp-dir={own}", "--dashboard-agent-listen-port=0", "--include-log-monitor=false"]
        command += ["--disable-usage-stats", *arguments]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}"  # a submitted run says `python`
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=inherited | self._variables | {"PATH": path},
                start_new_session=True,
                preexec_fn=die_with_parent(),  # Ray's processes die with this one, workers with their raylet
            )
        return Node(address, process, log)


def _free_ports(address: str) -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind((address, 0))
        other.bind((address, 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])
