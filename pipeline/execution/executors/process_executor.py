"""The stages without Ray: in one process beside the driver, and the encoder that was loaded early in another."""

import logging
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.config import JobConfig
from pipeline.errors import PipelineError, SickDevice, Stopped
from pipeline.execution.attempts import MAX_DEATHS, SICK_EXIT, Attempts, none_healthy
from pipeline.execution.clusters.worker_environment import WORKER_ENVIRONMENT
from pipeline.execution.early_encoder import NO_GPU, EarlyEncoder, threads_of_only_encoder
from pipeline.execution.executors import process_worker
from pipeline.execution.executors.executor import Missing, Todo
from pipeline.execution.executors.worker_line import MarksByLine
from pipeline.execution.reporting.metrics import RunReport
from pipeline.execution.stage_settings import StageSettings
from pipeline.records import BlockReceipt

logger = logging.getLogger(__name__)

T = TypeVar("T")

DYING_SECONDS = 5.0
"""How long a process whose line is cut may take to end."""


class WorkerDied(Exception):
    """The worker process has ended in the middle of its work."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(f"the worker process ended with exit code {exit_code}")


class Worker:
    """A process that does what it is asked for, and asks the book of its driver; it ends with its driver.

    Args:
        book: of attempts.
    """

    def __init__(self, book: Attempts) -> None:
        self._book = book
        self._connection, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", process_worker.__name__, str(theirs.fileno())],
                env=WORKER_ENVIRONMENT | os.environ | NO_GPU | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def results(
        self, function: Callable[..., Iterable[T]], *arguments: Any, patience_seconds: float | None = None
    ) -> Iterator[T]:
        """Yield what the function yields in the process; both it and what passes through must be picklable.

        Raises:
            WorkerDied: the process has ended.
            TimeoutError: nothing has come for so long.
            PipelineError: what the function has raised.
        """
        try:
            self._connection.send((function, arguments))
            while True:
                if not self._connection.poll(patience_seconds):
                    raise TimeoutError
                kind, content = self._connection.recv()
                if kind == "ask":
                    question, of_question = content
                    self._connection.send(getattr(self._book, question)(*of_question))
                elif kind == "result":
                    yield content
                elif kind == "failed":
                    raise content
                else:
                    return
        except (EOFError, ConnectionError):
            raise WorkerDied(self._exit_code()) from None

    def _exit_code(self) -> int:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(DYING_SECONDS)
        return self.close()

    def close(self) -> int:
        """End the process; return its exit code, which is negative for a signal."""
        with self._process:
            self._process.kill()
        return self._process.returncode


class ProcessExecutor:
    """An Executor with one worker process, which is started anew when it dies.

    Args:
        threads: of an encoder.
        early: a process that loads the model already.
    """

    def __init__(self, threads: int, early: EarlyEncoder | None) -> None:
        self.book, self.marks = Attempts(), MarksByLine()
        self.encoder_threads = threads
        self.early_encoder = early.address if early else None
        self._worker: Worker | None = Worker(self.book)
        self._is_closed = False

    def _alive(self) -> Worker:
        """Return the worker, a fresh one if it has died."""
        if self._is_closed:
            raise PipelineError("the run is over")
        if self._worker is None:
            self._worker = Worker(self.book)
        return self._worker

    def look_through(
        self, todo: Sequence[Todo], settings: StageSettings, patience_seconds: float
    ) -> Iterator[NDArray[np.void]]:
        left = list(todo)
        while left:
            try:
                looking = (process_worker.looked_through, left, settings)
                for hashes_N in self._alive().results(*looking, patience_seconds=patience_seconds):
                    left = left[1:]
                    yield hashes_N
                return
            except TimeoutError:
                logger.warning("event=look_through_ended reason=no_shard_was_read seconds=%s", patience_seconds)
                self._end_worker()
                return
            except WorkerDied:
                self._end_worker()
                left = left[1:]
            except Stopped:  # raised here, by a signal: no Shard has failed
                raise
            except PipelineError:
                left = left[1:]

    def stream(
        self, todo: Sequence[Todo], settings: StageSettings, repeated_R2: NDArray[np.uint64]
    ) -> Iterator[BlockReceipt]:
        missing, stages, idle_deaths = Missing(todo), process_worker.stages_at_once, 0
        while True:
            try:
                for receipt in self._alive().results(stages, missing.left(), settings, repeated_R2):
                    missing.take_off(receipt)
                    idle_deaths = 0
                    yield receipt
                return
            except WorkerDied as death:
                self._end_worker()
                begun = self.book.standing()
                logger.warning("event=worker_died begun=%s cause=%s", len(begun), death)
                if len(begun) > 1:  # which of them was it?
                    self.book.forget_begun()
                stages = process_worker.one_stage_at_a_time
                idle_deaths += not begun and death.exit_code != SICK_EXIT
                if idle_deaths == MAX_DEATHS:
                    raise PipelineError(
                        f"{death}, {MAX_DEATHS} times before it had begun a Block; what was encoded is "
                        "kept, run again to go on"
                    ) from None
            except SickDevice as error:
                raise none_healthy(self.book.excluded() or {socket.gethostname(): str(error)}) from error

    def close(self) -> None:
        """End the worker, for good."""
        self._is_closed = True
        self._end_worker()

    def _end_worker(self) -> None:
        if self._worker:
            self._worker.close()
        self._worker = None


@contextmanager
def without_ray(config: JobConfig, early: EarlyEncoder | None, report: RunReport) -> Iterator[ProcessExecutor]:
    """Start a worker, and say in the report what there is; it ends with this block."""
    cores = threads_of_only_encoder(config.runtime, os.environ)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    report.hosts = [f"{socket.gethostname()} ({cores} CPUs, {memory / 1e9:.0f} GB)"]
    report.executor = "process"
    report.encoders, report.device = 1, "cpu"
    executor = ProcessExecutor(cores, early)
    try:
        yield executor
    finally:
        stopping = time.perf_counter()
        executor.close()
        report.seconds["stop"] = time.perf_counter() - stopping
