"""What the peers without a trainer of their own share: pictures, batches and a training by the clock."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from crossdet.data.decoding import read_row
from crossdet.data.index import Index
from crossdet.models.backbones import read_state

from .job import Job, Training
from .sets import objects

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Prepared = Any
Prepare = Callable[[Tensor, Tensor, Tensor], Prepared]
"""(picture `[3, H, W]` uint8, boxes `[N, 4]` xyxy in its pixels, labels `[N]`) -> what a batch holds of it."""


class Pictures(Dataset[Prepared]):
    def __init__(self, index: Index, prepare: Prepare) -> None:
        self.index, self.prepare = index, prepare

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> Prepared:
        rows = objects(self.index, row)
        boxes = torch.from_numpy(np.array(self.index.boxes[rows]))
        labels = torch.from_numpy(np.array(self.index.labels[rows], np.int64))
        return self.prepare(read_row(self.index, row), boxes, labels)


def endless(groups: Sequence[int], batch: int, seed: int) -> Iterator[list[int]]:
    """Batches of rows, epoch after epoch without end, each of one group. What is left over waits.

    groups: `[I]` of every picture, such as upright and lying ones: less padding.
    """
    generator = np.random.default_rng(seed)
    waiting: dict[int, list[int]] = {}
    while True:
        for row in generator.permutation(len(groups)).tolist():
            group = waiting.setdefault(groups[row], [])
            group.append(row)
            if len(group) == batch:
                yield group.copy()
                group.clear()


def batches(job: Job, index: Index, prepare: Prepare, groups: Sequence[int]) -> Iterator[list[Prepared]]:
    settings = job.settings
    sampler: Any = endless(groups, settings.batch, settings.seed)
    data = Pictures(index, prepare)
    return iter(DataLoader(data, batch_sampler=sampler, num_workers=settings.workers, collate_fn=list))


@dataclass(frozen=True)
class At:
    """Where in the training a step is. step: from 0. share: of the time that has gone, 0..1."""

    step: int
    share: float


def fit(job: Job, data: Iterator[list[Prepared]], step: Callable[[list[Prepared], At], float]) -> Training:
    """Steps until the time is over; the clock starts when the first batch is asked for. step: returns the loss.

    Raises `ArithmeticError` where a loss is no finite number.
    """
    begun, losses, pictures = time.monotonic(), [], 0
    seconds = 60 * job.settings.minutes
    for number in itertools.count():
        share = (time.monotonic() - begun) / seconds
        if share >= 1:
            break
        batch = next(data)
        losses.append(step(batch, At(number, share)))
        pictures += len(batch)
        if not math.isfinite(losses[-1]):
            raise ArithmeticError(f"the loss of step {number + 1} is {losses[-1]}")
    start = "imagenet" if job.settings.weights else "random"
    return Training(time.monotonic() - begun, len(losses), pictures, losses, start)


def update(loss: Tensor, optimiser: torch.optim.Optimizer, clip: float | None = None) -> float:
    """One step of the optimiser."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if clip is not None:
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, clip)
    optimiser.step()
    return float(loss.detach())


def mobilenet(weights: str | None, positions: tuple[int, ...] = (2, 3, 4), fixed: bool = True) -> nn.Module:
    """timm's MobileNetV2 with feature maps at strides 8, 16 and 32 (positions 2, 3, 4). fixed: batch norm is, where
    there are weights; without, its statistics would be those of nothing."""
    body: nn.Module = timm.create_model("mobilenetv2_100", features_only=True, out_indices=positions)
    if weights is not None:
        load_mobilenet(body, weights)
        if fixed:
            body = freeze_batch_norm_2d(body)
    return body


def load_mobilenet(body: nn.Module, weights: str) -> None:
    """Raises `RuntimeError` where the file lacks anything."""
    state, wanted = read_state(Path(weights)), body.state_dict()
    body.load_state_dict({name: value for name, value in state.items() if name in wanted})
