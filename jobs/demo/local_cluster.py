"""A Ray cluster on this machine without containers: a head without CPUs, and workers that can come and go."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

import orjson

from jobs.demo.ray_node import SYSTEM, RayNode, join_patiently, started_node


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
        self.head: RayNode | None = None
        self.workers: list[RayNode] = []

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

    def add_worker(self, offer: Offer) -> RayNode:
        """Start one more worker; it joins some seconds later."""
        self._count += 1
        node = self._start_node(f"{self._net}.{self._count}", f"--address={self.ray_address}", *offer.arguments())
        self.workers.append(node)
        return node

    def lose(self, node: RayNode) -> None:
        """End a worker at once, as a machine that loses its power."""
        node.kill()
        self.workers.remove(node)

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
            join_patiently(partial(self.add_worker, offer), self.lose)

    def _start_node(self, address: str, *arguments: str) -> RayNode:
        own = self._folder / address.rpartition(".")[2]  # as on machines of their own: each unpacks code for itself
        log = self._folder / f"{address}.log"
        return started_node(address, log, self._variables, [f"--temp-dir={own}", *arguments])


def _free_ports(address: str) -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind((address, 0))
        other.bind((address, 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])
