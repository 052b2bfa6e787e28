"""Recipes, and the lists of trainings that compare them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

SETS = ("site_safety", "dice", "bccd", "aquarium", "playing_cards", "voc_animals")


@dataclass(frozen=True)
class Options:
    """A recipe.

    backbone_factor: of the learning rate, for the backbone. batch_norm: of the backbone; "fixed", "trained" (with
    the batch's statistics) or "affine" (scale and shift train, statistics fixed). frozen: the stem and first two
    stages do not train. decay_norms: weight decay also on norms and biases. schedule: "steps" (x 0.1 at 16/24 and
    21/24), "cosine", or "flat" (cosine over the last half); after `warmup` steps of linear warm-up. ema: decay of
    the averaged weights, which are scored beside the others.
    """

    optimiser: str = "sgd"
    lr: float = 0.01
    weight_decay: float = 1e-4
    decay_norms: bool = True
    backbone_factor: float = 1.0
    batch_norm: str = "fixed"
    frozen: bool = False
    group_norm: bool = True
    clip: float = 10.0
    warmup: int = 200
    schedule: str = "steps"
    steps: int = 2400
    batch: int = 8
    ema: float = 0.999


@dataclass(frozen=True)
class Run:
    """A training. data: see `config_of`. scores: shares of its steps after which AP is taken; looks: features."""

    data: str
    name: str
    options: Options
    seed: int = 0
    scores: tuple[float, ...] = (0.5, 1.0)
    looks: tuple[float, ...] = (1.0,)


CONFIGURED = Options()
"""The recipe that failed: one rate for all, batch norm fixed."""
BASE = Options("adamw", 1e-3, 0.05, False, 0.1, "trained", schedule="flat", warmup=200, steps=1000)
"""Where the variations of `tuning` and `around` start."""
CHOSEN = replace(BASE, lr=5e-4, backbone_factor=1.0, warmup=100, steps=600)
"""The best of `tuning`, for sets that nothing was tuned on."""


def collapse() -> list[Run]:
    """What the recipe of one rate and fixed batch norm does, and each cure, alone and together."""
    variants: dict[str, dict[str, Any]] = {
        "configured": {},
        "backbone x0.1": {"backbone_factor": 0.1},
        "batch norm trained": {"batch_norm": "trained"},
        "stem frozen": {"frozen": True},
        "no group norm": {"group_norm": False},
        "x0.1, batch norm trained": {"backbone_factor": 0.1, "batch_norm": "trained"},
    }
    looks = (0.0, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0)
    return [
        Run("site_safety", name, replace(CONFIGURED, **change), seed, looks=looks)
        for name, change in variants.items()
        for seed in range(3)
    ]


def dealt(name: str, options: Options, hows: Sequence[str]) -> list[Run]:
    """site_safety dealt in three by class."""
    looks = (0.02, 0.04, 0.1, 0.2, 0.3, 0.5, 1.0)
    return [
        Run(f"site_safety/{how}", f"{name}, {how}", options, seed, looks=looks) for how in hows for seed in range(3)
    ]


def collapse_dealt() -> list[Run]:
    return dealt("configured", replace(CONFIGURED, steps=1000), ("aware", "naive"))


def tuning() -> list[Run]:
    """A grid of rates, backbone factors and batch norm, on the sets that may be tuned on; one seed."""
    grid = [("trained", lr) for lr in (2.5e-4, 5e-4, 1e-3, 2e-3)] + [("fixed", lr) for lr in (5e-4, 1e-3)]
    return [
        Run(
            data,
            f"adamw {lr:g} x{factor:g} {batch_norm}",
            replace(BASE, lr=lr, backbone_factor=factor, batch_norm=batch_norm, steps=steps),
        )
        for data, steps in (("site_safety", 1000), ("dice", 600))
        for batch_norm, lr in grid
        for factor in (0.1, 1.0)
    ]


def around() -> list[Run]:
    """One thing changed at a time, on site_safety; one seed."""
    sgd = {"optimiser": "sgd", "lr": 0.01, "weight_decay": 1e-4}
    changes: dict[str, dict[str, Any]] = {
        "sgd 0.01 x1": {**sgd, "backbone_factor": 1.0},
        "clip 1": {"clip": 1.0},
        "backbone x0.3": {"backbone_factor": 0.3},
        "batch norm affine": {"batch_norm": "affine"},
        "cosine": {"schedule": "cosine"},
        "no warm-up": {"warmup": 1},
        "decay 0.0001": {"weight_decay": 1e-4},
        "steps": {"schedule": "steps"},
        "stem frozen": {"frozen": True},
        "no group norm": {"group_norm": False},
        "clip 0.1": {"clip": 0.1},
    }
    return [
        Run("site_safety", f"around: {name}", replace(BASE, **change), scores=(1.0,))
        for name, change in changes.items()
    ]


def untuned() -> list[Run]:
    """The chosen recipe on sets that nothing was tuned on, and site_safety dealt in three under it."""
    of_sets = {
        "adamw 5e-4 x1 trained": CHOSEN,
        "configured": replace(CONFIGURED, steps=600),
        "adamw 5e-4 x0.3 trained": replace(CHOSEN, backbone_factor=0.3),
    }
    return [
        *dealt("adamw", CHOSEN, ("aware", "naive", "full")),
        *(Run(data, name, options, scores=(1.0,)) for data in SETS[2:] for name, options in of_sets.items()),
        *dealt("configured", replace(CONFIGURED, steps=600), ("aware", "naive")),
    ]


def smoke() -> list[Run]:
    few = replace(BASE, steps=4, batch=2, warmup=2)
    fewer = replace(CONFIGURED, steps=4, batch=2)
    return [
        Run("dice", "tuned", few),
        Run("dice", "configured", fewer, 1, looks=(0.0, 0.5, 1.0)),
        Run("site_safety/aware", "tuned", few, scores=()),
    ]


PLANS: dict[str, Callable[[], list[Run]]] = {
    "collapse": collapse,
    "collapse_dealt": collapse_dealt,
    "tuning": tuning,
    "around": around,
    "untuned": untuned,
    "smoke": smoke,
}
