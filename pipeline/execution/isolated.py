"""Work that kills its process, done in a child process where that does no harm, and halved until the row is found."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.encoder.protocol import Encoder
from pipeline.isolation import Isolated, ProcessDied
from pipeline.records import TokenBatch


class IsolatedEncoder:
    """An Encoder in a child process; a death is an exception, after which the next call has a fresh child.

    Args:
        facts: an encoder of the same model on the same device, asked for what it is and then no more.
        open_encoder: loads the model, in the child.
    """

    def __init__(self, facts: Encoder, open_encoder: Callable[[], Encoder]) -> None:
        self.dimension, self.max_tokens = facts.dimension, facts.max_tokens
        self.device, self.emulates = facts.device, facts.emulates
        self._child: Isolated[TokenBatch, NDArray[np.float32]] = Isolated(partial(_encode_of, open_encoder))

    def encode(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Return the vectors, (B, D) float32.

        Raises:
            ProcessDied: the batch has killed its process; a single text has done so twice, since the first death may
                have had another cause.
        """
        try:
            return self._child(batch)
        except ProcessDied:
            if len(batch) > 1:
                raise
        return self._child(batch)

    def close(self) -> None:
        """End the child."""
        self._child.close()


def _encode_of(open_encoder: Callable[[], Encoder]) -> Callable[[TokenBatch], NDArray[np.float32]]:
    return open_encoder().encode


def survivors(
    rows: pa.Table, build: Callable[[], Callable[[pa.Table], pa.Table]]
) -> tuple[list[pa.Table], NDArray[np.int64]]:
    """Apply a function to all rows that do not kill its process.

    Args:
        rows: N rows.
        build: makes the function, in the child process.

    Returns:
        What it gave, in the order of the rows, and the positions of those that killed it, ascending.
    """
    child = Isolated(build)
    results: list[pa.Table] = []
    deadly: list[int] = []
    pending = [(0, rows.num_rows)]
    tried_twice = False
    while pending:
        start, end = pending.pop()
        try:
            results.append(child(rows.slice(start, end - start)))
            tried_twice = False
        except ProcessDied:
            middle = (start + end) // 2
            if end - start > 1:
                pending += [(middle, end), (start, middle)]
            elif tried_twice:
                deadly.append(start)
                tried_twice = False
            else:
                pending.append((start, end))
                tried_twice = True
    child.close()
    return results, np.array(deadly, np.int64)
