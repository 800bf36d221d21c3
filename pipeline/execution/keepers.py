"""Actors of a run that keep something for all its workers; where one is lost, work goes on without what it kept."""

from typing import Any


def start_keeper(kind: type, *arguments: Any, **options: Any) -> Any:
    """Start an actor that reserves nothing; if it dies it starts anew, empty.

    Args:
        kind: its class.
        arguments: of the class.
        options: of Ray, besides.
    """
    import ray

    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=2, **options)(kind).remote(*arguments)


def answer_of(keeper: Any, question: str, unanswered: Any, seconds: float, *arguments: Any) -> Any:
    """Return what a method of a keeper gives.

    Args:
        unanswered: what is returned where the keeper is lost, or silent for so many seconds.
    """
    import ray
    import ray.exceptions

    try:
        return ray.get(getattr(keeper, question).remote(*arguments), timeout=seconds)
    except ray.exceptions.RayError:  # lost with its node
        return unanswered
