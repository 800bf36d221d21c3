"""The Ray this run uses, and how its machines are shared between encoders and the stages around them."""

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray._private.worker
import ray.data
import ray.exceptions

from pipeline.config import Runtime
from pipeline.errors import ConfigError, PipelineError
from pipeline.execution.attempts import none_healthy
from pipeline.execution.clusters.local_data import use_actors_of_a_cluster
from pipeline.execution.clusters.local_ray import OBJECT_STORE_BYTES, of_this_machine
from pipeline.execution.clusters.reach import check_answers
from pipeline.units import counted

Resources = Mapping[str, float]
"""What a node offers, by Ray's names."""

logger = logging.getLogger(__name__)

LOOPBACK = ("localhost", "127.0.0.1", "::1")

OPEN_CLUSTER = (
    "the Ray cluster at {address} asks for no token: whoever reaches its ports can run code on it and read what this "
    "run reads; start it, and this command, with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN"
)

NODE_SHARE = 0.51
"""Share of a node's CPUs that its only CPU encoder reserves: more than half keeps a second one off the node, less
than all leaves room for the stages around it (actors that take every CPU hang the job)."""

BUILT_IN = ("CPU", "GPU", "memory", "object_store_memory")
_ASKED = "runtime.encoder_resources asks for"


@dataclass(frozen=True, slots=True)
class Shares:
    """How many encoders there are, and what each Ray worker reserves."""

    encoders: int
    encoder_cpus: float
    encoder_gpus: float
    encoder_threads: int
    """CPU threads of a forward pass; 0 on a GPU."""
    encoder_resources: Resources
    """Custom resources of an encoder."""
    stage_cpus: float
    """CPUs that a reading or writing worker reserves; a tokenising one takes a little more (see `stream_blocks`)."""


def start_ray(runtime: Runtime) -> list[str]:
    """Connect to the cluster of the config or of the environment, or start Ray on this machine alone.

    Returns:
        Warnings for the report.

    Raises:
        PipelineError: no cluster answers at this address, or it refuses this process.
    """
    address = runtime.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of its core: it warns of constructor arguments, ray#53727
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "address": address}
    with ExitStack() as within:
        if address == "local":
            options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
            within.enter_context(of_this_machine())
        else:
            check_answers(address)
        within.enter_context(_without_native_stderr())
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.AuthenticationError) as error:
            raise PipelineError(f"cannot start or reach Ray at {address}: {error}") from error
    # Ray tells of dead workers on stdout, even with log_to_driver off, and has no other switch for it (2.60).
    ray._private.worker._worker_logs_enabled = False
    return [] if is_guarded(address, os.environ) else [OPEN_CLUSTER.format(address=address)]


def is_started_here() -> bool:
    """Whether this process has started the Ray it uses, on this machine alone."""
    node = ray._private.worker._global_node
    return node is not None and bool(node.head)


def is_guarded(address: str, environment: Mapping[str, str]) -> bool:
    """Whether a cluster wants a token of those who use it, or is this machine's alone.

    Args:
        address: as Ray takes it: `local`, `auto`, `host:port` or `ray://host:port`.
        environment: that of this process once Ray has started; Ray itself writes RAY_AUTH_MODE into it.
    """
    host = address.rpartition("://")[2].rpartition(":")[0].strip("[]")
    return address == "local" or host in LOOPBACK or environment.get("RAY_AUTH_MODE", "").lower() == "token"


