"""What a Ray of this machine alone finds when it starts, and what is as it was before when it stands."""

import os
from contextlib import suppress

import pytest
import ray._private.node
import ray._private.ray_constants
import ray._private.utils

from pipeline.execution.clusters.local_ray import ENVIRONMENT, of_this_machine

IDLE = "RAY_idle_worker_killing_time_threshold_ms"


@pytest.fixture(autouse=True)
def unharmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {IDLE: "7", "RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "mine"})
    constants = ray._private.ray_constants
    monkeypatch.setattr(constants, "ENABLE_RAY_CLUSTER", constants.ENABLE_RAY_CLUSTER)


def replaced() -> list[object]:
    node = ray._private.node.Node
    services = [node.start_monitor, node.start_log_monitor, node.start_api_server]
    return [*services, ray._private.utils.get_dashboard_dependency_error]


def test_services_of_a_cluster_are_left_out_within_and_only_there() -> None:
    before, within = replaced(), list[object]()
    with suppress(ConnectionError), of_this_machine():
        within = replaced()
        raise ConnectionError("Ray does not start")
    assert not set(before) & set(within)
    assert replaced() == before


def test_what_the_environment_says_already_stays() -> None:
    with of_this_machine():
        assert {name: value for name, value in os.environ.items() if name in ENVIRONMENT} == ENVIRONMENT | {IDLE: "7"}
        assert "RAY_AUTH_MODE" not in os.environ
        assert os.environ["RAY_AUTH_TOKEN"] == "mine"
