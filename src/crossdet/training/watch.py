"""Looks at a training while it runs and says what `guard` finds: nothing is stopped or changed by it.

The features are those of the weights that are trained, not of their average: the average lags behind, and looks
healthy for hundreds of steps after they have died. Detections are those of the weights that count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from crossdet.data.decoding import UnreadableImage, read_row
from crossdet.data.index import Index
from crossdet.training.guard import (
    FEWEST_PICTURES,
    FIRST_STEPS,
    Finding,
    Look,
    LossCurve,
    dead_features,
    flat_loss,
    foreign_validation,
    key_of,
    lines,
    look_at,
    never_labelled,
    newest,
)
from crossdet.types import PAD_DIVISOR

if TYPE_CHECKING:
    from crossdet.training.state import RunState

LOOKED_AT = 8
"""Pictures of a look at the features."""
LARGEST_SIDE = 320
"""Of these; what has died is dead at any size."""
OF_A_SET = 32
SIDE_OF_A_SET = 160
"""Pictures of a set, and their side, when sets are compared: what `guard.FOREIGN` was measured with."""
FIRST_LOOK = FIRST_STEPS
"""Steps; a collapse takes no longer (docs/log.md)."""
EARLY = 1 / 3
"""Share of a training before which low scores and a high loss are no news."""


def is_due(step: int) -> bool:
    """Whether features are looked at after so many steps: 50, 100, 150, 200, 300, 400, 600, ...

    Two looks for every doubling: a hundredth of the training's time or less, and independent of its length, which
    may change while it runs.
    """
    if step < FIRST_LOOK or step % FIRST_LOOK:
        return False
    times = step // FIRST_LOOK
    power = 1 << (times.bit_length() - 1)
    return times == power or 2 * times == 3 * power


@dataclass
class Watch:
    """train, val: the splits by dataset. side: of the network's input. fresh: the head begins from nothing, so that
    a loss that does not fall means something. knew: the backbone does not. fixed: its batch norm is, by the
    setting; modules say it in many ways, and a stem that is not trained says it, too."""

    train: Mapping[str, Index] = field(default_factory=dict)
    val: Mapping[str, Index] = field(default_factory=dict)
    side: int = LARGEST_SIDE
    fresh: bool = True
    knew: bool = True
    fixed: bool = False
    _pictures: Tensor | None = None

    def begin(self, run: RunState) -> None:
        """Before the first step: what the features are like, and whether the validation sets look familiar."""
        if "start" in run.progress.guard:
            return
        if self.fresh:  # what an extension learnt from need not be here, and a detector's features lie otherwise
            self._compare_sets(run)
        self._look(run, 0)

    def _compare_sets(self, run: RunState) -> None:
        with watching(run):
            train, val = ({n: _set_statistics(run, i) for n, i in part.items()} for part in (self.train, self.val))
        self._tell(run, foreign_validation(train, val))

    def step(self, run: RunState, losses: Mapping[str, Tensor]) -> None:
        """After every step. losses: term -> scalar, of all processes."""
        curve = LossCurve(**run.progress.guard.get("curve", {}))
        curve.add(torch.stack(list(losses.values())).sum())
        run.progress.guard["curve"] = vars(curve)
        if is_due(run.progress.step):
            self._look(run, run.progress.step)

    def epoch(self, run: RunState, done: float, record: dict[str, Any], over: bool = False) -> None:
        """After the evaluation: `record["warnings"]`, in the place of those of its metrics, and their lines.

        done: the share of the training that is over. over: it ends here.
        """
        progress, metrics = run.progress, record.get("metrics", {})
        of_metrics = [Finding(**finding) for finding in metrics.pop("warnings", [])]
        score = metrics.get("mean")
        if metrics:
            progress.guard["score"] = score if score == score else None
            self._look(run, progress.step)
        if done >= EARLY - 1e-9:
            for finding in of_metrics:
                self._tell(run, [finding])
            if (metrics or not self.val) and self.fresh:
                curve = LossCurve(**progress.guard.get("curve", {}))
                self._tell(run, flat_loss(curve, progress.guard.get("score")))
        if over:
            self._tell(run, never_labelled(run.course.labels_from, progress.epoch))
        record["warnings"] = progress.guard.pop("now", [])

    def end(self, run: RunState) -> None:
        """All that was seen, once more, each once in its newest words."""
        found = newest(run.progress.history)
        if found and run.fabric.is_global_zero:
            print("seen in this training (docs/guard.md):", *lines(found), sep="\n", flush=True)

    def _look(self, run: RunState, step: int) -> None:
        pictures, memory = self._looked_at(), run.progress.guard
        if len(pictures) < FEWEST_PICTURES:
            memory["start"] = None
            return
        with watching(run):
            now = look_at(run.network.feature_maps(pictures.to(run.fabric.device))[-1])
        if memory.get("start") is None:  # also where pictures could not be read then and can be now
            memory["start"] = asdict(now)
        start = Look(**memory["start"])
        self._tell(run, dead_features(now, start, step, memory.get("score"), self.knew, self.fixed))
        memory["newest"] = asdict(now)

    def _looked_at(self) -> Tensor:
        """`[B, 3, S, S]`, in equal parts of the validation sets, of the training sets where there is none."""
        if self._pictures is None:
            indexes = list((self.val or self.train).values())
            side = max(PAD_DIVISOR, min(self.side, LARGEST_SIDE) // PAD_DIVISOR * PAD_DIVISOR)
            most = -(-LOOKED_AT // max(1, len(indexes)))
            some = [pictures_of(index, most, side) for index in indexes[:LOOKED_AT]]
            self._pictures = torch.cat([*some, torch.zeros(0, 3, side, side, dtype=torch.uint8)])[:LOOKED_AT]
        return self._pictures

    def _tell(self, run: RunState, findings: list[Finding]) -> None:
        """Into the epoch's record; on the terminal what was not said in this epoch, with advice the first time."""
        now = run.progress.guard.setdefault("now", [])
        before = run.progress.guard.setdefault("told", [])
        for finding in findings:
            told = finding.to_json()
            new = all(key_of(other) != key_of(told) for other in now)
            now[:] = [other for other in now if key_of(other) != key_of(told)] + [told]
            again = list(key_of(told)) in before
            if new and run.fabric.is_global_zero:
                print(*lines([told], again), sep="\n", flush=True)
            if not again:
                before.append(list(key_of(told)))


