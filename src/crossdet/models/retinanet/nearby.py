"""Which anchors can overlap a box enough to matter, found on their lattice without looking at all of them.

2,000 faces and 200,000 anchors are 400 million pairs; those with an IoU that decides anything are a thousandth.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from crossdet.models.retinanet.anchors import AnchorGrid

CHUNK_ENTRIES = 2_000_000
"""Box-anchor pairs held at once (16 MB per index tensor)."""

_SLACK, _PIXELS = 0.98, 0.01  # windows are a little too large: rounding must not lose a pair


class Lattice(NamedTuple):
    """The `Q` anchor shapes of all levels, `[Q]` each: size, centre and index of the one at row 0, column 0; what
    one step adds to centre (`stride`) and index (`step`); rows and columns of its level."""

    width: Tensor
    height: Tensor
    x: Tensor
    y: Tensor
    stride: Tensor
    rows: Tensor
    columns: Tensor
    first: Tensor
    step: Tensor


def lattice(grid: AnchorGrid) -> Lattice:
    device = grid.boxes.device
    cells = torch.cat(list(grid.cells))
    table, start = [], 0
    for cell, (rows, columns), stride in zip(grid.cells, grid.grids, grid.strides, strict=True):
        shapes = len(cell)
        table += [(stride, rows, columns, start + shape, shapes) for shape in range(shapes)]
        start += rows * columns * shapes
    stride_, rows_, columns_, first, step = torch.tensor(table, dtype=torch.int64).T.to(device)
    size = cells[:, 2:] - cells[:, :2]
    centre = (cells[:, :2] + cells[:, 2:]) / 2 + 0.5 * stride_[:, None]
    (width, height), (x, y) = size.unbind(1), centre.unbind(1)
    return Lattice(width, height, x, y, stride_, rows_, columns_, first, step)


def largest_iou(shapes: Lattice, boxes: Tensor) -> Tensor:
    """`[M]`: IoU of each box `[M, 4]` with its best anchor, up to rounding.

    The overlap of two boxes of fixed size falls with the distance of their centres along either axis, so of
    every shape only the anchor nearest to the box has to be looked at.
    """
    x, y = ((boxes[:, i, None] + boxes[:, i + 2, None]) / 2 for i in (0, 1))
    width, height = (boxes[:, i + 2, None] - boxes[:, i, None] for i in (0, 1))
    inside = _overlap(x, width, shapes.x, shapes.width, shapes.stride, shapes.columns)
    inside = inside * _overlap(y, height, shapes.y, shapes.height, shapes.stride, shapes.rows)
    return (inside / (width * height + shapes.width * shapes.height - inside)).amax(1)


def _overlap(centre: Tensor, side: Tensor, first: Tensor, sides: Tensor, stride: Tensor, count: Tensor) -> Tensor:
    """`[M, Q]` overlap along one axis with the nearest of `count` anchors."""
    place = ((centre - first) / stride).round().clamp(min=0).minimum(count - 1)
    distance = (centre - (first + place * stride)).abs()
    return torch.minimum((side + sides) / 2 - distance, torch.minimum(side, sides)).clamp(min=0)


def pairs_overlapping(shapes: Lattice, boxes: Tensor, need: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(box rows, anchor rows), `[P]` each, of all pairs whose intersection is at least `need`, and some more.

    boxes: `[M, 4]`. need: `[M, Q]` area in pixels. A box comes with all its pairs in one piece, boxes in rising
    order; a piece has at most `CHUNK_ENTRIES` pairs, or is of one box.
    """
    left, columns = _window(boxes, need, 0, shapes.x, shapes.width, shapes.height, shapes.stride, shapes.columns)
    top, rows = _window(boxes, need, 1, shapes.y, shapes.height, shapes.width, shapes.stride, shapes.rows)
    counts = columns * rows
    ends = counts.sum(1).cumsum(0).tolist()
    start, before = 0, 0
    while start < len(ends):
        end = start + 1
        while end < len(ends) and ends[end] - before <= CHUNK_ENTRIES:
            end += 1
        piece = slice(start, end)
        number = counts[piece].flatten()
        place = number.nonzero().squeeze(1)  # (box, shape) pairs with anchors
        number = number[place]
        owner = torch.repeat_interleave(place, number, output_size=ends[end - 1] - before)
        within = torch.arange(len(owner), device=owner.device)
        within -= torch.repeat_interleave(number.cumsum(0) - number, number, output_size=len(owner))
        wide, shape = columns[piece].flatten()[owner], owner % counts.shape[1]
        down = within.div(wide, rounding_mode="floor")
        row, column = top[piece].flatten()[owner] + down, left[piece].flatten()[owner] + within - down * wide
        anchor = shapes.first[shape] + (row * shapes.columns[shape] + column) * shapes.step[shape]
        yield owner.div(counts.shape[1], rounding_mode="floor") + start, anchor
        start, before = end, ends[end - 1]


def _window(
    boxes: Tensor,
    need: Tensor,
    axis: int,
    first: Tensor,
    sides: Tensor,
    across: Tensor,
    stride: Tensor,
    count: Tensor,
) -> tuple[Tensor, Tensor]:
    """First place `[M, Q]` and number of places along one axis where the intersection can reach `need`.

    It is at most the overlap along this axis times the smaller side across it.
    """
    side = boxes[:, axis + 2, None] - boxes[:, axis, None]
    centre = (boxes[:, axis + 2, None] + boxes[:, axis, None]) / 2
    other = boxes[:, 3 - axis, None] - boxes[:, 1 - axis, None]
    overlap = _SLACK * need / torch.minimum(other, across).clamp(min=1e-6)
    reach = (side + sides) / 2 - overlap + _PIXELS
    low = ((centre - reach - first) / stride).ceil().clamp(min=0)
    high = ((centre + reach - first) / stride).floor().minimum(count - 1)
    possible = overlap <= torch.minimum(side, sides) + _PIXELS
    number = torch.where(possible, high - low + 1, 0).clamp(min=0)
    return low.long(), number.long()
