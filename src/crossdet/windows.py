"""Large pictures in windows: where they lie, and one list of detections out of what was found in each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from crossdet.errors import UserError, show
from crossdet.models.contract import Limits
from crossdet.models.detecting import nms_within
from crossdet.types import Detections

OVERLAP = 0.2
SMALLEST, MOST_OVERLAP = 32, 0.9
TOUCH, TOUCH_SHARE = 2.0, 0.1
"""A side so near to a seam, in pixels or as a share of the box's extent, counts as cut by it."""


class Window(NamedTuple):
    """A part of a picture: columns x1 to x2 and rows y1 to y2, in pixels, half-open."""

    x1: int
    y1: int
    x2: int
    y2: int

    def of(self, picture: Tensor) -> Tensor:
        """`[3, h, w]` of a picture `[3, H, W]`, without copying; the picture itself where it is all of it."""
        return picture[:, self.y1 : self.y2, self.x1 : self.x2]


@dataclass(frozen=True)
class Tiling:
    """Square windows of `side` pixels that overlap by at least the share `overlap` of it."""

    side: int
    overlap: float = OVERLAP

    @classmethod
    def of(cls, tile: int | None, overlap: float | None) -> Tiling | None:
        """None where no tile is asked for. Raises `UserError` that names every mistake."""
        problems = []
        if tile is not None and (isinstance(tile, bool) or not isinstance(tile, int) or tile < SMALLEST):
            problems.append(f"tile: expected a whole number of pixels from {SMALLEST} on, got {show(tile)}")
        if overlap is not None and not 0 <= overlap <= MOST_OVERLAP:
            problems.append(f"overlap: expected a share of the tile from 0 to {MOST_OVERLAP}, got {show(overlap)}")
        if overlap is not None and tile is None:
            problems.append("overlap: it says by how much tiles overlap; give tile (such as 640), too")
        if problems:
            raise UserError("; ".join(problems))
        return None if tile is None else cls(tile, OVERLAP if overlap is None else float(overlap))

    def windows(self, height: int, width: int) -> list[Window]:
        """Row by row, as few as cover the picture, evenly spread. A side of the picture that is no longer than the
        tile is not divided."""
        rows, columns = self._starts(height), self._starts(width)
        return [Window(x, y, min(x + self.side, width), min(y + self.side, height)) for y in rows for x in columns]

    def _starts(self, length: int) -> list[int]:
        if length <= self.side:
            return [0]
        step = self.side - ceil(self.overlap * self.side)
        count = ceil((length - self.side) / step) + 1
        return [(length - self.side) * number // (count - 1) for number in range(count)]


def join(
    found: Sequence[Detections],
    windows: Sequence[Window],
    limits: Limits,
    most: int | None = None,
    suppresses: bool = True,
) -> Detections:
    """The detections of a picture from those of its windows (boxes in pixels of each window), by falling score.

    Detections of two windows are one object if they agree about the part of the picture that both windows see: of
    one class (`Limits.rivals`), and with an IoU, of their boxes inside that part, of `nms_iou` or more. A box that
    ends at the seam beyond which the other window sees more is a piece; it agrees also if so much of it lies inside
    the other's box. (Plain NMS compares whole boxes, and a piece has a small IoU with its object.) Pairs are joined
    from the best agreement on, and never two detections of one window: it has told them apart.

    most: detections of the picture; None: all, of which each window has `Limits.max_detections` at most.
    suppresses: where non-maximum suppression was used in each window, it is of the joined boxes, too: what two
    windows find of one object need not agree pair by pair, and what one told apart may lie at another's better box.

    An object has its best score. Its box is that of its best detection which no seam cuts, unchanged; where all are
    pieces, as of an object larger than the overlap may be, the smallest box around them.
    """
    if len(windows) == 1:
        return found[0]
    parts = [
        Detections(one.boxes + one.boxes.new_tensor([w.x1, w.y1, w.x1, w.y1]), one.scores, one.labels)
        for one, w in zip(found, windows, strict=True)
    ]
    boxes, scores = torch.cat([part.boxes for part in parts]), torch.cat([part.scores for part in parts])
    window = np.repeat(np.arange(len(windows)), [len(part) for part in parts])
    touching = torch.cat([_touching(part.boxes, w) for part, w in zip(parts, windows, strict=True)])
    objects = _objects(window, _agreeing(parts, windows, touching, limits))
    cut = (touching & _inner(windows)[torch.from_numpy(window)]).any(1)
    rank = np.empty(len(scores), np.int64)
    rank[scores.argsort(descending=True, stable=True).numpy()] = np.arange(len(scores))
    best = sorted((sorted(members, key=rank.__getitem__) for members in objects), key=lambda rows: rank[rows[0]])
    joined = [_box(boxes[members], cut[members]) for members in best]
    first = torch.tensor([members[0] for members in best], dtype=torch.int64)
    angles = None if found[0].angles is None else torch.cat([o.angles for o in found if o.angles is not None])
    names = [name for one in found for name in one.names or ()]
    whole = Detections(
        torch.stack(joined) if joined else boxes[first],
        scores[first],
        torch.cat([part.labels for part in parts])[first],
        None if found[0].names is None else tuple(names[row] for row in first.tolist()),
        None if angles is None else angles[first],
    )
    if suppresses or limits.agnostic_nms:
        rows = nms_within(whole.boxes, whole.scores, limits.rivals(whole.labels), limits.nms_iou)
        whole = whole[rows.sort().values]
    return whole[:most]


def _touching(boxes: Tensor, window: Window) -> Tensor:
    """`[n, 4]` bool: which sides of the boxes (pixels of the picture) lie at the window's."""
    extent = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return (boxes - boxes.new_tensor(window)).abs() <= (TOUCH_SHARE * extent).clamp(min=TOUCH)


def _inner(windows: Sequence[Window]) -> Tensor:
    """`[W, 4]` bool: which sides of the windows are seams and not sides of the picture."""
    sides = torch.tensor(windows)
    return torch.cat([sides[:, :2] > sides[:, :2].amin(0), sides[:, 2:] < sides[:, 2:].amax(0)], 1)


def _neighbours(windows: Sequence[Window]) -> Iterator[tuple[int, int, Tensor]]:
    """Pairs of windows that share pixels, and the window of these, `[4]`."""
    sides = torch.tensor(windows)
    for one in range(len(windows)):
        low = torch.maximum(sides[one, :2], sides[one + 1 :, :2])
        high = torch.minimum(sides[one, 2:], sides[one + 1 :, 2:])
        for other in (high > low).all(1).nonzero().flatten().tolist():
            yield one, one + 1 + other, torch.cat([low[other], high[other]])


def _agreeing(
    parts: Sequence[Detections], windows: Sequence[Window], touching: Tensor, limits: Limits
) -> list[tuple[int, int]]:
    """Pairs of detections, by their rows in all of them, that are one object; the best agreement first."""
    starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
    pairs: list[tuple[int, int]] = []
    agreements: list[float] = []
    for one, other, shared in _neighbours(windows):
        if not (len(parts[one]) and len(parts[other])):
            continue
        inside, cut = [], []
        for here, there in ((one, other), (other, one)):
            low, high = shared[:2].repeat(2), shared[2:].repeat(2)
            inside.append(parts[here].boxes.clamp(low, high))
            a, b = torch.tensor(windows[here]), torch.tensor(windows[there])
            beyond = torch.cat([b[:2] < a[:2], b[2:] > a[2:]])
            cut.append((touching[starts[here] : starts[here + 1]] & beyond).any(1))
        iou, covered = _overlaps(inside[0], inside[1], cut[0], cut[1])
        rivals = [limits.rivals(parts[number].labels) for number in (one, other)]
        agreement = torch.maximum(iou, covered)  # above 0 also where any overlap suppresses
        same = (rivals[0][:, None] == rivals[1]) & (agreement >= limits.nms_iou) & (agreement > 0)
        rows, columns = same.nonzero(as_tuple=True)
        agreements += iou[rows, columns].tolist()
        pairs += zip((rows + starts[one]).tolist(), (columns + starts[other]).tolist(), strict=True)
    return [pairs[row] for row in sorted(range(len(pairs)), key=lambda row: -agreements[row])]


def _overlaps(a: Tensor, b: Tensor, cut_a: Tensor, cut_b: Tensor) -> tuple[Tensor, Tensor]:
    """`[n, m]` IoU of boxes, and the largest share of a cut one of the two that lies inside the other; 0 of boxes
    without area."""
    size = (torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])).clamp(min=0)
    shared = size.prod(2)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b))
    of_a = torch.where(cut_a, shared.T / area_a, 0.0).T
    of_b = torch.where(cut_b, shared / area_b, 0.0)
    return box_iou(a, b).nan_to_num(0.0), torch.maximum(of_a, of_b).nan_to_num(0.0)


def _objects(window: np.ndarray, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Rows of detections by object: pairs joined in their order, none with two detections of one window."""
    members = {row: [row] for row in range(len(window))}
    object_of = list(range(len(window)))
    for a, b in pairs:
        one, other = object_of[a], object_of[b]
        if one == other or {window[row] for row in members[one]} & {window[row] for row in members[other]}:
            continue
        for row in members[other]:
            object_of[row] = one
        members[one] += members.pop(other)
    return list(members.values())


def _box(boxes: Tensor, cut: Tensor) -> Tensor:
    """`[4]` of one object from its detections `[n, 4]`, the best first."""
    whole = boxes[~cut]
    return whole[0] if len(whole) else torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])
