"""The contract of an encoder: token ids in, vectors out."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.records import TokenBatch


class Encoder(Protocol):
    """Holds a model on a device; takes token ids, gives vectors."""

    @property
    def dimension(self) -> int:
        """Numbers per vector, as the model's last module gives them."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest row it takes, special tokens included."""
        ...

    @property
    def device(self) -> str:
        """Where it runs, for the report: `cpu`, or the name of the GPU."""
        ...

    @property
    def emulates(self) -> bool:
        """Whether the device imitates the number type it was asked to compute in, slowly."""
        ...

    def encode(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Return the vectors of one batch, (B, D), in its order, not yet truncated or normalised."""
        ...

    def close(self) -> None:
        """Give back what it holds of the device; it is not asked again."""
        ...


@runtime_checkable
class Overlapping(Protocol):
    """What an encoder can besides whose device computes while the host does something else."""

    @property
    def is_flat(self) -> bool:
        """Whether rows lie end to end, so that a batch costs the sum of their tokens and not rows × longest."""
        ...

    @property
    def fill_tokens(self) -> int:
        """Rows that lie end to end are filled up to a multiple of so many tokens; 1 = not at all."""
        ...

    @property
    def pass_tokens(self) -> int | None:
        """Tokens of a pass beyond which it is slower, whatever the budget; None = more are never worse."""
        ...

    @property
    def lanes(self) -> int:
        """Passes that it computes side by side; to keep all of them busy one more must have begun."""
        ...

    @property
    def attention(self) -> object:
        """How the rows of a batch are kept apart, and why so; `str` tells it."""
        ...

    def begin(self, batch: TokenBatch) -> Callable[[], NDArray[np.float32]]:
        """Begin with a batch; return what waits for its vectors, (B, D) as `encode` gives them."""
        ...


@runtime_checkable
class Caching(Protocol):
    """What an encoder can besides whose device keeps the memory of a pass for the next one."""

    def free_cache(self) -> None:
        """Give the memory of passes that have ended back to the device."""
        ...
