"""Random colours of training pictures: one matrix per picture, drawn with it, applied on the network's device.

Brightness, contrast, saturation, hue and the order of channels (SSD: Liu et al., arXiv 1512.02325, sec. 2.2),
with the ranges, chances and order of torchvision's `RandomPhotometricDistort`. Own code: all of it together is
one affine map of RGB, which takes a third of the time and which a card can do, while torchvision changes a
picture of uint8 five times and turns hue in HSV. Here hue turns about the axis of the greys, and
nothing is cut off or rounded in between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossdet.types import Batch

CHANCE = 0.5
"""Of each of the five changes."""
BRIGHTNESS, CONTRAST, SATURATION = (0.875, 1.125), (0.5, 1.5), (0.5, 1.5)
"""Ranges of factors; contrast is that to the mean grey of what is seen, a border included."""
HUE = (-0.05, 0.05)
"""Range in turns: 18 degrees to either side."""
STREAM = 1
"""What a draw's seed is joined with, so that colours have random numbers of their own; mosaics have 4."""

Matrix = NDArray[np.float64]
"""`[3, 4]`: RGB in 0..255 becomes `m[:, :3] @ rgb + m[:, 3]`."""

_GREY = np.array([0.2989, 0.587, 0.114])
"""Weights of RGB in a grey, those of torchvision."""


def brightness(factor: float) -> Matrix:
    """As torchvision's `adjust_brightness`, as the other two of factors."""
    return _matrix(factor * np.eye(3))


def contrast(factor: float, mean: NDArray[np.float64]) -> Matrix:
    """mean: `[3]`, the picture's mean colour, whose grey stays as it is."""
    return _matrix(factor * np.eye(3), np.full(3, (1 - factor) * float(_GREY @ mean)))


def saturation(factor: float) -> Matrix:
    """1: unchanged, 0: grey."""
    return _matrix(factor * np.eye(3) + (1 - factor) * np.tile(_GREY, (3, 1)))


def hue(turns: float) -> Matrix:
    """Red becomes yellow, then green, for turns above 0; R + G + B stays, and greys do."""
    sine, cosine = math.sin(2 * math.pi * turns), math.cos(2 * math.pi * turns)
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # Rodrigues' formula for (1, 1, 1)
    return _matrix(cosine * np.eye(3) + (1 - cosine) / 3 + sine * across)


def drawn(picture: Tensor, generator: np.random.Generator) -> Tensor:
    """`[3, 4]` float32, at random, for a picture `[3, H, W]` uint8: see `coloured`."""
    mean = picture[:, ::4, ::4].float().mean((1, 2)).double().numpy()
    happens = generator.random(5) < CHANCE
    factors = [generator.uniform(*between) for between in (BRIGHTNESS, CONTRAST, SATURATION, HUE)]
    contrast_first, order = generator.random() < 0.5, generator.permutation(3)
    result = _matrix(np.eye(3))
    if happens[0]:
        result = after(result, brightness(factors[0]))
    if happens[1] and contrast_first:
        result = after(result, contrast(factors[1], applied(result, mean)))
    if happens[2]:
        result = after(result, saturation(factors[2]))
    if happens[3]:
        result = after(result, hue(factors[3]))
    if happens[1] and not contrast_first:
        result = after(result, contrast(factors[1], applied(result, mean)))
    return torch.from_numpy(result[order] if happens[4] else result).float()


def after(first: Matrix, second: Matrix) -> Matrix:
    """The second map of what the first one gives."""
    return _matrix(second[:, :3] @ first[:, :3], applied(second, first[:, 3]))


def applied(matrix: Matrix, colour: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[3]` -> `[3]`."""
    return matrix[:, :3] @ colour + matrix[:, 3]


def coloured(batch: Batch, sizes: Sequence[Sequence[int]]) -> Batch:
    """The batch in its `colours`, which are None then; padding stays as it is. Without any it is what came in.

    sizes: (height, width) of the images, as in the batch, but on the host: a card need not be waited for.
    """
    if batch.colours is None:
        return batch
    images = batch.images.clone()
    for image, colours, (height, width) in zip(images, batch.colours, sizes, strict=True):
        seen = image[:, :height, :width]
        pixels = seen.permute(1, 2, 0).float().reshape(-1, 3)  # one copy and a view
        mixed = torch.addmm(colours[:, 3], pixels, colours[:, :3].T).round_().clamp_(0, 255)
        seen.copy_(mixed.view(height, width, 3).permute(2, 0, 1))
    return batch.passed_on(replace(batch, images=images, colours=None))


def _matrix(linear: NDArray[np.float64], shift: NDArray[np.float64] | None = None) -> Matrix:
    return np.column_stack([linear, np.zeros(3) if shift is None else shift])
