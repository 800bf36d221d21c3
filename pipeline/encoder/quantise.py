"""Quantises the body of a model to int8, in a process of its own: `python -m pipeline.encoder.quantise FOLDER`."""

import json
import os
import pickle
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.batching import pad
from pipeline.encoder.calibration import (
    MODEL_FILE,
    Calibrated,
    Facts,
    Order,
    Witnesses,
    write_facts,
    write_witnesses,
)
from pipeline.encoder.canary import compare
from pipeline.encoder.loading import load_model
from pipeline.encoder.openvino_body import abilities, check_arithmetic, converted
from pipeline.encoder.packed import encode_packed
from pipeline.encoder.sentence_transformer import SentenceTransformerEncoder
from pipeline.records import TokenBatch

BATCH_TOKENS = 4096


def quantise(order: Order, target: Path) -> Calibrated:
    """Write a calibration to a folder; return what it took and how good it is.

    NNCF's post-training quantisation for transformers: weights per channel, activations per tensor by the ranges that
    the texts show, smoothed before and with the biases corrected after.

    Raises:
        EncoderError: the model cannot be loaded or converted, or this CPU has no arithmetic for int8.
    """
    started = time.perf_counter()
    check_arithmetic("int8")
    exact = SentenceTransformerEncoder(
        order.folder, "float32", order.prompt, 0, order.trust_remote_code, order.allow_pickled_weights, device="cpu"
    )
    references_ND = encode_packed(exact, order.witnesses, BATCH_TOKENS).vectors_ND
    exact.close()
    _write_model(order, target)
    rest = "bfloat16" if "BF16" in abilities() else "float32"
    versions = {name: version(name) for name in ("nncf", "openvino", "torch", "transformers")}
    texts, tokens = len(order.texts), len(order.texts.token_ids_T)
    write_facts(target, Facts(order.model, rest, texts, tokens, versions, is_exact=True))
    write_witnesses(target, Witnesses(order.witnesses, references_ND))
    likeness = compare(_vectors_of(order, target), references_ND)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Calibrated(round(time.perf_counter() - started, 1), peak, likeness)


def _write_model(order: Order, target: Path) -> None:
    # NNCF may report its use to its maker, over this package, unless it is not to be had.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import nncf
    import openvino

    model = load_model(order.folder, "float32", order.trust_remote_code, order.allow_pickled_weights, "cpu")
    rows = list(_rows(order.texts, int(model[0].tokenizer.pad_token_id or 0)))
    quantised: Any = nncf.quantize(
        converted(model[0]),
        nncf.Dataset(rows),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(rows),
    )
    openvino.save_model(quantised, target / MODEL_FILE, compress_to_fp16=False)


def _rows(tokens: TokenBatch, pad_token_id: int) -> Iterator[list[NDArray[np.int64]]]:
    """Yield the two inputs of the body for one text after the other."""
    for row in range(len(tokens)):
        ids_BT, mask_BT = pad(tokens.token_ids_T, tokens.offsets_N1, np.array([row]), pad_token_id)
        yield [ids_BT.astype(np.int64), mask_BT.astype(np.int64)]


def _vectors_of(order: Order, calibration: Path) -> NDArray[np.float32]:
    encoder = SentenceTransformerEncoder(
        order.folder,
        "int8",
        order.prompt,
        0,
        order.trust_remote_code,
        order.allow_pickled_weights,
        engine="openvino",
        calibration=str(calibration),
    )
    return encode_packed(encoder, order.witnesses, BATCH_TOKENS).vectors_ND


def main() -> None:
    """Carry out the order on stdin; the last line of stdout is what came of it."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.simplefilter("ignore")
    order: Order = pickle.load(sys.stdin.buffer)  # noqa: S301  it is the parent who writes there
    print(json.dumps(asdict(quantise(order, Path(sys.argv[1])))))


if __name__ == "__main__":
    main()
