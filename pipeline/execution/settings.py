"""From a config, a Plan and a model's description to the plain values that the stages work with."""

from typing import Any

import pyarrow as pa

import pipeline
from pipeline.config import JobConfig, Recipe
from pipeline.encoder.describe import ModelDescription
from pipeline.errors import ConfigError
from pipeline.execution.canary_gate import canary_of, load_canary
from pipeline.execution.planning.model import facts_of
from pipeline.execution.planning.plan import Plan, read_columns_of
from pipeline.execution.stage_settings import StageSettings
from pipeline.schemas import part_schema
from pipeline.storage.snapshots import decode_schema
from pipeline.text.chunking import chunk_window
from pipeline.text.tokenizer import TokenizerSpec


def stage_settings(
    config: JobConfig, plan: Plan, description: ModelDescription, planned_at: pa.Scalar, threads: int
) -> StageSettings:
    """Return what every worker of a run must know.

    Args:
        planned_at: when the run was first planned, timestamp[us, UTC].
        threads: CPU threads of an encoder; 0 on a GPU.

    Raises:
        ConfigError: the recipe asks for dimensions the model has not.
    """
    recipe = config.recipe
    tokenizer = tokenizer_spec(recipe, description)
    _check_room(config, tokenizer)
    return StageSettings(
        columns=read_columns_of(plan.layout),
        rows_per_part=config.output.rows_per_part,
        tokenizer=tokenizer,
        chunk_overlap_tokens=recipe.chunk_overlap_tokens if recipe.long_text == "chunk" else None,
        model=plan.model,
        compute=recipe.compute,
        engine=config.runtime.engine,
        threads=threads,
        batch_tokens=config.runtime.batch_tokens,
        dimensions=recipe.dimensions,
        normalize=recipe.normalize,
        stored=recipe.stored,
        output_uri=config.output.uri,
        snapshot_folder=plan.folder,
        partition_by=config.output.partition_by,
        part_schema=output_schema(config, plan, description),
        metadata={
            "fingerprint": plan.recipe_fingerprint,
            "recipe": recipe_facts(config, plan),
            "version": pipeline.__version__,
        },
        model_dimension=description.dimension,
        event_time=planned_at,
        known=plan.known,
        canary=load_canary(config.gate, tokenizer, config.recipe.compute) if config.gate else canary_of(plan.model),
    )


def tokenizer_spec(recipe: Recipe, description: ModelDescription) -> TokenizerSpec:
    """Return how texts become tokens under this recipe with this model."""
    prompt = description.default_prompt if recipe.prompt is None else recipe.prompt
    return TokenizerSpec(min(recipe.max_tokens, description.max_tokens), prompt, description.tokenizer_json)


def _check_room(config: JobConfig, tokenizer: TokenizerSpec) -> None:
    if config.recipe.long_text == "chunk":
        window, overlap = chunk_window(tokenizer), config.recipe.chunk_overlap_tokens
        if window <= 2 * overlap or window < 1:
            raise ConfigError(
                f"recipe: of {tokenizer.max_tokens} tokens, prompt and special tokens leave {window} to a chunk, too "
                f"few for an overlap of {overlap}; raise max_tokens, or shorten the prompt or the overlap"
            )


def recipe_facts(config: JobConfig, plan: Plan) -> dict[str, Any]:
    """Return the recipe as it is written into every file and report."""
    return facts_of(config.recipe, plan.model)


def output_schema(config: JobConfig, plan: Plan, description: ModelDescription) -> pa.Schema:
    """Return the schema of the Parts of this run."""
    documents = decode_schema(plan.layout["document_schema"])
    kept = [name for name in config.source.keep_columns if name not in config.output.partition_by]
    return part_schema(
        documents.field("id").type,
        [documents.field(name) for name in kept],
        output_dimension(config, description),
        config.recipe.stored,
        chunked=config.recipe.long_text == "chunk",
    )


def output_dimension(config: JobConfig, description: ModelDescription) -> int:
    """Return how many numbers a stored vector has.

    Raises:
        ConfigError: more than the model's, or a number that cannot be packed into bytes.
    """
    wanted = config.recipe.dimensions
    if wanted is not None and wanted > description.dimension:
        raise ConfigError(
            f"recipe.dimensions is {wanted}; the model's vectors have {description.dimension} numbers. Lower it or set "
            "it to null."
        )
    dimension = wanted or description.dimension
    if config.recipe.stored == "binary" and dimension % 8:
        raise ConfigError(f"recipe.stored: binary needs a multiple of 8 dimensions; this recipe has {dimension}")
    return dimension
