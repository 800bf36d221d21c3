"""A Transformer module as a function of tensors, for the engines that trace it."""

from typing import Any

import torch


class TokenEmbeddings(torch.nn.Module):  # type: ignore[misc]
    """Gives the vector per token, of dropout as little as of anything else that only training has."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer
        self.eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        features = {"input_ids": input_ids, "attention_mask": attention_mask, "modality": "text"}
        return self.transformer(features)["token_embeddings"]


def ragged_example() -> dict[str, torch.Tensor]:
    """Return two rows of tokens of different lengths, by the names of the inputs: what a module is traced with."""
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    return {"input_ids": torch.ones((2, 7), dtype=torch.int64), "attention_mask": mask}
