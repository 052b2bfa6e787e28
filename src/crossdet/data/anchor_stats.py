"""How well the anchors cover the boxes of a dataset (paper sec. 4.1.2), without torch.

Anchors are those of `crossdet.models.anchors`: on the level of stride s the centres are ((j + 0.5) s, (i + 0.5) s),
the area is (scale x s)^2, ratio = height / width, and the grid covers the padded image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crossdet.types import PAD_DIVISOR, PYRAMID_STRIDES

_CHUNK = 16_384  # boxes at a time: the temporaries stay in the processor's cache


def resized_sizes(sizes: NDArray[np.integer], shorter: int, longer: int) -> NDArray[np.int64]:
    """`[I, 2]` (height, width) of images at the network's input: the rule of `crossdet.data.transforms.resized`.

    sizes: `[I, 2]` (height, width), all positive.
    """
    given = np.asarray(sizes, np.float64)
    factor = np.minimum(shorter / given.min(1), longer / given.max(1))
    return np.maximum(1, np.rint(given * factor[:, None])).astype(np.int64)


def resized_boxes(
    boxes: NDArray[np.floating], sizes: NDArray[np.integer], new_sizes: NDArray[np.integer]
) -> NDArray[np.float64]:
    """`[M, 4]` xyxy boxes of images of `sizes`, in pixels of the same images at `new_sizes` (both `[M, 2]`)."""
    factor = new_sizes / np.asarray(sizes, np.float64)
    return np.asarray(boxes, np.float64) * factor[:, [1, 0, 1, 0]]


def best_anchor_iou(
    boxes: NDArray[np.floating],
    sizes: NDArray[np.integer],
    scales: Sequence[float],
    ratios: Sequence[float],
    strides: Sequence[int] = PYRAMID_STRIDES,
) -> NDArray[np.float64]:
    """`[M]` exact IoU of every box with its best anchor, over all levels, positions and shapes.

    The intersection with an anchor is its overlap in x times its overlap in y, neither of which grows with the
    distance of the centres: whatever the shape, the best position is the nearest column and the nearest row.

    boxes: `[M, 4]` xyxy in pixels of the network's input. sizes: `[M, 2]` (height, width) of the image of every
    box at the network's input, before padding.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    best = np.zeros(len(boxes))
    for start in range(0, len(boxes), _CHUNK):
        rows = slice(start, start + _CHUNK)
        part = boxes[rows]
        centre = (part[:, :2] + part[:, 2:]) / 2
        side = np.maximum(part[:, 2:] - part[:, :2], 0)
        padded = -(-np.asarray(sizes[rows])[:, ::-1] // PAD_DIVISOR) * PAD_DIVISOR
        for stride in strides:
            cells = -(-padded // stride)
            nearest = np.clip(np.floor(centre / stride), 0, cells - 1)
            distance = np.abs(centre - (nearest + 0.5) * stride)
            _raise_to_best(best[rows], side, distance, scales, ratios, stride)
    return best


def _raise_to_best(
    best: NDArray[np.float64],
    side: NDArray[np.float64],
    distance: NDArray[np.float64],
    scales: Sequence[float],
    ratios: Sequence[float],
    stride: int,
) -> None:
    """Raises `best` (in place) to the IoU with the anchors of one level; columns are x, y."""
    width, height = side[:, 0].copy(), side[:, 1].copy()
    away_x, away_y = distance[:, 0].copy(), distance[:, 1].copy()
    area = width * height
    for ratio in ratios:
        for scale in scales:
            anchor_area = (scale * stride) ** 2
            anchor_width = scale * stride / ratio**0.5
            anchor_height = scale * stride * ratio**0.5
            inside = _overlap(width, anchor_width, away_x) * _overlap(height, anchor_height, away_y)
            np.maximum(best, inside / (area + anchor_area - inside), out=best)


def _overlap(length: NDArray[np.float64], other: float, away: NDArray[np.float64]) -> NDArray[np.float64]:
    """Common length of intervals of two lengths whose centres are `away` from each other."""
    common = np.minimum((length + other) / 2 - away, length)
    np.minimum(common, other, out=common)
    return np.maximum(common, 0, out=common)
