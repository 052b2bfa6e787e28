"""Whether a training computes with compiled parts: as it is asked to, or where that is likely to pay back.

Unasked (`train.compile: auto`) nothing is compiled that may not pay: on one GPU, with batches on few canvases, the
first steps are timed; where the card and not the loader is waited for, and the steps to come are many enough, the
parts are compiled, the next steps are timed again, and where they are not faster, or compiling fails, the training
goes on as before.
"""

from __future__ import annotations

import statistics

from lightning_fabric import Fabric

from crossdet.models.contract import Network
from crossdet.training.log import NOTICED
from crossdet.training.recipe import Recipe

WARM_STEPS, TIMED_STEPS = 40, 40
"""Steps that are not timed, for kernels are chosen and parts are compiled in them, and those that are."""
START_UP = 45.0
"""Seconds to compile for one canvas; 29 were seen on an H200, for 800 x 1344 pixels."""
GAIN = 0.25
"""Share of a step's time that compiling may save; 25 and 47 % were seen there, at 320 x 416 and 800 x 1344
pixels."""


class Compiling:
    """Of one training. canvases: how many it has; 0: batches of any size. unasked: whether parts are compiled at
    the moment although nobody asked for it."""

    def __init__(self, fabric: Fabric, network: Network, recipe: Recipe, canvases: int) -> None:
        self.fabric, self.network, self.canvases = fabric, network, canvases
        self.full = recipe.pictures_at_once(fabric.world_size) if canvases else None
        self.unasked = False
        self._steps: list[tuple[float, float]] | None = None
        """Seconds and seconds of waiting of each since the last decision; None: nothing is decided any more."""
        self._eager = 0.0
        if recipe.compile is True:
            network.compile_parts(self.full)
        elif recipe.compile == "auto" and may_pay(fabric, network, recipe, canvases):
            self._steps = []

    def step(self, seconds: float, waited: float, left: int | None) -> None:
        """After every optimiser step. seconds: that it took; waited: of these for pictures. left: steps to come,
        None where that is not known yet."""
        if self._steps is None:
            return
        self._steps.append((seconds, waited))
        if len(self._steps) < WARM_STEPS + TIMED_STEPS or left is None:
            return
        # the usual step: the others wait for a kernel, for a graph, or are small last batches
        usual = statistics.median(whole - waiting for whole, waiting in self._steps[-TIMED_STEPS:])
        waiting = statistics.median(waiting for _, waiting in self._steps[-TIMED_STEPS:])
        if self.unasked:
            self._judge(usual)
        else:
            self._decide(usual, waiting, left)

    def give_up(self, reason: str) -> None:
        """Goes on without compiled parts, which could not be had."""
        self._end()
        self._say(f"not compiled: {reason}. The training goes on without")

    def _decide(self, usual: float, waiting: float, left: int) -> None:
        told = f"a step takes {1000 * usual:.0f} ms, {left:,} are left, {self.canvases} canvas(es)"
        if waiting > NOTICED * (usual + waiting):
            self._steps = None
            self._say(f"not compiled: pictures are waited for ({1000 * waiting:.0f} ms a step), not the network")
        elif left * usual * GAIN <= self.canvases * START_UP:
            self._steps = None
            self._say(f"not compiled: it would not pay back ({told}; train.compile: true compiles all the same)")
        else:
            self._eager, self._steps, self.unasked = usual, [], True
            self.network.compile_parts(self.full)
            self._say(f"compiling parts of the network ({told}); the next steps are slow")

    def _judge(self, usual: float) -> None:
        told = f"{1000 * usual:.0f} ms a step instead of {1000 * self._eager:.0f}"
        if usual < self._eager:
            self._steps = None
            self._say(f"compiled: {told}")
        else:
            self._end()
            self._say(f"compiled parts are no faster ({told}); the training goes on without")

    def _end(self) -> None:
        self._steps, self.unasked = None, False
        self.network.compile_nothing()

    def _say(self, text: str) -> None:
        if self.fabric.is_global_zero:
            print(text, flush=True)


def may_pay(fabric: Fabric, network: Network, recipe: Recipe, canvases: int) -> bool:
    """Whether it is worth timing the first steps. On a CPU convolutions are all that counts, and compiled ones are
    the same; without canvases every new size may want a graph; where bits are to be the same in every run, a
    decision by the clock is no place for them; and of several processes one alone may fail to compile."""
    here = fabric.device.type == "cuda" and fabric.world_size == 1
    return here and network.has_parts_to_compile and canvases > 0 and not recipe.deterministic
