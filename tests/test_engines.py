"""Engines: whichever computes the forward pass, the vectors are those of the model in the recipe's number type."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from transformers.activations import ACT2FN

from pipeline.encoder import arithmetic, onnx_body, openvino_body, prepacked, sentence_transformer
from pipeline.encoder.flat import PADDED
from pipeline.encoder.packed import encode_packed
from pipeline.encoder.prepacked import prepack
from pipeline.encoder.sentence_transformer import SentenceTransformerEncoder
from pipeline.errors import EncoderError
from pipeline.records import TokenBatch
from tests.running import ROOT
from tests.test_batching import tokens_of
from tests.test_vectors import cosines

LENGTHS = [1, 2, 3, 5, 8, 13, 40, 41, 42, 100, 200, 511, 512, 3, 3, 17]
TOKENS = tokens_of(LENGTHS)


def encoded(folder: Path, compute: str, engine: str, tokens: TokenBatch = TOKENS, **how: Any) -> NDArray[np.float32]:
    encoder = SentenceTransformerEncoder(str(folder), compute, threads=1, engine=engine, **how)
    result = encode_packed(encoder, tokens, 2048)
    assert result.done_N.all()
    return result.vectors_ND


@pytest.fixture(scope="module")
def theirs(m3e_small: Path) -> NDArray[np.float32]:
    """The vectors of torch in float32, of padded rows and layers as they were loaded."""
    with pytest.MonkeyPatch.context() as another_cpu:
        another_cpu.setattr(sentence_transformer, "can_prepack", lambda: False)
        return encoded(m3e_small, "float32", "torch", attention=PADDED)


@pytest.fixture(scope="module")
def headed(m3e_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers → Pooling without the prompt → Dense(512→24) → Normalize."""
    body = Transformer(str(m3e_small), config_kwargs={"num_hidden_layers": 2})
    pooling = Pooling(512, pooling_mode="mean", include_prompt=False)
    folder = tmp_path_factory.mktemp("models") / "headed"
    model = SentenceTransformer(modules=[body, pooling, Dense(512, 24), Normalize()], device="cpu")
    model.save(str(folder), create_model_card=False)
    return folder


PACKAGE = {"torch": "torch", "openvino": "openvino", "onnx": "onnxruntime"}


@pytest.mark.parametrize(
    ("engine", "compute", "least"),
    [(engine, "float32", 0.999999) for engine in PACKAGE] + [(e, "bfloat16", 0.9999) for e in ("torch", "openvino")],
)
def test_every_engine_stays_within_the_precision_of_the_recipe(
    m3e_small: Path, theirs: NDArray[np.float32], compute: str, least: float, engine: str
) -> None:
    pytest.importorskip(PACKAGE[engine])
    if (engine, compute) == ("openvino", "bfloat16") and "BF16" not in openvino_body.abilities():
        pytest.skip("this CPU has no arithmetic for bfloat16")
    vectors_ND = encoded(m3e_small, compute, engine)
    assert (vectors_ND.dtype.name, vectors_ND.shape) == ("float32", theirs.shape)
    assert cosines(vectors_ND, theirs).min() >= least


def test_pooling_and_head_are_the_models_own_whatever_computes_the_body(headed: Path) -> None:
    tokens = tokens_of([8, 8, 90, 31], seed=2)
    exact_ND = encoded(headed, "float32", "torch", tokens, prompt="查询：")
    without_prompt_ND = encoded(headed, "float32", "torch", tokens)
    for engine in ("openvino", "onnx"):
        pytest.importorskip(PACKAGE[engine])
        vectors_ND = encoded(headed, "float32", engine, tokens, prompt="查询：")
        assert vectors_ND.shape == (4, 24)
        assert cosines(vectors_ND, exact_ND).min() >= 0.999999
        assert cosines(vectors_ND, without_prompt_ND).min() < 0.9999