@contextmanager
def watching(run: RunState) -> Iterator[None]:
    """The network in evaluation mode, without gradients; afterwards every part of it is in the mode it was in."""
    modes: list[tuple[nn.Module, bool]] = [(module, module.training) for module in run.network.modules()]
    run.network.eval()
    try:
        with torch.inference_mode(), run.fabric.autocast():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def pictures_of(index: Index, most: int, side: int) -> Tensor:
    """`[n, 3, side, side]` uint8: up to `most` readable pictures from all over a split, squashed."""
    rows = np.unique(np.linspace(0, len(index) - 1, min(most, len(index))).round().astype(np.int64))
    pictures = []
    for row in rows.tolist():
        try:
            pictures.append(F.resize(read_row(index, row), [side, side], antialias=True))
        except UnreadableImage:  # the loader tells of it
            continue
    return torch.stack(pictures) if pictures else torch.zeros(0, 3, side, side, dtype=torch.uint8)


def statistics(maps: Tensor) -> Tensor:
    """`[B, 2 c]` mean and standard deviation of every channel of `maps [B, c, h, w]`, by picture."""
    flat = maps.double().flatten(2)
    return torch.cat([flat.mean(2), flat.std(2, correction=0)], 1)


def _set_statistics(run: RunState, index: Index) -> Tensor:
    """`statistics` of the middle map of some pictures."""
    pictures = pictures_of(index, OF_A_SET, SIDE_OF_A_SET)
    found = []
    for some in pictures.split(LOOKED_AT) if len(pictures) else ():
        maps = run.network.feature_maps(some.to(run.fabric.device))
        found.append(statistics(maps[len(maps) // 2]).cpu())
    return torch.cat(found) if found else torch.zeros(0, 1, dtype=torch.float64)
