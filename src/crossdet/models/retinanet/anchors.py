"""Anchor boxes and the coding of boxes relative to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from crossdet.models.retinanet.settings import PYRAMID_STRIDES
from crossdet.types import PAD_DIVISOR

_MAX_LOG_SCALE = math.log(1000 / 16)  # caps exp() at boxes of some thousand pixels, as everyone does


class AnchorLabels(NamedTuple):
    """What every anchor of a batch learns.

    labels: `[B, N]` int64, class id, BACKGROUND or IGNORE. image, anchor: `[F]` int64, the foreground anchors, by
    image and then by anchor. boxes: `[F, 4]` the box of each. avoid: `[P, 3]` int64 rows (image, anchor, class
    or -1). sure: `[F]` bool, foreground anchors that lie on an object (IoU >= `negative_iou`) which a person
    labelled; None: all. per_shape: `[A]` how many foreground anchors have each shape, `anchor % A`; on the host,
    so that nobody has to ask the device. Empty where it is not known.
    """

    labels: Tensor
    image: Tensor
    anchor: Tensor
    boxes: Tensor
    avoid: Tensor
    per_shape: tuple[int, ...] = ()
    sure: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> AnchorLabels:
        return self._replace(
            labels=function(self.labels),
            image=function(self.image),
            anchor=function(self.anchor),
            boxes=function(self.boxes),
            avoid=function(self.avoid),
            sure=None if self.sure is None else function(self.sure),
        )


def cell_anchors(stride: int, scales: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """`[len(ratios) * len(scales), 4]` xyxy anchors around the origin, ratio-major.

    The area is (scale x stride)^2, not rounded; ratio = height / width, so 2.44 is a standing pedestrian
    (paper sec. 4.1.2: "the final anchor scales are the product of the simplified anchor scales we proposed and
    strides in each pyramid level").
    """
    root = torch.tensor(ratios, dtype=torch.float64).sqrt()[:, None]
    side = torch.tensor(scales, dtype=torch.float64)[None] * stride
    width, height = (side / root).flatten(), (side * root).flatten()
    return (torch.stack([-width, -height, width, height], 1) / 2).float()


def grid_anchors(cell: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """`[H * W * A, 4]` xyxy anchors of one level: `cell` moved to the centre of every grid position.

    Position (i, j) is centred at ((j + 0.5) stride, (i + 0.5) stride): symmetric under flips, and no strip at
    the right and bottom border is farther than half a stride from the nearest centre.
    """
    rows, columns = grid
    y = (torch.arange(rows, device=cell.device, dtype=cell.dtype) + 0.5) * stride
    x = (torch.arange(columns, device=cell.device, dtype=cell.dtype) + 0.5) * stride
    centre_y, centre_x = torch.meshgrid(y, x, indexing="ij")
    centres = torch.stack([centre_x, centre_y, centre_x, centre_y], -1).reshape(-1, 1, 4)
    return (centres + cell).reshape(-1, 4)


def pyramid_grids(height: int, width: int, levels: int) -> tuple[tuple[int, int], ...]:
    """(rows, columns) of P3, P4, ... for an image of this size: padded to `PAD_DIVISOR`, then every level of the
    backbone and every stride-2 convolution above it halves, rounding up."""
    rows, columns = (-(-side // PAD_DIVISOR) * PAD_DIVISOR // PYRAMID_STRIDES[0] for side in (height, width))
    grids = []
    for _ in range(levels):
        grids.append((rows, columns))
        rows, columns = -(-rows // 2), -(-columns // 2)
    return tuple(grids)


class AnchorGrid(NamedTuple):
    """All anchors of an image and the lattice they stand on.

    boxes: `[N, 4]` xyxy, by level, row, column and shape. Per level: cells `[A, 4]` around the origin,
    (rows, columns) and stride, see `grid_anchors`.
    """

    boxes: Tensor
    cells: tuple[Tensor, ...]
    grids: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]


def anchor_grid(cells: Sequence[Tensor], grids: Sequence[tuple[int, int]], strides: Sequence[int]) -> AnchorGrid:
    """The anchors of all levels."""
    boxes = [grid_anchors(cell, grid, stride) for cell, grid, stride in zip(cells, grids, strides, strict=True)]
    return AnchorGrid(torch.cat(boxes), tuple(cells), tuple(grids), tuple(strides))


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """`[F, 4]` deltas (dx, dy, dw, dh) of boxes relative to anchors, both `[F, 4]` xyxy (R-CNN, unweighted)."""
    size = anchors[:, 2:] - anchors[:, :2]
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    box_size = boxes[:, 2:] - boxes[:, :2]
    box_centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    return torch.cat([(box_centre - centre) / size, (box_size / size).log()], 1)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """`[..., N, 4]` xyxy boxes: the inverse of `encode_boxes`; log scales are capped at log(1000 / 16)."""
    size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + deltas[..., :2] * size
    half = deltas[..., 2:].clamp(max=_MAX_LOG_SCALE).exp() * size / 2
    return torch.cat([centre - half, centre + half], -1)
