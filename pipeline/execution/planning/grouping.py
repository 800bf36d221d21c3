"""Which small neighbours share a Shard: where one ends is drawn from the files around, not counted from the start."""

import numpy as np
from numpy.typing import NDArray


def group_ends(draws_N: NDArray[np.uint64], weights_N: NDArray[np.int64], full: int) -> NDArray[np.bool_]:
    """Return after which of N neighbouring files a group ends.

    A file ends a group where its draw is the smallest of all that end within half of `full` before and after it. So
    whether it does depends on these neighbours alone, and a file that comes, goes or grows moves no end farther away.
    What lies between two ends and weighs twice `full` or more is cut again, by the draws within it.

    Args:
        draws_N: a number of each file that nothing but its name decides.
        weights_N: of each file, 1 or more, less than `full`.
        full: what a group weighs on average. Each weighs at least half of it, unless all files together weigh less, and
            less than twice.
    """
    ends_N1 = np.concatenate(([0], np.cumsum(weights_N)))
    after_N, least = ends_N1[1:], (full + 1) // 2
    first_N = np.searchsorted(after_N, after_N - least)
    stop_N = np.searchsorted(after_N, after_N + least, "right")
    is_end_N: NDArray[np.bool_] = (after_N >= least) & (after_N <= after_N[-1] - least)
    is_end_N &= draws_N == _smallest(draws_N, first_N, stop_N)
    is_end_N[-1] = True
    stops_G = np.flatnonzero(is_end_N) + 1
    starts_G = np.append(0, stops_G[:-1])
    is_heavy_G = ends_N1[stops_G] - ends_N1[starts_G] >= 2 * full
    for start, stop in zip(starts_G[is_heavy_G].tolist(), stops_G[is_heavy_G].tolist(), strict=True):
        is_end_N[_cuts(draws_N, ends_N1, start, stop, full)] = True
    return is_end_N


def _cuts(draws_N: NDArray[np.uint64], ends_N1: NDArray[np.int64], start: int, stop: int, full: int) -> list[int]:
    """Return the files from `start` to before `stop` after which a group is cut, so that each piece is light enough.

    It is cut after the file of the smallest draw that leaves half of `full` on both sides; heavy pieces are cut again.
    """
    cuts: list[int] = []
    heavy = [(start, stop)]
    least = (full + 1) // 2
    while heavy:
        start, stop = heavy.pop()
        if ends_N1[stop] - ends_N1[start] < 2 * full:
            continue
        first = int(np.searchsorted(ends_N1, ends_N1[start] + least)) - 1
        last = int(np.searchsorted(ends_N1, ends_N1[stop] - least, "right")) - 2
        cut = first + int(np.argmin(draws_N[first : last + 1]))
        cuts.append(cut)
        heavy += [(start, cut + 1), (cut + 1, stop)]
    return cuts


def _smallest(
    values_N: NDArray[np.uint64], first_N: NDArray[np.int64], stop_N: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Return the smallest of `values_N[first:stop]` for each pair, none of them empty."""
    level_N = np.frexp(stop_N - first_N)[1] - 1
    smallest_N = np.empty_like(values_N)
    spanning_N = values_N  # at each level, the smallest of 2 ** level values from here on
    for level in range(int(level_N.max()) + 1):
        here = level_N == level
        smallest_N[here] = np.minimum(spanning_N[first_N[here]], spanning_N[stop_N[here] - (1 << level)])
        spanning_N = np.minimum(spanning_N[: -(1 << level)], spanning_N[1 << level :])
    return smallest_N
