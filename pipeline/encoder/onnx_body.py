"""The Transformer module of a model, computed by ONNX Runtime on the CPU."""

import io
import warnings
from typing import Any

import torch

from pipeline.encoder.traced import TokenEmbeddings, ragged_example
from pipeline.errors import EncoderError, in_a_line


class OnnxBody:
    """Takes the features that a Transformer module takes, and gives what it gives: a vector per token, in float32.

    Args:
        transformer: the module, in float32; its weights may have 2 GB, which is as much as an ONNX model can hold.
        threads: CPU threads of a pass; 0 leaves the default. With one, passes that several threads call for at once are
            computed at once.

    Raises:
        EncoderError: ONNX Runtime is not installed, or the module cannot be exported.
    """

    def __init__(self, transformer: Any, threads: int) -> None:
        check_onnx("float32")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as OMP_WAIT_POLICY=PASSIVE
        try:
            self._session = onnxruntime.InferenceSession(
                exported(transformer), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            why = in_a_line(error, 300)
            raise EncoderError(f"runtime.engine: onnx cannot convert this model: {why}") from error

    def __call__(self, features: dict[str, Any]) -> dict[str, Any]:
        """Return the features with `token_embeddings`, (B, T, D) float32."""
        inputs = {name: features[name].numpy() for name in ("input_ids", "attention_mask")}
        (hidden_BTD,) = self._session.run(None, inputs)
        return features | {"token_embeddings": torch.from_numpy(hidden_BTD)}


def check_onnx(compute: str) -> None:
    """Refuse another number type than float32, and a machine without the packages.

    Raises:
        EncoderError: with what to use or to install.
    """
    if compute != "float32":
        raise EncoderError(f"runtime.engine: onnx does not compute in {compute}; use runtime.engine: torch")
    try:
        import onnx  # noqa: F401  torch exports with it
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise EncoderError(
            "runtime.engine: onnx is not installed where the encoders run; install the extra [onnx]"
        ) from error


def exported(transformer: Any) -> bytes:
    """Return the module as an ONNX model, for batches of any size and length."""
    example, model = ragged_example(), io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer: what it takes for constant is checked by its vectors
        torch.onnx.export(
            TokenEmbeddings(transformer),
            tuple(example.values()),
            model,
            input_names=list(example),
            output_names=["token_embeddings"],
            dynamic_axes={name: {0: "rows", 1: "tokens"} for name in example},
            opset_version=17,
            dynamo=False,  # the other exporter needs onnxscript and fixes lengths that it takes for constant
        )
    return model.getvalue()
