"""Variants measured in turn, round by round, on the same texts; what counts is the ratio within a round."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks import quiet
from tests.benchmarks.budget import LEAST_ROUNDS, UNLIMITED, Budget
from tests.benchmarks.samples import Choose, Texts

COMPARED_TEXTS = 16
"""Of those that the reference has encoded: for the cosines of a variant with texts of its own, after its time."""

Encode = Callable[[list[str]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to get the vectors of texts."""

    name: str
    precision: str
    open: Callable[[], AbstractContextManager[Encode]]
    """Loads what it needs."""
    choose: Choose | None = None
    """If there is one, it has texts of its own, as many as it encodes in its time; else those of the others."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A variant that stands ready, or says why it does not."""

    variant: Variant
    encode: Encode | None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Timed:
    """One measurement of one variant."""

    texts: int
    tokens: int
    flops: float
    seconds: float
    others_cores: float
    min_cosine: float | None
    """To the first variant's vectors, over texts that both have encoded; None where it has none."""

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
    """A variant that has encoded some texts already."""

    outcome: Outcome
    encode: Encode
    tokens_per_second: float
    """As a first look tells."""

    def texts_in(self, seconds: float, texts: Texts) -> int:
        """Return how many texts it encodes in so long, by what was measured last."""
        timed = self.outcome.timed
        return texts.count_of((timed[-1].tokens_per_second if timed else self.tokens_per_second) * seconds)


LOOK_TOKENS = 1000
"""Of the first look that tells how fast a variant is; a GPU is not at its pace with so few."""


@contextmanager
def loaded(variants: Sequence[Variant]) -> Iterator[list[Loaded]]:
    """Load variants for as many comparisons as are to come; one that fails does not end the others."""
    with ExitStack() as stack:
        yield [_load(variant, stack) for variant in variants]
        _say("")


def _load(variant: Variant, stack: ExitStack) -> Loaded:
    _say(f"loading {variant.name} {variant.precision}")
    try:
        return Loaded(variant, stack.enter_context(variant.open()))
    except Exception as error:  # noqa: BLE001  one variant that fails must not end the others
        return Loaded(variant, None, _told(error))


def interleave(
    ways: Sequence[Loaded],
    texts: Texts,
    rounds: int,
    seconds: float,
    before_round: Callable[[], None],
    look_tokens: int = LOOK_TOKENS,
    budget: Budget = UNLIMITED,
) -> list[Outcome]:
    """Measure all variants in every round on the same texts, as many as they manage in the time together.

    Args:
        ways: the first is the reference of the cosines.
        rounds: fewer, if the budget ends before.
        seconds: per variant and round, on average; those with texts of their own take about as long each.
        before_round: called at the beginning of each.
        look_tokens: of the first look at each.
    """
    outcomes = [Outcome(way.variant, failure=way.failure) for way in ways]
    ready = [
        one
        for way, outcome in zip(ways, outcomes, strict=True)
        if way.encode and (one := _looked(outcome, way.encode, texts, look_tokens))
    ]
    count = _shared_count([one for one in ready if not one.outcome.variant.choose], texts, seconds)
    for number in budget.rounds(rounds):
        before_round()
        reference: _Encoded | None = None
        for one in ready[:1] + _rotated(ready[1:], number):
            outcome = one.outcome
            if outcome.failure:
                continue
            _say(f"round {number + 1}/{rounds}: {outcome.variant.name} {outcome.variant.precision}")
            if outcome.variant.choose:
                rows_B = outcome.variant.choose(texts, number, rounds, one.texts_in(seconds, texts))
            else:
                rows_B = texts.like_all(number, rounds, count)
            encoded = _measure(one, texts, rows_B, reference)
            if outcome is outcomes[0]:
                reference = encoded
    _say("")
    return outcomes


_Encoded = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Rows of the corpus, and their vectors."""


def _shared_count(ready: Sequence[Ready], texts: Texts, seconds: float) -> int:
    """Return how many texts all variants encode in their time together."""
    seconds_per_token = sum(1 / one.tokens_per_second for one in ready)
    return texts.count_of(len(ready) * seconds / seconds_per_token) if ready else 0


def _rotated(values: list[Ready], by: int) -> list[Ready]:
    at = by % len(values) if values else 0
    return values[at:] + values[:at]


def _looked(outcome: Outcome, encode: Encode, texts: Texts, look_tokens: int) -> Ready | None:
    """Find out how fast a variant is, roughly; None if it fails."""
    _say(f"looking at {outcome.variant.name} {outcome.variant.precision}")
    try:
        rows_B = texts.as_they_come(0, 1, min(len(texts.texts), max(8, texts.count_of(look_tokens))))
        encode(texts.taken(rows_B))
        started = time.perf_counter()
        encode(texts.taken(rows_B))
        return Ready(outcome, encode, int(texts.lengths_N[rows_B].sum()) / (time.perf_counter() - started))
    except Exception as error:  # noqa: BLE001  see _load
        outcome.failure = _told(error)
        return None


def _measure(one: Ready, texts: Texts, rows_B: NDArray[np.int64], reference: _Encoded | None) -> _Encoded | None:
    given, since = texts.taken(rows_B), quiet.now()
    try:
        started = time.perf_counter()
        vectors_BD = one.encode(given)
        took = time.perf_counter() - started
        others = quiet.cores_of_others(since)
        cosine = _cosine(one, texts, (rows_B, vectors_BD), reference)
    except Exception as error:  # noqa: BLE001  see _load
        one.outcome.failure = _told(error)
        return None
    lengths_B = texts.lengths_N[rows_B]
    tokens, flops = int(lengths_B.sum()), texts.flops_of(lengths_B)
    one.outcome.timed.append(Timed(len(given), tokens, flops, took, others, cosine))
    return rows_B, vectors_BD


def _cosine(one: Ready, texts: Texts, encoded: _Encoded, reference: _Encoded | None) -> float | None:
    """Return the smallest cosine to the reference; who has texts of his own encodes some of the reference's for it."""
    if reference is None:
        return None
    rows_B, theirs_BD = reference
    if not one.outcome.variant.choose:
        return min_cosine(encoded[1], theirs_BD)
    return min_cosine(one.encode(texts.taken(rows_B[:COMPARED_TEXTS])), theirs_BD[:COMPARED_TEXTS])


def min_cosine(ours_ND: NDArray[np.float32], theirs_ND: NDArray[np.float32]) -> float | None:
    """Return the smallest cosine between rows of the same number; None if there are none."""
    if not len(ours_ND):
        return None
    a, b = ours_ND.astype(np.float64), theirs_ND.astype(np.float64)
    cosines_N = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(cosines_N.min())


def least(values: Iterable[float | None]) -> float | None:
    """Return the smallest of those that there are."""
    return min((value for value in values if value is not None), default=None)


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
