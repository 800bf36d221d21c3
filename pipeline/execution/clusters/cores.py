"""How many cores encoders on GPUs keep busy around them, and how many a cluster lacks of that."""

import math
from typing import Any

from pipeline.execution.reporting.metrics import RunReport
from pipeline.units import percent

CORES_PER_GPU = 3
"""Where nothing was measured: for a GPU that encodes 0.77 million tokens a second, which is 60 % of what its arithmetic
allows with a BERT-large: 0.7 cores tokenise (1.13 million tokens a second each, measured), 0.25 write Parts of 1,792
dimensions (24 µs a row, measured), one feeds the GPU, and the rest is for reading and for Ray."""

UNMEASURED = (
    "reading, tokenising and writing take with a BERT-large, more with a smaller model (`plan --estimate` measures it)"
)
ESTIMATED = "reading, tokenising and writing take at the rates that `plan --estimate` has measured"

TELLING_SECONDS = 60.0
"""Of encoding for each encoder, after which a run tells itself how many cores it takes."""

BUSY = 0.95
"""Share of the time in which encoders compute; with more, they do not wait for what is around them."""


def cores_of_encoder(encode_seconds: float, beside_seconds: float) -> float:
    """Return how many cores an encoder on a GPU keeps busy: one that feeds it, and those around it.

    Args:
        encode_seconds: that it takes for some texts.
        beside_seconds: that one core takes to read, tokenise and write these; waiting for the store counts as well.
    """
    return 1.0 + beside_seconds / encode_seconds


def short_of_cores(encoders: int, gpus: float, cores: float, estimate: dict[str, Any] | None) -> list[str]:
    """Return a warning that names how many cores GPUs lack that must not wait for the stages around them.

    Args:
        gpus: that the encoders hold together.
        cores: of the whole cluster.
        estimate: what `plan --estimate` has said of the run, if it was asked.
    """
    per_encoder = (estimate or {}).get("cores_per_encoder")
    if per_encoder:
        return _warning(gpus, cores, math.ceil(encoders * per_encoder), ESTIMATED)
    return _warning(gpus, cores, math.ceil(gpus * CORES_PER_GPU), UNMEASURED)


def was_short_of_cores(report: RunReport, gpus: float, cores: float) -> list[str] | None:
    """Return the same by what a run has measured at its end; None where it was too short to tell."""
    encoding, busy = report.stage_seconds["encode"], report.encoder_busy
    if not gpus or busy is None or encoding < TELLING_SECONDS * report.encoders:
        return None
    if busy >= BUSY:
        return []
    needed = report.encoders * cores_of_encoder(encoding, sum(report.stage_seconds.values()) - encoding)
    how = f"reading, tokenising and writing have taken in this run, whose encoders computed {percent(busy)} of the time"
    return _warning(gpus, cores, math.ceil(needed), how)


def _warning(gpus: float, cores: float, needed: int, how: str) -> list[str]:
    missing = math.ceil(needed - cores)
    if not gpus or missing <= 0:
        return []
    return [
        f"{cores:g} cores stand beside {gpus:g} GPUs, {missing} fewer than the {needed} that feeding them, {how}: the "
        "GPUs may wait for them"
    ]
