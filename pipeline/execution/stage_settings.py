"""What every worker of a run must know."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.execution.attempts import Attempts, Marks
from pipeline.execution.canary_gate import Canary
from pipeline.execution.lending import Ledger, RemoteLedger
from pipeline.execution.planning.model import ModelReference
from pipeline.storage.readers import ReadColumns
from pipeline.storage.text_index import IndexReference
from pipeline.text.tokenizer import TokenizerSpec


@dataclass(frozen=True, slots=True)
class StageSettings:
    """Plain values, the same for every Block of a run; holds no credential."""

    columns: ReadColumns
    rows_per_part: int
    tokenizer: TokenizerSpec
    chunk_overlap_tokens: int | None
    """None = long texts are truncated."""
    model: ModelReference
    compute: str
    engine: str
    """auto | torch | torch-compile | openvino | onnx."""
    threads: int
    batch_tokens: int
    dimensions: int | None
    normalize: bool
    stored: str
    output_uri: str
    snapshot_folder: str
    partition_by: tuple[str, ...]
    part_schema: pa.Schema
    metadata: dict[str, Any]
    model_dimension: int
    """Numbers per vector, as the model gives them."""
    event_time: pa.Scalar
    """First run that saw the text, where the source has no time of its own."""
    known: IndexReference | None = None
    """Of the Snapshot whose vectors are taken over; None = everything is encoded."""
    ledger: Ledger | RemoteLedger | None = None
    """Of texts that stand in several Blocks; None = there are none, or nobody has looked."""
    canary: Canary | None = None
    """Pinned texts that every encoder must get right before it begins; None = no gate."""
    has_new_texts: bool = True
    """Whether any text is expected to be new; if not, an encoder loads its model when it meets one all the same."""
    early_encoder: str | None = None
    """Address of a process that has loaded the model already, for the first encoder that joins it."""
    attempts: Marks = field(default_factory=Attempts)
    """Where workers mark what they begin and end."""
