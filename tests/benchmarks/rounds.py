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

Encode = Callable[[list[str]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to get the vectors of texts."""

    name: str
    precision: str
    open: Callable[[], AbstractContextManager[Encode]]
    """Loads what it needs; what is loaded stays until all rounds are over."""
    least_texts: int = 32
    """Fewer would not show it as it is."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One measurement of one variant."""

    texts: int
    tokens: int
    flops: float
    seconds: float
    others_cores: float
    min_cosine: float
    """To the first variant's vectors of the same texts."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


@dataclass(slots=True)
class Outcome:
    """All measurements of a variant, one per round, or why there are none."""

    variant: Variant
    timed: list[Timed] = field(default_factory=list)
    failure: str = ""


Ready = tuple[Outcome, Encode, int]
"""A variant that is loaded, and on how many texts it is measured."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What is encoded, and what that takes."""

    texts: Sequence[str]
    lengths_N: NDArray[np.int64]
    """Tokens of each."""
    flops_of: Callable[[NDArray[np.int64]], float]

    def of_round(self, number: int, rounds: int, count: int) -> tuple[list[str], NDArray[np.int64]]:
        """Return the first texts of a round, from another place in each round, and their lengths."""
        start = number * (len(self.texts) // rounds)
        rows = [(start + row) % len(self.texts) for row in range(count)]
        return [self.texts[row] for row in rows], self.lengths_N[rows]


def interleave(
    variants: Sequence[Variant], texts: Texts, rounds: int, seconds: float, before_round: Callable[[], None]
) -> list[Outcome]:
    """Measure all variants in every round, each on as many of the round's texts as it manages in the time.

    Args:
        variants: the first is the reference of the cosines, and should be there whatever happens.
        seconds: per variant and round.
        before_round: called at the beginning of each.
    """
    outcomes = [Outcome(variant) for variant in variants]
    with ExitStack() as stack:
        ready = [(outcome, *loaded) for outcome in outcomes if (loaded := _loaded(outcome, texts, seconds, stack))]
        for number in range(rounds):
            before_round()
            reference: NDArray[np.float32] | None = None
            for outcome, encode, count in ready[:1] + _rotated(ready[1:], number):
                if outcome.failure:
                    continue
                _say(f"round {number + 1}/{rounds}: {outcome.variant.name} {outcome.variant.precision}")
                vectors_ND = _measure(outcome, encode, texts, (number, rounds, count), reference)
                reference = vectors_ND if reference is None else reference
        _say("")
    return outcomes


def _rotated(values: list[Ready], by: int) -> list[Ready]:
    at = by % len(values) if values else 0
    return values[at:] + values[:at]


def _loaded(outcome: Outcome, texts: Texts, seconds: float, stack: ExitStack) -> tuple[Encode, int] | None:
    """Load a variant and find out how many texts fill its time; None if it cannot be loaded."""
    _say(f"loading {outcome.variant.name} {outcome.variant.precision}")
    try:
        encode = stack.enter_context(outcome.variant.open())
        few, lengths_N = texts.of_round(0, 1, min(len(texts.texts), max(8, _texts_of(1000, texts))))
        encode(few)
        started = time.perf_counter()
        encode(few)
        rate = int(lengths_N.sum()) / (time.perf_counter() - started)
    except Exception as error:  # noqa: BLE001  one variant that fails must not end the others
        outcome.failure = _told(error)
        return None
    count = max(outcome.variant.least_texts, _texts_of(rate * seconds, texts))
    return encode, min(count, len(texts.texts))


def _texts_of(tokens: float, texts: Texts) -> int:
    return math.ceil(tokens / float(texts.lengths_N.mean()))


def _measure(
    outcome: Outcome,
    encode: Encode,
    texts: Texts,
    where: tuple[int, int, int],
    reference_ND: NDArray[np.float32] | None,
) -> NDArray[np.float32] | None:
    rows, lengths_N = texts.of_round(*where)
    since = quiet.now()
    try:
        started = time.perf_counter()
        vectors_ND = encode(rows)
        took = time.perf_counter() - started
    except Exception as error:  # noqa: BLE001  see _loaded
        outcome.failure = _told(error)
        return None
    cosine = 1.0 if reference_ND is None else min_cosine(vectors_ND, reference_ND)
    tokens, flops = int(lengths_N.sum()), texts.flops_of(lengths_N)
    outcome.timed.append(Timed(len(rows), tokens, flops, took, quiet.cores_of_others(since), cosine))
    return vectors_ND


def min_cosine(ours_ND: NDArray[np.float32], theirs_ND: NDArray[np.float32]) -> float:
    """Return the smallest cosine between rows of the same number, as far as both have rows."""
    count = min(len(ours_ND), len(theirs_ND))
    a, b = ours_ND[:count].astype(np.float64), theirs_ND[:count].astype(np.float64)
    cosines_N = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(cosines_N.min())


def ratios(of: Outcome, to: Outcome) -> list[float]:
    """Return one ratio of the rates per round that both have finished."""
    pairs: Iterator[tuple[Timed, Timed]] = zip(of.timed, to.timed, strict=False)
    return [ours.tokens_per_second / theirs.tokens_per_second for ours, theirs in pairs]


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K  {text}", end="", file=sys.stderr, flush=True)
