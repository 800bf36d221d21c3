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
    """Apply a function, in a child process, to all rows that do not kill it.

    Args:
        rows: N rows.
        build: makes the function, in the child.

    Returns:
        As `in_halves`.

    Raises:
        ProcessDied: the child dies even without a row: it is not the rows.
    """
    child = Isolated(build)

    def patient(part: pa.Table) -> pa.Table:
        try:
            return child(part)
        except ProcessDied:
            if part.num_rows > 1:
                raise
        return child(part)  # a single row must kill twice: the first death may have had another cause

    try:
        return in_halves(rows, patient, ProcessDied)
    finally:
        child.close()


def in_halves(
    rows: pa.Table, function: Callable[[pa.Table], pa.Table], fault: type[Exception]
) -> tuple[list[pa.Table], NDArray[np.int64]]:
    """Apply a function to all rows it does not fail on, by halving what it fails on.

    Args:
        rows: N rows.
        function: must bear being given no row at all.
        fault: what it raises for a bad row.

    Returns:
        What it gave, in the order of the rows (that for no row comes last), and the positions of the bad ones,
        ascending.

    Raises:
        fault: it fails even without a row: it is not the rows.
    """
    results: list[pa.Table] = []
    bad: list[int] = []
    pending = [(0, rows.num_rows)]
    while pending:
        start, end = pending.pop()
        try:
            results.append(function(rows.slice(start, end - start)))
        except fault:
            if end - start > 1:
                middle = (start + end) // 2
                pending += [(middle, end), (start, middle)]
            else:
                function(rows.slice(0, 0))
                bad.append(start)
    return results or [function(rows.slice(0, 0))], np.array(bad, np.int64)
