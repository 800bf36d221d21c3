"""Where the nodes of a test cluster live: an address of 127/8 each, or a network namespace each."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, Self


@dataclass(frozen=True, slots=True)
class Place:
    """Where one node runs."""

    address: str
    prefix: tuple[str, ...] = ()
    """What stands before a command to run it there."""
    link: str | None = None
    """The host's end of its cable, if it has one to be unplugged."""


class Network(Protocol):
    """Gives the head and every worker its place."""

    head: Place

    def new_place(self) -> Place:
        """Return a place for one more worker."""
        ...


class Loopback:
    """Every node has an address of its own in 127/8, which nothing outside this machine can reach."""

    def __init__(self) -> None:
        self._numbers = itertools.count(2)
        self._net = f"127.{64 + os.getpid() // 250 % 128}.{1 + os.getpid() % 250}"
        self.head = Place(f"{self._net}.1")

    def new_place(self) -> Place:
        return Place(f"{self._net}.{next(self._numbers)}")


class Namespaces:
    """The head stays on this machine, at a bridge's address; every worker has a network namespace on that bridge."""

    def __init__(self) -> None:
        self._numbers, self._tag = itertools.count(2), f"{os.getpid() % 100_000}"
        self._net, self._bridge = f"10.231.{1 + os.getpid() % 250}", f"chbr{self._tag}"
        self._names: list[str] = []
        self._cables: list[str] = []
        self.head = Place(f"{self._net}.1")

    @staticmethod
    def are_possible() -> bool:
        """Whether this machine lets us make them: Linux, root, iproute2, and a kernel with veth and bridges."""
        if os.geteuid() != 0 or shutil.which("ip") is None:
            return False
        try:
            with Namespaces() as network:
                network.new_place()
        except subprocess.CalledProcessError:
            return False
        return True

    def __enter__(self) -> Self:
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self._net}.1/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        return self

    def __exit__(self, *_: object) -> None:
        ends = [*(("netns", "del", name) for name in self._names), *(("link", "del", name) for name in self._cables)]
        for end in [*ends, ("link", "del", self._bridge)]:
            with suppress(subprocess.CalledProcessError):
                _ip(*end)

    def new_place(self) -> Place:
        number = next(self._numbers)
        name, outer, inner = (f"{kind}{self._tag}n{number}" for kind in ("chns", "cho", "chi"))
        address = f"{self._net}.{number}"
        _ip("netns", "add", name)
        self._names.append(name)
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        self._cables.append(outer)
        _ip("link", "set", outer, "master", self._bridge, "up")
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", inner)
        _ip("-n", name, "link", "set", inner, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        return Place(address, ("ip", "netns", "exec", name), outer)


def unplug(link: str) -> None:
    """Cut a node off: it goes on working and nobody hears of it."""
    _ip("link", "set", link, "down")


def plug_in(link: str) -> None:
    _ip("link", "set", link, "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)
