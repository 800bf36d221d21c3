"""Makes the calibration of an int8 recipe, once per output, on texts of its source."""

import hashlib
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import orjson

from pipeline.config import JobConfig
from pipeline.encoder.calibration import Order, calibrate
from pipeline.encoder.packed import take
from pipeline.execution.planning.calibrated import FOLDER, pointer_key
from pipeline.execution.planning.model import describe, local_folder
from pipeline.execution.planning.plan import Plan
from pipeline.execution.settings import tokenizer_spec
from pipeline.execution.sizing.tune_texts import plan_of, read_texts
from pipeline.optional import library
from pipeline.records import TokenBatch
from pipeline.storage.filesystem import Store
from pipeline.storage.folder_cache import local_folder_identity

TEXTS, WITNESSES = 300, 128
"""Texts on which ranges are measured (NNCF's own default), and others on which the result is judged."""


def needs_calibration(config: JobConfig, plan: Plan) -> bool:
    """Whether vectors are asked for that an int8 model gives which has not been made yet."""
    return config.recipe.compute == "int8" and plan.model.calibration is None


def add_calibration(config: JobConfig, plan: Plan, store: Store) -> float:
    """Quantise the model on texts of the source, and write the calibration beside the output; return the seconds.

    Of several that do so at once, the one that names its own first is right; the others take that one.

    Raises:
        ConfigError: a package is missing.
        EncoderError: the model cannot be quantised.
        GateFailed: the quantised model has other vectors.
        SourceError: there is no text in the source.
    """
    started = time.perf_counter()
    for package in ("openvino", "nncf"):
        library(package, "int8", "recipe.compute: int8")
    store.check_writable()
    model, description = plan.model, describe(plan.model)
    texts, witnesses = _drawn(read_texts(config, plan, description).tokens)
    prompt = tokenizer_spec(config.recipe, description).prompt
    rights = (model.trust_remote_code, model.allow_pickled_weights)
    order = Order(str(local_folder(model)), model.identity, prompt, *rights, texts, witnesses)
    with tempfile.TemporaryDirectory(prefix="calibration-") as staging:
        calibrated = calibrate(order, Path(staging))
        identity = local_folder_identity(Path(staging))
        for file in sorted(Path(staging).iterdir()):
            store.put_new(f"{FOLDER}/{identity}/{file.name}", file.read_bytes())
    told = {"identity": identity, "texts": len(texts), "witnesses": len(witnesses)} | asdict(calibrated)
    store.put_new(pointer_key(config.recipe, model), orjson.dumps(told))
    return time.perf_counter() - started


def calibrated(config: JobConfig) -> JobConfig:
    """Return a config whose int8 recipe names the calibration of its own source and output, made now if there is none.

    For jobs that embed other texts with the vectors of this recipe, as an evaluation does.
    """
    if config.recipe.compute != "int8" or config.recipe.calibration:
        return config
    store, plan = Store(config.output.uri), plan_of(config)
    if needs_calibration(config, plan):
        add_calibration(config, plan, store)
        plan = plan_of(config)
    assert plan.model.calibration is not None
    recipe = config.recipe.model_copy(update={"calibration": plan.model.calibration.uri})
    return config.model_copy(update={"recipe": recipe})


def _drawn(tokens: TokenBatch) -> tuple[TokenBatch, TokenBatch]:
    """Return texts to calibrate on and others to judge by, different ones, the same for the same source.

    Of few texts a quarter is for judging; a single one is for both.
    """
    digests: dict[bytes, int] = {}
    for row in np.flatnonzero(tokens.lengths_N > 0).tolist():
        start, end = tokens.offsets_N1[row : row + 2]
        digests.setdefault(hashlib.sha256(tokens.token_ids_T[start:end].tobytes()).digest(), row)
    rows = np.array([digests[digest] for digest in sorted(digests)], np.int64)
    judging = max(1, min(WITNESSES, len(rows) // 4))
    return take(tokens, rows[judging : judging + TEXTS] if len(rows) > 1 else rows), take(tokens, rows[:judging])
