"""When features are looked at, and from when on an evaluation counts."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch import nn
from worlds import World

from crossdet.training.state import Progress
from crossdet.training.watch import Watch, is_due, pictures_of


def test_looks_thin_out():
    due = [step for step in range(2500) if is_due(step)]
    assert due == [50, 100, 150, 200, 300, 400, 600, 800, 1200, 1600, 2400]


def test_pictures_from_all_over_a_split_without_unreadable_ones(world: World):
    index = world.cars["train"]
    some = pictures_of(index, 4, 32)
    assert some.shape == (4, 3, 32, 32)
    assert some.dtype == torch.uint8
    assert len(pictures_of(index, 99, 32)) == len(index)
    index.path(0).rename(index.path(0).with_suffix(".away"))
    try:
        assert len(pictures_of(index, 4, 32)) == 3
    finally:
        index.path(0).with_suffix(".away").rename(index.path(0))


def test_pictures_that_are_back_after_a_resume_are_looked_at(world: World):
    """None could be read when the run began: the first look is then the one after it."""
    network = nn.Identity()
    network.feature_maps = lambda pictures: [pictures.float()]
    fabric = SimpleNamespace(device="cpu", autocast=nullcontext, is_global_zero=True)
    run = SimpleNamespace(network=network, fabric=fabric, progress=Progress(step=50, guard={"start": None}))
    watch = Watch(train={"cars": world.cars["train"]}, side=32)
    watch.begin(run)
    watch.step(run, {"box": torch.ones(())})
    assert run.progress.guard["start"] == run.progress.guard["newest"]
