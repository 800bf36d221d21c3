"""Attempt marks: what each worker has begun and not ended, which Blocks kill workers, and which devices are sick.

On Ray one small actor per run keeps the book, without Ray its driver, so that a mark costs a message and no request to
the store. If the actor dies it starts empty: some deaths are counted anew, nothing is lost.
"""

import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.encoder.engines import EARNED_BACK_SECONDS, EngineChoice
from pipeline.errors import EncoderError
from pipeline.execution.keepers import answer_of, start_keeper
from pipeline.records import Shard
from pipeline.units import counted

logger = logging.getLogger(__name__)

MAX_DEATHS = 3
"""After so many workers that died over one Block, it is tried in a process that may die, row by row if need be."""

MAX_STRIKES = 3
"""After so many encoders that failed on everything, a GPU, or a node without, is left out for the rest of the run."""

ANSWER_SECONDS = 30.0
"""How long a worker waits for the book, which may be starting anew."""

SICK_EXIT = 75
"""Exit code of an encoder that ends itself to be replaced by a fresh process."""

ALONE = "this machine"
"""Stands for the node where nobody would start another process."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker does at one moment: a stage of one Block."""

    stage: str
    """read, tokenize, encode or write."""
    shard_id: str
    block: int
    place: str
    """Address of the first file of the Shard."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the book knows when a worker begins."""

    deaths: int = 0
    """Workers that have begun the same work and never ended it."""
    batch_tokens: int | None = None
    """Budget that fits the devices of this run, once one has run out of memory."""

    @property
    def is_deadly(self) -> bool:
        """Whether the work must be done where a death does no harm."""
        return self.deaths >= MAX_DEATHS


@dataclass(slots=True)
class Attempts:
    """The book. In one process it can be used as it is; `strike` then never asks for another one."""

    begun: dict[Work, tuple[int, float]] = field(default_factory=dict)
    """Work → how often it was begun since it last ended, and when it was last, on the monotonic clock."""
    strikes: Counter[str] = field(default_factory=Counter)
    """Node, or node/GPU → encoders that have failed there on everything."""
    errors: dict[str, str] = field(default_factory=dict)
    """Node, or node/GPU → what the last of them has said."""
    batch_tokens: int | None = None
    seconds_left: float = 0.0
    """Of encoding that each encoder still has before it, as the driver has told; 0 = it has not yet."""
    trials: Counter[str] = field(default_factory=Counter)
    """Node → trials of engines begun there since the last one that ended."""
    choices: list[EngineChoice] = field(default_factory=list)
    """What the trials of this run came to."""
    attentions: Counter[str] = field(default_factory=Counter)
    """How encoders keep rows apart, and why → how many were opened so."""

    def begin(self, work: Work) -> Verdict:
        """Note that a worker begins; return what is known of this work."""
        deaths, _ = self.begun.get(work, (0, 0.0))
        self.begun[work] = (deaths + 1, time.monotonic())
        return Verdict(deaths, self.batch_tokens)

    def end(self, work: Work) -> None:
        """Note that work is done, be it without success: the worker lives."""
        self.begun.pop(work, None)

    def strike(self, error: str, node: str = ALONE) -> bool:
        """Note that an encoder failed on everything; return whether another process may try there."""
        self.strikes[node] += 1
        self.errors[node] = error
        return node != ALONE and self.strikes[node] < MAX_STRIKES

    def forgive(self, node: str = ALONE) -> None:
        """Note that a fresh encoder works there: what failed before was that process, not the node or its GPU."""
        self.strikes.pop(node, None)

    def lower(self, batch_tokens: int) -> None:
        """Note a budget that a device can bear, for all encoders of the run."""
        self.batch_tokens = min(batch_tokens, self.batch_tokens or batch_tokens)

    def excluded(self) -> dict[str, str]:
        """Return the nodes and GPUs that are left out, with the last error of each."""
        return {node: self.errors[node] for node, strikes in self.strikes.items() if strikes >= MAX_STRIKES}

    def expect(self, seconds_left: float) -> None:
        """Note how long each encoder will still encode."""
        self.seconds_left = seconds_left

    def begin_trial(self, node: str = ALONE) -> bool:
        """Return whether an encoder may try other engines, and note that it does.

        Not where too little is left for a faster one to earn back the trial, nor where trials have killed encoders.
        """
        if self.seconds_left < EARNED_BACK_SECONDS:
            return False
        self.trials[node] += 1
        return self.trials[node] <= MAX_DEATHS

    def end_trial(self, choice: EngineChoice, node: str = ALONE) -> None:
        """Note what a trial came to."""
        self.trials.pop(node, None)
        self.choices.append(choice)

    def engine_choices(self) -> list[EngineChoice]:
        """Return what the trials of this run came to."""
        return self.choices

    def note_attention(self, told: str) -> None:
        """Note how an encoder keeps the rows of a batch apart, and why so."""
        self.attentions[told] += 1

    def attentions_told(self) -> dict[str, int]:
        """Return how encoders keep rows apart, with how many were opened so."""
        return dict(self.attentions)

    def standing(self) -> list[tuple[Work, float]]:
        """Return what was begun and has not ended, the longest first, with its age in seconds."""
        now = time.monotonic()
        ages = ((work, now - since) for work, (_, since) in self.begun.items())
        return sorted(ages, key=lambda pair: -pair[1])

    def forget_begun(self) -> None:
        """Forget what was begun: its workers were stopped on purpose."""
        self.begun.clear()


