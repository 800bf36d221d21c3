"""The Ray of a run on one machine: kept to this machine, without the services of a cluster that nobody asks for."""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray._private.node
import ray._private.parameter
import ray._private.ray_constants
import ray._private.utils

from pipeline.execution.clusters.worker_environment import WORKER_ENVIRONMENT

OBJECT_STORE_BYTES = 2 * 2**30
"""Enough for some Blocks at 1792 dimensions; Ray's default of 30 % of the memory would let readers run far ahead."""

ENVIRONMENT = WORKER_ENVIRONMENT | {
    "RAY_worker_niceness": "0",  # Ray would let every other program of this machine go first
    # Workers that have read and tokenised are to write what comes out of the encoder a minute later: Ray would end them
    # after a second without work, and to start one costs 1.3 s of a core.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
}
"""What Ray and its workers find in their environment, unless it says otherwise already."""


@contextmanager
def of_this_machine() -> Iterator[None]:
    """Let the Ray that is started within listen on loopback only, and answer only who holds a token of this process.

    It is a Ray without autoscaler, dashboard server and log monitor, and with an agent that serves no HTTP: on two busy
    cores it stands after 3.6 s, with them after 16 s (2026-11, load 8). `ray.init` has no switch for these in 2.60.

    The token goes to Ray's processes through their environment, which nobody but their user can read; Ray's own
    would lie in ~/.ray/auth_token, readable by all. `ray.init(_node_ip_address="127.0.0.1")` has no effect in
    2.60: it puts the address of the network in its place. The constant that decides is meant for laptops; Ray has read
    it from the environment when it was imported.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ.pop("RAY_AUTH_MODE", None)  # unset, a local Ray turns tokens on, also in its part that is loaded already
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    node = ray._private.node.Node
    with ExitStack() as within:
        for owner, name, replacement in (
            (node, "start_monitor", _not_started),
            (node, "start_log_monitor", _not_started),
            (node, "start_api_server", _not_started),
            (ray._private.utils, "get_dashboard_dependency_error", _not_wanted),
        ):
            within.enter_context(_replaced(owner, name, replacement))
        yield


@contextmanager
def _replaced(owner: Any, name: str, replacement: Callable[..., object]) -> Iterator[None]:
    kept = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def _not_started(node: ray._private.node.Node, **options: object) -> None:
    """Stand for a method of Ray's that starts a service."""


def _not_wanted() -> ImportError:
    """Stand for the packages of Ray's dashboard, without which its agent is content with little."""
    return ImportError("a local run has no dashboard")
