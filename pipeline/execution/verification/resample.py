"""A random sample of rows, whose texts are found again in the source and encoded again in float32."""

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.arrow import dequantised, one_array
from pipeline.config import Recipe
from pipeline.encoder.packed import encode_or_zero
from pipeline.encoder.vectors import finish
from pipeline.errors import EncoderError, SourceError
from pipeline.execution.planning.model import ModelReference, describe, open_encoder, resolve_model
from pipeline.execution.planning.plan import read_columns_of
from pipeline.execution.settings import tokenizer_spec
from pipeline.execution.stage_settings import StageSettings
from pipeline.execution.stages import tokenize_documents
from pipeline.execution.verification.findings import Finding, Sample, Verification
from pipeline.execution.verification.recount import shard_of
from pipeline.records import TokenBatch
from pipeline.schemas import TOKEN_IDS
from pipeline.storage.filesystem import open_source
from pipeline.storage.parquet import part_key
from pipeline.storage.readers import read_shard
from pipeline.storage.snapshots import Snapshot
from pipeline.units import counted

COMPUTE_LOSS = {"float32": 1e-5, "bfloat16": 1e-3, "float16": 1e-4, "int8": 3e-2}
"""1 - cosine that the number type of the forward pass explains. float32: what the README promises against
SentenceTransformer.encode, on any device. bfloat16: 1e-5 to 6e-5 was measured for BERT models of 4 to 24 layers,
float16: 1e-6 (2026-11, CPU); ten times that and more is left for other models and devices. int8: twice what
`encoder.calibration.BOUNDS` allow for the worst of a few witnesses."""

STORED_LOSS = {"float32": 0.0, "float16": 1e-6, "int8": 1e-3, "binary": 0.0}
"""1 - cosine that the stored number type adds. float16: 2^-11 per number, squared. int8: half a step is 1/254 of the
largest number of a row; 3e-5 at 1792 normal numbers, 1e-3 where one is twenty times the others."""

BATCH_TOKENS = 16384
SIGMAS = 4.0
"""How far the share of differing signs of `stored: binary` may lie above its mean."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A sampled row: where it is stored, and by what it is found in the source."""

    path: str
    row: int
    id: Any
    chunk: int | None
    text_hash: bytes
    vector_D: NDArray[np.float32]


Found = tuple[Wanted, NDArray[np.int32]]
"""A sampled row and the tokens of its text."""


def check_model(snapshot: Snapshot) -> ModelReference:
    """Return the model that the Snapshot was made with, without loading it.

    Raises:
        EncoderError: at its address there is none now, or another one.
    """
    model = resolve_model(_recipe(snapshot))
    if model.identity != snapshot.recipe["identity"]:
        raise EncoderError(
            f"{snapshot.recipe['model']} is not the model that snapshot {snapshot.number} was made with (identity "
            f"{model.identity}, recorded {snapshot.recipe['identity']}); no sample can be encoded again with it"
        )
    return model


def _recipe(snapshot: Snapshot) -> Recipe:
    facts = {name: value for name, value in snapshot.recipe.items() if name in Recipe.model_fields}
    repository, _, commit = snapshot.recipe["identity"].rpartition("@")
    return Recipe(**facts | ({"revision": commit} if repository == facts["model"] else {}))


def _settings(snapshot: Snapshot, recipe: Recipe, model: ModelReference) -> StageSettings:
    """Return the settings under which the stages would make this Snapshot again, in float32."""
    record, described = snapshot.record, describe(model)
    spec = tokenizer_spec(recipe, described)
    return StageSettings(
        columns=read_columns_of(record.layout),
        rows_per_part=record.layout["rows_per_part"],
        tokenizer=spec,
        chunk_overlap_tokens=recipe.chunk_overlap_tokens if recipe.long_text == "chunk" else None,
        model=model,
        compute="float32",
        engine="torch",
        threads=0,
        batch_tokens=max(BATCH_TOKENS, spec.max_tokens),
        dimensions=recipe.dimensions,
        normalize=recipe.normalize,
        stored=recipe.stored,
        output_uri=snapshot.store.uri,
        snapshot_folder=record.folder,
        partition_by=tuple(record.layout["partition_by"]),
        part_schema=snapshot.schema,
        metadata={},
        model_dimension=described.dimension,
        event_time=pa.scalar(None, pa.timestamp("us", tz="UTC")),
    )


