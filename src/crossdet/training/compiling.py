"""Whether a training computes with compiled parts: as it is asked to, or where that is likely to pay back.

Unasked (`train.compile: auto`) nothing is compiled that may not pay: on a GPU, with batches on few canvases, the
first steps are timed; where the steps to come are many enough, the parts are compiled, the next steps are timed
again, and where they are not faster, or compiling fails, the training goes on as before.
"""

from __future__ import annotations

import statistics

from lightning_fabric import Fabric

from crossdet.models.contract import Network
from crossdet.training.recipe import Recipe

WARM_STEPS, TIMED_STEPS = 40, 40
"""Steps that are not timed, for kernels are chosen and parts are compiled in them, and those that are."""
START_UP = 45.0
"""Seconds to compile for one canvas; 29 were seen on an H200, for 800 x 1344 pixels."""
GAIN = 0.25
"""Share of a step's time that compiling saves at least; 25 and 47 % were seen there, at 320 x 416 and 800 x
1344."""


class Compiling:
    """Of one training. canvases: how many it has; 0: batches of any size. failed: why nothing could be compiled."""

    def __init__(self, fabric: Fabric, network: Network, recipe: Recipe, canvases: int) -> None:
        self.fabric, self.network, self.canvases = fabric, network, canvases
        self.full = recipe.pictures_at_once(fabric.world_size) if canvases else None
        self.unasked = recipe.compile == "auto"
        self._seconds: list[float] | None = None
        """Of the steps since the last decision; None: nothing is decided any more."""
        self._eager: float | None = None
        if recipe.compile is True:
            network.compile_parts(self.full)
        elif self.unasked and may_pay(fabric.device.type, network, recipe, canvases):
            self._seconds = []

    def step(self, seconds: float, left: int | None) -> None:
        """After every optimiser step. seconds: that it took, without waiting for pictures. left: steps to come,
        None where that is not known yet."""
        if self._seconds is None:
            return
        self._seconds.append(seconds)
        if len(self._seconds) < WARM_STEPS + TIMED_STEPS or left is None:
            return
        # the usual step: the others wait for a kernel, for a graph, or are small last batches
        usual = statistics.median(self._seconds[-TIMED_STEPS:])
        if self.fabric.world_size > 1:  # clocks differ between processes, what is computed must not
            usual = self.fabric.broadcast(usual)
        if self._eager is None:
            self._decide(usual, left)
        else:
            self._judge(usual, self._eager)

    def give_up(self, reason: str) -> None:
        """Goes on without compiled parts, which could not be had."""
        self._seconds = None
        self.network.compile_nothing()
        self._say(f"not compiled: {reason}. The training goes on without")

    def _decide(self, usual: float, left: int) -> None:
        saved, spent = left * usual * GAIN, self.canvases * START_UP
        told = f"a step takes {1000 * usual:.0f} ms, {left:,} are left, {self.canvases} canvas(es)"
        if saved <= spent:
            self._seconds = None
            self._say(f"not compiled: it would not pay back ({told}; train.compile: true compiles all the same)")
            return
        self._eager, self._seconds = usual, []
        self.network.compile_parts(self.full)
        self._say(f"compiling parts of the network ({told}); the next steps are slow")

    def _judge(self, usual: float, eager: float) -> None:
        self._seconds = None
        told = f"{1000 * usual:.0f} ms a step instead of {1000 * eager:.0f}"
        if usual < eager:
            self._say(f"compiled: {told}")
        else:
            self.network.compile_nothing()
            self._say(f"compiled parts are no faster ({told}); the training goes on without")

    def _say(self, text: str) -> None:
        if self.fabric.is_global_zero:
            print(text, flush=True)


def may_pay(device: str, network: Network, recipe: Recipe, canvases: int) -> bool:
    """Whether it is worth timing the first steps. On a CPU convolutions are all that counts, and compiled ones are
    the same; without canvases every new size may want a graph; where bits are to be the same in every run, a
    decision by the clock is no place for them."""
    return device == "cuda" and network.has_parts_to_compile and canvases > 0 and not recipe.deterministic
