"""Variants measured in turn, round by round, on the same texts; what counts is the ratio within a round."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks import quiet

LEAST_ROUNDS = 3
"""Fewer have no median worth the name."""

Encode = Callable[[list[str]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to get the vectors of texts."""

    name: str
    precision: str
    open: Callable[[], AbstractContextManager[Encode]]
    """Loads what it needs; what is loaded stays until all rounds are over."""
    mixed_texts: int = 0
    """If not 0, it is given so many texts as they come, and not the texts of the others."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One measurement of one variant."""

    texts: int
    tokens: int
    flops: float
    seconds: float
    others_cores: float
    min_cosine: float
    """To the first variant's vectors, over the texts that both have encoded."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


@dataclass(slots=True)
class Outcome:
    """All measurements of a variant, one per round, or why there are none."""

    variant: Variant
    timed: list[Timed] = field(default_factory=list)
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Ready:
    """A variant that is loaded."""

    outcome: Outcome
    encode: Encode
    tokens_per_second: float
    """As a first look tells."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What is encoded, and what that takes."""

    texts: Sequence[str]
    lengths_N: NDArray[np.int64]
    """Tokens of each."""
    flops_of: Callable[[NDArray[np.int64]], float]
    batch_texts: int = 32
    """What `SentenceTransformer.encode` takes at once."""

    def like_all(self, number: int, rounds: int, count: int) -> NDArray[np.int64]:
        """Return the rows of about so many texts that sort into the very batches that the whole corpus sorts into.

        A few texts drawn at random would differ more in length from their neighbours than all texts do, and whoever
        pads to the longest of 32 neighbours would look slower than he is. So whole batches of the sorted corpus are
        taken, at even distances, others in each round, and mixed.
        """
        by_length_N = np.argsort([-len(text) for text in self.texts], kind="stable")
        batches = max(1, len(self.texts) // self.batch_texts)
        wanted = min(batches, max(1, round(count / self.batch_texts)))
        chosen = ((np.arange(wanted) + (number + 0.5) / rounds) * batches / wanted).astype(np.int64)
        rows = chosen[:, None] * self.batch_texts + np.arange(self.batch_texts)
        return np.random.default_rng(number).permutation(by_length_N[rows[rows < len(self.texts)]])

    def as_they_come(self, number: int, rounds: int, count: int) -> NDArray[np.int64]:
        """Return the rows of so many consecutive texts, from another place in each round."""
        return (np.arange(count) + number * (len(self.texts) // rounds)) % len(self.texts)

    def taken(self, rows_B: NDArray[np.int64]) -> list[str]:
        return [self.texts[row] for row in rows_B.tolist()]


LOOK_TOKENS = 1000
"""Of the first look that tells how fast a variant is; a GPU is not at its pace with so few."""


def interleave(
    variants: Sequence[Variant],
    texts: Texts,
    rounds: int,
    seconds: float,
    before_round: Callable[[], None],
    look_tokens: int = LOOK_TOKENS,
) -> list[Outcome]:
    """Measure all variants in every round on the same texts, as many as they manage in the time together.

    Args:
        variants: the first is the reference of the cosines, and should be there whatever happens.
        seconds: per variant and round, on average.
        before_round: called at the beginning of each.
        look_tokens: of the first look at each.
    """
    outcomes = [Outcome(variant) for variant in variants]
    with ExitStack() as stack:
        ready = [loaded for outcome in outcomes if (loaded := _loaded(outcome, texts, look_tokens, stack))]
        count = _shared_count([one for one in ready if not one.outcome.variant.mixed_texts], texts, seconds)
        for number in range(rounds):
            before_round()
            reference: _Encoded | None = None
            for one in ready[:1] + _rotated(ready[1:], number):
                variant = one.outcome.variant
                if one.outcome.failure:
                    continue
                _say(f"round {number + 1}/{rounds}: {variant.name} {variant.precision}")
                if variant.mixed_texts:
                    rows_B = texts.as_they_come(number, rounds, min(variant.mixed_texts, len(texts.texts)))
                else:
                    rows_B = texts.like_all(number, rounds, count)
                encoded = _measure(one, texts, rows_B, reference)
                reference = reference or encoded
        _say("")
    return outcomes


_Encoded = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Rows of the corpus, and their vectors."""


def _shared_count(ready: Sequence[Ready], texts: Texts, seconds: float) -> int:
    """Return how many texts all variants encode in their time together."""
    seconds_per_token = sum(1 / one.tokens_per_second for one in ready)
    return _texts_of(len(ready) * seconds / seconds_per_token, texts) if ready else 0


def _rotated(values: list[Ready], by: int) -> list[Ready]:
    at = by % len(values) if values else 0
    return values[at:] + values[:at]


def _loaded(outcome: Outcome, texts: Texts, look_tokens: int, stack: ExitStack) -> Ready | None:
    """Load a variant and find out how fast it is, roughly; None if it cannot be loaded."""
    _say(f"loading {outcome.variant.name} {outcome.variant.precision}")
    try:
        encode = stack.enter_context(outcome.variant.open())
        rows_B = texts.as_they_come(0, 1, min(len(texts.texts), max(8, _texts_of(look_tokens, texts))))
        encode(texts.taken(rows_B))
        started = time.perf_counter()
        encode(texts.taken(rows_B))
        return Ready(outcome, encode, int(texts.lengths_N[rows_B].sum()) / (time.perf_counter() - started))
    except Exception as error:  # noqa: BLE001  one variant that fails must not end the others
        outcome.failure = _told(error)
        return None


def _texts_of(tokens: float, texts: Texts) -> int:
    return math.ceil(tokens / float(texts.lengths_N.mean()))


def _measure(one: Ready, texts: Texts, rows_B: NDArray[np.int64], reference: _Encoded | None) -> _Encoded | None:
    given, since = texts.taken(rows_B), quiet.now()
    try:
        started = time.perf_counter()
        vectors_BD = one.encode(given)
        took = time.perf_counter() - started
    except Exception as error:  # noqa: BLE001  see _loaded
        one.outcome.failure = _told(error)
        return None
    others, lengths_B, cosine = quiet.cores_of_others(since), texts.lengths_N[rows_B], 1.0
    if reference is not None:
        _, ours, theirs = np.intersect1d(rows_B, reference[0], return_indices=True)
        cosine = min_cosine(vectors_BD[ours], reference[1][theirs])
    tokens, flops = int(lengths_B.sum()), texts.flops_of(lengths_B)
    one.outcome.timed.append(Timed(len(given), tokens, flops, took, others, cosine))
    return rows_B, vectors_BD


def min_cosine(ours_ND: NDArray[np.float32], theirs_ND: NDArray[np.float32]) -> float:
    """Return the smallest cosine between rows of the same number."""
    a, b = ours_ND.astype(np.float64), theirs_ND.astype(np.float64)
    cosines_N = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(cosines_N.min(initial=1.0))


def quiet_rounds(outcomes: Sequence[Outcome]) -> list[int]:
    """Return the rounds that count: those in which others left the machine alone; all, if these are too few."""
    rounds = range(max((len(outcome.timed) for outcome in outcomes), default=0))
    undisturbed = [
        number
        for number in rounds
        if all(
            one.others_cores <= quiet.QUIET_CORES for outcome in outcomes for one in outcome.timed[number : number + 1]
        )
    ]
    return undisturbed if len(undisturbed) >= LEAST_ROUNDS else list(rounds)


def ratios(of: Outcome, to: Outcome) -> list[float]:
    """Return one ratio of the rates per round that both have finished."""
    pairs: Iterator[tuple[Timed, Timed]] = zip(of.timed, to.timed, strict=False)
    return [ours.tokens_per_second / theirs.tokens_per_second for ours, theirs in pairs]


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K  {text}", end="", file=sys.stderr, flush=True)