def resample(snapshot: Snapshot, model: ModelReference, rows: int, seed: int, result: Verification) -> None:
    """Encode random rows of the Snapshot again in float32 and compare with what is stored.

    Args:
        model: from `check_model`.
        rows: how many; all if there are fewer.
        seed: the same one draws the same rows.
    """
    recipe = _recipe(snapshot)
    settings = _settings(snapshot, recipe, model)
    found, lost, why = _texts_of(snapshot, _drawn(snapshot, rows, seed), settings, result)
    expected = least_cosine(recipe, snapshot.record.dimension)
    if not found:
        result.sample = Sample(0, lost, why, expected=expected)
        if lost:  # a check that was asked for and shows nothing must not pass for one that was passed
            detail = f"none of {counted(lost, 'row')} could be encoded again"
            result.add(Finding("sample", f"snapshots/{snapshot.record.folder}", detail))
        return
    cosines_N = _cosines_of(found, settings)
    for (one, _), cosine in zip(found, cosines_N.tolist(), strict=True):
        if not cosine >= expected:
            detail = f"cosine {cosine:.6f} with its text encoded again, expected {expected:.6f} at least"
            result.add(Finding("vector", one.path, detail, one.row))
    low, mean = float(cosines_N.min()), float(cosines_N.mean())
    result.sample = Sample(len(found), lost, why, low, mean, expected)


def _texts_of(
    snapshot: Snapshot, drawn: dict[str, dict[int, list[Wanted]]], settings: StageSettings, result: Verification
) -> tuple[list[Found], int, str]:
    """Return the rows that the source still has, with their tokens; how many could not be looked for, and why."""
    found: list[Found] = []
    lost, why = 0, ""
    for entry in snapshot.shards.to_pylist():
        sought = drawn.get(entry["shard_id"], {})
        left = sum(map(len, sought.values()))
        try:
            for one, tokens_T in _found_again(entry, sought, settings) if sought else ():
                left -= 1
                if tokens_T is None:
                    detail = "its Block of the source has no row with this id and this hash of the text"
                    result.add(Finding("text", one.path, detail, one.row))
                else:
                    found.append((one, tokens_T))
        except SourceError as error:
            lost, why = lost + left, why or str(error)
    return found, lost, why


def _cosines_of(found: list[Found], settings: StageSettings) -> NDArray[np.float64]:
    """Encode texts again; return the cosine of each vector with the stored one."""
    encoder = open_encoder(settings.model, settings.compute, settings.tokenizer.prompt, settings.threads)
    encoded = encode_or_zero(encoder, _batch([tokens_T for _, tokens_T in found]), settings.batch_tokens)
    again_ND = finish(encoded.vectors_ND, settings.dimensions, settings.normalize).astype(np.float64)
    if settings.stored == "binary":
        again_ND = np.where(again_ND > 0, 1.0, -1.0)
    stored_ND = np.stack([one.vector_D for one, _ in found]).astype(np.float64)
    lengths_N = np.linalg.norm(stored_ND, axis=1) * np.linalg.norm(again_ND, axis=1)
    cosines_N = np.einsum("nd,nd->n", stored_ND, again_ND) / np.where(lengths_N > 0, lengths_N, np.nan)
    cosines_N[~stored_ND.any(axis=1) & ~again_ND.any(axis=1)] = 1.0  # empty texts under `empty_text: zero`
    return np.asarray(cosines_N)


