"""A function called by tasks of the Ray that has been started, its results in the order of the arguments."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray
import ray.exceptions

from pipeline.errors import PipelineError

A = TypeVar("A")
R = TypeVar("R")


def in_tasks(function: Callable[[A], R], arguments: Iterable[A]) -> Iterator[R]:
    """Yield the result of each argument, in their order; as many tasks as the cluster has CPUs are under way.

    Args:
        function: put into the object store once; each task reads its arrays where they lie.

    Raises:
        PipelineError: a task has died, every time that Ray has tried it; else what the function raises.
    """
    call = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(_call)
    shared, waiting = ray.put(function), deque[Any]()
    at_once = max(1, int(ray.cluster_resources().get("CPU", 1)))
    for argument in arguments:
        waiting.append(call.remote(shared, argument))
        if len(waiting) >= at_once:
            yield _result(waiting.popleft())
    while waiting:
        yield _result(waiting.popleft())


def _call(function: Callable[[A], R], argument: A) -> R:
    return function(argument)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise PipelineError(f"a task on the Ray cluster has died: {' '.join(str(error).split())}; run again") from error
