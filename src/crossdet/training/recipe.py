"""How to train: the `train` section of a config, and what the two recipes put into it. No torch in here."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, Strict, StrictBool, model_validator

from crossdet.data.canvases import CANVASES, SMALLEST_BATCH
from crossdet.errors import show
from crossdet.models.architecture import Contradiction
from crossdet.models.settings import (
    USUAL_RATES,
    Count,
    CountOrZero,
    Fraction,
    NetworkDefaults,
    NotNegative,
    OpenFraction,
    Positive,
    Section,
    Text,
    UsualRates,
    listed,
)


def _accelerator(value: Any) -> Any:
    return "cuda" if value == "gpu" else value


Accelerator = Annotated[Literal["auto", "cpu", "cuda"], BeforeValidator(_accelerator)]
Epochs = Annotated[tuple[Positive, ...], BeforeValidator(listed)]
Momentum = Annotated[float, Strict(), Field(ge=0, lt=1)]
Factor = Annotated[float, Strict(), Field(gt=0, le=1)]

LOGGERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""What `train.loggers` takes -> the package that it needs."""


def _loggers(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in LOGGERS or names.count(name) > 1:
            raise ValueError(f"expected some of {', '.join(LOGGERS)}, each once, got {show(name)}")
    return names


Loggers = Annotated[tuple[Text, ...], BeforeValidator(listed), AfterValidator(_loggers)]

PAPER: dict[str, Any] = {
    "optimizer": "sgd",
    "decay_norms": True,
    "schedule": "steps",
    "epochs": 20,
    "batch_size": 32,
    "clip_norm": None,
    "ema": None,
    "eval_every": 1,
    "precision": "32-true",
    "canvases": 0,
    "compile": False,
}
"""What `recipe: paper` puts in the place of the defaults (sec. 4.1.2); warm-up and steps by its epochs."""

GROWTH = {"adamw": (8, 0.5), "sgd": (32, 1.0)}
"""Optimiser -> (at this batch size, its learning rate grows with this power of it). AdamW's power is the usual one
for Adam and was not measured. SGD's is the paper's, as is its rate."""
SGD_RATE = 0.04
SGD_DECAY = 1e-4
WARMUP_STEPS, WARMUP_SHARE = 200, 0.1
"""Of warm-up where nothing is said: so many steps, and at most this share of the training."""
PICTURES, FEWEST_EPOCHS, MOST_EPOCHS = 24_000, 12, 100
"""How long a training is where nothing is said: epochs for so many pictures, within these limits."""
EVALUATIONS = 10
"""At most so many in a training where nothing is said."""


def of_paper(epochs: int) -> dict[str, Any]:
    """Warm-up and falls of so many epochs, in the proportions of the paper's 20."""
    return {"warmup_epochs": epochs / 10, "steps": (epochs / 2, epochs * 3 / 4)}


class Start(NamedTuple):
    """What a network begins a training with, as far as its learning rate depends on it.

    weights: which have learnt already. share: of the usual rate, in an extension. rates: of the architecture.
    RetinaNet's, the defaults, were chosen on photographs of building sites and of dice, and judged on three other
    sets; for random weights, on generated scenes (docs/log.md, 2026-11-27 and 28).
    """

    weights: Literal["random", "backbone", "detector"] = "backbone"
    share: float = 1.0
    rates: UsualRates = USUAL_RATES


BACKBONE = Start()


class Recipe(Section):
    """The `train` section of a config. The defaults are those of `recipe: auto`; null is decided by what is known
    when the training starts (`training.schedule`).

    An epoch is as many draws as there are images in all datasets.
    """

    recipe: Literal["auto", "paper"] = "auto"
    epochs: Count | None = None  # null: by the number of pictures; without limit where one of the next two is given
    max_steps: Count | None = None  # optimiser steps
    minutes: Positive | None = None  # of training and evaluations; the schedule is fitted to the speed
    patience: Count | None = None  # stop after so many evaluations without a better one
    batch_size: Count = 8  # images per optimiser step, over all devices and accumulation
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Positive | None = None  # null: by optimiser and batch size
    backbone_lr: Positive | None = None  # factor on the rate of the backbone; null: by what the network begins with
    freeze_stem: StrictBool = False  # the backbone's layers up to stride 4 are not trained
    momentum: Momentum | None = None  # of SGD; null: 0.9
    weight_decay: NotNegative | None = None  # null: by optimiser and network
    decay_norms: StrictBool = False  # weight decay of biases and norms, too
    warmup_steps: CountOrZero | None = None  # null: 200, but at most a tenth of the training
    warmup_epochs: NotNegative | None = None  # instead of `warmup_steps`
    warmup_factor: Fraction = 0.001  # of the learning rate, at the first step
    schedule: Literal["flat_cosine", "cosine", "steps"] = "flat_cosine"  # flat: constant for the first half
    steps: Epochs | None = None  # epochs after which lr falls; null: at 1/2 and 3/4 of the training
    step_factor: Factor | None = None  # null: 0.1
    clip_norm: Positive | None = 10.0
    accumulate: Count = 1  # micro-batches per optimiser step
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"  # bf16 on a card that has it, else 32
    channels_last: StrictBool = True
    compile: Literal["auto"] | StrictBool = "auto"  # torch.compile of parts; auto: on a GPU where it pays back
    deterministic: StrictBool = False  # on a card: kernels that give the same bits every time, where torch has them
    ema: OpenFraction | None = 0.999  # decay of the averaged weights; smaller in the first steps
    plain: StrictBool = False  # naive concatenation: all background is trusted
    accelerator: Accelerator = "auto"  # `gpu` is another word for `cuda`
    devices: Count = 1
    workers: CountOrZero | None = None  # loader processes per device; null: cores - 1, on a CPU at most 2, else 8
    canvases: CountOrZero = CANVASES  # sizes of batches; 0: each as large as its largest image
    group_aspect: StrictBool = True  # with `canvases: 0`: batches of tall or of wide images, less padding
    eval_every: CountOrZero | None = None  # epochs; 0: only at the end; null: about ten times
    checkpoint_minutes: Positive = 10.0
    checkpoint_steps: Count | None = None  # also after so many optimiser steps
    log_every: Count = 20  # optimiser steps
    loggers: Loggers = ("tensorboard",)  # where the numbers go besides the run's own files

    @model_validator(mode="before")
    @classmethod
    def _of_recipe(cls, data: Any) -> Any:
        """The values of `recipe: paper`, and its schedule in the proportions of its 20 epochs."""
        if not isinstance(data, Mapping) or _recipe_of(data) != "paper":
            return data
        values = {"recipe": "paper", **PAPER, **data}
        if "epochs" not in data and (data.get("minutes") or data.get("max_steps")):
            values["epochs"] = None  # warm-up and falls by shares of what is given
        epochs = values["epochs"]
        if values["schedule"] != "steps" or isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            return values  # a wrong value is reported by the field itself
        usual = of_paper(epochs)
        if values.get("warmup_steps") is None:
            values.setdefault("warmup_epochs", usual["warmup_epochs"])
        return {"steps": usual["steps"], **values}

    def rate(self, start: Start = BACKBONE) -> float:
        """The learning rate that is meant."""
        if self.lr is not None:
            return self.lr
        batch, power = GROWTH[self.optimizer]
        usual: float = getattr(start.rates, start.weights) if self.optimizer == "adamw" else SGD_RATE
        return usual * start.share * (self.batch_size / batch) ** power

    def share_of_backbone(self, start: Start = BACKBONE) -> float:
        """The factor on the backbone's rate that is meant."""
        if self.backbone_lr is not None:
            return self.backbone_lr
        usual = self.optimizer == "adamw" and start.weights == "detector"
        return start.rates.share_of_backbone if usual else 1.0

    def decay(self, start: Start = BACKBONE) -> float:
        """The weight decay that is meant."""
        if self.weight_decay is not None:
            return self.weight_decay
        return start.rates.decay if self.optimizer == "adamw" else SGD_DECAY

    def network_defaults(self, processes: int) -> NetworkDefaults:
        """What the recipe says about the network; processes: of the training, each with its share of the batch.

        The paper's batch norm is fixed. Behind a fixed one features died at rates that they stand behind a
        trained one (docs/log.md, 2026-11-27)."""
        auto = self.recipe == "auto"
        enough = self.pictures_at_once(processes) >= SMALLEST_BATCH
        return NetworkDefaults(group_norm=auto, train_batch_norm=auto and enough, head_by_backbone=auto)

    def pictures_at_once(self, processes: int) -> int:
        """Of each of so many processes."""
        return self.batch_size // (self.accumulate * processes)

    def loader_workers(self, on_gpu: bool) -> int:
        """Loader processes of each device, of those of this machine (torchrun says how many)."""
        if self.workers is not None:
            return self.workers
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.devices))
        return max(1, min(8 if on_gpu else 2, (os.cpu_count() or 1) // here - 1))

    def epochs_for(self, pictures: int) -> int | None:
        """Epochs of a training on so many pictures; None: until the steps or the minutes are over."""
        if self.epochs is not None or self.max_steps is not None or self.minutes is not None:
            return self.epochs
        return min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(PICTURES / pictures)))

    def most_epochs(self, pictures: int) -> int | None:
        """Epochs that a training on so many pictures begins at most; None: its minutes alone end it."""
        limits = [self.epochs_for(pictures)]
        if self.max_steps is not None:  # the last batch of an epoch may join the one before
            limits.append(math.ceil(self.max_steps / max(1, pictures // self.batch_size)))
        return min((limit for limit in limits if limit is not None), default=None)

    def with_epochs(self, epochs: int | None) -> Recipe:
        """The recipe of another number of epochs; warm-up and falls that are the paper's shares of its own move
        with it, others stay."""
        values: dict[str, Any] = {"epochs": epochs}
        if self.epochs is not None and epochs is not None:
            mine, new = of_paper(self.epochs), of_paper(epochs)
            values |= {key: new[key] for key in new if getattr(self, key) == mine[key]}
        return self.model_copy(update=values)

    def contradictions(self) -> Iterator[Contradiction]:
        """What single values cannot show."""
        share = self.accumulate * self.devices
        if self.batch_size % share:
            expected = f"a multiple of accumulate x devices = {share}"
            keys = ("train.batch_size", "train.accumulate", "train.devices")
            yield Contradiction(keys, expected, self.batch_size)
        if self.steps is not None and list(self.steps) != sorted(set(self.steps)):
            yield Contradiction(("train.steps",), "epochs in increasing order", self.steps)
        if self.warmup_epochs is not None and self.epochs is not None and self.warmup_epochs > self.epochs:
            expected = f"at most `train.epochs` = {self.epochs}"
            yield Contradiction(("train.warmup_epochs", "train.epochs"), expected, self.warmup_epochs)
        if self.warmup_epochs is not None and self.warmup_steps is not None:
            expected = "either this or `train.warmup_steps`"
            yield Contradiction(("train.warmup_epochs", "train.warmup_steps"), expected, self.warmup_epochs)
        if self.max_steps is not None and self.warmup_steps is not None and self.warmup_steps > self.max_steps:
            expected = f"at most `train.max_steps` = {self.max_steps}"
            yield Contradiction(("train.warmup_steps", "train.max_steps"), expected, self.warmup_steps)
        yield from self._unused()

    def _unused(self) -> Iterator[Contradiction]:
        """Values that nothing would come of."""
        if self.momentum is not None and self.optimizer != "sgd":
            expected = "nothing with `train.optimizer: adamw` (`train.recipe: paper` is SGD)"
            yield Contradiction(("train.momentum", "train.optimizer"), expected, self.momentum)
        if self.patience is not None and self.eval_every == 0:
            expected = "nothing with `train.eval_every: 0`, which evaluates only at the end"
            yield Contradiction(("train.patience", "train.eval_every"), expected, self.patience)
        for key in ("steps", "step_factor"):
            value = getattr(self, key)
            if value is not None and self.schedule != "steps":
                fix = "say `train.schedule: steps` as well"
                if self.recipe != "paper":  # the rate beside it is most often one of SGD
                    fix = "say `train.recipe: paper`, whose key it is, or `train.schedule: steps`"
                expected = f"nothing with `train.schedule: {self.schedule}`; {fix}"
                yield Contradiction((f"train.{key}", "train.schedule"), expected, value)

    @property
    def missing_loggers(self) -> list[str]:
        """What to say of loggers whose package is not installed."""
        return [
            f"train.loggers: {name} needs a package: pip install {LOGGERS[name]}"
            for name in self.loggers
            if find_spec(LOGGERS[name]) is None
        ]

    @property
    def warnings(self) -> Iterator[str]:
        """Values that are allowed and seldom meant."""
        usual, (batch, power) = USUAL_RATES, GROWTH["adamw"]
        limit = 2.5 * usual.random * max(1.0, self.batch_size / batch) ** power
        if self.optimizer == "adamw" and (self.lr or 0) > limit:
            yield (
                f"`train.lr`: {self.lr:g} is a rate for SGD; AdamW takes about {usual.backbone:g} for {batch} "
                f"pictures a step. Leave it out, or say `train.optimizer: sgd`"
            )
        count = self._evaluations()
        if self.patience is not None and count is not None and self.patience >= count - 1:
            yield (
                f"`train.patience`: {self.patience}, but the training has no more than {count} evaluations, the "
                f"last one at its end, so nothing stops early: set it lower, or `train.eval_every`"
            )
        if self.epochs is None or not self.steps or self.factor == 1 or self.steps[-1] >= self.epochs / 2:
            return
        # steps that are written down stay where they are when `epochs` grows
        yield (
            f"`train.steps`: from epoch {self.steps[-1]:g} of {self.epochs} on the learning rate is "
            f"{self.factor ** len(self.steps):g} of `train.lr`; steps that are written down do not grow with "
            f"`train.epochs`: set both, or leave `train.steps` out"
        )

    def _evaluations(self) -> int | None:
        """At most so many, as far as the config alone says; None: it does not say."""
        if self.eval_every:
            return None if self.epochs is None else math.ceil(self.epochs / self.eval_every)
        return EVALUATIONS if self.epochs is None else min(EVALUATIONS, self.epochs)

    @property
    def factor(self) -> float:
        """By which the rate falls at a step."""
        return 0.1 if self.step_factor is None else self.step_factor


def _recipe_of(data: Mapping[str, Any]) -> Any:
    """A section that was written down whole before there were recipes is of the paper's."""
    earlier = {"momentum", "weight_decay", "warmup_epochs", "warmup_factor", "steps", "step_factor"}
    return "paper" if "recipe" not in data and earlier <= data.keys() else data.get("recipe")
