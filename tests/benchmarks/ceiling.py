"""The fastest this machine multiplies matrices of a model's shapes: what an encoder is measured against."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

TOKENS = 2048
"""Rows of the left matrix: a batch of usual size."""

REPETITIONS = 5

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Gemm = Callable[[], object]


def gemm_flops(shapes: Sequence[tuple[int, int]], precision: str) -> float:
    """Return the multiplications and additions per second of products (TOKENS, inputs) × (inputs, outputs).

    Of each shape the best repetition of the fastest library call counts: as torch does it, and with weights that
    oneDNN has laid out for it beforehand.

    Args:
        shapes: (inputs, outputs), as often as they occur in a layer.
        precision: float32 | bfloat16 | int8 (unsigned activations, signed weights).
    """
    seconds: dict[tuple[int, int], float] = {shape: min(map(_best, _calls(*shape, precision))) for shape in set(shapes)}
    flops = sum(2 * TOKENS * inputs * outputs for inputs, outputs in shapes)
    return flops / sum(seconds[shape] for shape in shapes)


def _calls(inputs: int, outputs: int, precision: str) -> list[Gemm]:
    if precision == "int8":
        return [_int8(inputs, outputs)]
    left = torch.randn(TOKENS, inputs).to(DTYPES[precision])
    right = torch.randn(outputs, inputs).to(DTYPES[precision])
    bias = torch.randn(outputs).to(DTYPES[precision])
    packed = torch.ops.mkldnn._reorder_linear_weight(right, TOKENS)
    return [
        lambda: torch.nn.functional.linear(left, right, bias),
        lambda: torch.ops.mkldnn._linear_pointwise(left, packed, bias, "none", [], ""),
    ]


def _int8(inputs: int, outputs: int) -> Gemm:
    left = torch.randint(0, 255, (TOKENS, inputs), dtype=torch.uint8)
    right = torch.randint(-127, 127, (outputs, inputs), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(right, [TOKENS, inputs])
    scales, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int64)
    quantised: tuple[Any, ...] = (left, 0.1, 3, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")
    return lambda: torch.ops.onednn.qlinear_pointwise(*quantised)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def _best(call: Gemm) -> float:
    call()
    best = float("inf")
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best
