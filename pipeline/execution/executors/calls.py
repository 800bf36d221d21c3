"""Who calls a function for each of many arguments: tasks of the Ray cluster that a config names, else this process."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.config import Runtime


@contextmanager
def calling(runtime: Runtime) -> Iterator[Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]]:
    """Give `map`, or where config or environment name a Ray cluster what does the same by its tasks.

    The cluster is reached at the first call, and left at the end of the block.
    """
    if not (runtime.ray_address or os.environ.get("RAY_ADDRESS")):
        yield map
        return
    from pipeline.execution.clusters import cluster, tasks
    from pipeline.execution.stopping import stop_on_sigterm

    is_reached = False

    def mapped(function: Callable[[Any], Any], arguments: Iterable[Any]) -> Iterator[Any]:
        nonlocal is_reached
        if not is_reached:
            cluster.start_ray(runtime)
            is_reached = True
            stop_on_sigterm()  # Ray has put a handler of its own in the place of ours
        yield from tasks.in_tasks(function, arguments)

    try:
        yield mapped
    finally:
        if is_reached:
            cluster.stop_ray()
