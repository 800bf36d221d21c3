"""What a run would take: tokens, hours, bytes and cost, from a sample of its Shards and a device that was measured."""

import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.arrow import fixed_size_binary
from pipeline.config import JobConfig
from pipeline.encoder.describe import ModelDescription
from pipeline.encoder.engines import TRIAL_AFTER_SECONDS, first_engine, rate_with_trial, trial_pays
from pipeline.encoder.vectors import to_stored
from pipeline.errors import EncoderError
from pipeline.execution.clusters.cores import cores_of_encoder
from pipeline.execution.planning.model import describe
from pipeline.execution.planning.plan import Plan
from pipeline.execution.reuse import with_index
from pipeline.execution.settings import output_dimension, output_schema, recipe_facts, tokenizer_spec
from pipeline.execution.sizing.corpus_sample import CorpusSample, Seen, expected, read_sample, relative_error
from pipeline.execution.sizing.start_up import look_seconds, seconds_around
from pipeline.execution.sizing.trials import Lab, Setting, Trial, distinct_budgets
from pipeline.execution.sizing.tune import BUSY_LOAD, WORTH_CHANGING, engines_beside_torch, layout_of, recommended_rows
from pipeline.execution.sizing.tune_texts import STORED_BYTES, Texts
from pipeline.storage.filesystem import Store
from pipeline.storage.parquet import serialise

BUSY = "the machine was busy, at a load of {:.1f}: on a quiet one a run is faster"

MEASURED_SECONDS, TRYING_SECONDS = 12.0, 45.0
"""How long one engine encodes Blocks, and after which no other budget is begun."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """The estimate of a run, kept beside its output until the report compares it with what happened."""

    run_key: str
    made_at: str
    """ISO 8601, UTC."""
    shards: int
    """To do."""
    shards_read: int
    rows: int
    """Of these Shards, with those that will go to quarantine."""
    tokens: int
    """That the encoders will be given: of known texts none, of a repeated one once."""
    tokens_error: float
    """Half of the 95 % interval of the tokens, as a share of them; 0 = all was read."""
    truncated_fraction: float
    """Of the texts."""
    repeated_fraction: float
    """Texts that stand before, among those read; of all texts it is rather more."""
    known_fraction: float
    """Texts whose vectors are taken over from the Snapshot before."""
    quarantined_fraction: float
    output_bytes: int
    device: str
    engine: str
    is_measured: bool
    """False where the rate was given."""
    tokens_per_second: float
    """Of one encoder, over the whole run."""
    padding_fraction: float
    encoders: int
    seconds: dict[str, float]
    """Expected wall time of `start`, `look through`, `run`, `finish` and `total`."""
    encoder_hours: float
    cores_per_encoder: float | None
    """That an encoder on a GPU keeps busy: with feeding it, and with reading, tokenising and writing at its rate; None
    where encoders are on CPUs."""
    price_per_hour: float | None
    """Of one encoder."""
    rows_per_part: int
    """Recommended."""
    batch_tokens: int
    """Recommended."""
    notes: tuple[str, ...] = ()
    by_kind: dict[str, dict[str, float]] = field(default_factory=dict)
    """Format and compression → bytes, rows and tokens that were read of it; the progress of the run goes by it."""

    @property
    def cost(self) -> float | None:
        return None if self.price_per_hour is None else self.price_per_hour * self.encoder_hours

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"cost": self.cost}


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast one encoder is, and how that is known."""

    device: str
    engine: str
    threads: int
    """0 on a GPU."""
    tokens_per_second: float
    padding: float
    """Padded tokens over real ones, minus one."""
    best: Trial
    """Of the batch budgets that were tried; the config's own where the rate was given."""


