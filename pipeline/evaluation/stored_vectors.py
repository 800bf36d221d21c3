"""The vectors that a run has written, found by the hash of their text, and read Part by Part."""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrow import dequantised
from pipeline.errors import SourceError
from pipeline.evaluation.part_rows import PartRows
from pipeline.evaluation.rehearsal import text_ids
from pipeline.evaluation.search import Block
from pipeline.storage.snapshots import Snapshot


class StoredVectors:
    """The vectors of a Snapshot, at their stored precision, found by text; a row is named by its place among all."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.stored = str(snapshot.recipe["stored"])
        self.columns = tuple(name for name in ("embedding", "scale") if name in snapshot.schema.names)
        parts = snapshot.vector_parts()
        self.keys = [key for key, _ in parts]
        self.ends_P1 = np.cumsum([0, *(rows for _, rows in parts)])
        ids_N = np.array(snapshot.to_table(["id"])["id"].to_pylist(), "S32")
        self.order_N = np.argsort(ids_N, kind="stable")
        self.sorted_N = ids_N[self.order_N]

    @cached_property
    def rows(self) -> pa.Table:
        """All of them, in memory until `forget`."""
        return self.snapshot.to_table(self.columns).combine_chunks()

    def forget(self) -> None:
        """Hold no vector in memory."""
        self.__dict__.pop("rows", None)

    def places(self, texts: list[str]) -> NDArray[np.int64]:
        """Return the row of each text.

        Raises:
            SourceError: a text has no vector; it is never encoded here.
        """
        ids_M = np.array(text_ids(pa.array(texts, pa.string())).to_pylist(), "S32")
        at_M = np.minimum(np.searchsorted(self.sorted_N, ids_M), max(len(self.sorted_N) - 1, 0))
        missing = int((self.sorted_N[at_M] != ids_M).sum()) if len(self.sorted_N) else len(ids_M)
        if missing:
            raise SourceError(
                f"{missing} of {len(texts)} texts have no vector in the evaluated output: they went to quarantine, or "
                "mteb asked for other texts when they were collected. Look at the report of the run."
            )
        return self.order_N[at_M]

    def vectors(self, places_M: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of these rows as float32, (M, D)."""
        return dequantised(self.rows.take(pa.array(places_M)), self.stored)

    def parts_of(self, places_M: NDArray[np.int64]) -> Iterator[Block]:
        """Yield these rows, which ascend, by the Parts that they lie in."""
        edges_P1 = np.searchsorted(places_M, self.ends_P1)
        for number, key in enumerate(self.keys):
            first, end = int(edges_P1[number]), int(edges_P1[number + 1])
            if first < end:
                rows_B = places_M[first:end] - self.ends_P1[number]
                yield PartRows(self.snapshot.store.uri, key, first, rows_B, self.columns, self.stored)
