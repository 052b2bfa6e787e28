"""When features are looked at, and from when on an evaluation counts."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from worlds import World

from crossdet.training.guard import LossCurve
from crossdet.training.state import Course, Progress
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


class Maps(nn.Module):
    """Two maps: pictures, and pictures. dead: which of them are the same for every picture."""

    def __init__(self) -> None:
        super().__init__()
        self.dead: set[int] = set()

    def feature_maps(self, pictures: Tensor) -> list[Tensor]:
        alive = pictures.float()
        return [torch.ones_like(alive) if number in self.dead else alive for number in range(2)]


def run_of(network: nn.Module, **progress) -> SimpleNamespace:
    fabric = SimpleNamespace(device="cpu", autocast=nullcontext, is_global_zero=True)
    return SimpleNamespace(network=network, fabric=fabric, progress=Progress(**progress), course=Course())


def kinds(run: SimpleNamespace) -> list[str]:
    return [warning["kind"] for warning in run.progress.guard["now"]]


@pytest.mark.parametrize(("dead", "told"), [({1}, ["dead_features"]), ({0}, []), ({0, 1}, ["dead_features"])])
def test_it_is_the_deepest_map_that_is_watched(world: World, dead, told):
    network = Maps()
    run, watch = run_of(network), Watch(train={"cars": world.cars["train"]}, side=32)
    watch.begin(run)
    network.dead, run.progress.step = dead, 50
    watch.step(run, {"box": torch.ones(())})
    assert kinds(run) == told


@pytest.mark.parametrize("fixed", [True, False])
def test_only_fixed_batch_norm_is_advised_to_train(world: World, fixed):
    """Whatever modes its modules are in: fixed ones of timm say that they are in training."""
    network = Maps()
    network.norm = nn.BatchNorm2d(3).train(fixed)
    run, watch = run_of(network), Watch(train={"cars": world.cars["train"]}, side=32, fixed=fixed)
    watch.begin(run)
    network.dead, run.progress.step = {1}, 50
    watch.step(run, {"box": torch.ones(())})
    (warning,) = run.progress.guard["now"]
    assert ("`model.freeze_batch_norm: false`" in warning["sentence"]) == fixed


@pytest.mark.parametrize(("record", "told"), [({"metrics": {"mean": 0.02}}, ["dead_features"]), ({}, [])])
def test_an_evaluation_looks_at_the_features_at_whatever_step(world: World, record, told):
    network = Maps()
    run, watch = run_of(network), Watch(train={"cars": world.cars["train"]}, side=32)
    watch.begin(run)
    network.dead, run.progress.step = {1}, 7
    watch.epoch(run, 0.1, record)
    assert [warning["kind"] for warning in record["warnings"]] == told


@pytest.mark.parametrize(("fresh", "told"), [(True, ["flat_loss"]), (False, [])])
def test_a_flat_loss_is_no_news_in_an_extension(fresh, told):
    curve = LossCurve()
    for _ in range(300):
        curve.add(torch.tensor(1.0))
    run, record = run_of(Maps(), guard={"curve": vars(curve)}), {"metrics": {"mean": 0.01}}
    Watch(fresh=fresh).epoch(run, 0.5, record)
    assert [warning["kind"] for warning in record["warnings"]] == told
