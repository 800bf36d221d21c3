"""A real Ray cluster on this machine: a head without CPUs and workers, each a raylet that can be killed alone."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from jobs.demo.processes import Process
from jobs.demo.ray_node import SYSTEM, RayNode, join_patiently, started_node
from tests.chaos.network import Network, Place, plug_in, unplug

VARIABLES = SYSTEM | {
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    "RAY_idle_worker_killing_time_threshold_ms": "120000",
}
"""A dead head is noticed after ten seconds instead of sixty; a node that is only slow, as on a busy machine, is given
as long as ever."""


@dataclass(frozen=True, slots=True)
class Node:
    """One `ray start` and what it has started; a session of its own."""

    place: Place
    ray: RayNode

    def workers(self, word: str) -> list[Process]:
        """Return the Ray workers of this node whose title has this word."""
        return self.ray.workers(word)

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
        for process in self.ray.processes():
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def kill(self) -> None:
        """End the raylet and all its workers at once."""
        self.ray.kill()

    @property
    def is_up(self) -> bool:
        """Whether it has joined the cluster."""
        return self.ray.is_up

    def wait_until_up(self) -> None:
        """Wait until the node has joined."""
        self.ray.wait_until_up()


class RayCluster:
    """Head and workers, from `with` to its end; nothing of it outlives the test process.

    Args:
        network: where the nodes live.
        environment: what Ray workers see, the way to the S3 server above all.
        workers: how many, each with `cpus`.
    """

    def __init__(self, network: Network, environment: Mapping[str, str], workers: int = 2, cpus: int = 2) -> None:
        self._network, self._count, self._cpus = network, workers, cpus
        self._variables = {**environment, **VARIABLES, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
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
            f"--temp-dir={self._folder}",
        )
        self.head.wait_until_up()
        for _ in range(self._count):
            join_patiently(self.add_worker, self.kill_worker)

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
        return Node(place, started_node(place.address, log, self._variables, arguments, place.prefix))


def _free_port(address: str) -> int:
    with socket.socket() as free:
        free.bind((address, 0))
        return int(free.getsockname()[1])
