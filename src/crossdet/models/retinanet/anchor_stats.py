"""How well the anchors cover the boxes of a dataset (paper sec. 4.1.2), without torch.

Anchors are those of `anchors.py`: on the level of stride s the centres are ((j + 0.5) s, (i + 0.5) s),
the area is (scale x s)^2, ratio = height / width, and the grid covers the padded image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossdet.models.retinanet.settings import PYRAMID_STRIDES
from crossdet.types import PAD_DIVISOR

_CHUNK = 16_384  # boxes at a time: the temporaries stay in the processor's cache


@dataclass(frozen=True)
class PlacedBoxes:
    """Boxes, and how far the nearest anchor centre of every level is: all that the IoU with a shape depends on.

    The intersection with an anchor is its overlap in x times its overlap in y, neither of which grows with the
    distance of the centres: whatever the shape, the best position is the nearest column and the nearest row.

    width, height: `[M]`. away: per level `[2, M]`, distance in x and in y. strides: of the levels.
    """

    width: NDArray[np.float64]
    height: NDArray[np.float64]
    away: tuple[NDArray[np.float64], ...]
    strides: tuple[int, ...]


def placed(
    boxes: NDArray[np.floating], sizes: NDArray[np.integer], strides: Sequence[int] = PYRAMID_STRIDES
) -> PlacedBoxes:
    """boxes: `[M, 4]` xyxy in pixels of the network's input. sizes: `[M, 2]` (height, width) of the image of every
    box at the network's input, before padding."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    centre = (boxes[:, :2] + boxes[:, 2:]).T / 2
    width, height = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).T.copy()
    grid = -(-np.asarray(sizes).reshape(-1, 2).T[::-1] // PAD_DIVISOR) * PAD_DIVISOR
    away = []
    for stride in strides:
        nearest = np.clip(np.floor(centre / stride), 0, -(-grid // stride) - 1)
        away.append(np.abs(centre - (nearest + 0.5) * stride))
    return PlacedBoxes(width, height, tuple(away), tuple(strides))


def best_placed_iou(boxes: PlacedBoxes, scales: Sequence[float], ratios: Sequence[float]) -> NDArray[np.float64]:
    """`[M]` exact IoU of every box with its best anchor, over all levels, positions and shapes."""
    best = np.zeros(len(boxes.width))
    area = boxes.width * boxes.height
    for stride, (away_x, away_y) in zip(boxes.strides, boxes.away, strict=True):
        for ratio in ratios:
            for scale in scales:
                anchor_area = (scale * stride) ** 2
                inside = _overlap(boxes.width, scale * stride / ratio**0.5, away_x)
                inside *= _overlap(boxes.height, scale * stride * ratio**0.5, away_y)
                np.maximum(best, inside / (area + anchor_area - inside), out=best)
    return best


def best_anchor_iou(
    boxes: NDArray[np.floating],
    sizes: NDArray[np.integer],
    scales: Sequence[float],
    ratios: Sequence[float],
    strides: Sequence[int] = PYRAMID_STRIDES,
) -> NDArray[np.float64]:
    """`best_placed_iou` of any number of boxes; `boxes` and `sizes` as for `placed`."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    best = np.zeros(len(boxes))
    for start in range(0, len(boxes), _CHUNK):
        rows = slice(start, start + _CHUNK)
        best[rows] = best_placed_iou(placed(boxes[rows], sizes[rows], strides), scales, ratios)
    return best


def _overlap(length: NDArray[np.float64], other: float, away: NDArray[np.float64]) -> NDArray[np.float64]:
    """Common length of intervals of two lengths whose centres are `away` from each other."""
    common = np.minimum((length + other) / 2 - away, length)
    np.minimum(common, other, out=common)
    return np.maximum(common, 0, out=common)