def forecast(
    config: JobConfig, plan: Plan, tokens_per_second: float | None = None, price_per_hour: float | None = None
) -> Forecast:
    """Sample what is to be done, measure this machine, and say what the run will take.

    Args:
        tokens_per_second: of one encoder on the device that will run it; None = this machine is measured.
        price_per_hour: of one encoder.

    Raises:
        SourceError: the Shards that were sampled hold no text.
        EncoderError: the model cannot be loaded here.
    """
    load, description = os.getloadavg()[0], describe(plan.model)
    plan, notes = with_index(plan, Store(config.output.uri))
    sample = read_sample(config, plan, description)
    whole = expected(sample, plan.embed)
    rows_read = max(1.0, sum(seen.rows for seen in sample.by_kind.values()))
    vectors = whole.rows * sample.vectors / rows_read
    texts = _texts(config, sample, whole, description)
    block_rows = max(1, round(len(sample.tokens) / sample.blocks))
    encoders = 1 if config.runtime.encoders == "auto" else config.runtime.encoders
    if tokens_per_second is None:
        pace = _measured(config, plan, texts, block_rows, whole.tokens / encoders)
    else:
        pace = _given(config, texts, tokens_per_second)
    part_bytes, write_seconds = _part_of(config, plan, description, sample)
    around, assumed = seconds_around(config, plan, is_here=tokens_per_second is None)
    notes += assumed
    seconds = {"start": around["start"], "look through": look_seconds(config, plan, sample, whole)}
    seconds["run"] = whole.tokens / pace.tokens_per_second / encoders
    beside = (sample.read_seconds + sample.tokenize_seconds) * whole.rows / rows_read + vectors * write_seconds
    cores = None
    if pace.threads:  # on a CPU the stages around take their time from the encoders; beside a GPU they overlap
        seconds["run"] += beside / _cores()
    elif whole.tokens:
        cores = cores_of_encoder(whole.tokens / pace.tokens_per_second, beside)
    seconds["finish"] = around["finish"]
    seconds["total"] = sum(seconds.values())
    held = seconds["start"] + seconds["run"]
    if tokens_per_second is None and load > BUSY_LOAD * _cores():
        notes.append(BUSY.format(load))
    return Forecast(
        run_key=plan.run_key,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        shards=len(plan.embed),
        shards_read=sample.shards_read,
        rows=round(whole.rows),
        tokens=round(whole.tokens),
        tokens_error=relative_error(sample),
        truncated_fraction=sample.truncated / sample.vectors,
        repeated_fraction=sample.repeated_fraction,
        known_fraction=sample.known / sample.vectors,
        quarantined_fraction=sample.quarantined / rows_read,
        output_bytes=round(vectors * part_bytes),
        device=pace.device,
        engine=pace.engine,
        is_measured=tokens_per_second is None,
        tokens_per_second=pace.tokens_per_second,
        padding_fraction=1 - 1 / (1 + pace.padding),
        encoders=encoders,
        seconds=seconds,
        encoder_hours=encoders * held / 3600,
        cores_per_encoder=cores,
        price_per_hour=price_per_hour,
        rows_per_part=_rows_per_part(config, plan, texts, pace),
        batch_tokens=pace.best.batch_tokens,
        notes=tuple(notes),
        by_kind={kind: asdict(seen) for kind, seen in sample.by_kind.items()},
    )


def _texts(config: JobConfig, sample: CorpusSample, whole: Seen, description: ModelDescription) -> Texts:
    rate = float(sample.tokens.offsets_N1[-1]) / max(sample.tokenize_seconds, 1e-9)
    width = output_dimension(config, description) * STORED_BYTES[config.recipe.stored]
    prompt = tokenizer_spec(config.recipe, description).prompt
    return Texts(sample.tokens, prompt, rate, round(whole.rows), width)


def _rows_per_part(config: JobConfig, plan: Plan, texts: Texts, pace: Pace) -> int:
    """Return what the texts recommend; the config's own where Parts stand already, or all rows are one Block anyway."""
    own, better = config.output.rows_per_part, recommended_rows(texts, pace.best)
    return own if plan.parent or texts.source_rows <= min(own, better) else better


def _given(config: JobConfig, texts: Texts, tokens_per_second: float) -> Pace:
    """Return the pace of a device that is not here; how a Block packs follows from the texts alone."""
    budget = config.runtime.batch_tokens
    trial = Trial(Setting("torch", 1, 0), budget, tokens_per_second)
    padding = layout_of(config.output.rows_per_part, texts, trial).padding
    return Pace("given", "", 0, tokens_per_second, padding, trial)


