"""The fastest this machine multiplies matrices of a model's shapes: what an encoder is measured against."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import torch

from pipeline.encoder.lanes import Lanes

TOKENS = 2048
"""Rows of the left matrix: a batch of usual size."""

REPETITIONS = 5

SIDE_BY_SIDE = 3
"""Repetitions in which every lane computes a product at once, which takes longer."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Gemm = Callable[[], object]


def gemm_flops(shapes: Sequence[tuple[int, int]], precision: str) -> float:
    """Return the multiplications and additions per second of products (TOKENS, inputs) × (inputs, outputs).

    Of each shape the best repetition of the fastest way counts: as torch does it, and with weights that oneDNN has laid
    out for it beforehand; one product on all threads, and as many side by side as our encoder has lanes.

    Args:
        shapes: (inputs, outputs), as often as they occur in a layer.
        precision: float32 | bfloat16 | int8 (unsigned activations, signed weights).
    """
    seconds = {shape: min(map(_seconds_of, _calls(*shape, precision))) for shape in set(shapes)}
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


def _seconds_of(call: Gemm) -> float:
    with closing(Lanes(torch.get_num_threads())) as lanes:

        def side_by_side() -> None:
            for wait in [lanes.begin(lambda _: call(), None) for _ in range(lanes.count)]:
                wait()

        alone: float = _best(call, REPETITIONS)
        together: float = _best(side_by_side, SIDE_BY_SIDE) / lanes.count
        return min(alone, together)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def _best(call: Gemm, repetitions: int) -> float:
    call()
    best = float("inf")
    for _ in range(repetitions):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best