def least_cosine(recipe: Recipe, dimension: int) -> float:
    """Return the least cosine that the number types of a recipe explain: their angles add up.

    Of `binary` only signs are compared: of two vectors at an angle they differ in a share of angle / pi of the
    dimensions (Goemans and Williamson 1995), with the spread of a binomial distribution around it.
    """
    angle = math.acos(1 - COMPUTE_LOSS[recipe.compute]) + math.acos(1 - STORED_LOSS[recipe.stored])
    if recipe.stored != "binary":
        return math.cos(angle)
    share = angle / math.pi
    return 1 - 2 * (share + SIGMAS * math.sqrt(share * (1 - share) / dimension))


def _drawn(snapshot: Snapshot, rows: int, seed: int) -> dict[str, dict[int, list[Wanted]]]:
    """Return random rows by Shard and Block; Parts that are missing or unreadable are the business of other checks."""
    parts = [part for part in snapshot.parts.to_pylist() if part["kind"] == "embeddings"]
    ends_P1 = np.cumsum([0, *(part["rows"] for part in parts)])
    total = int(ends_P1[-1])
    numbers = np.array(sorted(random.Random(seed).sample(range(total), min(rows, total))), np.int64)
    drawn: dict[str, dict[int, list[Wanted]]] = defaultdict(lambda: defaultdict(list))
    for part, (start, end) in zip(parts, pairwise(ends_P1), strict=True):
        rows_N = numbers[(numbers >= start) & (numbers < end)] - start
        if len(rows_N):
            drawn[part["shard_id"]][part["block"]] += _stored(snapshot, part, rows_N)
    return drawn


def _stored(snapshot: Snapshot, part: dict[str, Any], rows_N: NDArray[np.int64]) -> list[Wanted]:
    key = part_key(part["kind"], part["folder"], part["path"])
    content = snapshot.store.read(key)
    try:
        table = pq.ParquetFile(pa.BufferReader(content or b"")).read()
        rows = table.take(pa.array(rows_N[rows_N < table.num_rows]))
        vectors_ND = dequantised(rows, snapshot.recipe["stored"])
        chunks = rows["chunk"].to_pylist() if "chunk" in rows.column_names else [None] * rows.num_rows
        columns = (rows_N.tolist(), rows["id"].to_pylist(), chunks, rows["text_hash"].to_pylist(), vectors_ND)
        return [Wanted(key, *values) for values in zip(*columns, strict=False)]
    except (pa.ArrowException, OSError, KeyError):
        return []


def _found_again(
    entry: dict[str, Any], sought: dict[int, list[Wanted]], settings: StageSettings
) -> Iterator[tuple[Wanted, NDArray[np.int32] | None]]:
    """Read the Blocks of a Shard again; yield each row sought with its tokens, None if it is not there.

    Args:
        entry: row of `snapshots.SHARDS`.
        sought: rows by Block; what was looked for is taken out.

    Raises:
        SourceError: the source was changed, is gone or cannot be read.
    """
    others = frozenset(range(entry["blocks"])) - sought.keys()
    for block in read_shard(shard_of(entry), settings.columns, settings.rows_per_part, open_source, others):
        rows = sought.pop(block.number, [])
        documents = block.documents
        ids = pa.array([one.id for one in rows], documents.schema.field("id").type)
        tokenised = tokenize_documents(documents.filter(pc.is_in(documents["id"], value_set=ids)), settings)
        chunks = tokenised["chunk"].to_pylist() if "chunk" in tokenised.column_names else [None] * tokenised.num_rows
        names = zip(tokenised["id"].to_pylist(), chunks, tokenised["text_hash"].to_pylist(), strict=True)
        at = {name: row for row, name in enumerate(names)}
        tokens = one_array(tokenised[TOKEN_IDS])
        for one in rows:
            row = at.get((one.id, one.chunk, one.text_hash))
            yield one, None if row is None else tokens[row].values.to_numpy()
    for one in chain.from_iterable(sought.values()):  # of Blocks that the Shard does not have
        yield one, None


def _batch(rows: Sequence[NDArray[np.int32]]) -> TokenBatch:
    offsets_N1 = np.concatenate(([0], np.cumsum([len(tokens_T) for tokens_T in rows])))
    return TokenBatch(np.concatenate(rows), offsets_N1)
