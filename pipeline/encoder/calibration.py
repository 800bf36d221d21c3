"""A calibration: the body of a model quantised to int8 on texts of a corpus, with witnesses of what it should give."""

import json
import pickle
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.canary import Bounds, Likeness
from pipeline.errors import EncoderError, GateFailed
from pipeline.records import TokenBatch

MODEL_FILE, FACTS_FILE, WITNESS_FILE = "model.xml", "calibration.json", "witnesses.npz"
"""Files of the folder that is a calibration, beside `model.bin`, the weights."""

BOUNDS = Bounds(min_cosine=0.985, neighbours_kept=0.85, order_kept=0.85)
"""What is asked of the vectors of an int8 model compared with those of float32, where a config has no gate."""

CALIBRATION_SECONDS = 4 * 3600.0
"""How long a calibration may take before it counts as hung: minutes for a small model, an hour for a large one."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a calibration is of."""

    model: str
    """Identity of the model whose body it is."""
    rest: str
    """float32 | bfloat16: the number type of what is not quantised."""
    texts: int
    tokens: int
    """On which the ranges of the activations were measured."""
    versions: dict[str, str]
    is_exact: bool = False
    """Whether every CPU adds up products of 8 bits exactly. One from before 2026-11-30 does not say so: its vectors
    stay what they were, on a CPU without VNNI those of sums that end at 32,767."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be quantised, and on which texts."""

    folder: str
    """A local sentence-transformers folder."""
    model: str
    """Its identity."""
    prompt: str
    trust_remote_code: bool
    allow_pickled_weights: bool
    texts: TokenBatch
    """On which the ranges of the activations are measured."""
    witnesses: TokenBatch
    """On which the quantised model is compared with the one in float32."""


@dataclass(frozen=True, slots=True)
class Witnesses:
    """Tokens of texts, and the vectors of the float32 model for them, (N, D), as its last module gives them."""

    tokens: TokenBatch
    references_ND: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What a calibration took, and how near its vectors are to those of float32."""

    seconds: float
    peak_memory_bytes: int
    """Of the process that quantised, the model included."""
    likeness: Likeness


def facts_of(calibration: Path) -> Facts:
    """Return what a calibration is of."""
    return Facts(**json.loads((calibration / FACTS_FILE).read_text(encoding="utf-8")))


def write_facts(calibration: Path, facts: Facts) -> None:
    """Write down what a calibration is of."""
    (calibration / FACTS_FILE).write_text(json.dumps(asdict(facts), sort_keys=True), encoding="utf-8")


def witnesses_of(calibration: Path) -> Witnesses:
    """Return the texts that an encoder with this calibration must get right."""
    with np.load(calibration / WITNESS_FILE, allow_pickle=False) as arrays:
        return Witnesses(TokenBatch(arrays["token_ids_T"], arrays["offsets_N1"]), arrays["references_ND"])


def write_witnesses(calibration: Path, witnesses: Witnesses) -> None:
    """Write the texts that an encoder with this calibration must get right."""
    tokens = witnesses.tokens
    np.savez(
        calibration / WITNESS_FILE,
        token_ids_T=tokens.token_ids_T,
        offsets_N1=tokens.offsets_N1,
        references_ND=witnesses.references_ND,
    )


def calibrate(order: Order, target: Path) -> Calibrated:
    """Quantise the body of a model in a process of its own, and compare its vectors with those of float32.

    Args:
        target: an empty folder, for the calibration.

    Raises:
        EncoderError: the model cannot be loaded or quantised.
        GateFailed: the quantised model has other vectors than BOUNDS allow.
    """
    calibrated = quantised_by_child(order, target)
    findings = BOUNDS.findings(calibrated.likeness)
    if findings:
        raise GateFailed(
            f"recipe.compute: int8: the quantised model does not give the vectors of float32: {'; '.join(findings)}. "
            "Nothing was written; use recipe.compute: bfloat16"
        )
    return calibrated


def quantised_by_child(order: Order, target: Path) -> Calibrated:
    """Have `pipeline.encoder.quantise` write a calibration to a folder, whatever it is worth.

    Raises:
        EncoderError: the model cannot be loaded or quantised.
    """
    command = [sys.executable, "-m", "pipeline.encoder.quantise", str(target)]
    try:
        child = subprocess.run(
            command, input=pickle.dumps(order), capture_output=True, timeout=CALIBRATION_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise EncoderError(f"recipe.compute: int8: not calibrated within {CALIBRATION_SECONDS:.0f} seconds") from error
    if child.returncode:
        last = (child.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        why = last.removeprefix("pipeline.errors.EncoderError: ")
        raise EncoderError(f"recipe.compute: int8: this model cannot be calibrated: {why}")
    figures = json.loads(child.stdout.splitlines()[-1])
    return Calibrated(**figures | {"likeness": Likeness(**figures["likeness"])})
