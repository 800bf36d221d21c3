"""The Transformer module of a model, compiled by OpenVINO for the CPU at hand."""

import warnings
from typing import Any

import torch

from pipeline.errors import EncoderError

HINTS = {"float32": "f32", "bfloat16": "bf16"}
"""Number types that OpenVINO computes in on a CPU, by their names there."""


class OpenVinoBody:
    """Takes the features that a Transformer module takes, and gives what it gives: a vector per token, in float32.

    Its own front end converts the module, as it stands in memory; the converter above it, `openvino.convert_model`,
    gives the same graph but may report its use to its maker.

    Args:
        transformer: the module, in float32.
        compute: float32 | bfloat16.
        threads: CPU threads; 0 leaves the default.

    Raises:
        EncoderError: OpenVINO is not installed, does not compute in this number type, or cannot convert the module.
    """

    def __init__(self, transformer: Any, compute: str, threads: int) -> None:
        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": number_type(compute),
            "PERFORMANCE_HINT": "LATENCY",  # one pass at a time, on all of its threads
            "ENABLE_CPU_PINNING": False,  # else all encoders of a node would sit on the same cores
        }
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = openvino.Core().compile_model(_converted(transformer), "CPU", settings)
        except RuntimeError as error:
            why = " ".join(str(error).split())[:300]
            raise EncoderError(f"runtime.engine: openvino cannot convert this model: {why}") from error
        self._request = self._compiled.create_infer_request()

    def __call__(self, features: dict[str, Any]) -> dict[str, Any]:
        """Return the features with `token_embeddings`, (B, T, D) float32, valid until the next call."""
        inputs = [features["input_ids"].numpy(), features["attention_mask"].numpy()]
        hidden_BTD = self._request.infer(inputs, share_inputs=True, share_outputs=True)[0]
        return features | {"token_embeddings": torch.from_numpy(hidden_BTD)}


def number_type(compute: str) -> str:
    """Return OpenVINO's name of a number type, if this CPU has arithmetic for it: else it would take another one.

    Raises:
        EncoderError: it has none, or OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise EncoderError(
            "runtime.engine: openvino is not installed where the encoders run; install the extra [openvino]"
        ) from error
    abilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if compute not in HINTS or (compute == "bfloat16" and "BF16" not in abilities):
        raise EncoderError(
            f"runtime.engine: openvino does not compute in {compute} on this CPU and would take another number type in "
            "its place; use runtime.engine: torch"
        )
    return HINTS[compute]


class _TokenEmbeddings(torch.nn.Module):  # type: ignore[misc]
    """A Transformer module as a function of tensors."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        features = {"input_ids": input_ids, "attention_mask": attention_mask, "modality": "text"}
        return self.transformer(features)["token_embeddings"]


def _converted(transformer: Any) -> Any:
    """Return the module as an OpenVINO model, for batches of any size and length."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    ragged = {
        "input_ids": torch.ones((2, 7), dtype=torch.int64),
        "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2]),
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer: what it takes for constant is checked by its vectors
        decoder = TorchScriptPythonDecoder(_TokenEmbeddings(transformer), example_input=ragged)
        front_end = FrontEndManager().load_by_framework("pytorch")
        return front_end.convert(front_end.load(decoder))
