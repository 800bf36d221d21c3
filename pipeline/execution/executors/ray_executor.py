"""The stages on Ray: on a cluster, or on one that is started on this machine and ends with the run."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.config import JobConfig, Runtime
from pipeline.errors import Stopped
from pipeline.execution.attempts import RemoteAttempts
from pipeline.execution.clusters.cluster import (
    Shares,
    configure_data,
    divide,
    hosts,
    living,
    lost_since,
    ray_cores,
    start_ray,
    stop_ray,
)
from pipeline.execution.clusters.cores import short_of_cores, was_short_of_cores
from pipeline.execution.early_encoder import EarlyEncoder
from pipeline.execution.executors.executor import Todo
from pipeline.execution.lending import RemoteLedger
from pipeline.execution.repeats import look_through
from pipeline.execution.reporting.metrics import RunReport
from pipeline.execution.stage_settings import StageSettings
from pipeline.execution.stopping import stop_on_sigterm
from pipeline.execution.streaming import stream_healthy
from pipeline.records import BlockReceipt


class RayExecutor:
    """An Executor on the Ray that has been started.

    Args:
        runtime: by which the cluster is divided.
        shares: of the cluster as it is now.
        early: a process that loads the model already.
    """

    def __init__(self, runtime: Runtime, shares: Shares, early: EarlyEncoder | None) -> None:
        self.runtime, self.shares = runtime, shares
        self.book = self.marks = RemoteAttempts()
        self.encoder_threads = shares.encoder_threads
        is_same = early and (shares.encoder_gpus, shares.encoder_threads) == (0, early.threads)
        self.early_encoder = early.address if early and is_same else None

    def look_through(
        self, todo: Sequence[Todo], settings: StageSettings, patience_seconds: float
    ) -> Iterator[NDArray[np.void]]:
        shards = [(one.shard, one.done_blocks) for one in todo]
        return look_through(shards, settings, self.shares.stage_cpus, patience_seconds)

    def stream(
        self, todo: Sequence[Todo], settings: StageSettings, repeated_R2: NDArray[np.uint64]
    ) -> Iterator[BlockReceipt]:
        if len(repeated_R2):
            settings = replace(settings, ledger=RemoteLedger(repeated_R2, settings.model_dimension))
        return stream_healthy(todo, settings, self.book, self.runtime, self.shares)


@contextmanager
def on_ray(config: JobConfig, early: EarlyEncoder | None, report: RunReport) -> Iterator[RayExecutor]:
    """Start Ray, or connect to it, and say in the report what there is; it ends with this block."""
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # what outlives a failed run must not start Ray anew
    report.warnings += start_ray(config.runtime)
    stop_on_sigterm()  # Ray has put a handler of its own in the place of ours
    try:
        configure_data()
        shares = divide(config.runtime)
        report.hosts = hosts()
        gpus, cores = shares.encoders * shares.encoder_gpus, ray_cores()
        short = short_of_cores(shares.encoders, gpus, cores, report.estimate)
        report.warnings += short
        report.executor = "ray"
        report.encoders, report.device = shares.encoders, "gpu" if shares.encoder_gpus else "cpu"
        present = living()
        yield RayExecutor(config.runtime, shares, early)
        report.warnings += lost_since(present)
        if (was_short := was_short_of_cores(report, gpus, cores)) is not None:
            report.warnings = [*(warning for warning in report.warnings if warning not in short), *was_short]
    finally:
        if not isinstance(sys.exception(), Stopped):
            stopping = time.perf_counter()
            stop_ray()
            report.seconds["stop"] = time.perf_counter() - stopping
