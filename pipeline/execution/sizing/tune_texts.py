"""Texts of a source to try settings on: the beginnings of Shards from all over it, tokenised."""

import time
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.arrow import one_array
from pipeline.config import JobConfig
from pipeline.encoder.describe import ModelDescription
from pipeline.errors import SourceError
from pipeline.execution.planning.estimate import estimate
from pipeline.execution.planning.plan import Plan, make_plan, read_columns_of
from pipeline.execution.settings import output_dimension, tokenizer_spec
from pipeline.records import TokenBatch
from pipeline.schemas import TEXT
from pipeline.storage.filesystem import Store, open_source
from pipeline.storage.readers import read_shard
from pipeline.text.chunking import chunk_texts
from pipeline.text.tokenizer import load_tokenizer, with_prompt

SHARDS, TEXTS = 16, 8192

STORED_BYTES = {"float32": 4.0, "float16": 2.0, "int8": 1.0, "binary": 0.125}


@dataclass(frozen=True, slots=True)
class Texts:
    """Tokenised texts, and what was seen on the way."""

    tokens: TokenBatch
    prompt: str
    """Stands before each of them."""
    tokens_per_second: float
    """Of the tokenizer, on one core."""
    source_rows: int
    """Of the whole source, estimated."""
    bytes_per_vector: float


def plan_of(config: JobConfig) -> Plan:
    """Return the Plan of a run, without the read of the whole source that looks for repeated ids.

    Raises:
        PipelineError: as `make_plan`.
    """
    source = config.source.model_copy(update={"duplicate_ids": "allow"})
    return make_plan(config.model_copy(update={"source": source}), Store(config.output.uri))


def read_texts(config: JobConfig, plan: Plan, description: ModelDescription) -> Texts:
    """Read and tokenise up to TEXTS texts from up to SHARDS Shards that are spread over the source.

    Raises:
        SourceError: there is no text in them.
    """
    shards = [plan.wanted[at] for at in np.linspace(0, len(plan.wanted) - 1, min(SHARDS, len(plan.wanted)), dtype=int)]
    columns = replace(read_columns_of(plan.layout), empty_text="quarantine")
    pieces = []
    for shard in shards:
        block = next(iter(read_shard(shard, columns, TEXTS // len(shards), open_source)), None)
        if block is not None:
            pieces.append(one_array(block.documents[TEXT]).cast(pa.string()))
    texts = pa.concat_arrays(pieces) if pieces else pa.array([], pa.string())
    if not len(texts):
        raise SourceError(f"{plan.files[0].uri}: no text at the beginning of {len(shards)} Shards to try settings on")
    spec = tokenizer_spec(config.recipe, description)
    if config.recipe.long_text == "chunk":
        texts = chunk_texts(texts, spec, config.recipe.chunk_overlap_tokens).texts
    tokenize, sent = load_tokenizer(spec), with_prompt(texts, spec.prompt)
    started = time.perf_counter()
    tokens, _ = tokenize(sent, spec.max_tokens)
    rate = float(tokens.offsets_N1[-1]) / (time.perf_counter() - started)
    dimension = output_dimension(config, description)
    return Texts(tokens, spec.prompt, rate, estimate(plan)["rows"], dimension * STORED_BYTES[config.recipe.stored])
