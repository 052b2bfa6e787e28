"""Mosaics: four pictures in one training image, each with the labels and the trust of its own.

Own code, since torchvision has none. As in YOLOv4 (Bochkovskiy et al., arXiv 2004.10934, sec. 3.3) four pictures
meet at a random point; each shows as much of a random part of itself as there is room for, so nothing is stretched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from crossdet.data.augment import Window, blank
from crossdet.types import Annotations, Tiles

PICTURES = 4
MIDDLE = (0.3, 0.7)
"""Range of the point at which the pictures meet, as a share of either side."""
SCALE = (0.5, 1.0)
"""Range of the size of each picture, relative to the size it has alone."""


class Piece(NamedTuple):
    """What a mosaic shows of one picture. image: `[3, h, w]`. target: in its pixels. trusted: `[C]` bool."""

    image: Tensor
    target: Annotations
    trusted: Tensor
    dataset_id: int


def rooms(height: int, width: int, generator: np.random.Generator) -> list[Window]:
    """Four rectangles around a random point, which fill the canvas: above the lower ones, left to right."""
    low, high = MIDDLE
    x, y = (round(side * (low + (high - low) * generator.random())) for side in (width, height))
    x, y = min(max(x, 1), width - 1), min(max(y, 1), height - 1)
    return [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]


def joined(
    pieces: Sequence[Piece], places: Sequence[Window], size: tuple[int, int], fill: Sequence[int]
) -> tuple[Tensor, Annotations, Tiles]:
    """The mosaic, its boxes and its tiles.

    Each piece lies in the corner of its room (see `rooms`) next to the point at which all meet; what is left of the
    room is `fill`, which holds nothing. size: (height, width).
    """
    canvas = blank(size[0], size[1], fill)
    corners = []
    for number, (piece, (left, top, right, bottom)) in enumerate(zip(pieces, places, strict=True)):
        height, width = piece.image.shape[1:]
        x, y = (left if number % 2 else right - width), (top if number >= 2 else bottom - height)
        canvas[:, y : y + height, x : x + width] = piece.image
        corners.append(torch.tensor([x, y, x + width, y + height], dtype=torch.float32))
    targets = [piece.target for piece in pieces]
    target = Annotations(
        boxes=torch.cat([t.boxes + c[[0, 1, 0, 1]] for t, c in zip(targets, corners, strict=True)]),
        labels=torch.cat([t.labels for t in targets]),
        flags=torch.cat([t.flags for t in targets]),
    )
    tiles = Tiles(
        boxes=torch.stack(corners),
        trusted=torch.stack([piece.trusted for piece in pieces]),
        dataset_ids=torch.tensor([piece.dataset_id for piece in pieces]),
    )
    return canvas, target, tiles
