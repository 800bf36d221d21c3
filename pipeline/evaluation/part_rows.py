"""Rows of a Part whose vectors any process can read, also one that has neither mteb nor a model."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.arrow import dequantised
from pipeline.encoder.vectors import finish
from pipeline.storage.filesystem import Store
from pipeline.storage.snapshots import arrow_filesystem


@dataclass(frozen=True, slots=True)
class PartRows:
    """Some rows of a Part, without their vectors."""

    output: str
    key: str
    first: int
    """Which of the wanted rows its first one is."""
    rows_B: NDArray[np.int64]
    columns: tuple[str, ...]
    stored: str

    def vectors(self) -> NDArray[np.float32]:
        """Read the Part; return the vectors at length 1, (B, D)."""
        store = Store(self.output)
        path, filesystem = f"{store.root}/{self.key}", arrow_filesystem(store)
        part = pq.read_table(path, columns=list(self.columns), filesystem=filesystem, partitioning=None)
        return unit(dequantised(part.combine_chunks().take(pa.array(self.rows_B)), self.stored))


def unit(vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the vectors at length 1, C-contiguous."""
    return np.ascontiguousarray(finish(vectors_ND, None, normalize=True))
