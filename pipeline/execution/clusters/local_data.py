"""Ray Data on one machine: without the two actors that would keep statistics for a dashboard and ask for more nodes."""

from typing import Any

import ray
import ray.data._internal.execution.streaming_executor as executor
import ray.data._internal.stats as statistics
from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
from ray.data._internal.execution.interfaces import ExecutionResources

_of_ray = (executor.create_cluster_autoscaler, statistics.get_or_create_stats_actor)


class ThisMachine(ClusterAutoscaler):  # type: ignore[misc]
    """A cluster that stays as it is."""

    def __init__(self) -> None:
        self._resources = ExecutionResources.from_resource_dict(ray.cluster_resources())

    def try_trigger_scaling(self) -> None: ...

    def on_executor_shutdown(self) -> None: ...

    def get_total_resources(self) -> ExecutionResources:
        return self._resources


class NoStatistics:
    """Stands for the handle of the actor; whatever it is told, or asked, comes to nothing."""

    def __getattr__(self, name: str) -> Any:
        return self

    def remote(self, *arguments: Any, **named: Any) -> None: ...


def use_actors_of_a_cluster(is_wanted: bool) -> None:
    """Let Ray Data start these actors, or do without: each costs a second of a core and 150 MB (Ray 2.60)."""
    scaling, keeping = _of_ray
    executor.create_cluster_autoscaler = scaling if is_wanted else _this_machine
    statistics.get_or_create_stats_actor = keeping if is_wanted else NoStatistics


def _this_machine(*arguments: Any, **named: Any) -> ThisMachine:
    return ThisMachine()
