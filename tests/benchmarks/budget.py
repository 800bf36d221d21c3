"""How long benchmarks may take together: rounds end early when their time is over, but never below three."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

LEAST_ROUNDS = 3
"""Fewer have no median worth the name."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A moment at which all is to be done; by default there is none."""

    until: float = math.inf
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def of(cls, minutes: float | None, clock: Callable[[], float] = time.monotonic) -> "Budget":
        """Return one that begins now; None = as long as it takes."""
        return cls(math.inf if minutes is None else clock() + 60 * minutes, clock)

    @property
    def is_limited(self) -> bool:
        return self.until < math.inf

    def part(self, fraction: float) -> "Budget":
        """Return so much of the time that is left; what one part leaves over, those after it have."""
        now = self.clock()
        return Budget(now + fraction * max(0.0, self.until - now), self.clock)

    def rounds(self, wanted: int) -> Iterator[int]:
        """Yield the numbers of the rounds that end in time, if each takes as long as the longest so far.

        Three are done whatever they take, if so many are wanted.
        """
        longest = 0.0
        for number in range(wanted):
            begun = self.clock()
            if number >= LEAST_ROUNDS and begun + longest > self.until:
                return
            yield number
            longest = max(longest, self.clock() - begun)


UNLIMITED = Budget()
