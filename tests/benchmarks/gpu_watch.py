"""What a GPU can do and what it did: matrix products at a model's shapes, and the share of the time it was busy."""

import shutil
import subprocess
import time
from collections.abc import Callable

import torch

from tests.benchmarks.random_model import Shape

NOMINAL = {"H200": 989e12, "H100 80GB HBM3": 989e12, "H100 PCIe": 756e12, "A100": 312e12}
"""Dense bfloat16 of tensor cores in FLOP/s, by the names of GPUs, as their maker's data sheets say."""

REPETITIONS = 20


def nominal_flops(device_name: str) -> float | None:
    """Return what the data sheet says; None for a device that is not in the list."""
    return next((flops for name, flops in NOMINAL.items() if name in device_name), None)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def gemm_flops(shape: Shape, device: str) -> float:
    """Return the FLOP/s of the matrix products of one layer in bfloat16, back to back, as fast as torch runs them."""
    tokens = 16384 if device == "cuda" else 512
    sizes = [(shape.hidden, shape.hidden)] * 4 + [(shape.hidden, shape.inner), (shape.inner, shape.hidden)]
    inputs = {size: torch.randn(tokens, size, device=device, dtype=torch.bfloat16) for size, _ in sizes}
    weights = [torch.randn(outputs, inner, device=device, dtype=torch.bfloat16) for inner, outputs in sizes]
    best = float("inf")
    for _ in range(3):
        _wait(device)
        started = time.perf_counter()
        for _ in range(REPETITIONS):
            for (inner, _), weight in zip(sizes, weights, strict=True):
                torch.nn.functional.linear(inputs[inner], weight)
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return REPETITIONS * sum(2 * tokens * inner * outputs for inner, outputs in sizes) / best


def busy_share(work: Callable[[], object], device: str) -> dict[str, object]:
    """Return in what share of the time a kernel ran, as nvidia-smi samples it while work is done."""
    if device != "cuda" or not shutil.which("nvidia-smi"):
        return {}
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200", "-i", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as watcher:
        time.sleep(0.5)
        work()
        watcher.terminate()
        samples = [int(line) for line in (watcher.communicate()[0] or "").split() if line.isdigit()]
    during = samples[3:-1] or samples  # the first ones look back to before the work
    return {"gpu_busy_by_nvidia_smi": round(sum(during) / len(during) / 100, 3)} if during else {}


def kernel_share(work: Callable[[], object], device: str) -> dict[str, object]:
    """Return in what share of the wall time kernels ran, by torch's profiler, which itself slows the host somewhat."""
    if device != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    _wait(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        started = time.perf_counter()
        work()
        _wait(device)
        wall = time.perf_counter() - started
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiled.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    return {"gpu_busy_by_profiler": round(_covered(spans) / 1e6 / wall, 3)} if spans else {}


def _covered(spans: list[tuple[float, float]]) -> float:
    """Return the length of the union of spans that are sorted by their begin."""
    covered, reached = 0.0, float("-inf")
    for start, end in spans:
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