def test_a_number_type_that_openvino_does_not_compute_in_is_refused_and_not_replaced(
    headed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    with pytest.raises(EncoderError, match=r"does not compute in float16.*engine: torch"):
        SentenceTransformerEncoder(str(headed), "float16", engine="openvino")
    old_cpu = SimpleNamespace(get_property=lambda *_: ["FP32", "INT8"])
    monkeypatch.setattr(openvino_body, "core", lambda: old_cpu)
    with pytest.raises(EncoderError, match=r"does not compute in bfloat16 on this CPU"):
        SentenceTransformerEncoder(str(headed), "bfloat16", engine="openvino")


@pytest.mark.parametrize(("flags", "is_native"), [("avx avx2 fma", False), ("avx2 avx512_vnni", True), ("", True)])
def test_int8_counts_as_imitated_on_a_cpu_without_8_bit_dot_products(
    flags: str, is_native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "_cpu_flags", lambda: flags)
    assert arithmetic.is_native("int8", "cpu") is is_native


def test_onnx_refuses_every_number_type_but_float32(headed: Path) -> None:
    for compute in ("bfloat16", "float16", "int8"):
        with pytest.raises(EncoderError, match=rf"onnx does not compute in {compute}.*engine: torch"):
            SentenceTransformerEncoder(str(headed), compute, engine="onnx")


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_an_engine_that_is_not_installed_is_told_with_the_extra_that_brings_it(
    headed: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE[engine], None)
    with pytest.raises(EncoderError, match=rf"not installed.*\[{engine}\]"):
        SentenceTransformerEncoder(str(headed), "float32", engine=engine)


LETTING_GO = """
import gc, signal, threading
from openvino import Model, Type
from openvino import opset13 as ops
from pipeline.encoder.openvino_body import OpenVinoBody

def body():
    ids, mask = (ops.parameter([-1, -1], Type.i64) for _ in range(2))
    return OpenVinoBody(Model([ops.multiply(ids, mask)], [ids, mask]), "float32", 1)

signal.signal(signal.SIGTERM, lambda *_: print("told to end"))
first, second = body(), body()
del first
gc.collect()
taken = [second, body()]
del second
letting_go = threading.Thread(target=taken.clear)
letting_go.start()
letting_go.join()
gc.collect()
signal.raise_signal(signal.SIGTERM)
"""


def test_a_process_that_has_let_go_engines_of_openvino_in_any_order_is_still_told_to_end() -> None:
    pytest.importorskip("openvino")
    child = subprocess.run([sys.executable, "-c", LETTING_GO], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (child.returncode, child.stdout) == (0, "told to end\n"), child.stderr


def shifted(hidden_BTD: torch.Tensor) -> torch.Tensor:
    return hidden_BTD.roll(1, 2)


def roughened(hidden_BTD: torch.Tensor) -> torch.Tensor:
    """Return vectors that are off by more than rounding: their cosine to what they were is about 0.999."""
    return hidden_BTD + 0.05 * hidden_BTD.roll(1, 2)


@pytest.mark.parametrize("spoiled", [shifted, roughened])
@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_a_conversion_that_gives_other_vectors_is_refused(
    headed: Path, engine: str, spoiled: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(PACKAGE[engine])
    kind: Any = {"openvino": openvino_body.OpenVinoBody, "onnx": onnx_body.OnnxBody}[engine]
    body: Callable[..., Any] = kind.__call__

    def call(self: Any, features: dict[str, Any]) -> dict[str, Any]:
        features = body(self, features)
        return features | {"token_embeddings": spoiled(features["token_embeddings"])}

    monkeypatch.setattr(kind, "__call__", call)
    with pytest.raises(EncoderError, match=rf"{engine} gives other vectors than the model .*engine: torch"):
        SentenceTransformerEncoder(str(headed), "float32", engine=engine)


ACTIVATIONS = [torch.nn.GELU(), torch.nn.GELU("tanh"), *(ACT2FN[name] for name in ("gelu", "gelu_new", "silu"))]


class FeedForward(torch.nn.Module):  # type: ignore[misc]
    """Named as in BERT."""

    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.dense = torch.nn.Linear(48, 80)
        self.intermediate_act_fn = activation
        self.output = torch.nn.Linear(80, 48, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.output(self.intermediate_act_fn(self.dense(inputs)))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("has_wide_vectors", [False, True])
@torch.inference_mode()  # type: ignore[untyped-decorator]
def test_prepacked_layers_give_what_the_layers_gave(
    activation: Any, dtype: Any, error: float, has_wide_vectors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepacked, "HAS_WIDE_VECTORS", has_wide_vectors)
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no arithmetic for bfloat16")
    torch.manual_seed(3)
    body = FeedForward(activation).to(dtype)
    inputs = torch.randn(3, 5, 48, dtype=dtype)
    expected = body(inputs)
    prepack(body, dtype)
    assert (body(inputs).float() - expected.float()).abs().max() <= error
    assert body(inputs).shape == expected.shape
    assert torch.equal(body(inputs.float()), body(inputs))


def test_threads_of_an_encoder_do_not_spin_while_they_wait_on_any_cluster() -> None:
    program = """
from pipeline.execution.planning.model import ModelReference, open_encoder
open_encoder(ModelReference("local", "/nowhere", "", False, False), "float32", "", 1)
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-c", program]
    child = subprocess.run(
        command, env=environment | {"OMP_DISPLAY_ENV": "verbose"}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "/nowhere has no modules.json" in child.stderr
    assert "GOMP_SPINCOUNT = '0'" in child.stderr
