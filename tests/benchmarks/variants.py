"""What is compared as a library: sentence-transformers as its documentation says, and our encoder loop per engine."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.encoder.packed import encode_packed
from pipeline.encoder.protocol import Encoder
from pipeline.encoder.vectors import finish
from pipeline.execution.planning.model import open_encoder
from pipeline.text.tokenizer import FastTokenizer
from tests.benchmarks.models import Model
from tests.benchmarks.programs import answering, optimum_python
from tests.benchmarks.rounds import Encode, Variant
from tests.benchmarks.samples import Texts

CORES = os.cpu_count() or 1
BATCH_TOKENS = 16384
"""As `runtime.batch_tokens` is by default."""

POOL_CHUNK = 1000
"""Texts that a process of a pool sorts by length together; much smaller ones, as by default, cost it up to half."""

FASTEMBED_BATCH = 64
"""Texts at once; fastembed's own default of 256, padded to the longest of so uneven ones, takes more than 10 GB."""


class SentenceTransformerModel(Protocol):
    """What is used of sentence_transformers.SentenceTransformer, which has no types that mypy follows here."""

    def encode(self, inputs: list[str], **options: Any) -> NDArray[np.float32]: ...
    def start_multi_process_pool(self, target_devices: list[str]) -> dict[str, Any]: ...
    def stop_multi_process_pool(self, pool: dict[str, Any]) -> None: ...
    def bfloat16(self) -> object: ...


def peers(model: Model, with_pool: bool, batch_texts: int = 32) -> list[Variant]:
    """Return the ways of sentence-transformers; the first is the float32 reference."""
    variants = [
        Variant("encode", precision, partial(_encode, model, precision, batch_texts))
        for precision in dict.fromkeys(("float32", model.compute))
    ]
    if with_pool:
        pool = partial(_encode_with_pool, model)
        variants.append(Variant(f"encode, pool of {CORES} processes", "float32", pool, _of_a_pool))
        if importlib.util.find_spec("onnxruntime"):
            fastembed = partial(_fastembed, model)
            variants.append(Variant("ONNX Runtime as fastembed has it", "float32", fastembed, _of_fastembed))
    return variants


def in_own_environment(folder: Path, model: Model) -> list[Variant]:
    """Return sentence-transformers with its OpenVINO backend, which does not bear our transformers.

    Args:
        folder: for the environment.
    """
    return [
        Variant("encode, OpenVINO backend", precision, partial(_openvino_backend, folder, model, precision))
        for precision in dict.fromkeys(("float32", model.compute))
        if importlib.util.find_spec("openvino")
    ]


@contextmanager
def _openvino_backend(folder: Path, model: Model, precision: str) -> Iterator[Encode]:
    program = [optimum_python(folder), "-P", str(Path(__file__).parent / "openvino_backend.py")]
    with answering(program, str(model.folder), {"float32": "f32", "bfloat16": "bf16"}[precision]) as encode:
        yield encode


def _of_a_pool(texts: Texts, number: int, rounds: int, count: int) -> NDArray[np.int64]:
    return texts.in_chunks(number, rounds, count, CORES, POOL_CHUNK)


def _of_fastembed(texts: Texts, number: int, rounds: int, count: int) -> NDArray[np.int64]:
    return texts.as_they_come(number, rounds, max(1, round(count / FASTEMBED_BATCH)) * FASTEMBED_BATCH)


def ours(model: Model, with_int8: bool) -> list[Variant]:
    """Return our encoder loop, once per engine that is installed and per number type that it computes in here.

    Args:
        with_int8: also quantised; random weights say nothing of it, and a large model takes its time to calibrate.
    """
    return [
        Variant(f"ours, {engine}", precision, partial(_ours, model, engine, precision))
        for engine, (package, precisions) in ENGINES.items()
        for precision in precisions
        if importlib.util.find_spec(package)
        and (with_int8 if precision == "int8" else precision in ("float32", model.compute))
    ]


ENGINES = {
    "torch": ("torch", ("float32", "bfloat16")),
    "openvino": ("openvino", ("float32", "bfloat16", "int8")),
    "onnx": ("onnxruntime", ("float32",)),
}
"""By engine: the package that it needs, and its number types."""


