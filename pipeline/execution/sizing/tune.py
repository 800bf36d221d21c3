"""Which settings are fastest here: encoders, their batches and the size of a Block, tried on texts of the source."""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import JobConfig
from pipeline.encoder.engines import engines_to_try, first_engine
from pipeline.errors import EncoderError
from pipeline.execution.planning.plan import Plan
from pipeline.execution.sizing.trials import Lab, Setting, Trial, distinct_budgets, padding_of
from pipeline.execution.sizing.tune_texts import Texts

WORTH_CHANGING = 1.03
"""Only what is faster by more than this takes the place of what the config says, or of fewer encoders."""

BATCH_TOKENS = (2048, 4096, 8192, 16384, 32768, 65536)

ROWS_PER_PART = (1024, 4096, 16384, 65536)

BLOCK_SECONDS = (1.0, 120.0)
"""A Block shorter than the first pays more for its scheduling than it should, one longer than the second loses too much
work when its process dies."""

MOST_ENCODERS = 8

BUSY_LOAD = 0.3
"""Of each core, by other programs: with more, the figures are theirs as much as ours."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One size of Blocks, and what follows from it at the best rate."""

    rows_per_part: int
    padding: float
    block_seconds: float
    part_bytes: int
    """Of the vectors alone, uncompressed."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was tried, and what to write into the config."""

    device: str
    cores: int
    texts: int
    tokens_per_text: float
    tokenize_tokens_per_second: float
    """Of one core."""
    trials: tuple[Trial, ...]
    layouts: tuple[Layout, ...]
    lines: dict[str, dict[str, Any]]
    """By section of the config: the keys that were found."""
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"outcome": "tuned"}


def tune(config: JobConfig, plan: Plan, texts: Texts, deadline: float) -> Tuning:
    """Try settings on texts of the source, each in processes of its own, and choose.

    First the batches of one encoder with all cores are tried, then other engines if the config leaves that open, then
    more encoders with fewer threads each.

    Args:
        deadline: by the monotonic clock; nothing new is begun after it, but something is tried in any case.

    Raises:
        EncoderError: the model cannot be loaded, or fails on every setting.
    """
    load = os.getloadavg()[0]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in a run; spinning threads of several encoders would fight
    cores = len(os.sched_getaffinity(0))
    lab = Lab(config, plan, texts, deadline)
    engine = first_engine(config.runtime.engine, config.recipe.compute)
    budgets = _batch_candidates(config)
    trials = lab.batches(Setting(engine, 1, cores), budgets)
    best = _chosen(trials, config.runtime.batch_tokens)
    notes = _notes_of_passes(budgets, trials)
    if config.runtime.engine == "auto" and engine == "torch":
        for other in engines_beside_torch(lab.device, plan.model.kind, config.recipe.compute):
            trials += _with_engine(lab, other, best.setting.threads, best.batch_tokens)
        best = _faster(trials, best)
    for encoders in _encoder_counts(lab.device, cores):
        threads = cores // encoders if lab.device == "cpu" else 0
        trials += lab.batches(Setting(best.setting.engine, encoders, threads), [best.batch_tokens])
    winner = _faster(trials, best)
    layouts = [layout_of(rows, texts, winner) for rows in ROWS_PER_PART]
    notes += _notes_of_encoders(lab.device, winner, texts)
    rows_per_part = _rows_per_part(layouts, texts.source_rows, winner)
    if load > BUSY_LOAD * cores:
        notes.append(
            f"the machine was busy, at a load of {load:.1f} before the first trial; repeat this when it is quiet"
        )
    if plan.parent is not None:
        rows_per_part = config.output.rows_per_part
        notes.append("output.rows_per_part is left as it is: another value would embed the published rows anew")
    return Tuning(
        device=lab.device,
        cores=cores,
        texts=len(texts.tokens),
        tokens_per_text=float(texts.tokens.lengths_N.mean()),
        tokenize_tokens_per_second=texts.tokens_per_second,
        trials=tuple(trials),
        layouts=tuple(layouts),
        lines=_lines(lab.device, trials, winner, rows_per_part),
        notes=tuple(notes),
    )


def _batch_candidates(config: JobConfig) -> list[int]:
    """Return budgets in which the longest text has room, that of the config among them, ascending."""
    least = config.recipe.max_tokens
    return sorted({budget for budget in BATCH_TOKENS if budget >= least} | {config.runtime.batch_tokens})


def engines_beside_torch(device: str, kind: str, compute: str) -> tuple[str, ...]:
    """Return the engines that are installed and that a run would try on a device, in this number type."""
    if kind == "hashing":
        return ()
    found = engines_to_try(compute, is_cpu=device == "cpu")
    return found if find_spec("openvino") else tuple(engine for engine in found if engine != "openvino")


def _with_engine(lab: Lab, engine: str, threads: int, batch_tokens: int) -> list[Trial]:
    setting = Setting(engine, 1, threads)
    try:
        return lab.batches(setting, [batch_tokens])
    except EncoderError as error:
        return [Trial(setting, batch_tokens, note=f"failed: {error}")]


