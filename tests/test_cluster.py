"""How a run reaches a Ray cluster, and what it says of one that is not there."""

import socket
import threading
import time

import pytest

from pipeline.config import Runtime
from pipeline.errors import PipelineError
from pipeline.execution.cluster import check_answers, start_ray


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_at_which_nobody_listens_is_told_with_its_config_key(scheme: str) -> None:
    address = f"{scheme}127.0.0.1:{closed_port()}"
    with pytest.raises(PipelineError, match=r"nobody answers.*runtime\.ray_address.*refused") as told:
        check_answers(address, patience_seconds=0)
    assert address in str(told.value)


def test_a_run_tells_a_host_that_does_not_exist_at_once() -> None:
    with pytest.raises(PipelineError, match=r"nobody answers at nobody\.invalid:6379"):
        start_ray(Runtime(ray_address="nobody.invalid:6379"))


def test_a_cluster_that_is_just_starting_is_waited_for() -> None:
    port = closed_port()
    listening = socket.socket()

    def listen() -> None:
        time.sleep(0.7)
        listening.bind(("127.0.0.1", port))
        listening.listen()

    with listening:
        thread = threading.Thread(target=listen)
        thread.start()
        check_answers(f"127.0.0.1:{port}", patience_seconds=30)
        thread.join()


@pytest.mark.parametrize("address", ["auto", "local", "somewhere"])
def test_an_address_without_a_port_is_left_to_ray(address: str) -> None:
    check_answers(address, patience_seconds=0)
