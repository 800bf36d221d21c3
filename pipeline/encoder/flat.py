"""Rows laid end to end without padding, and the attention that keeps them apart."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.encoder.batching import FILL_TOKENS, filled
from pipeline.encoder.equal_lengths import attend_equal_lengths
from pipeline.records import TokenBatch

PADDED, FLASH, TORCH_VARLEN = "padded", "flash_attention_2", "torch_varlen"
EQUAL_LENGTHS, REFERENCE = "equal_lengths", "reference_varlen"

KERNEL_CAPABILITY = (8, 0)
"""Compute capability from which on the kernels of FlashAttention run (Ampere)."""

FEATURES = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
"""What says where rows begin, by the names that transformers, and the pooling of sentence-transformers, know."""


@dataclass(frozen=True, slots=True)
class Attention:
    """How the rows of a batch are kept apart, and why so."""

    name: str
    """padded | flash_attention_2 | torch_varlen | equal_lengths | reference_varlen."""
    reason: str

    @property
    def is_flat(self) -> bool:
        """Whether rows lie end to end, so that a batch costs the sum of their tokens."""
        return self.name != PADDED

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def attentions_to_try(place: str, compute: str, capability: tuple[int, int] | None = None) -> list[Attention]:
    """Return what fits a device, the best first and padded rows last; whether a model bears it is seen by its vectors.

    Args:
        place: cpu | cuda.
        compute: float32 | bfloat16 | float16.
        capability: of the GPU.
    """
    if place != "cuda":
        return [
            Attention(EQUAL_LENGTHS, "on a CPU rows of one length are attended to together"),
            Attention(PADDED, "the model takes padded rows only"),
        ]
    if compute == "float32":
        return [Attention(PADDED, "the kernels for rows without padding have no float32")]
    if capability is not None and capability < KERNEL_CAPABILITY:
        least, found = (".".join(map(str, version)) for version in (KERNEL_CAPABILITY, capability))
        return [Attention(PADDED, f"the kernels for rows without padding need compute capability {least}, not {found}")]
    found_here = [
        Attention(name, reason)
        for name, package, reason in (
            (FLASH, "flash_attn", "flash-attn is installed"),
            (TORCH_VARLEN, "torch.nn.attention.varlen", "PyTorch's own kernel for rows without padding"),
        )
        if find_spec(package)
    ]
    return [*found_here, Attention(PADDED, "flash-attn is not installed, and this PyTorch has no varlen attention")]


def apply_attention(transformer: Any, name: str) -> None:
    """Let a Transformer module of sentence-transformers compute its attention so.

    Args:
        name: one of ours, or any name that transformers knows.

    Raises:
        ValueError, ImportError: the model or the machine cannot.
    """
    from transformers.modeling_utils import AttentionInterface

    if name in KERNELS:
        if not transformer.model.is_backend_compatible():
            raise ValueError("its attention cannot be exchanged")
        AttentionInterface.register(name, _attention_of(KERNELS[name]))
    transformer.model.set_attn_implementation(name)
    if transformer.model_forward_params is not None:
        transformer.model_forward_params |= {*FEATURES}


def lay_end_to_end(
    batch: TokenBatch, pad_token_id: int, first_position: int, fill_tokens: int = FILL_TOKENS
) -> dict[str, NDArray[Any]]:
    """Return B rows as one row of T tokens, filled up at its end so that shapes repeat.

    Args:
        pad_token_id: stands in the filling, which belongs to no row.
        first_position: number of the first token of a row; not 0 in RoBERTa and its kin.
        fill_tokens: T is a multiple of it.

    Returns:
        `input_ids` (1, T) int32, `position_ids` (1, T) int64, `cu_seq_lens_q` (B + 1,) int32, and `seq_idx`, the row
        of every token, (1, tokens) int64.
    """
    tokens, lengths_B = len(batch.token_ids_T), batch.lengths_N
    ids_1T = np.full((1, filled(tokens, fill_tokens)), pad_token_id, np.int32)
    positions_1T = np.full((1, filled(tokens, fill_tokens)), first_position, np.int64)
    ids_1T[0, :tokens] = batch.token_ids_T
    positions_1T[0, :tokens] += np.arange(tokens) - np.repeat(batch.offsets_N1[:-1], lengths_B)
    return {
        "input_ids": ids_1T,
        "position_ids": positions_1T,
        "cu_seq_lens_q": batch.offsets_N1.astype(np.int32),
        "seq_idx": np.repeat(np.arange(len(batch)), lengths_B)[None, :],
    }


Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, float], torch.Tensor]
"""Query, key and value, all (T, heads, D); where each row begins (B + 1,); the longest; the scale → (T, heads, D)."""


def _torch_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts_B1: torch.Tensor, longest: int, scale: float
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    usual = math.isclose(scale, query.size(-1) ** -0.5)  # torch 2.10 takes no other
    options = {} if usual else {"scale": scale}
    return varlen_attn(query, key, value, starts_B1, starts_B1, longest, longest, **options)


def _reference_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts_B1: torch.Tensor, longest: int, scale: float
) -> torch.Tensor:
    """Compute the same by padding the rows for torch's own attention: slower, on any device, in any number type."""
    tokens = torch.arange(query.size(0), device=query.device)
    row_T = torch.bucketize(tokens, starts_B1[1:], right=True).clamp(max=len(starts_B1) - 2)
    place_T = (tokens - starts_B1[row_T]).clamp(max=longest)  # the filling shares one place, which nobody looks at
    is_token_BL = torch.arange(longest + 1, device=query.device) < (starts_B1[1:] - starts_B1[:-1])[:, None]

    def padded(states: torch.Tensor) -> torch.Tensor:
        states_BLHD = states.new_zeros((len(starts_B1) - 1, longest + 1, *states.shape[1:]))
        return states_BLHD.index_put((row_T, place_T), states).transpose(1, 2)

    attended = torch.nn.functional.scaled_dot_product_attention(
        padded(query), padded(key), padded(value), attn_mask=is_token_BL[:, None, None, :], scale=scale
    )
    return attended.transpose(1, 2)[row_T, place_T]


KERNELS: dict[str, Kernel] = {
    TORCH_VARLEN: _torch_varlen,
    EQUAL_LENGTHS: attend_equal_lengths,
    REFERENCE: _reference_varlen,
}


def _attention_of(kernel: Kernel) -> Callable[..., tuple[torch.Tensor, None]]:
    """Return a kernel as an attention function of transformers."""

    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        cu_seq_lens_q: torch.Tensor,
        max_length_q: int,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        if getattr(module, "is_causal", False) or sliding_window is not None or key.size(1) != query.size(1):
            raise ValueError("it looks one way only, or not all the way, or shares heads")
        scale = query.size(-1) ** -0.5 if scaling is None else scaling
        states = [states[0].transpose(0, 1) for states in (query, key, value)]
        return kernel(states[0], states[1], states[2], cu_seq_lens_q, max_length_q, scale)[None], None

    return attention
