"""Weight-space interpolation: a trained model is drawn back to the weights it began with, by a share of the way."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]
"""By the name of the parameter."""


def weights_of(model: nn.Module) -> Weights:
    """Return a copy of the parameters of a model, in the memory of the CPU."""
    return {name: weights.detach().to("cpu", copy=True) for name, weights in model.named_parameters()}


def interpolate(model: nn.Module, base: Weights, base_weight: float) -> None:
    """Set each parameter to `base_weight` · base + (1 - `base_weight`) · trained.

    As WiSE-FT does (Wortsman et al., arXiv 2109.01903), whose mixing coefficient is 1 - `base_weight`. Buffers, and
    parameters that are not in `base`, stay as they are.

    Args:
        model: has every parameter of `base`.
        base_weight: 0 to 1.
    """
    trained = dict(model.named_parameters())
    with torch.no_grad():
        for name, weights in base.items():
            trained[name].lerp_(weights.to(trained[name].device), base_weight)