def _encoder_counts(device: str, cores: int) -> list[int]:
    if device != "cpu":
        return [2]
    return [encoders for encoders in (2, 4, 8, 16) if encoders <= min(cores, MOST_ENCODERS)]


def _chosen(trials: Sequence[Trial], present: int) -> Trial:
    """Return the trial with the config's own budget, unless another one is clearly faster."""
    best = max(trials, key=lambda trial: trial.tokens_per_second)
    if not best.tokens_per_second:
        raise EncoderError(f"no setting could be tried: {trials[0].note}")
    own = next((trial for trial in trials if trial.batch_tokens == present), best)
    return best if best.tokens_per_second > WORTH_CHANGING * own.tokens_per_second else own


def _faster(trials: Sequence[Trial], simplest: Trial) -> Trial:
    """Return the simplest setting, unless another one is clearly faster."""
    best = max(trials, key=lambda trial: trial.tokens_per_second)
    return best if best.tokens_per_second > WORTH_CHANGING * simplest.tokens_per_second else simplest


def _notes_of_passes(budgets: Sequence[int], trials: Sequence[Trial]) -> list[str]:
    """Return what is to be said where several budgets came to the same passes, and one of them was tried for all."""
    limit = trials[0].pass_limit
    same = distinct_budgets(budgets, limit, own=0)
    if limit is None or len(same) == len(budgets):
        return []
    if len(same) == 1:
        return [f"on this CPU a pass has {limit:,} tokens whatever runtime.batch_tokens is, from {limit:,} on"]
    return [f"on this CPU a pass has {limit:,} tokens at most: a runtime.batch_tokens of more is the same, tried once"]


def _notes_of_encoders(device: str, winner: Trial, texts: Texts) -> list[str]:
    """Return what the number of encoders means: for their threads, on a cluster, and for the cores beside a GPU."""
    encoders = winner.setting.encoders
    if device != "cpu":
        tokenising = math.ceil(winner.tokens_per_second / texts.tokens_per_second)
        return [
            f"beside each GPU some {tokenising + encoders + 1} cores: {tokenising} to tokenise at its rate, {encoders} "
            "to feed it, one to read and write"
        ]
    threads = f"threads per encoder follow from runtime.encoders: {winner.setting.threads} each with {encoders} here"
    if encoders == 1:
        return [f"{threads}; auto is one encoder on this machine, and one on each node of a cluster"]
    return [
        f"{threads}; runtime.encoders counts those of all nodes: {encoders} is for this machine alone, on a cluster of "
        f"such machines write {encoders} times their number"
    ]


def layout_of(rows: int, texts: Texts, winner: Trial) -> Layout:
    """Return what follows from Blocks of so many rows, at the rate of a trial."""
    lengths_N = _as_many(texts.tokens.lengths_N, rows)
    seconds = float(lengths_N.sum()) / (winner.tokens_per_second / winner.setting.encoders)
    padding = winner.padding if winner.is_flat else padding_of(lengths_N, winner.pass_tokens)
    return Layout(rows, padding, seconds, round(rows * texts.bytes_per_vector))


def _as_many(lengths_N: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """Return so many lengths drawn from those of the texts at hand."""
    return np.random.default_rng(7).choice(lengths_N, rows)


def recommended_rows(texts: Texts, winner: Trial) -> int:
    """Return the `output.rows_per_part` for a new output."""
    return _rows_per_part([layout_of(rows, texts, winner) for rows in ROWS_PER_PART], texts.source_rows, winner)


def _rows_per_part(layouts: Sequence[Layout], source_rows: int, winner: Trial) -> int:
    """Return the largest size whose Blocks are neither too long nor too few for all encoders to have work."""
    (shortest, longest), wanted_blocks = BLOCK_SECONDS, 2 * winner.setting.encoders
    fitting = [
        layout.rows_per_part
        for layout in layouts
        if shortest <= layout.block_seconds <= longest and source_rows / layout.rows_per_part >= wanted_blocks
    ]
    if fitting:
        return max(fitting)
    return next((one.rows_per_part for one in layouts if one.block_seconds >= shortest), layouts[-1].rows_per_part)


def _lines(device: str, trials: Sequence[Trial], winner: Trial, rows_per_part: int) -> dict[str, dict[str, Any]]:
    """Return the keys that were found, by section; the engine only where more than one has shown its rate.

    `encoders` counts those of a whole cluster, so `auto` stands for one per machine.
    """
    encoders, engine = winner.setting.encoders, winner.setting.engine
    is_cpu = device == "cpu"
    runtime: dict[str, Any] = {"encoders": encoders if is_cpu and encoders > 1 else "auto"}
    if not is_cpu:
        runtime["gpus_per_encoder"] = 1 / encoders
    runtime["batch_tokens"] = winner.batch_tokens
    if len({trial.setting.engine for trial in trials if trial.tokens_per_second}) > 1:
        runtime["engine"] = engine
    return {"output": {"rows_per_part": rows_per_part}, "runtime": runtime}
