"""One setting of the encoders after the other, each tried in processes of its own."""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from pipeline.config import JobConfig
from pipeline.encoder.batching import computed_tokens, pack_by_tokens
from pipeline.encoder.packed import encode_packed, lanes_of, take, tokens_of_a_pass
from pipeline.encoder.protocol import Encoder, Overlapping
from pipeline.execution.planning.model import open_encoder
from pipeline.execution.planning.plan import Plan
from pipeline.execution.sizing.tune_texts import Texts
from pipeline.isolation import Isolated, ProcessDied
from pipeline.records import TokenBatch

TRIAL_SECONDS = 3.0
"""How long one trial encodes: a tenth of it would be the noise of a shared machine."""

FEW_TOKENS, MOST_TOKENS = 1000, 1 << 20
"""Of the call that tells how much a trial can take, and of the largest trial."""

WARM_PASSES = 4
"""Of a device beside the CPU, before it is measured: their shapes may have kernels to compile."""

LONGEST_BATCH_SECONDS = 10.0
"""A budget whose single batch takes longer is not tried: a run could neither report nor recover in steps so coarse."""

NO_TIME = "not tried: no time left"
DIED = "failed: its process died, for want of memory perhaps"


@dataclass(frozen=True, slots=True)
class Setting:
    """How the machine is shared between encoders."""

    engine: str
    encoders: int
    """At once on this machine; on a GPU: on each."""
    threads: int
    """CPU threads of each; 0 on a GPU."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting with one size of batches, and how fast it was."""

    setting: Setting
    batch_tokens: int
    tokens_per_second: float = 0.0
    """Of all encoders together; 0 = it was not tried, or failed."""
    padding: float = 0.0
    """Padded tokens over real ones, minus one."""
    note: str = ""
    """Why there is no figure."""
    is_flat: bool = False
    """Whether rows lay end to end, so that padding does not depend on which rows share a batch."""
    pass_limit: int | None = None
    """Tokens that no pass of this encoder exceeds, whatever `batch_tokens` is; None = it has no such limit."""
    lanes: int = 1
    """Passes that each encoder computes side by side."""

    @property
    def pass_tokens(self) -> int:
        """Tokens of a pass at most."""
        return tokens_of_a_pass(self.batch_tokens, self.pass_limit)


def distinct_budgets(budgets: Iterable[int], pass_limit: int | None, own: int) -> list[int]:
    """Return one of all budgets that come to the same passes, ascending.

    Args:
        pass_limit: tokens that no pass exceeds.
        own: the budget that stands for its equals, if it is among them; else it is the least of them.
    """
    kept: dict[int, int] = {}
    for budget in sorted(set(budgets), key=lambda budget: (budget != own, budget)):
        kept.setdefault(tokens_of_a_pass(budget, pass_limit), budget)
    return sorted(kept.values())


def padding_of(lengths_N: NDArray[np.int64], pass_tokens: int) -> float:
    """Return padded tokens over real ones, minus one, of rows that are padded to the longest of their pass."""
    passes = pack_by_tokens(lengths_N, max(pass_tokens, int(lengths_N.max())))
    padded = sum(computed_tokens(lengths_N[rows_B], is_flat=False) for rows_B in passes)
    return padded / float(lengths_N.sum()) - 1


