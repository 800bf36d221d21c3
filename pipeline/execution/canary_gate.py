"""The gate before the first Block: pinned texts must get the vectors they should have, from every encoder."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.arrow import one_array, vectors_of
from pipeline.config import Gate
from pipeline.encoder.calibration import BOUNDS, witnesses_of
from pipeline.encoder.canary import Bounds, compare
from pipeline.encoder.packed import encode_or_zero
from pipeline.encoder.protocol import Encoder
from pipeline.encoder.vectors import finish
from pipeline.errors import ConfigError, GateFailed
from pipeline.execution.planning.model import ModelReference, calibration_folder
from pipeline.records import TokenBatch
from pipeline.storage.filesystem import Store
from pipeline.text.tokenizer import TokenizerSpec, load_tokenizer, with_prompt

MIN_COSINE = {"float32": 0.99999, "bfloat16": 0.998, "float16": 0.998, "int8": BOUNDS.min_cosine}
"""By `recipe.compute`, to references in float32. Least cosines that were seen on reviews, m3e-small and
all-MiniLM-L6-v2: 0.999999 of all engines in float32, 0.99998 in bfloat16, 0.9966 in int8 (2026-11)."""


@dataclass(frozen=True, slots=True)
class Canary:
    """Pinned texts as tokens, and what their vectors should be."""

    tokens: TokenBatch
    references_ND: NDArray[np.float32]
    bounds: Bounds
    name: str = "gate.canary"
    """Whose they are, as errors tell it."""


def canary_of(model: ModelReference) -> Canary | None:
    """Return what an encoder must get right where the config has no gate: of an int8 model, its witnesses."""
    if model.calibration is None:
        return None
    witnesses = witnesses_of(calibration_folder(model))
    return Canary(witnesses.tokens, witnesses.references_ND, BOUNDS, "the calibration's witnesses")


def load_canary(gate: Gate, tokenizer: TokenizerSpec, compute: str) -> Canary:
    """Read the pinned texts and their references.

    Args:
        compute: number type of the recipe; decides how near a vector must be, if the gate does not.

    Raises:
        ConfigError: there is no such file, or it has not the two columns.
    """
    folder, _, name = gate.canary.rpartition("/")
    content = Store(folder or ".").read(name)
    if content is None:
        raise ConfigError(f"gate.canary: there is no {gate.canary}; `evaluate` with a float32 recipe leaves one")
    try:
        table = pq.read_table(pa.BufferReader(content), columns=["text", "embedding"])
        references_ND = vectors_of(table["embedding"]).astype(np.float32)
    except (pa.ArrowInvalid, KeyError, AttributeError) as error:
        raise ConfigError(
            f"gate.canary: {gate.canary} is no Parquet file with `text` and `embedding` (fixed-size lists)"
        ) from error
    if not table.num_rows:
        raise ConfigError(f"gate.canary: {gate.canary} holds no text")
    texts = with_prompt(one_array(table["text"]), tokenizer.prompt)
    tokens, _ = load_tokenizer(tokenizer)(texts, tokenizer.max_tokens)
    least = MIN_COSINE[compute] if gate.min_cosine is None else gate.min_cosine
    bounds = Bounds(least, gate.min_neighbours_kept, gate.min_order_kept)
    return Canary(tokens, references_ND, bounds)


def check_encoder(canary: Canary, encoder: Encoder, batch_tokens: int, dimensions: int | None) -> None:
    """Encode the pinned texts and compare.

    Args:
        dimensions: how many numbers of a vector the run keeps; the references are cut to them.

    Raises:
        GateFailed: the vectors are not what they should be.
    """
    encoded = encode_or_zero(encoder, canary.tokens, batch_tokens, None)
    vectors_ND = finish(encoded.vectors_ND, dimensions, normalize=True)
    width = vectors_ND.shape[1]
    if canary.references_ND.shape[1] < width:
        raise GateFailed(f"{canary.name}: references of {canary.references_ND.shape[1]} numbers, vectors of {width}")
    findings = canary.bounds.findings(compare(vectors_ND, canary.references_ND[:, :width]))
    if findings:
        raise GateFailed(
            f"an encoder ({encoder.device}) does not give the vectors of {canary.name}: {'; '.join(findings)}. Another "
            "model, precision or kernel? It has written nothing."
        )
