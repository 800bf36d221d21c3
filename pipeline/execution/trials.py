"""One setting of the encoders after the other, each tried in processes of its own."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial

import numpy as np

from pipeline.config import JobConfig
from pipeline.encoder.packed import encode_packed, take
from pipeline.encoder.protocol import Encoder
from pipeline.execution.model import open_encoder
from pipeline.execution.plan import Plan
from pipeline.execution.tune_texts import Texts
from pipeline.isolation import Isolated, ProcessDied
from pipeline.records import TokenBatch

TRIAL_SECONDS = 3.0
"""How long one trial encodes: a tenth of it would be the noise of a shared machine."""

FEW_TOKENS, MOST_TOKENS = 1000, 1 << 22
"""Of the call that tells how much a trial can take, and of the largest trial."""

LONGEST_BATCH_SECONDS = 10.0
"""A budget whose single batch takes longer is not tried: a run could neither report nor recover in steps so coarse."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting of the encoders, and how fast it was."""

    encoders: int
    """At once on this machine; on a GPU: on each."""
    threads: int
    """CPU threads of each; 0 on a GPU."""
    batch_tokens: int
    tokens_per_second: float
    """Of all encoders together; 0 = it was not tried, or failed."""
    padding: float
    """Padded tokens over real ones, minus one."""
    note: str = ""


class Lab:
    """Starts encoders in processes of their own and lets them encode."""

    def __init__(self, config: JobConfig, plan: Plan, texts: Texts, deadline: float) -> None:
        engine = "torch" if config.runtime.engine == "auto" else config.runtime.engine
        self._open = partial(open_encoder, plan.model, config.recipe.compute, texts.prompt, engine=engine)
        self.tokens, self.deadline, self.device = texts.tokens, deadline, "cpu"

    def batches(self, encoders: int, threads: int, budgets: Sequence[int]) -> list[Trial]:
        """Try budgets, from the smallest, with so many encoders at once."""
        if time.monotonic() > self.deadline:
            return [Trial(encoders, threads, budget, 0.0, 0.0, "not tried: no time left") for budget in budgets]
        build = partial(_serving, partial(self._open, threads=threads), self.tokens)
        with ExitStack() as stack:
            children = [stack.enter_context(closing(Isolated(build))) for _ in range(encoders)]
            pool = stack.enter_context(ThreadPoolExecutor(encoders))
            try:
                list(pool.map(lambda child: child((0, 8, max(budgets))), children))
                answers = list(pool.map(lambda child: child((0, self._rows(FEW_TOKENS), max(budgets))), children))
            except ProcessDied:
                return [Trial(encoders, threads, budgets[0], 0.0, 0.0, "its process died: want of memory?")]
            self.device = answers[0].device
            rate = sum(answer.tokens / answer.seconds for answer in answers)
            trials = []
            for budget in budgets:
                trial = self._trial(pool, children, (threads, budget), rate)
                trials.append(trial)
                rate = trial.tokens_per_second or rate
        return trials

    def _trial(
        self,
        pool: ThreadPoolExecutor,
        children: Sequence[Isolated["_Asked", "_Answer"]],
        setting: tuple[int, int],
        rate: float,
    ) -> Trial:
        threads, budget = setting
        encoders = len(children)
        batch_seconds = budget * encoders / rate
        if batch_seconds > LONGEST_BATCH_SECONDS:
            return Trial(encoders, threads, budget, 0.0, 0.0, f"not tried: one batch takes {batch_seconds:.0f} s")
        if time.monotonic() > self.deadline:
            return Trial(encoders, threads, budget, 0.0, 0.0, "not tried: no time left")
        rows = self._rows(min(max(TRIAL_SECONDS * rate / encoders, 2.0 * budget), MOST_TOKENS))
        asked = [(number * rows, rows, budget) for number in range(encoders)]
        try:
            answers = list(pool.map(lambda pair: pair[0](pair[1]), zip(children, asked, strict=True)))
        except ProcessDied:
            return Trial(encoders, threads, budget, 0.0, 0.0, "its process died: want of memory?")
        if any(answer.failed for answer in answers):
            return Trial(encoders, threads, budget, 0.0, 0.0, "the device ran out of memory")
        tokens, padded = (sum(getattr(answer, name) for answer in answers) for name in ("tokens", "padded_tokens"))
        return Trial(encoders, threads, budget, tokens / max(a.seconds for a in answers), padded / tokens - 1)

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


def _serving(open_it: Callable[[], Encoder], tokens: TokenBatch) -> Callable[[_Asked], _Answer]:
    """Load the model in this process; return what encodes some rows, from the first on again after the last."""
    encoder = open_it()

    def encode(asked: _Asked) -> _Answer:
        first, rows, batch_tokens = asked
        chosen = take(tokens, np.arange(first, first + rows) % len(tokens))
        encoded = encode_packed(encoder, chosen, batch_tokens)
        is_short = encoded.safe_batch_tokens is not None or not encoded.done_N.all()
        return _Answer(encoder.device, int(chosen.offsets_N1[-1]), encoded.padded_tokens, encoded.seconds, is_short)

    return encode
