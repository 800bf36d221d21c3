"""The layers of a model's body, compiled by torch for the device at hand."""

from typing import Any

import torch


def compile_layers(body: torch.nn.Module) -> int:
    """Have torch compile each repeated layer when it is first called; return how many there are.

    All layers are alike, so they share one compilation, which takes seconds where the whole body would take a minute.
    Shapes that repeat keep theirs; from the second one on sizes are variables, so that it never happens often.

    Args:
        body: changed in place.
    """
    stacks: list[Any] = [module for module in body.modules() if isinstance(module, torch.nn.ModuleList)]
    layers = [layer for stack in stacks for layer in stack if len(stack) > 1]
    for layer in layers:
        layer.compile()
    return len(layers)
