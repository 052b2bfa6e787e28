"""The optimiser of a recipe."""

from __future__ import annotations

from typing import Any

import torch

from crossdet.training.recipe import Recipe


def make_optimiser(network: Any, recipe: Recipe, scaled: bool) -> torch.optim.Optimizer:
    """SGD with momentum over all parameters that require a gradient. scaled: float16 gradients are unscaled."""
    return torch.optim.SGD(
        [p for p in network.parameters() if p.requires_grad],
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        # one pass over weights, gradients and momentum, and no temporary of the weights' size; Fabric cannot clip
        # gradients that a fused optimiser unscales itself
        fused=not (scaled and recipe.clip_norm is not None),
    )
