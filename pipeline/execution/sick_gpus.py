"""Sick GPUs of a run: kept from its encoders by actors that hold them, while the others of their node go on."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

logger = logging.getLogger(__name__)

HOLD_SECONDS = 60.0
"""How long the encoders that were stopped may take to give their GPUs back."""


@dataclass(frozen=True, slots=True)
class Sickness:
    """What the encoders of a run have failed on, by what is to be left out."""

    nodes: dict[str, str] = field(default_factory=dict)
    """Node → last error."""
    gpus: dict[str, dict[str, str]] = field(default_factory=dict)
    """Node → number of the GPU → last error."""


def here() -> str:
    """Return where this worker computes: its node, or `node/gpu,…` where it holds GPUs."""
    context = ray.get_runtime_context()
    gpus = context.get_accelerator_ids().get("GPU", [])
    return "/".join(filter(None, [context.get_node_id(), ",".join(gpus)]))


def sickness_of(excluded: Mapping[str, str]) -> Sickness:
    """Return what is to be left out.

    Args:
        excluded: places as `here` tells them, with the last error of each.
    """
    sick = Sickness()
    for place, error in excluded.items():
        node, _, gpus = place.partition("/")
        if gpus:
            sick.gpus.setdefault(node, {}).update(dict.fromkeys(gpus.split(","), error))
        else:
            sick.nodes[node] = error
    return sick


class _Holder:
    """Holds one GPU, and does nothing with it."""

    def gpu(self) -> str:
        return str(ray.get_runtime_context().get_accelerator_ids()["GPU"][0])


class SickGpus:
    """Holds the sick GPUs of a run until it ends.

    Ray does not say which GPU a worker gets, so on their node all GPUs are taken at once, and the healthy given back.
    """

    def __init__(self) -> None:
        self._holders: dict[str, dict[str, Any]] = {}

    def held(self) -> dict[str, int]:
        """Return how many GPUs are held, by node."""
        return {node: len(holders) for node, holders in self._holders.items()}

    def hold(self, sick: Sickness, gpus_of: Mapping[str, int]) -> dict[str, str]:
        """Hold what is sick; return the nodes that must be left out whole, with the last error of each.

        Args:
            sick: what no encoder of this run may use.
            gpus_of: GPUs that each node has.
        """
        left_out = dict(sick.nodes)
        for node, gpus in sick.gpus.items():
            errors = list(gpus.values())
            if node in left_out or len(gpus) >= gpus_of.get(node, 0) or not self._hold(node, set(gpus), gpus_of[node]):
                left_out[node] = errors[-1]
        return left_out

    def _hold(self, node: str, sick: set[str], gpus: int) -> bool:
        """Return whether all sick GPUs of a node are held now."""
        held = self._holders.setdefault(node, {})
        if sick <= held.keys():
            return True
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        holder = ray.remote(num_cpus=0, num_gpus=1, scheduling_strategy=strategy)(_Holder)
        begun = {(one := holder.remote()).gpu.remote(): one for _ in range(gpus - len(held))}
        answered, _ = ray.wait(list(begun), num_returns=len(begun), timeout=HOLD_SECONDS)
        found: dict[str, Any] = {}
        for answer in answered:
            try:
                found[ray.get(answer)] = begun[answer]
            except ray.exceptions.RayError:  # its node is gone
                continue
        held.update({gpu: one for gpu, one in found.items() if gpu in sick})
        for one in begun.values():
            if one not in held.values():
                ray.kill(one)
        logger.warning("event=gpus_held node=%s gpus=%s", node, ",".join(sorted(held)))
        return sick <= held.keys()
