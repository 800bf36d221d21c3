"""The Transformer module of a model, compiled by OpenVINO for the CPU at hand."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from pipeline.encoder.traced import TokenEmbeddings, ragged_example
from pipeline.errors import EncoderError, in_a_line

HINTS = {"float32": "f32", "bfloat16": "bf16"}
"""Number types that OpenVINO computes in on a CPU, by their names there."""

NEEDED = {"float32": "FP32", "bfloat16": "BF16", "int8": "INT8"}
"""What OpenVINO says of a CPU that has arithmetic for a number type."""


EXACT_PRODUCTS = {"LP_TRANSFORMS_MODE": "NO"}
"""Lets OpenVINO multiply in float32 what is quantised. A CPU without VNNI adds up 8-bit products in pairs of 16 bits,
where what exceeds 32,767 is lost: 64 products of 255 × 127 gave half of their sum (OpenVINO 2026.4, AVX2)."""

_FIRST_CALL = threading.Lock()


class OpenVinoBody:
    """Takes the features that a Transformer module takes, and gives what it gives: a vector per token, in float32.

    Args:
        model: the module as OpenVINO has it: `converted`, or read from a file.
        compute: float32 | bfloat16; of an int8 model, the number type of what is not quantised.
        threads: CPU threads, of all passes together; 0 leaves the default.
        lanes: passes side by side, each called for by a thread of its own and computed by its share of the threads.
        lacks_int8: whether this CPU has no dot products of 8 bits; those of an int8 model are then computed in float32.

    Raises:
        EncoderError: OpenVINO is not installed, does not compute in this number type, or cannot compile the model.
    """

    def __init__(self, model: Any, compute: str, threads: int, lanes: int = 1, lacks_int8: bool = False) -> None:
        settings = {
            "INFERENCE_PRECISION_HINT": number_type(compute),
            "PERFORMANCE_HINT": "LATENCY",  # as many passes at once as it is told, and no more
            "NUM_STREAMS": lanes,
            "ENABLE_CPU_PINNING": False,  # else all encoders of a node would sit on the same cores
        }
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        if lacks_int8:
            settings |= EXACT_PRODUCTS
        with _told_in_a_line():
            self._compiled = core().compile_model(model, "CPU", settings)
        self._of_thread = threading.local()

    def __call__(self, features: dict[str, Any]) -> dict[str, Any]:
        """Return the features with `token_embeddings`, (B, T, D) float32, valid until this thread's next call."""
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._compiled.create_infer_request()
        inputs = [features["input_ids"].numpy(), features["attention_mask"].numpy()]
        hidden_BTD = self._of_thread.request.infer(inputs, share_inputs=True, share_outputs=True)[0]
        return features | {"token_embeddings": torch.from_numpy(hidden_BTD)}


def number_type(compute: str) -> str:
    """Return OpenVINO's name of a number type, if this CPU has arithmetic for it: else it would take another one.

    Raises:
        EncoderError: it has none, or OpenVINO is not installed.
    """
    check_arithmetic(compute)
    return HINTS[compute]


def check_arithmetic(compute: str) -> None:
    """Refuse a number type, float32, bfloat16 or int8, that this CPU has no arithmetic for.

    Raises:
        EncoderError: it has none, or OpenVINO is not installed.
    """
    if NEEDED.get(compute, "none") not in abilities():
        raise EncoderError(
            f"runtime.engine: openvino does not compute in {compute} on this CPU and would take another number type in "
            "its place; use runtime.engine: torch" + (" and another recipe.compute" if compute == "int8" else "")
        )


def abilities() -> list[str]:
    """Return what this CPU has arithmetic for, by OpenVINO's names.

    Raises:
        EncoderError: OpenVINO is not installed.
    """
    return list(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def core() -> Any:
    """Return OpenVINO's runtime, one for all that this package asks of it in a process, which is never let go.

    Each runtime that meets a CPU gives the thread at hand a stack for signals, and unmaps it when it is let go: in
    another order than they came, or in another thread, a stack that is still in use. The next signal that Python
    handles, the SIGTERM of a cluster, then ends the process by SIGSEGV (OpenVINO 2026.4).

    Raises:
        EncoderError: OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise EncoderError(
            "runtime.engine: openvino is not installed where the encoders run; install the extra [openvino]"
        ) from error
    with _FIRST_CALL:
        return _only_core(openvino)


@cache
def _only_core(openvino: Any) -> Any:
    return openvino.Core()


@contextmanager
def _told_in_a_line() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        why = in_a_line(error, 300)
        raise EncoderError(f"runtime.engine: openvino cannot convert this model: {why}") from error


def converted(transformer: Any) -> Any:
    """Return the module, in float32, as an OpenVINO model for batches of any size and length.

    Its own front end converts the module, as it stands in memory; the converter above it, `openvino.convert_model`,
    gives the same graph but may report its use to its maker.

    Raises:
        EncoderError: it cannot be converted.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with torch.no_grad(), warnings.catch_warnings(), _told_in_a_line():
        warnings.simplefilter("ignore")  # of the tracer: what it takes for constant is checked by its vectors
        decoder = TorchScriptPythonDecoder(TokenEmbeddings(transformer), example_input=ragged_example())
        front_end = FrontEndManager().load_by_framework("pytorch")
        return front_end.convert(front_end.load(decoder))


def read_model(file: str) -> Any:
    """Return the model of an OpenVINO file (.xml, its weights beside it).

    Raises:
        EncoderError: it cannot be read.
    """
    with _told_in_a_line():
        return core().read_model(file)
