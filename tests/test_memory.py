"""Memory that does not suffice: known by whatever name a library gives it, and found when an encoder is opened."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline import open_snapshot
from pipeline.encoder.hashing import HashingEncoder
from pipeline.encoder.memory import OUT_OF_MEMORY, fault_of, is_out_of_memory
from pipeline.encoder.packed import bearable_batch_tokens, encode_packed
from pipeline.execution import encode_stage
from pipeline.records import TokenBatch
from tests.running import written_config
from tests.test_batching import tokens_of
from tests.without_ray import run_in_process

SAID = {
    "CUDA": "CUDA error: out of memory",
    "cuBLAS": "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "torch on Linux": "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 4096 bytes. Error code 12 (Cannot allocate memory)",
    "torch on Windows": "DefaultCPUAllocator: not enough memory: you tried to allocate 4096 bytes.",
    "OpenVINO": "Exception from src/inference/src/cpp/infer_request.cpp:223:\nCheck failed: std::bad_alloc",
    "a C++ library of Microsoft": "bad allocation",
    "ONNX Runtime": "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Add node."
    " Status Message: bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 4096",
}
ERRORS: dict[str, Exception] = {library: RuntimeError(said) for library, said in SAID.items()}
ERRORS |= {"torch on a GPU": torch.OutOfMemoryError("CUDA out of memory"), "C++ and numpy": MemoryError()}


@pytest.mark.parametrize("library", ERRORS)
def test_want_of_memory_is_known_by_whatever_a_library_says_of_it(library: str) -> None:
    assert is_out_of_memory(ERRORS[library])
    assert fault_of(ERRORS[library]) == OUT_OF_MEMORY


@pytest.mark.parametrize("allocate", [torch.empty, np.empty], ids=["torch", "numpy"])
def test_what_is_said_here_of_too_large_an_array_is_want_of_memory(allocate: Callable[[int], object]) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as told:
        allocate(1 << 59)
    assert is_out_of_memory(told.value), told.value


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
        ValueError("row 1 has 65 tokens, more than the 64 of a batch"),
    ],
    ids=str,
)
def test_another_fault_keeps_its_name(error: Exception) -> None:
    assert not is_out_of_memory(error)
    assert fault_of(error) == type(error).__name__


class Gpu(HashingEncoder):
    """Computes so many padded tokens at once and no more, and notes what it was asked for."""

    device = "a small GPU"

    def __init__(self, memory_tokens: int, error: Exception, device: str = device) -> None:
        super().__init__(8)
        self.memory_tokens, self.error, self.device = memory_tokens, error, device
        self.asked: list[tuple[int, int]] = []
        self.frees = 0

    def encode(self, batch: TokenBatch) -> NDArray[np.float32]:
        shape = len(batch), int(batch.lengths_N.max())
        self.asked.append(shape)
        if shape[0] * shape[1] > self.memory_tokens:
            raise self.error
        return super().encode(batch)

    def free_cache(self) -> None:
        self.frees += 1


@pytest.mark.parametrize("library", ERRORS)
def test_it_lowers_the_budget_of_a_run_whatever_a_library_says_of_it(library: str) -> None:
    encoded = encode_packed(Gpu(500, ERRORS[library]), tokens_of([50] * 40), 1000)
    assert (encoded.failures, bool(encoded.done_N.all())) == ({}, True)
    assert encoded.safe_batch_tokens == 500


def test_a_budget_is_halved_until_the_largest_batch_passes_and_the_memory_is_given_back_between() -> None:
    gpu = Gpu(300, ERRORS["cuBLAS"])
    assert bearable_batch_tokens(gpu, 1024, 64) == 256
    assert (gpu.asked, gpu.frees) == ([(16, 64), (8, 64), (4, 64)], 2)
    assert bearable_batch_tokens(Gpu(1024, ERRORS["cuBLAS"]), 1024, 64) == 1024
    assert bearable_batch_tokens(Gpu(10, ERRORS["cuBLAS"]), 1024, 64) == 64, (
        "a text of 64 tokens must be tried at least"
    )
    broken = Gpu(10, RuntimeError("launch failure"))
    assert bearable_batch_tokens(broken, 1024, 64) == 1024, "what else is wrong shows on real texts"


def embedded_on(gpu: Gpu, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Embed 60 short texts under a budget of 2,048 tokens, 64 to a text; return the report."""
    monkeypatch.setattr(encode_stage, "open_encoder", lambda *_: gpu)
    (folder / "in").mkdir()
    (folder / "in" / "a.txt").write_text("\n".join(f"text {number}" for number in range(60)))
    config = written_config(
        folder / "job.yaml",
        source={"uri": str(folder / "in")},
        recipe={"model": "hashing://8", "max_tokens": 64},
        output={"uri": str(folder / "out"), "rows_per_part": 20},
        runtime={"batch_tokens": 2048},
    )
    return run_in_process(config)


def test_a_gpu_tries_the_largest_batch_when_it_is_opened_and_the_run_goes_on_with_what_it_bears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu(600, ERRORS["torch on a GPU"])
    report = embedded_on(gpu, tmp_path, monkeypatch)
    assert gpu.asked[:3] == [(32, 64), (16, 64), (8, 64)]
    assert all(rows * longest <= 512 for rows, longest in gpu.asked[2:])
    assert (report.embedded, report.batch_splits) == (60, 0)
    (warning,) = [warning for warning in report.warnings if "out of memory" in warning]
    assert "went on with 512: set runtime.batch_tokens to that" in warning
    assert open_snapshot(str(tmp_path / "out")).to_table(["id"]).num_rows == 60


def test_a_gpu_that_bears_the_largest_batch_is_asked_once_and_a_cpu_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for device, tried in (("a GPU", [(32, 64)]), ("cpu", [])):
        folder = tmp_path / device
        folder.mkdir()
        gpu = Gpu(4096, ERRORS["torch on a GPU"], device)
        report = embedded_on(gpu, folder, monkeypatch)
        assert [shape for shape in gpu.asked if shape[1] == 64] == tried
        assert (report.embedded, [w for w in report.warnings if "memory" in w]) == (60, [])
