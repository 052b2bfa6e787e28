"""Colours against torchvision's, whose distortion this is in one step."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import RandomPhotometricDistort
from torchvision.transforms.v2 import functional as F

from crossdet.config import Config
from crossdet.data import colour
from crossdet.data.index import IndexBuilder
from crossdet.runs.building import training_batches
from crossdet.types import Annotations, Batch

RNG = np.random.default_rng(0)
MILD = torch.from_numpy(RNG.integers(96, 160, (3, 24, 32), dtype=np.uint8))
"""A picture of which nothing is cut off at 0 or 255."""


def batch_of(pictures: torch.Tensor, colours: torch.Tensor | None, sizes: list[list[int]]) -> Batch:
    count = len(pictures)
    nothing = Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.uint8))
    return Batch(
        images=pictures,
        sizes=torch.tensor(sizes),
        original_sizes=torch.tensor(sizes),
        targets=[nothing] * count,
        trusted=torch.ones(count, 1, dtype=torch.bool),
        image_ids=torch.arange(count),
        dataset_ids=torch.zeros(count, dtype=torch.int64),
        colours=colours,
    )


def changed(picture: torch.Tensor, matrix: colour.Matrix) -> torch.Tensor:
    sizes = [list(picture.shape[1:])]
    batch = batch_of(picture[None], torch.from_numpy(matrix).float()[None], sizes)
    return colour.coloured(batch, sizes).images[0]


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.5])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_factors_are_torchvisions(name, factor):
    mean = MILD.float().mean((1, 2)).double().numpy()
    matrix = colour.contrast(factor, mean) if name == "contrast" else getattr(colour, name)(factor)
    theirs = getattr(F, f"adjust_{name}")(MILD.float() / 255, factor) * 255
    assert (changed(MILD, matrix).float() - theirs).abs().max() <= 0.6  # rounded once


@pytest.mark.parametrize("turns", [-0.05, -0.02, 0.03, 0.05])
@pytest.mark.parametrize("pixel", [(150, 100, 100), (100, 150, 110), (90, 100, 150), (150, 150, 90)])
def test_hue_turns_as_torchvisions(pixel, turns):
    """The same way, and about as far: the angle is that of a circle, and torchvision's that of HSV's hexagon."""

    def hue_of(rgb: np.ndarray) -> float:
        return colorsys.rgb_to_hsv(*np.asarray(rgb, float) / 255)[0]

    theirs = F.adjust_hue(torch.tensor(pixel, dtype=torch.float32)[:, None, None] / 255, turns)
    assert (hue_of(255 * theirs.flatten().numpy()) - hue_of(pixel) + 0.5) % 1 - 0.5 == pytest.approx(
        turns, abs=1e-3
    )
    ours = colour.applied(colour.hue(turns), np.array(pixel, float))
    assert (hue_of(ours) - hue_of(pixel) + 0.5) % 1 - 0.5 == pytest.approx(turns, rel=0.2)


def test_hue_by_a_third_of_a_turn_moves_the_channels():
    assert colour.hue(1 / 3) == pytest.approx(np.eye(3, 4)[[2, 0, 1]])  # red is green then
    assert colour.applied(colour.hue(0.05), np.full(3, 77.0)) == pytest.approx(np.full(3, 77.0))
    assert colour.applied(colour.hue(0.05), np.array([200.0, 30, 90])).sum() == pytest.approx(320)
    assert colour.after(colour.hue(0.05), colour.hue(-0.05)) == pytest.approx(np.eye(3, 4), abs=1e-9)


def test_one_after_the_other_is_their_product():
    pixel = np.array([10.0, 200, 90])
    first, second = colour.contrast(0.7, np.array([100.0, 90, 80])), colour.saturation(1.4)
    both = colour.applied(second, colour.applied(first, pixel))
    assert colour.applied(colour.after(first, second), pixel) == pytest.approx(both)


def test_padding_keeps_its_colour_and_the_batch_its_pictures():
    pictures = torch.full((2, 3, 32, 32), 100, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    doubled = torch.from_numpy(colour.brightness(2.0)).float()
    dark = torch.from_numpy(colour.brightness(0.0)).float()
    sizes = [[20, 32], [32, 7]]
    batch = batch_of(pictures, torch.stack([doubled, dark]), sizes)
    seen = colour.coloured(batch, sizes)
    assert seen.colours is None
    assert seen.images.is_contiguous(memory_format=torch.channels_last)
    assert (seen.images[0, :, :20] == 200).all()
    assert (seen.images[0, :, 20:] == 100).all()
    assert (seen.images[1, :, :, :7] == 0).all()
    assert (seen.images[1, :, :, 7:] == 100).all()
    assert (batch.images == 100).all()
    # what goes beyond is cut off, not wrapped around
    bright = replace(batch, images=torch.full_like(pictures, 200))
    assert (colour.coloured(bright, sizes).images[0, :, :20] == 255).all()
    none = batch_of(pictures, None, sizes)
    assert colour.coloured(none, sizes) is none


class Chosen:
    """A generator whose chances are given: all five changes happen."""

    def __init__(self, contrast_first: bool) -> None:
        self.randoms = iter([np.zeros(5), 0.2 if contrast_first else 0.8])
        self.factors = iter([0.9, 1.4, 0.6, 0.0])

    def random(self, count=None):
        return next(self.randoms)

    def uniform(self, low, high):
        factor = next(self.factors)
        assert low <= factor <= high
        return factor

    def permutation(self, count):
        return np.array([2, 0, 1])


@pytest.mark.parametrize("contrast_first", [True, False])
def test_all_of_it_in_torchvisions_order(contrast_first):
    """Contrast is that to the mean after what was changed before. (Hue by 0: the two differ in it.)"""
    picture = torch.stack([MILD[0] // 2 + 90, MILD[1] // 2 + 40, MILD[2] // 2 + 20])
    theirs = F.adjust_brightness(picture.float() / 255, 0.9)
    if contrast_first:
        theirs = F.adjust_contrast(theirs, 1.4)
    theirs = F.adjust_saturation(theirs, 0.6)
    if not contrast_first:
        theirs = F.adjust_contrast(theirs, 1.4)
    theirs = 255 * theirs[[2, 0, 1]]
    mean = picture[:, ::4, ::4].float().mean((1, 2))  # of a sixteenth of the pixels
    grey = float((picture.float().mean((1, 2)) - mean) @ torch.tensor([0.2989, 0.587, 0.114]))
    matrix = colour.drawn(picture, Chosen(contrast_first))
    ours = changed(picture, matrix.double().numpy()).float()
    assert (ours - theirs).abs().max() < 0.51 + 0.4 * abs(grey) + 0.1


def test_it_happens_as_often_as_torchvisions():
    """Spread of what becomes of a colour, in 1,500 draws of each."""
    picture = torch.tensor([150, 110, 90], dtype=torch.uint8)[:, None, None].repeat(1, 8, 8)
    theirs_of, generator = RandomPhotometricDistort(p=0.5), np.random.default_rng(3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = torch.stack([theirs_of(picture)[:, 0, 0] for _ in range(1500)]).float()
    draws = [colour.drawn(picture, generator) for _ in range(1500)]
    ours = torch.stack([matrix @ torch.tensor([150.0, 110, 90, 1]) for matrix in draws])
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 2.5
    assert (ours.std(0) / theirs.std(0) - 1).abs().max() < 0.1
    unchanged = torch.eye(3, 4)
    assert (
        0.02 < np.mean([torch.equal(matrix, unchanged) for matrix in draws]) < 0.06
    )  # 1/32, and 1/6 of that for orders that are none


@pytest.mark.parametrize("asked", [False, True])
def test_training_sees_them_where_the_config_asks(tmp_path, asked):
    builder = IndexBuilder(tmp_path)
    for number in range(4):
        Image.fromarray(np.full((48, 64, 3), (200, 120, 60), np.uint8)).save(tmp_path / f"{number}.png")
        builder.image(f"{number}.png", 48, 64)
        builder.box((4, 4, 40, 40), 0)
    config = Config.from_dict({
        "datasets": {"a": {"train": builder.build(["cup"])}}, "input": {"shorter": 48, "longer": 64},
        "augment": {"photometric": asked}, "train": {"batch_size": 4, "workers": 0},
    })  # fmt: skip
    (batch,), _ = training_batches(config, 1)
    assert batch.colours is None
    corners = {tuple(image[:, 0, 0].tolist()) for image in batch.images}
    assert (corners == {(200, 120, 60)}) != asked
