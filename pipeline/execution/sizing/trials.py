"""One setting of the encoders after the other, each tried in processes of its own."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from pipeline.config import JobConfig
from pipeline.encoder.packed import encode_packed, take
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


class Lab:
    """Starts encoders in processes of their own and lets them encode."""

    def __init__(self, config: JobConfig, plan: Plan, texts: Texts, deadline: float) -> None:
        self._open = partial(open_encoder, plan.model, config.recipe.compute, texts.prompt)
        self.tokens, self.deadline, self.device = texts.tokens, deadline, "cpu"
        self._has_figures = False
        """Whether any trial has come to an end: the first is made whatever it takes."""

    def batches(self, setting: Setting, budgets: Sequence[int]) -> list[Trial]:
        """Try budgets, ascending, with the encoders of one setting.

        Raises:
            EncoderError: the model cannot be loaded, or not with this engine.
        """
        if time.monotonic() > self.deadline:
            return [Trial(setting, budget, note=NO_TIME) for budget in budgets]
        build = partial(_serving, partial(self._open, threads=setting.threads, engine=setting.engine), self.tokens)
        with closing(_Team(build, setting.encoders)) as team:
            try:
                team([(0, 8, max(budgets))] * setting.encoders)
                answers = team([(0, self._rows(FEW_TOKENS), max(budgets))] * setting.encoders)
            except ProcessDied:
                return [Trial(setting, budgets[0], note=DIED)]
            self.device = answers[0].device
            rate = sum(answer.tokens / answer.seconds for answer in answers)
            trials = []
            for budget in budgets:
                trials.append(self._trial(setting, budget, team, rate))
                rate = trials[-1].tokens_per_second or rate
        return trials

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
                self.device = team([(0, self._rows(FEW_TOKENS), batch_tokens)] * setting.encoders)[0].device
                while not tokens or (spent < seconds and first < len(self.tokens)):
                    asked = [(first + number * rows, rows, batch_tokens) for number in range(setting.encoders)]
                    answers = team(asked)
                    tokens += sum(answer.tokens for answer in answers)
                    padded += sum(answer.padded_tokens for answer in answers)
                    spent += max(answer.seconds for answer in answers)
                    first += rows * setting.encoders
            except ProcessDied:
                return Trial(setting, batch_tokens, note=DIED)
        return Trial(setting, batch_tokens, tokens / spent, padded / tokens - 1, is_flat=answers[0].is_flat)

    def _trial(self, setting: Setting, budget: int, team: "_Team", rate: float) -> Trial:
        batch_seconds = budget * setting.encoders / rate
        if self._has_figures and batch_seconds > LONGEST_BATCH_SECONDS:
            return Trial(setting, budget, note=f"not tried: one batch takes {batch_seconds:.0f} s")
        if self._has_figures and time.monotonic() > self.deadline:
            return Trial(setting, budget, note=NO_TIME)
        rows = self._rows(min(max(TRIAL_SECONDS * rate / setting.encoders, 2.0 * budget), MOST_TOKENS))
        try:
            answers = team([(number * rows, rows, budget) for number in range(setting.encoders)])
        except ProcessDied:
            return Trial(setting, budget, note=DIED)
        if any(answer.failed for answer in answers):
            return Trial(setting, budget, note="failed: the device ran out of memory, or gave no vectors")
        self._has_figures = True
        tokens, padded = (sum(getattr(answer, name) for answer in answers) for name in ("tokens", "padded_tokens"))
        rate = tokens / max(answer.seconds for answer in answers)
        return Trial(setting, budget, rate, padded / tokens - 1, is_flat=answers[0].is_flat)

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
        is_flat = isinstance(encoder, Overlapping) and encoder.is_flat
        asked_tokens = int(chosen.offsets_N1[-1])
        return _Answer(encoder.device, asked_tokens, encoded.padded_tokens, encoded.seconds, is_short, is_flat)

    return encode
