"""How to train: the numbers of a run, and the learning rate at every point of it. No torch in here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, StrictBool, model_validator

from crossdet.models.settings import (
    Count,
    CountOrZero,
    Fraction,
    NotNegative,
    OpenFraction,
    Positive,
    Section,
    listed,
)


def _accelerator(value: Any) -> Any:
    return "cuda" if value == "gpu" else value


Accelerator = Annotated[Literal["auto", "cpu", "cuda"], BeforeValidator(_accelerator)]
Epochs = Annotated[tuple[Positive, ...], BeforeValidator(listed)]


class Recipe(Section):
    """The `train` section of a config; the defaults are the paper's (sec. 4.1.2).

    An epoch is as many draws as there are images in all datasets.
    """

    epochs: Count = 20
    batch_size: Count = 32  # images per optimiser step, over all devices and accumulation
    lr: Positive = 0.04
    momentum: Annotated[float, Strict(), Field(ge=0, lt=1)] = 0.9
    weight_decay: NotNegative = 1e-4
    warmup_epochs: NotNegative = 2.0  # not given: a tenth of `epochs`, as the paper's 2 of 20
    warmup_factor: Fraction = 0.001  # of the learning rate, at the first step
    steps: Epochs = (10.0, 15.0)  # epochs after which lr falls; not given: at 1/2 and 3/4 of `epochs`
    step_factor: Annotated[float, Strict(), Field(gt=0, le=1)] = 0.1
    max_steps: Count | None = None  # stop after so many optimiser steps
    clip_norm: Positive | None = None
    accumulate: Count = 1  # micro-batches per optimiser step
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    channels_last: StrictBool = True
    compile: StrictBool = False  # torch.compile of what pays in the network: minutes of start-up
    ema: OpenFraction | None = None  # decay of the averaged weights
    plain: StrictBool = False  # naive concatenation: all background is trusted
    accelerator: Accelerator = "auto"  # `gpu` is another word for `cuda`
    devices: Count = 1
    workers: CountOrZero = 2  # loader processes per device
    group_aspect: StrictBool = True  # batches of tall or of wide images: less padding
    eval_every: CountOrZero = 1  # epochs; 0: only at the end
    checkpoint_minutes: Positive = 10.0
    checkpoint_steps: Count | None = None  # also after so many optimiser steps
    log_every: Count = 20  # optimiser steps

    @model_validator(mode="before")
    @classmethod
    def _scaled_schedule(cls, data: Any) -> Any:
        """The paper's schedule in the proportions of its 20 epochs, where only `epochs` is given."""
        if not isinstance(data, Mapping):
            return data
        epochs = data.get("epochs", 20)
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            return data  # reported by the field itself
        return {"warmup_epochs": epochs / 10, "steps": [epochs / 2, epochs * 3 / 4], **data}

    @property
    def early_decay(self) -> str | None:
        """A warning where the learning rate has fallen for the last time before half of the epochs; steps that are
        written down stay where they are when `epochs` grows.
        """
        if not self.steps or self.step_factor == 1 or self.steps[-1] >= self.epochs / 2:
            return None
        return (
            f"`train.steps`: from epoch {self.steps[-1]:g} of {self.epochs} on the learning rate is "
            f"{self.step_factor ** len(self.steps):g} of `train.lr`; steps that are written down do not grow with "
            f"`train.epochs`: set both, or leave `train.steps` out"
        )


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """Learning rate at a fractional epoch: linear warm-up from `warmup_factor`, then steps."""
    rate = recipe.lr * recipe.step_factor ** sum(epoch >= step for step in recipe.steps)
    if epoch < recipe.warmup_epochs:
        progress = epoch / recipe.warmup_epochs
        rate *= recipe.warmup_factor + (1 - recipe.warmup_factor) * progress
    return rate