def none_healthy(left_out: Mapping[str, str]) -> EncoderError:
    """Return the error of a run whose encoders fail wherever they are.

    Args:
        left_out: nodes, each with what its last encoder has said.
    """
    return EncoderError(
        f"no healthy encoder is left: on {counted(len(left_out), 'node')} {MAX_STRIKES} encoders failed on good "
        f"texts. The last said: {list(left_out.values())[-1]}"
    )


class RemoteAttempts:
    """The book of a run on Ray, as its workers and its driver reach it; what cannot be noted is left out."""

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._book = start_keeper(Attempts, scheduling_strategy=here)

    def begin(self, work: Work) -> Verdict:
        verdict: Verdict = self._ask("begin", Verdict(), work)
        return verdict

    def end(self, work: Work) -> None:
        self._book.end.remote(work)

    def strike(self, error: str) -> bool:
        from pipeline.execution.sick_gpus import here

        logger.warning("event=encoder_sick host=%s place=%s error=%s", socket.gethostname(), here(), error)
        may_try: bool = self._ask("strike", False, f"{socket.gethostname()}: {error}", here())
        return may_try

    def forgive(self) -> None:
        from pipeline.execution.sick_gpus import here

        self._book.forgive.remote(here())

    def lower(self, batch_tokens: int) -> None:
        self._book.lower.remote(batch_tokens)

    def excluded(self) -> dict[str, str]:
        excluded: dict[str, str] = self._ask("excluded", {})
        return excluded

    def expect(self, seconds_left: float) -> None:
        self._book.expect.remote(seconds_left)

    def begin_trial(self) -> bool:
        import ray

        may_try: bool = self._ask("begin_trial", False, ray.get_runtime_context().get_node_id())
        return may_try

    def end_trial(self, choice: EngineChoice) -> None:
        import ray

        self._book.end_trial.remote(choice, ray.get_runtime_context().get_node_id())

    def engine_choices(self) -> list[EngineChoice]:
        choices: list[EngineChoice] = self._ask("engine_choices", [])
        return choices

    def note_attention(self, told: str) -> None:
        self._book.note_attention.remote(told)

    def attentions_told(self) -> dict[str, int]:
        told: dict[str, int] = self._ask("attentions_told", {})
        return told

    def standing(self) -> list[tuple[Work, float]]:
        standing: list[tuple[Work, float]] = self._ask("standing", [])
        return standing

    def forget_begun(self) -> None:
        self._ask("forget_begun", None)

    def _ask(self, question: str, unanswered: Any, *arguments: Any) -> Any:
        return answer_of(self._book, question, unanswered, ANSWER_SECONDS, *arguments)


class Marks(Protocol):
    """What workers tell the book of a run, and what it answers; picklable where they are other processes."""

    def begin(self, work: Work) -> Verdict: ...

    def end(self, work: Work) -> None: ...

    def strike(self, error: str) -> bool: ...

    def forgive(self) -> None: ...

    def lower(self, batch_tokens: int) -> None: ...

    def begin_trial(self) -> bool: ...

    def end_trial(self, choice: EngineChoice) -> None: ...

    def note_attention(self, told: str) -> None: ...


class Book(Protocol):
    """What the driver of a run tells the book, and asks it."""

    def expect(self, seconds_left: float) -> None: ...

    def excluded(self) -> dict[str, str]: ...

    def engine_choices(self) -> list[EngineChoice]: ...

    def attentions_told(self) -> dict[str, int]: ...

    def standing(self) -> list[tuple[Work, float]]: ...


@contextmanager
def marked(marks: Marks, stage: str, shard: Shard, block: int) -> Iterator[Verdict]:
    """Mark the work within as begun and as ended; a process that dies in it never ends it.

    What is raised within leaves with a note of where it was, which comes to the driver with it.
    """
    work = Work(stage, shard.shard_id, block, shard.spans[0].file.uri)
    verdict = marks.begin(work)
    try:
        yield verdict
    except Exception as error:
        error.add_note(f"in {stage} of Shard {work.shard_id}, Block {block} ({work.place})")
        raise
    finally:
        marks.end(work)


def replace_process() -> None:
    """End this process at once; another one is started, with a fresh device, and is given the same work."""
    os._exit(SICK_EXIT)
