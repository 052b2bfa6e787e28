"""When features are looked at, and from when on an evaluation counts."""

from __future__ import annotations

import torch
from worlds import World

from crossdet.training.watch import is_due, pictures_of


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
