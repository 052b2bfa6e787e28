"""Where a training stands in its course, the learning rate there, and when it is over. No torch in here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from crossdet.training.recipe import BACKBONE, EVALUATIONS, WARMUP_SHARE, WARMUP_STEPS, Recipe, Start

MEASURED_STEPS, SLOW_STEPS = 25, 5
"""The pace of a training with a clock is taken from so many steps, without the first few: they start workers and
choose kernels. Of slow steps fewer count, as many as `REFIT` of the time has. Afterwards it is taken again at every
`REFIT` of the training."""
REFIT = 0.05
EVALUATION_SHARE = 0.1
"""Of the minutes that evaluations may take."""
BEGUN = {
    "random": "it begins with random weights",
    "backbone": "its backbone has learnt already",
    "detector": "it is a detector already",
}
"""What a network begins with -> why the learning rate is what it is, for people."""


class Judged(NamedTuple):
    """Steps to the next evaluation, and from each to the one after it."""

    next_in: float
    apart: float


@dataclass
class Clock:
    """The time of a training, kept in its state.

    spent: seconds of training and evaluation. evaluated, evaluations: seconds of all evaluations, and how many.
    line: (step, share of the training done there, step at which it is over); in between the share grows evenly.
    measured: (step, spent, evaluated) where the pace was last taken. judged_at: share of the training that was done
    at the last evaluation.
    """

    spent: float = 0.0
    evaluated: float = 0.0
    evaluations: int = 0
    line: tuple[int, float, int] | None = None
    measured: tuple[int, float, float] | None = None
    judged_at: float = 0.0

    def done(self, step: int) -> float:
        """The share of the training that is done after so many steps; 0 before its pace is known."""
        if self.line is None:
            return 0.0
        at, share, last = self.line
        return 1.0 if step >= last else share + (1 - share) * (step - at) / (last - at)

    def wants_fit(self, step: int, minutes: float, judged: Judged | None = None) -> bool:
        """Whether `fit`, which has the same arguments, is to be called after this step. Before there is a line that
        depends on the time."""
        if self.line is not None and self.measured is not None:
            # evaluations that come often may take most of the minutes; before the first `fit` knew nothing of that
            untold = judged is not None and self.evaluated > 0 and self.measured[2] == 0
            soon = untold and step - self.measured[0] >= SLOW_STEPS
            due = soon or self.done(step) - self.done(self.measured[0]) >= REFIT
            return step < self.line[2] and due
        at, spent, enough = (0, 0.0, SLOW_STEPS) if self.measured is None else (*self.measured[:2], MEASURED_STEPS)
        return step - at >= enough or self.spent - spent >= REFIT * 60 * minutes

    def fit(self, step: int, minutes: float, judged: Judged | None = None) -> None:
        """Fits the rest of the training into what is left of its minutes, by the pace since the last time: as many
        steps as have room in it beside the evaluations. The first time it begins to measure, unless the time is
        over already. judged: where evaluations come at set places; None: as many as `count` says."""
        first = self.measured is None
        at, spent, evaluated = self.measured or (0, 0.0, 0.0)
        self.measured = (step, self.spent, self.evaluated)
        if first and self.spent < 60 * minutes:
            return
        pace = max(1e-9, (self.spent - spent - (self.evaluated - evaluated)) / (step - at))
        each = self.evaluated / self.evaluations if self.evaluations else 0.0
        share = self.done(step)
        left = 60 * minutes - self.spent
        if judged is None:
            left -= max(1.0, self.count(minutes) * (1 - share)) * each
            more = max(0.0, left) / pace
        else:
            more = _steps_in(max(0.0, left - each), pace, each, judged)
        more = int(more + 1e-6)
        if self.line is None:  # a warm-up is still to come, but no more
            share = max(0.0, step / (step + more) - WARMUP_SHARE)
        self.line = (step, share, step + more)

    def count(self, minutes: float) -> int:
        """How many evaluations a training of so many minutes has: fewer where one takes long."""
        if not self.evaluations:
            return EVALUATIONS
        most = EVALUATION_SHARE * 60 * minutes / max(1e-9, self.evaluated / self.evaluations)
        return max(1, min(EVALUATIONS, int(most)))


def _steps_in(seconds: float, pace: float, each: float, judged: Judged) -> float:
    """How many steps have room in so many seconds with the evaluations between them. pace: seconds of a step. each:
    of an evaluation; the one at the end is not counted here, and the last step may be one that would be judged
    anyway."""
    rest = seconds - judged.next_in * pace
    if rest <= 0:
        return seconds / pace
    rounds, rest = divmod(rest, each + judged.apart * pace)
    return judged.next_in + rounds * judged.apart + max(0.0, rest - each) / pace


@dataclass(frozen=True)
class Schedule:
    """A recipe for a training on so many pictures. epochs: None where steps or minutes end it."""

    recipe: Recipe
    pictures: int
    epochs: int | None
    start: Start = BACKBONE

    @classmethod
    def of(cls, recipe: Recipe, pictures: int, start: Start = BACKBONE) -> Schedule:
        return cls(recipe, pictures, recipe.epochs_for(pictures), start)

    def began_as(self, epochs: int) -> Schedule:
        """The schedule of the same recipe with another number of epochs."""
        return replace(self, recipe=self.recipe.with_epochs(epochs), epochs=epochs)

    def continues(self, other: Schedule, epoch: float, step: int) -> bool:
        """Whether both have had the same learning rates up to a place of the training, as far as a thousand steps
        between show."""
        shares = [number / 1000 for number in range(1000)]
        return all(
            math.isclose(*(one.rate_at(share * epoch, int(share * step)) for one in (self, other)))
            for share in shares
        )

    def rate_at(self, epoch: float, step: int) -> float:
        """`rate` of a training that epochs or steps end."""
        return self.rate(epoch, step, self.done(epoch, step, Clock()))

    @property
    def highest_rate(self) -> float:
        return self.recipe.rate(self.start)

    def done(self, epoch: float, step: int, clock: Clock) -> float:
        """The share of the training that is done, 0..1. epoch: with its fraction."""
        shares = [0.0]
        if self.epochs is not None:
            shares.append(epoch / self.epochs)
        if self.recipe.max_steps is not None:
            shares.append(step / self.recipe.max_steps)
        if self.recipe.minutes is not None:
            shares.append(clock.done(step))
        return min(1.0, max(shares))

    def is_over(self, step: int, clock: Clock) -> bool:
        """Whether the training ends after this step, at whatever place of its epoch."""
        if self.recipe.max_steps is not None and step >= self.recipe.max_steps:
            return True
        return self.recipe.minutes is not None and clock.line is not None and step >= clock.line[2]

    def rate(self, epoch: float, step: int, done: float) -> float:
        """The learning rate of the step after so many."""
        recipe = self.recipe
        warm = self._warm(epoch, step, done)
        rate = self.highest_rate * self._height(epoch, done)
        return rate if warm >= 1 else rate * (recipe.warmup_factor + (1 - recipe.warmup_factor) * warm)

    def _warm(self, epoch: float, step: int, done: float) -> float:
        """How much of the warm-up is done; 1 and more: all."""
        if self.recipe.warmup_epochs is not None:
            return epoch / self.recipe.warmup_epochs if self.recipe.warmup_epochs else 1.0
        if self.recipe.warmup_steps is not None:
            return step / self.recipe.warmup_steps if self.recipe.warmup_steps else 1.0
        return max(step / WARMUP_STEPS, done / WARMUP_SHARE)

    def _height(self, epoch: float, done: float) -> float:
        """The rate without warm-up, as a share of the highest."""
        recipe = self.recipe
        if recipe.schedule == "steps":
            falls = [done >= share for share in (0.5, 0.75)]
            if recipe.steps is not None:
                falls = [epoch >= step for step in recipe.steps]
            return recipe.factor ** sum(falls)
        start = 0.5 if recipe.schedule == "flat_cosine" else 0.0
        falling = max(0.0, done - start) / (1 - start)
        return (1 + math.cos(math.pi * falling)) / 2

    def evaluates(self, epoch: int, done: float, clock: Clock) -> bool:
        """Whether an epoch that is not the last ends with an evaluation. epoch: those that are finished."""
        if self.recipe.eval_every is not None:
            return self.recipe.eval_every > 0 and epoch % self.recipe.eval_every == 0
        count = EVALUATIONS if self.recipe.minutes is None else clock.count(self.recipe.minutes)
        return math.floor(clock.judged_at * count + 1e-9) < math.floor(done * count + 1e-9)

    def judged(self, epoch: int, step_in_epoch: int, steps: int) -> Judged | None:
        """Where the recipe puts the evaluations to come, seen from this place of an epoch of so many steps; None:
        it does not say. epoch: those that are finished."""
        every = self.recipe.eval_every
        if every is None:
            return None
        if every == 0:
            return Judged(math.inf, math.inf)
        return Judged((every - epoch % every) * steps - step_in_epoch, every * steps)

    def steps_left(self, epoch: int, step_in_epoch: int, steps: int, step: int, clock: Clock) -> int | None:
        """Optimiser steps to come, counted from this place of an epoch of so many steps; None: not known yet."""
        counts = []
        if self.epochs is not None:
            counts.append((self.epochs - epoch) * steps - step_in_epoch)
        if self.recipe.max_steps is not None:
            counts.append(self.recipe.max_steps - step)
        if self.recipe.minutes is not None and clock.line is not None:
            counts.append(clock.line[2] - step)
        return min(counts, default=None)

    def _decay(self) -> str:
        return f"{self.recipe.decay(self.start):g}" + (
            "" if self.recipe.decay_norms else ", none of norms and biases"
        )

    def _why(self) -> str:
        """Where the learning rate comes from, if from the recipe."""
        if self.recipe.lr is not None:
            return ""
        if self.start.share != 1:
            return f" ({self.start.share:g} of that with all old pictures, docs/extend.md)"
        return f" ({BEGUN[self.start.weights]})" if self.recipe.optimizer == "adamw" else ""

    def lines(self) -> list[str]:
        """What was chosen and why, for people."""
        recipe, said = self.recipe, self.recipe.model_fields_set
        rate = f"learning rate {self.highest_rate:.2g} for {recipe.batch_size} pictures a step{self._why()}"
        if (share := recipe.share_of_backbone(self.start)) != 1:
            rate += f", {share:g} of it for the backbone"
        optimizer = {"adamw": "AdamW", "sgd": "SGD"}[recipe.optimizer]
        lines = [f"recipe {recipe.recipe}: {optimizer}, {rate}, weight decay {self._decay()}", self._length()]
        shape = {
            "flat_cosine": "constant for the first half, then a cosine to 0",
            "cosine": "a cosine to 0",
            "steps": f"falls to {recipe.factor:g} at "
            + ("1/2 and 3/4" if recipe.steps is None else f"epoch {', '.join(f'{s:g}' for s in recipe.steps)}"),
        }[recipe.schedule]
        lines.append(f"schedule: warm-up {self._warmup()}, {shape}")
        more = [f"gradients clipped at {recipe.clip_norm:g}"] if recipe.clip_norm else []
        more += [f"weights averaged (decay {recipe.ema:g})"] if recipe.ema else []
        more += ["stem not trained"] if recipe.freeze_stem else []
        more += [f"stops after {recipe.patience} evaluations without a better one"] if recipe.patience else []
        if more:
            lines.append(", ".join(more))
        usual = Recipe(recipe=recipe.recipe, epochs=recipe.epochs)
        own = [key for key in said - _NOT_OF_RECIPE if getattr(recipe, key) != getattr(usual, key)]
        if own:
            lines.append(f"set by the config: {', '.join(sorted(own))}")
        return lines

    def _length(self) -> str:
        recipe = self.recipe
        ends = [f"{recipe.max_steps:,} steps"] if recipe.max_steps else []
        ends += [f"{recipe.minutes:g} minutes, schedule fitted to the speed"] if recipe.minutes else []
        if self.epochs is not None:
            why = "" if recipe.epochs is not None else f" (not given: by the {self.pictures:,} training pictures)"
            ends.insert(0, f"{self.epochs} epochs{why}, {self._steps_of_epochs():,} steps")
        return "length: " + ", or ".join(ends)

    def _steps_of_epochs(self) -> int:
        return (self.epochs or 0) * math.ceil(self.pictures / self.recipe.batch_size)

    def _warmup(self) -> str:
        if self.recipe.warmup_epochs is not None:
            return f"{self.recipe.warmup_epochs:g} epochs"
        if self.recipe.warmup_steps is not None:
            return _steps(self.recipe.warmup_steps)
        known = [limit for limit in (self._steps_of_epochs(), self.recipe.max_steps) if limit]
        steps = min([WARMUP_STEPS, *(math.ceil(round(WARMUP_SHARE * limit, 6)) for limit in known)])
        shorter = " (at most a tenth of the training)" if self.recipe.minutes is not None else ""
        return f"{_steps(steps)}{shorter}"


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"


_NOT_OF_RECIPE = {
    "plain",
    "accelerator",
    "devices",
    "workers",
    "log_every",
    "checkpoint_minutes",
    "checkpoint_steps",
}
