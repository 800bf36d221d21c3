"""Forward passes side by side on a CPU: cores that have a pass of their own never wait for each other."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch

T = TypeVar("T")
U = TypeVar("U")

DEFAULT_THREADS: int = torch.get_num_threads()
"""As the cores at hand and the environment say; asked later, a thread may be told what a lane has set."""

MOST_LANES = 8
"""With more cores than that a lane gets several: all lanes take turns in Python, which is 1 to 2 % of a pass."""


class Lanes:
    """Threads that each compute whole passes of one model, with their share of the cores.

    A pass on two cores ends each of its products when the slower one does. Two lanes of one core have 1.1 to 1.2 times
    its pace, as much as two processes, with the weights in memory once (2026-11, m3e-small in float32, AVX2).

    Args:
        threads: of the whole encoder; a few stay idle where they cannot be shared out evenly.
    """

    def __init__(self, threads: int) -> None:
        self.threads_each = -(-threads // MOST_LANES)
        self.count = threads // self.threads_each
        # what a thread says here holds for itself and for threads that are started later, not for those that are there
        self._pool = ThreadPoolExecutor(self.count, "lane", partial(torch.set_num_threads, self.threads_each))

    def begin(self, compute: Callable[[U], T], argument: U) -> Callable[[], T]:
        """Begin in the next lane that is free; return what waits for the result, or raises what was raised."""
        return self._pool.submit(compute, argument).result

    def close(self) -> None:
        """End the threads when what they have begun is done."""
        self._pool.shutdown(cancel_futures=True)


def keeps_state(body: Any) -> bool:
    """Whether passes of a model leave something behind for the next ones, so that two at once would disturb each other.

    Of the models of transformers these are the ones whose positions are scaled by the longest row they have seen.
    """
    kinds: list[str] = []
    for module in body.modules():
        of_module = getattr(module, "rope_type", None)
        kinds += of_module.values() if isinstance(of_module, dict) else [str(of_module)]
    return any("dynamic" in kind or kind == "longrope" for kind in kinds)