def _measured(config: JobConfig, plan: Plan, texts: Texts, block_rows: int, tokens: float) -> Pace:
    """Encode Blocks as a run would, with all cores or the one device, then try other budgets.

    Args:
        tokens: of one encoder.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in a run
    runtime = config.runtime
    lab = Lab(config, plan, texts, time.monotonic() + TRYING_SECONDS)
    encoders_here = 1 if runtime.encoders == "auto" else min(runtime.encoders, _cores())
    first = first_engine(runtime.engine, config.recipe.compute)
    setting = Setting(first, 1, _cores() // encoders_here)
    measured = lab.blocks(setting, runtime.batch_tokens, block_rows, MEASURED_SECONDS)
    if measured.note:
        raise EncoderError(f"{config.recipe.model} cannot be measured here: {measured.note}")
    budgets = _budgets(config, measured.pass_limit)
    trials = lab.batches(setting, budgets) if budgets else []
    best = max([measured, *trials], key=lambda trial: trial.tokens_per_second)
    if best.tokens_per_second <= WORTH_CHANGING * measured.tokens_per_second:
        best = measured
    rate, engine = measured.tokens_per_second, setting.engine if plan.model.kind != "hashing" else ""
    may_change = (runtime.engine, first) == ("auto", "torch")
    if may_change and trial_pays(tokens, rate):
        rates = {engine: rate}
        for other in engines_beside_torch(lab.device, plan.model.kind, config.recipe.compute):
            with suppress(EncoderError):  # a run passes it over too
                asked = (replace(setting, engine=other), runtime.batch_tokens, block_rows, MEASURED_SECONDS / 2)
                rates[other] = lab.blocks(*asked).tokens_per_second
        best_engine = max(rates, key=lambda name: rates[name])
        if best_engine != engine:  # a run goes on with it after its own trial
            rate = rate_with_trial(tokens, rate, rates[best_engine])
            engine = f"torch, after {TRIAL_AFTER_SECONDS:.0f} s {best_engine}"
    threads = setting.threads if lab.device == "cpu" else 0
    return Pace(lab.device, engine, threads, rate, measured.padding, best)


def _budgets(config: JobConfig, pass_limit: int | None) -> list[int]:
    """Return half and twice the budget of the config, as far as the longest text has room and passes change by it."""
    own = config.runtime.batch_tokens
    fitting = [budget for budget in (own // 2, own * 2) if budget >= config.recipe.max_tokens]
    return [budget for budget in distinct_budgets([own, *fitting], pass_limit, own) if budget != own]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _part_of(config: JobConfig, plan: Plan, description: ModelDescription, sample: CorpusSample) -> tuple[float, float]:
    """Return bytes and seconds per row of a Part, from one with the kept columns of the sample and random vectors.

    Vectors of a model compress like random ones of length 1: only their exponents do.
    """
    schema, rows = output_schema(config, plan, description), _rows_of_part(config, sample)
    numbers = np.random.default_rng(7)
    vectors_ND = numbers.standard_normal((rows, output_dimension(config, description)), np.float32)
    stored = to_stored(vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True), config.recipe.stored)
    columns = dict(zip(["embedding", "scale"], stored, strict=False))
    columns["text_hash"] = fixed_size_binary(numbers.integers(0, 256, (rows, 16), np.uint8))
    columns["tokens"] = pa.array(np.resize(sample.tokens.lengths_N, rows), pa.int32())
    for name in set(schema.names) - columns.keys():
        known = name in sample.documents.column_names
        columns[name] = sample.documents[name].slice(0, rows) if known else pa.array(np.zeros(rows, np.int64))
    started = time.perf_counter()
    table = pa.table({name: columns[name].cast(schema.field(name).type) for name in schema.names}, schema=schema)
    sources = [[span.file.uri, span.file.version, span.position] for span in plan.embed[0].spans]
    content = serialise(table, {"recipe": recipe_facts(config, plan), "sources": sources})
    return len(content) / rows, (time.perf_counter() - started) / rows


def _rows_of_part(config: JobConfig, sample: CorpusSample) -> int:
    """Return how many rows a Part holds if every Block is split into the partitions of the sample."""
    names = list(config.output.partition_by)
    folders = int(sample.documents.group_by(names).aggregate([]).num_rows) if names else 1
    return max(1, min(round(sample.vectors / sample.blocks / max(1, folders)), int(sample.documents.num_rows)))
