"""A model that is loaded while Ray starts, in a process of its own, which the encoder actor joins.

Torch and sentence-transformers take five seconds of a core to import, as long as everything before them takes on two
cores. Only for the one CPU encoder of a local run; whoever finds nobody to join loads the model as ever.
"""

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from pipeline.config import JobConfig, Runtime
from pipeline.encoder.describe import ModelDescription
from pipeline.encoder.engines import first_engine
from pipeline.encoder.protocol import Encoder
from pipeline.execution import joined_encoder
from pipeline.execution.clusters.worker_environment import WORKER_ENVIRONMENT
from pipeline.execution.planning.model import open_encoder
from pipeline.execution.planning.plan import Plan
from pipeline.execution.settings import tokenizer_spec

GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Where a GPU of NVIDIA, of AMD, or of a Windows host shows itself."""

NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}


def threads_of_only_encoder(runtime: Runtime, environment: Mapping[str, str]) -> int:
    """Return the CPU threads of the only encoder of a local run without GPUs; 0 = it is none, or perhaps none."""
    is_local = not (runtime.ray_address or environment.get("RAY_ADDRESS"))
    may_hold_gpu = runtime.gpus_per_encoder != 0 and any(Path(driver).exists() for driver in GPU_DRIVERS)
    if not is_local or may_hold_gpu or runtime.encoders not in ("auto", 1) or not hasattr(os, "sched_getaffinity"):
        return 0
    return len(os.sched_getaffinity(0))


class EarlyEncoder:
    """The driver's side: starts the process, and ends it if nobody has.

    Args:
        load: loads the model, in that process; picklable.
        threads: that it will compute with.
    """

    def __init__(self, load: Callable[[], Encoder], threads: int) -> None:
        self.threads = threads
        self._folder = tempfile.TemporaryDirectory(prefix="encoder-")  # nobody but this user may enter it
        self.address = str(Path(self._folder.name, "socket"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", joined_encoder.__name__],
            env=WORKER_ENVIRONMENT | os.environ | NO_GPU,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(pickle.dumps((self.address, load)))
            self._process.stdin.flush()

    def close(self) -> None:
        """End the process, whatever it is at: it holds nothing that is not lost with it anyway."""
        with suppress(BrokenPipeError), self._process:
            self._process.kill()
        self._folder.cleanup()


@contextmanager
def loading_early(config: JobConfig, plan: Plan, description: ModelDescription) -> Iterator[EarlyEncoder | None]:
    """Load the model in a process of its own from here on, where that pays; it ends at the latest with this block."""
    threads = threads_of_only_encoder(config.runtime, os.environ)
    if not threads or plan.model.kind == "hashing":
        yield None
        return
    prompt = tokenizer_spec(config.recipe, description).prompt
    compute = config.recipe.compute
    engine = first_engine(config.runtime.engine, compute)
    early = EarlyEncoder(partial(open_encoder, plan.model, compute, prompt, threads, engine), threads)
    try:
        yield early
    finally:
        early.close()
