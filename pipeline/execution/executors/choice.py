"""Which executor a run has: Ray, or where little is to be done on this machine alone, one without."""

import os
from contextlib import AbstractContextManager

from pipeline.config import JobConfig
from pipeline.execution.early_encoder import EarlyEncoder, threads_of_only_encoder
from pipeline.execution.executors.executor import Executor
from pipeline.execution.planning.plan import Plan
from pipeline.execution.reporting.metrics import RunReport


def needs_ray(config: JobConfig, plan: Plan) -> bool:
    """Whether there is a cluster, a GPU or more than one encoder to use, or too much to read for one process."""
    left_bytes = sum(shard.size_bytes for shard in plan.embed)
    is_alone = threads_of_only_encoder(config.runtime, os.environ) and not config.runtime.encoder_resources
    return not is_alone or left_bytes >= config.runtime.without_ray_bytes


def executing(
    config: JobConfig, plan: Plan, early: EarlyEncoder | None, report: RunReport
) -> AbstractContextManager[Executor]:
    """Return the executor of a run, which begins and ends with its block, and says in the report what it has.

    Args:
        early: a process that loads the model already.
    """
    if needs_ray(config, plan):
        from pipeline.execution.executors.ray_executor import on_ray

        return on_ray(config, early, report)
    from pipeline.execution.executors.process_executor import without_ray

    return without_ray(config, early, report)
