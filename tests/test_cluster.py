"""How a run reaches a Ray cluster, and what it says of one that is not there."""

import socket
import threading
import time

import pytest
import ray

from pipeline.config import Runtime
from pipeline.errors import ConfigError, EncoderError, PipelineError
from pipeline.execution.clusters.cluster import divide, living, lost_since, start_ray
from pipeline.execution.clusters.reach import check_answers


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


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of a head, a node of CPUs, and a node with GPUs and accelerators of another kind."""
    offers = [{}, {"CPU": 8.0, "node:a": 1.0}, {"CPU": 4.0, "GPU": 2.0, "accelerator": 3.0}]
    found = [
        {"NodeID": f"{number}", "NodeManagerHostname": f"host-{number}", "Alive": True, "Resources": offer}
        for number, offer in enumerate(offers)
    ]
    monkeypatch.setattr(ray, "nodes", lambda: found)


@pytest.mark.usefixtures("nodes")
def test_a_node_that_has_gone_is_named() -> None:
    before = living()
    assert lost_since(before) == []
    (told,) = lost_since({**before, "9": "far.example"})
    assert told == "1 node of the cluster went during the run (far.example); others did its work"


@pytest.mark.usefixtures("nodes")
def test_encoders_are_as_many_as_have_room_by_what_they_hold() -> None:
    assert divide(Runtime()).encoders == 2
    assert divide(Runtime(gpus_per_encoder=0)).encoders == 2
    shares = divide(Runtime(gpus_per_encoder=0, encoder_resources={"accelerator": 1.5}))
    assert (shares.encoders, shares.encoder_resources, shares.encoder_threads) == (2, {"accelerator": 1.5}, 2)
    assert divide(Runtime(gpus_per_encoder=0.5, encoder_resources={"accelerator": 1})).encoders == 3


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        (Runtime(encoder_resources={"tpu": 1}), "tpu: 1.*custom resources there are: accelerator"),
        (Runtime(encoders=4, gpus_per_encoder=0, encoder_resources={"accelerator": 1}), "has room for 3"),
        (Runtime(encoders=3), "have room for 2"),
    ],
)
def test_more_than_the_cluster_has_is_refused(runtime: Runtime, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        divide(runtime)


@pytest.mark.usefixtures("nodes")
def test_a_cluster_whose_only_accelerators_are_sick_has_no_encoder() -> None:
    runtime = Runtime(gpus_per_encoder=0, encoder_resources={"accelerator": 1})
    with pytest.raises(EncoderError, match="no healthy encoder is left"):
        divide(runtime, {"2": "NaN"})
    assert divide(Runtime(gpus_per_encoder=0), {"2": "NaN"}).encoders == 1