def open_engine(model: Model, engine: str, precision: str) -> Encoder:
    """Load a model as a run of ours does; the one place where the benchmarks know how."""
    reference = model.quantised if precision == "int8" else model.reference
    return open_encoder(reference, precision, "", CORES, engine)


@contextmanager
def _ours(model: Model, engine: str, precision: str) -> Iterator[Encode]:
    encoder = open_engine(model, engine, precision)
    tokenize, longest = model.tokenize, model.description.max_tokens

    def encode(texts: list[str]) -> NDArray[np.float32]:
        tokens, _ = tokenize(pa.array(texts), longest)
        return finish(encode_packed(encoder, tokens, BATCH_TOKENS).vectors_ND, None, normalize=True)

    yield encode
    encoder.close()


def _loaded(model: Model, precision: str) -> SentenceTransformerModel:
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    loaded: SentenceTransformerModel = SentenceTransformer(str(model.folder), device="cpu", local_files_only=True)
    if precision == "bfloat16":
        loaded.bfloat16()
    return loaded


@contextmanager
def _encode(model: Model, precision: str, batch_texts: int) -> Iterator[Encode]:
    import torch

    loaded = _loaded(model, precision)

    def encode(texts: list[str]) -> NDArray[np.float32]:
        torch.set_num_threads(CORES)
        return _as_numpy(loaded.encode(texts, batch_size=batch_texts, **_options(precision)))

    yield encode


def _options(precision: str) -> dict[str, Any]:
    # numpy has no bfloat16, so encode cannot give it one
    how = {"convert_to_numpy": False, "convert_to_tensor": True} if precision == "bfloat16" else {}
    return {"normalize_embeddings": True, "show_progress_bar": False, **how}


def _as_numpy(vectors: Any) -> NDArray[np.float32]:
    return cast("NDArray[np.float32]", vectors if isinstance(vectors, np.ndarray) else vectors.float().numpy())


@contextmanager
def _encode_with_pool(model: Model) -> Iterator[Encode]:
    loaded = _loaded(model, "float32")
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # one process per core; two threads in each would fight for it
    try:
        pool = loaded.start_multi_process_pool(["cpu"] * CORES)
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before

    def encode(texts: list[str]) -> NDArray[np.float32]:
        chunk = -(-len(texts) // CORES)  # what each is given is of one chunk of POOL_CHUNK
        return _as_numpy(loaded.encode(texts, pool=pool, chunk_size=chunk, **_options("float32")))

    try:
        yield encode
    finally:
        loaded.stop_multi_process_pool(pool)


@contextmanager
def _fastembed(model: Model) -> Iterator[Encode]:
    """Encode as fastembed does a model with mean pooling: texts as they come, each batch padded to its longest.

    The package itself cannot be installed beside this transformers.
    """
    import onnxruntime
    from tokenizers import Tokenizer

    from pipeline.encoder.loading import load_model
    from pipeline.encoder.onnx_body import exported

    body = load_model(str(model.folder), "float32", False, False, "cpu")[0]
    session = onnxruntime.InferenceSession(exported(body), providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_str(str(model.description.tokenizer_json))
    tokenizer.enable_truncation(model.description.max_tokens)
    tokenizer.enable_padding()

    def encode(texts: list[str]) -> NDArray[np.float32]:
        vectors = []
        for start in range(0, len(texts), FASTEMBED_BATCH):
            rows = tokenizer.encode_batch(texts[start : start + FASTEMBED_BATCH])
            mask_BT = np.array([row.attention_mask for row in rows], np.int64)
            ids_BT = np.array([row.ids for row in rows], np.int64)
            (hidden_BTD,) = session.run(None, {"input_ids": ids_BT, "attention_mask": mask_BT})
            pooled_BD = np.einsum("btd,bt->bd", hidden_BTD, mask_BT.astype(np.float32))
            vectors.append(pooled_BD / np.linalg.norm(pooled_BD, axis=1, keepdims=True))
        return np.concatenate(vectors)

    yield encode


def reference_tokenizer(model: Model) -> Any:
    """Return the tokenizer of transformers that sentence-transformers calls."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model.folder)


def fast_tokenizer(model: Model) -> FastTokenizer:
    """Return the tokenizer of our tokenising workers."""
    return FastTokenizer(str(model.description.tokenizer_json))
