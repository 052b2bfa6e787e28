"""The optimiser of a recipe."""

from __future__ import annotations

from typing import Any

import torch

from crossdet.models.contract import Network
from crossdet.training.recipe import BACKBONE, Recipe, Start


def make_optimiser(
    network: Network, recipe: Recipe, scaled: bool, start: Start = BACKBONE
) -> torch.optim.Optimizer:
    """The optimiser over all parameters that require a gradient, for `set_rate`.

    scaled: float16 gradients are unscaled. start: what the network begins with.
    """
    # one pass over weights, gradients and momentum, and no temporary of the weights' size; Fabric cannot clip
    # gradients that a fused optimiser unscales itself
    fused = not (scaled and recipe.clip_norm is not None)
    groups, decay = _groups(network, recipe, start), recipe.decay(start)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.rate(), weight_decay=decay, fused=fused)
    momentum = 0.9 if recipe.momentum is None else recipe.momentum
    return torch.optim.SGD(groups, lr=recipe.rate(), momentum=momentum, weight_decay=decay, fused=fused)


def _groups(network: Network, recipe: Recipe, start: Start) -> list[dict[str, Any]]:
    share = recipe.share_of_backbone(start)
    if share == 1 and recipe.decay_norms:  # in the order of the network, as in the states of old runs
        return [{"params": [p for p in network.parameters() if p.requires_grad], "rate_factor": 1.0}]
    return [
        {
            "params": group.parameters,
            "rate_factor": share if group.part == "backbone" else 1.0,
            "weight_decay": recipe.decay(start) if group.decay or recipe.decay_norms else 0.0,
        }
        for group in network.parameter_groups()
    ]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """rate: of the recipe's schedule; each group has its share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)  # states of old runs have one group, without a factor