@contextmanager
def _without_native_stderr() -> Iterator[None]:
    """Keep what Ray's C++ core says of its own log level while it starts off the terminal; errors are raised."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def configure_data() -> None:
    """Set up Ray Data for rows that are whole Blocks, on the Ray that has been started."""
    use_actors_of_a_cluster(is_wanted=not is_started_here())
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1  # one of our Blocks per Ray block: no coalescing, every Block streams on at once
    context.execution_no_progress_timeout_s = -1  # runtime.stall_minutes is ours to watch, and names what stood still
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_operator_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what a stage raises is told once, by us


def divide(
    runtime: Runtime, left_out: Mapping[str, str] | None = None, held_gpus: Mapping[str, int] | None = None
) -> Shares:
    """Decide how many encoders run and what they reserve, from what the cluster has now.

    Args:
        left_out: nodes that no encoder may run on, each with what its last encoder has said.
        held_gpus: GPUs of a node that no encoder gets.

    Raises:
        ConfigError: more is asked for than the cluster has.
        EncoderError: encoders have failed on all of its nodes.
    """
    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    held = held_gpus or {}
    nodes = [
        node["Resources"] | {"GPU": node["Resources"].get("GPU", 0.0) - held.get(node["NodeID"], 0)}
        for node in alive
        if node["NodeID"] not in (left_out or {})
    ]
    if left_out and (not nodes or not _can_encode(nodes, [node["Resources"] for node in alive], runtime)):
        raise none_healthy(left_out)
    if not nodes:
        raise PipelineError("the Ray cluster has no node with CPUs; start one, or check runtime.ray_address")
    cores = min(node["CPU"] for node in nodes)
    stage_cpus = min(1.0, cores / 8)
    needs = dict(runtime.encoder_resources)
    able = _offering(nodes, needs)
    gpus = sum(node.get("GPU", 0.0) for node in able)
    gpus_per_encoder = runtime.gpus_per_encoder
    if gpus_per_encoder == "auto":
        gpus_per_encoder = 1.0 if gpus else 0.0
    if gpus_per_encoder > 0:
        room = sum(_encoders_on(node, gpus_per_encoder, needs) for node in able)
        encoders = max(1, room) if runtime.encoders == "auto" else runtime.encoders
        if encoders > room and (left_out or held):
            encoders = max(1, room)
        if encoders > room:
            raise ConfigError(
                f"runtime asks for {encoders} encoders with {gpus_per_encoder:g} GPUs each; the cluster's {gpus:g} "
                f"GPUs have room for {room}. Lower runtime.encoders or runtime.gpus_per_encoder (0 = CPU)."
            )
        cpus = min(node["CPU"] * NODE_SHARE / max(1, _encoders_on(node, gpus_per_encoder, needs)) for node in able)
        return Shares(encoders, min(1.0, cores / 4, round(cpus, 2)), gpus_per_encoder, 0, needs, stage_cpus)
    room = sum(_encoders_on(node, 0.0, needs) for node in able)
    encoders = (room if needs else len(able)) if runtime.encoders == "auto" else runtime.encoders
    if needs and encoders > room:
        if not (left_out or held):
            raise ConfigError(f"runtime asks for {encoders} encoders; the cluster has room for {room} by what {_ASKED}")
        encoders = room
    per_node = math.ceil(encoders / len(able))
    cores = min(node["CPU"] for node in able)
    threads = max(1, int(cores) // per_node)
    return Shares(encoders, round(cores * NODE_SHARE / per_node, 2), 0.0, threads, needs, stage_cpus)


def _offering(nodes: Sequence[Resources], needs: Resources) -> list[Resources]:
    """Return the nodes on which an encoder with these custom resources has room.

    Raises:
        ConfigError: there is none.
    """
    able = [node for node in nodes if all(node.get(name, 0) >= need for name, need in needs.items())]
    if not able:
        offered = sorted({name for node in nodes for name in node if name not in BUILT_IN and ":" not in name})
        raise ConfigError(
            f"no node of the cluster has what {_ASKED} ({', '.join(f'{n}: {v:g}' for n, v in needs.items())}); "
            f"custom resources there are: {', '.join(offered) or 'none'}"
        )
    return able


def gpus_by_node() -> dict[str, int]:
    """Return how many GPUs each living node has."""
    return {node["NodeID"]: int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]}


def ray_cores() -> float:
    """Return how many CPUs the whole cluster has."""
    return float(ray.cluster_resources().get("CPU", 0.0))


def _can_encode(nodes: Sequence[Resources], all_nodes: Sequence[Resources], runtime: Runtime) -> bool:
    """Whether these nodes have a GPU, if encoders hold one, and what else an encoder holds."""
    wants_gpu = runtime.gpus_per_encoder != 0 and any(node.get("GPU") for node in all_nodes)
    needs = dict(runtime.encoder_resources) | ({"GPU": 1e-9} if wants_gpu else {})
    return any(all(node.get(name, 0) >= need for name, need in needs.items()) for node in nodes)


def _encoders_on(node: Resources, gpus_per_encoder: float, needs: Resources) -> int:
    """Return how many encoders have room on a node: a share of a GPU lies on one GPU, several GPUs on one node.

    By CPUs alone there is room for any number.
    """
    rooms = [int(node[name] / need + 1e-9) for name, need in needs.items()]
    gpus = int(node.get("GPU", 0))
    if gpus_per_encoder >= 1:
        rooms.append(int(gpus / gpus_per_encoder))
    elif gpus_per_encoder > 0:
        rooms.append(gpus * int(1 / gpus_per_encoder + 1e-9))
    return min(rooms, default=0)


def hosts() -> list[str]:
    """Return the living nodes of the cluster, each with what it offers."""
    nodes = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: str(node["NodeManagerHostname"]))
    return [f"{node['NodeManagerHostname']} ({_offer(node['Resources'])})" for node in nodes]


def living() -> dict[str, str]:
    """Return the host of each living node of the cluster by its id."""
    return {node["NodeID"]: str(node["NodeManagerHostname"]) for node in ray.nodes() if node["Alive"]}


def lost_since(before: Mapping[str, str]) -> list[str]:
    """Return a warning that names the nodes that were living before and are not now; nothing if all are."""
    now = living()
    gone = sorted(host for node, host in before.items() if node not in now)
    if not gone:
        return []
    return [f"{counted(len(gone), 'node')} of the cluster went during the run ({', '.join(gone)}); others did its work"]


def _offer(resources: Resources) -> str:
    gpus = [counted(round(resources["GPU"]), "GPU")] if resources.get("GPU") else []
    memory = f"{resources.get('memory', 0) / 1e9:.0f} GB"
    return ", ".join([f"{resources.get('CPU', 0):g} CPUs", *gpus, memory])


def stop_ray() -> None:
    """Leave the cluster, or end the local one."""
    ray.shutdown()