class Lab:
    """Starts encoders in processes of their own and lets them encode."""

    def __init__(self, config: JobConfig, plan: Plan, texts: Texts, deadline: float) -> None:
        self._open = partial(open_encoder, plan.model, config.recipe.compute, texts.prompt)
        self.tokens, self.deadline, self.device = texts.tokens, deadline, "cpu"
        self._own_budget = config.runtime.batch_tokens
        self._has_figures = False
        """Whether any trial has come to an end: the first is made whatever it takes."""

    def batches(self, setting: Setting, budgets: Sequence[int]) -> list[Trial]:
        """Try budgets, ascending, with the encoders of one setting; of those that come to the same passes one.

        Raises:
            EncoderError: the model cannot be loaded, or not with this engine.
        """
        if self._has_figures and time.monotonic() > self.deadline:
            return [Trial(setting, budget, note=NO_TIME) for budget in budgets]
        build = partial(_serving, partial(self._open, threads=setting.threads, engine=setting.engine), self.tokens)
        with closing(_Team(build, setting.encoders)) as team:
            try:
                answers = self._warmed(team, setting, budgets[0])
            except ProcessDied:
                return [Trial(setting, budgets[0], note=DIED)]
            if self.device != "cpu":
                setting = replace(setting, threads=0)
            rate = sum(answer.tokens / answer.seconds for answer in answers)
            trials, limit, lanes = [], answers[0].pass_limit, answers[0].lanes
            for budget in distinct_budgets(budgets, limit, self._own_budget):
                trials.append(self._trial(Trial(setting, budget, pass_limit=limit, lanes=lanes), team, rate))
                rate = trials[-1].tokens_per_second or rate
        return trials

    def _warmed(self, team: "_Team", setting: Setting, budget: int) -> list["_Answer"]:
        """Let encoders load their model and make their kernels; return what they say of a few texts after that."""
        self.device, few = team([(0, 8, budget)] * setting.encoders)[0].device, FEW_TOKENS
        if self.device != "cpu":
            few = WARM_PASSES * budget
            team([(0, self._rows(few), budget)] * setting.encoders)
        return team([(0, self._rows(few), budget)] * setting.encoders)

    def blocks(self, setting: Setting, batch_tokens: int, rows: int, seconds: float) -> Trial:
        """Encode one Block after the other, as a run does, for about so long; loading the model is left out.

        Args:
            rows: of a Block.

        Raises:
            EncoderError: the model cannot be loaded, or not with this engine.
        """
        build = partial(_serving, partial(self._open, threads=setting.threads, engine=setting.engine), self.tokens)
        tokens, padded, spent, first = 0, 0, 0.0, 0
        with closing(_Team(build, setting.encoders)) as team:
            try:
                limit = self._warmed(team, setting, batch_tokens)[0].pass_limit
                while not tokens or (spent < seconds and first < len(self.tokens)):
                    asked = [(first + number * rows, rows, batch_tokens) for number in range(setting.encoders)]
                    answers = team(asked)
                    tokens += sum(answer.tokens for answer in answers)
                    padded += sum(answer.padded_tokens for answer in answers)
                    spent += max(answer.seconds for answer in answers)
                    first += rows * setting.encoders
            except ProcessDied:
                return Trial(setting, batch_tokens, note=DIED)
        self._has_figures, is_flat = True, answers[0].is_flat
        return Trial(setting, batch_tokens, tokens / spent, padded / tokens - 1, is_flat=is_flat, pass_limit=limit)

    def _trial(self, trial: Trial, team: "_Asking", rate: float) -> Trial:
        """Return a trial with what came of it.

        Args:
            rate: tokens per second of all encoders that is expected.
        """
        encoders, budget = trial.setting.encoders, trial.batch_tokens
        at_once = trial.pass_tokens * trial.lanes
        batch_seconds = at_once * encoders / rate
        if self._has_figures and batch_seconds > LONGEST_BATCH_SECONDS:
            return replace(trial, note=f"not tried: one batch takes {batch_seconds:.0f} s")
        if self._has_figures and time.monotonic() > self.deadline:
            return replace(trial, note=NO_TIME)
        rows = self._rows(min(max(TRIAL_SECONDS * rate / encoders, 2.0 * at_once), MOST_TOKENS))
        try:
            answers = team([(number * rows, rows, budget) for number in range(encoders)])
        except ProcessDied:
            return replace(trial, note=DIED)
        if any(answer.failed for answer in answers):
            return replace(trial, note="failed: the device ran out of memory, or gave no vectors")
        self._has_figures = True
        tokens, padded = (sum(getattr(answer, name) for answer in answers) for name in ("tokens", "padded_tokens"))
        rate, padding = tokens / max(answer.seconds for answer in answers), padded / tokens - 1
        if not answers[0].is_flat:  # a Block is more texts than a trial encodes: those that share a pass are more alike
            in_a_block = padding_of(self.tokens.lengths_N, trial.pass_tokens)
            rate, padding = rate * (1 + padding) / (1 + in_a_block), in_a_block
        return replace(trial, tokens_per_second=rate, padding=padding, is_flat=answers[0].is_flat)

    def _rows(self, tokens: float) -> int:
        """Return how many rows have about so many tokens."""
        return max(1, round(tokens / float(self.tokens.lengths_N.mean())))


_Asked = tuple[int, int, int]
"""First row, rows, batch_tokens."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a child says of one call."""

    device: str
    tokens: int
    padded_tokens: int
    seconds: float
    failed: bool
    is_flat: bool
    pass_limit: int | None
    lanes: int


_Asking = Callable[[Sequence[_Asked]], list[_Answer]]
"""One call per encoder, and what each says."""


class _Team:
    """Encoders in a process each, all asked at once."""

    def __init__(self, build: Callable[[], Callable[[_Asked], _Answer]], encoders: int) -> None:
        self._children: list[Isolated[_Asked, _Answer]] = [Isolated(build) for _ in range(encoders)]
        self._threads = ThreadPoolExecutor(encoders)
        """A child ends with the thread that has started it, so these stay."""

    def __call__(self, asked: Sequence[_Asked]) -> list[_Answer]:
        return list(self._threads.map(lambda child, one: child(one), self._children, asked))

    def close(self) -> None:
        for child in self._children:
            child.close()
        self._threads.shutdown()


def _serving(open_it: Callable[[], Encoder], tokens: TokenBatch) -> Callable[[_Asked], _Answer]:
    """Return what encodes some rows, from the first on again after the last, with a model loaded by its first call."""
    opened = cache(open_it)

    def encode(asked: _Asked) -> _Answer:
        encoder, (first, rows, batch_tokens) = opened(), asked
        chosen = take(tokens, np.arange(first, first + rows) % len(tokens))
        encoded = encode_packed(encoder, chosen, batch_tokens)
        is_short = encoded.safe_batch_tokens is not None or not encoded.done_N.all()
        is_flat, limit = (encoder.is_flat, encoder.pass_tokens) if isinstance(encoder, Overlapping) else (False, None)
        asked_tokens = int(chosen.offsets_N1[-1])
        spent, lanes = encoded.seconds, lanes_of(encoder)
        return _Answer(encoder.device, asked_tokens, encoded.padded_tokens, spent, is_short, is_flat, limit, lanes)

    return encode
