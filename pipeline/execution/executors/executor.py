"""Executors: the same stages for the missing Blocks of a run, whoever runs them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from pipeline.execution.attempts import Book, Marks
from pipeline.execution.stage_settings import StageSettings
from pipeline.records import BlockReceipt, Shard


@dataclass(frozen=True, slots=True)
class Todo:
    """What is missing of one Shard."""

    shard: Shard
    done_blocks: frozenset[int]
    """Blocks that need no work."""
    dropped: NDArray[np.int64]
    """Rows to leave out, by their position in the Shard, ascending: their id stands elsewhere before."""

    def to_row(self) -> dict[str, Any]:
        """Return what the reading stage takes."""
        return {
            "shard": orjson.dumps(self.shard.to_json()),
            "done_blocks": sorted(self.done_blocks),
            "dropped": self.dropped.tobytes(),
        }


class Missing:
    """What is still missing while receipts come in: what is to be done when a stream must begin anew."""

    def __init__(self, todo: Sequence[Todo]) -> None:
        self._todo = {one.shard.shard_id: one for one in todo}
        self._blocks: dict[str, int] = {}

    def take_off(self, receipt: BlockReceipt) -> None:
        """Note that a Block is done."""
        one = self._todo[receipt.shard_id]
        self._todo[receipt.shard_id] = replace(one, done_blocks=one.done_blocks | {receipt.block})
        if receipt.is_last:
            self._blocks[receipt.shard_id] = receipt.block + 1

    def left(self) -> list[Todo]:
        """Return the Shards of which any Block is missing."""
        return [one for key, one in self._todo.items() if len(one.done_blocks) != self._blocks.get(key)]


class Executor(Protocol):
    """Runs the stages, elsewhere than in the thread of the driver; whoever dies there is replaced."""

    @property
    def marks(self) -> Marks:
        """What its workers mark their attempts with; picklable."""

    @property
    def book(self) -> Book:
        """Where these marks are kept."""

    @property
    def encoder_threads(self) -> int:
        """CPU threads of an encoder; 0 on a GPU."""

    @property
    def early_encoder(self) -> str | None:
        """Address of a process that loads the model already, where its encoders can use it."""

    def look_through(
        self, todo: Sequence[Todo], settings: StageSettings, patience_seconds: float
    ) -> Iterator[NDArray[np.void]]:
        """Yield `repeats.unknown_hashes` of every Shard, in any order; one that cannot be read gives none.

        Args:
            patience_seconds: longest wait for any Shard; then no further one is waited for.
        """

    def stream(
        self, todo: Sequence[Todo], settings: StageSettings, repeated_R2: NDArray[np.uint64]
    ) -> Iterator[BlockReceipt]:
        """Yield the receipt of every missing Block as it is written, in any order.

        Args:
            repeated_R2: hashes of the texts that stand in several Blocks (`repeats.repeated_texts`).

        Raises:
            EncoderError: no encoder is left that works.
            PipelineError: what a stage has raised, as it was raised.
        """
