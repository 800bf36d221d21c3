"""What all workers of a training hold, put together on each of them."""

import torch
from sentence_transformers.util import all_gather
from torch import Tensor, distributed
from torch.nn import functional


def workers() -> int:
    """Return how many workers train together."""
    return distributed.get_world_size() if _is_distributed() else 1


def gathered(tensor: Tensor) -> Tensor:
    """Return the rows of all workers, in their order; gradients flow to this worker's own.

    Rows may differ in number, and wider tensors in width: what is missing is filled with zeros, and rows of padding
    are removed again.
    """
    if not _is_distributed():
        return tensor
    shapes_WA = all_gather(torch.tensor([tensor.shape], device=tensor.device))
    widest = [int(size) for size in shapes_WA.amax(dim=0)]
    padding = [
        size for have, want in zip(reversed(tensor.shape), reversed(widest), strict=True) for size in (0, want - have)
    ]
    whole = functional.pad(tensor, padding).contiguous()
    pieces = all_gather(whole).split(widest[0])
    return torch.cat([piece[: int(rows)] for piece, rows in zip(pieces, shapes_WA[:, 0], strict=True)])


def _is_distributed() -> bool:
    return bool(distributed.is_available() and distributed.is_initialized())
