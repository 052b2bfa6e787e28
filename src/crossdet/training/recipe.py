"""How to train: the numbers of a run, and the learning rate at every point of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the paper's (sec. 4.1.2).

    batch_size: images per optimiser step, over all processes and accumulation. Epochs are N = all images draws.
    ema: decay of the averaged weights, which then count. teacher_ema: without `ema`, decay of an average that only
    labels for the training itself.
    """

    epochs: int = 20
    batch_size: int = 32
    lr: float = 0.04
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_epochs: float = 2.0
    warmup_factor: float = 0.001
    steps: tuple[float, ...] = (10, 15)
    step_factor: float = 0.1
    max_steps: int | None = None
    clip_norm: float | None = None
    accumulate: int = 1
    ema: float | None = None
    teacher_ema: float | None = None
    compile: bool = False
    group_aspect: bool = True
    workers: int = 2
    seed: int = 0
    eval_every: int = 1
    checkpoint_minutes: float = 10.0
    checkpoint_steps: int | None = None
    log_every: int = 20


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """Learning rate at a fractional epoch: linear warm-up from `warmup_factor`, then steps."""
    rate = recipe.lr * recipe.step_factor ** sum(epoch >= step for step in recipe.steps)
    if epoch < recipe.warmup_epochs:
        progress = epoch / recipe.warmup_epochs
        rate *= recipe.warmup_factor + (1 - recipe.warmup_factor) * progress
    return rate
