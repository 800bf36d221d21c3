"""How fast a run is now and when it will end: arithmetic on what was done when."""

import math
from bisect import bisect_right
from itertools import pairwise

TICK_SECONDS = 2.0
"""Blocks that end within one tick count as one step: encoders tend to finish together."""

SHORTEST_WINDOW, LONGEST_WINDOW = 20.0, 300.0
"""Seconds over which «now» is measured: half of the time so far, between these two."""

LONGEST_HALF_LIFE = 10.0
"""Seconds after which a shown value has gone half of the way to a new estimate; less in young runs."""

STEPS_SHARE = 0.25
"""Share of a curve that its steps must span to be measured without the time before the first of them."""

Curve = tuple[tuple[float, float], ...]
"""(seconds, amount done), both ascending; the first is where the measurement began."""


def extended(curve: Curve, at_seconds: float, done: float) -> Curve:
    """Return the curve with what is done now; nothing is added while nothing moves."""
    if not curve:
        return ((at_seconds, done),)
    last_seconds, last_done = curve[-1]
    if done <= last_done:
        return curve
    same_tick = len(curve) > 1 and at_seconds // TICK_SECONDS == last_seconds // TICK_SECONDS
    kept = [point for point in curve if point[0] > at_seconds - 2 * LONGEST_WINDOW]
    kept = list(curve[-2:]) if len(kept) < 2 else kept
    return (*(kept[:-1] if same_tick else kept), (at_seconds, done))


def moment_of(curve: Curve, now: float) -> float:
    """Return the moment up to which the curve tells what is done: its last step, or later after a long wait.

    Between two steps the clock stands still, so that waiting for the next Block looks neither like a slowdown
    nor like a later end; only a wait longer than any before counts.
    """
    longest_wait = max((later[0] - earlier[0] for earlier, later in pairwise(curve)), default=0.0)
    return max(curve[-1][0], now - longest_wait)


def without_start(curve: Curve) -> Curve:
    """Return the curve from its first step on, once the steps span a quarter of it.

    Before the first step a model is loaded: that time says nothing about the pace.
    """
    spans = len(curve) > 2 and curve[-1][0] - curve[1][0] >= STEPS_SHARE * (curve[-1][0] - curve[0][0])
    return curve[1:] if spans else curve


def recent_rate(curve: Curve, now: float) -> float | None:
    """Return amount per second over the recent window; None before the first step."""
    steps = without_start(curve)
    if len(steps) < 2:
        return None
    end = moment_of(steps, now)
    elapsed = end - steps[0][0]
    window = min(elapsed, max(SHORTEST_WINDOW, min(LONGEST_WINDOW, elapsed / 2)))
    return (steps[-1][1] - amount_at(steps, end - window)) / window if window > 0 else None


def amount_at(curve: Curve, seconds: float) -> float:
    """Return what was done at a moment, linear between two steps and level outside of them."""
    after = bisect_right(curve, seconds, key=lambda point: point[0])
    if after in (0, len(curve)):
        return curve[min(after, len(curve) - 1)][1]
    (start, before), (end, done) = curve[after - 1], curve[after]
    return before + (done - before) * (seconds - start) / (end - start)


def smoothed(previous: float | None, observed: float, passed_seconds: float, elapsed_seconds: float) -> float:
    """Return a value that follows the observed one slowly, starting from the first.

    Args:
        previous: what was shown until now.
        observed: the new estimate.
        passed_seconds: time since `previous` was shown.
        elapsed_seconds: age of the run; the half-life is a fifth of it, at most LONGEST_HALF_LIFE.
    """
    if previous is None or elapsed_seconds <= 0:
        return observed
    half_life = min(LONGEST_HALF_LIFE, elapsed_seconds / 5)
    return observed + (previous - observed) * math.pow(0.5, passed_seconds / half_life)


def expected_end(curve: Curve, now: float) -> float | None:
    """Return the moment at which all is done if the recent rate holds; None before the steps show a pace.

    The tick that is still running is left out: it may hold the first of several Blocks that end together.

    Args:
        curve: of the share of the work done, 0 to 1.
        now: seconds on the curve's clock.
    """
    running = curve[-1][0] // TICK_SECONDS == now // TICK_SECONDS
    settled = curve[:-1] if running else curve
    steps = without_start(settled)
    rate = recent_rate(settled, now) if len(steps) < len(settled) else None
    return moment_of(steps, now) + (1 - steps[-1][1]) / rate if rate else None
