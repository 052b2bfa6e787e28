"""Which anchor learns which box: IoU matching, ignored anchors and avoided regions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_area

from crossdet.models.retinanet.anchors import AnchorGrid, AnchorLabels, anchor_grid, pyramid_grids
from crossdet.models.retinanet.nearby import CHUNK_ENTRIES, Lattice, largest_iou, lattice, pairs_overlapping
from crossdet.models.retinanet.settings import PYRAMID_STRIDES
from crossdet.types import BACKGROUND, IGNORE, REGION_FLAGS, Annotations, Batch, Flag


def label_batch(
    batch: Batch, cells: Sequence[Tensor], positive_iou: float, negative_iou: float, low_quality_matches: bool
) -> Batch:
    """The batch with its anchors labelled: what the loader's workers do.

    So a training step neither matches nor waits for the device to count what was matched. cells: anchors per
    pyramid level, see `grid_anchors`; the rest as of `label_anchors`.
    """
    grids = pyramid_grids(batch.images.shape[-2], batch.images.shape[-1], len(cells))
    grid = anchor_grid(cells, grids, PYRAMID_STRIDES[: len(cells)])
    labelled = label_anchors(
        grid, batch.targets, positive_iou, negative_iou, low_quality_matches, batch.has_regions
    )
    per_shape = torch.bincount(labelled.anchor % len(cells[0]), minlength=len(cells[0])).tolist()
    return replace(batch, prepared=labelled._replace(per_shape=tuple(per_shape)))


DENSE_PAIRS = 1 << 25
"""Box-anchor pairs that `label_densely` looks at at once (128 MB per float32 tensor, of which four are held)."""


class Objects(NamedTuple):
    """The objects (no regions) of a batch: boxes `[M, 4]`, classes `[M]`, images `[M]`, rising.

    starts: `[B + 1]`, where the rows of each image begin and end.
    """

    boxes: Tensor
    classes: Tensor
    images: Tensor
    starts: Tensor


def label_anchors(
    grid: AnchorGrid,
    targets: Sequence[Annotations],
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    low_quality_matches: bool = True,
    has_regions: bool | None = None,
) -> AnchorLabels:
    """Labels the anchors of every image of a batch, all images at once.

    An anchor takes the class of the box with its largest IoU if that is >= `positive_iou`; it is background
    below `negative_iou` and ignored in between (RetinaNet sec. 4). With `low_quality_matches` the anchors that
    are best for a box are kept whatever their IoU, so that no box is without an anchor; as in torchvision,
    such an anchor still takes the box that is best for *it*. Between equal IoUs the first box wins; boxes that are
    the same (a face that is all that is seen of its person) take their anchors in turns, or the second class would
    have no positive.

    Region rows (crowds, ignore regions, AVOID) are matched to nothing. Listed under `avoid` are the anchors that an
    object somewhere in the region could have kept from being negatives (intersection / anchor area >=
    `negative_iou`, at most 0.5), and those that an object in its place would have: IoU >=
    `negative_iou`, and its best anchors whatever their IoU (a small box covers no anchor by as much). A teacher's
    region (`Flag.TEACHER`) says nothing about objects that no teacher labelled: their anchors are not listed.

    The result is that of the full matrix of boxes and anchors. On a CPU only pairs that can decide something are
    looked at (`pairs_overlapping`), in pieces. On a device finding them takes longer than the matrix, so there it
    is computed (`label_densely`), unless that of one image has more than `DENSE_PAIRS` entries.

    grid: `N` anchors, the same for every image. targets: `B` annotations, pixels like the anchors.
    has_regions: whether there is any region row; None = look.
    """
    images, anchors = len(targets), len(grid.boxes)
    device = grid.boxes.device
    if device.type != "cpu" and max(map(len, targets), default=0) * anchors <= DENSE_PAIRS:
        return label_densely(grid, targets, positive_iou, negative_iou, low_quality_matches, has_regions)
    counts = torch.tensor([len(target) for target in targets])
    owner = torch.repeat_interleave(torch.arange(images), counts).to(device)
    boxes, classes, flags = _joined(targets)
    region, by_teacher = ((flags & int(bits)) != 0 for bits in (REGION_FLAGS, Flag.TEACHER))
    has_regions = bool(region.any()) if has_regions is None else has_regions
    shapes = lattice(grid)
    avoid = doubtful = torch.zeros((0, 3), dtype=torch.int64, device=device)
    if has_regions:
        avoid, doubtful = (
            _avoided(grid, shapes, boxes[some], classes[some], owner[some], negative_iou)
            for some in (region & ~by_teacher, region & by_teacher)
        )
        boxes, classes, owner, by_teacher = boxes[~region], classes[~region], owner[~region], by_teacher[~region]
        counts = torch.bincount(owner, minlength=images).cpu()
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(device)
    objects = Objects(boxes, classes, owner, starts)
    best, matched, kept = _match(grid, shapes, objects, images, negative_iou, low_quality_matches)
    labels = torch.where(best < negative_iou, BACKGROUND, IGNORE)
    foreground = ((best >= positive_iou) | kept).nonzero().squeeze(1)
    row = matched[foreground]
    if len(doubtful):
        by_person = torch.zeros_like(kept)
        by_person[foreground] = ~by_teacher[row]
        avoid = torch.cat([avoid, doubtful[~by_person[doubtful[:, 0] * anchors + doubtful[:, 1]]]])
    row = _in_turns(row, _twins(objects)) if len(row) else row
    labels[foreground] = classes[row]
    image = foreground.div(anchors, rounding_mode="floor")
    sure = (best[foreground] >= negative_iou) & ~by_teacher[row]
    anchor = foreground - image * anchors
    return AnchorLabels(labels.view(images, anchors), image, anchor, boxes[row], avoid, sure=sure)


def label_densely(
    grid: AnchorGrid,
    targets: Sequence[Annotations],
    positive_iou: float,
    negative_iou: float,
    low_quality_matches: bool,
    has_regions: bool | None,
) -> AnchorLabels:
    """What `label_anchors` gives (`avoid` in another order) from the matrix of all boxes and anchors.

    It waits for the device once, to learn how many anchors are foreground; where there are regions, also for the
    avoided anchors of every piece.
    """
    boxes, classes, flags = _joined(targets)
    has_regions = bool(((flags & int(REGION_FLAGS)) != 0).any()) if has_regions is None else has_regions
    slots = _slots([len(target) for target in targets]).to(boxes.device, non_blocking=True)
    padded, flags = _with_spare(boxes)[slots], _with_spare(flags)[slots]
    region, by_teacher = ((flags & int(bits)) != 0 for bits in (REGION_FLAGS, Flag.TEACHER))
    count = len(grid.boxes)
    best, column, foreground = (
        torch.empty((len(targets), count), dtype=dtype, device=boxes.device)
        for dtype in (boxes.dtype, torch.int64, torch.bool)
    )
    avoid = [torch.zeros((0, 3), dtype=torch.int64, device=boxes.device)]
    step = max(1, DENSE_PAIRS // max(1, slots.shape[1] * count))
    for start in range(0, len(targets), step):
        piece = slice(start, start + step)
        inside, iou = _all_pairs(padded[piece], grid.boxes)
        best_of_box = (iou == iou.amax(2, keepdim=True)) & (iou > 0)
        if has_regions:
            covered = inside >= _enough(negative_iou) * box_area(grid.boxes)
            near = covered | (iou >= negative_iou) | best_of_box
            iou.masked_fill_(region[piece, :, None], 0)
            best_of_box.masked_fill_(region[piece, :, None], False)
        torch.max(iou, 1, out=(best[piece], column[piece]))  # of equal ones the first
        foreground[piece] = best[piece] >= positive_iou
        if low_quality_matches:
            foreground[piece] |= best_of_box.any(1)
        if has_regions:
            by_person = foreground[piece] & ~by_teacher[piece].gather(1, column[piece])
            near &= region[piece, :, None] & ~(by_teacher[piece, :, None] & by_person[:, None])
            image, place, anchor = near.nonzero(as_tuple=True)
            image += start
            avoid.append(torch.stack([image, anchor, classes[slots[image, place]]], 1))
    labels = torch.where(best < negative_iou, BACKGROUND, IGNORE)
    image, anchor = foreground.nonzero(as_tuple=True)
    twins = _twins_densely(padded, ~region)
    taken = _in_turns(image * slots.shape[1] + column[image, anchor], twins)
    row = slots.flatten()[taken]
    labels[image, anchor] = classes[row]
    sure = (best[image, anchor] >= negative_iou) & ~by_teacher.flatten()[taken]
    return AnchorLabels(labels, image, anchor, boxes[row], torch.cat(avoid), sure=sure)


class Twins(NamedTuple):
    """Boxes of one image that are the same. Of each row: its group, how many boxes it has, and where these begin
    in `order`, which lists all rows by group."""

    group: Tensor
    boxes: Tensor
    start: Tensor
    order: Tensor


def _in_turns(row: Tensor, twins: Twins | None) -> Tensor:
    """`[F]` rows of the boxes that foreground anchors take, out of the first ones `[F]` of several that are the
    same: the first anchor of a group takes its first box, the next one the second, and so on, round and round."""
    if twins is None:
        return row
    group, count, start = twins.group[row], twins.boxes[row], twins.start[row]
    in_order, by_group = group.sort(stable=True)
    turn = torch.empty_like(row)
    turn[by_group] = torch.arange(len(row), device=row.device) - torch.searchsorted(in_order, in_order)
    return twins.order[start + turn % count]


def _twins(objects: Objects) -> Twins | None:
    """None where all boxes differ; rows of objects."""
    keys = torch.cat([objects.images[:, None].to(objects.boxes.dtype), objects.boxes], 1)
    _, group, counts = torch.unique(keys, dim=0, return_inverse=True, return_counts=True)
    if int(counts.max()) == 1:
        return None
    return Twins(group, counts[group], (counts.cumsum(0) - counts)[group], group.argsort(stable=True))


def _twins_densely(boxes: Tensor, objects: Tensor) -> Twins:
    """Without waiting for the device; rows of boxes `[B, M, 4]`, flattened. objects `[B, M]`: no regions."""
    images, most = objects.shape
    same = objects[:, :, None] & objects[:, None]
    for side in boxes.unbind(2):
        same &= side[:, :, None] == side[:, None]
    places = torch.arange(most, device=boxes.device)
    same |= places[:, None] == places
    first, count = same.to(torch.uint8).argmax(2), same.sum(2)
    rank = (same & (places < places[:, None])).sum(2)
    own = torch.arange(images, device=boxes.device)[:, None] * most
    group = (first + own).flatten()
    order = (group * most + rank.flatten()).argsort()
    start = order.argsort() - rank.flatten()
    return Twins(group, count.flatten(), start, order)


def _joined(targets: Sequence[Annotations]) -> Iterator[Tensor]:
    """Boxes, labels and flags of all images, one after the other."""
    return (torch.cat([getattr(target, name) for target in targets]) for name in ("boxes", "labels", "flags"))


def _slots(counts: Sequence[int]) -> Tensor:
    """`[B, most]` rows of the boxes of each image, one after the other; their number where an image has fewer."""
    lengths = torch.tensor(counts)
    place = torch.arange(max(1, int(lengths.max())))
    rows = (lengths.cumsum(0) - lengths)[:, None] + place
    return torch.where(place < lengths[:, None], rows, sum(counts))


def _with_spare(rows: Tensor) -> Tensor:
    """One row of zeros more: a box that overlaps no anchor, and no flag."""
    return torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])])


def _all_pairs(boxes: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """`[B, M, N]` intersection and IoU of boxes `[B, M, 4]` and anchors `[N, 4]`."""
    inside = _intersection(boxes[:, :, None], anchors)
    areas = box_area(boxes.flatten(0, 1)).view(boxes.shape[:2])
    return inside, inside / (areas[..., None] + box_area(anchors) - inside)


def _match(
    grid: AnchorGrid, shapes: Lattice, objects: Objects, images: int, negative_iou: float, low_quality_matches: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`[B * N]` each: IoU of every anchor with its best box where it is at least `negative_iou` or the anchor is
    the best of a box (else less than that), the row of the box, and whether it is the best of a box."""
    count = len(grid.boxes)
    best = grid.boxes.new_zeros(images * count)
    matched = torch.zeros(images * count, dtype=torch.int64, device=best.device)
    kept = torch.zeros(images * count, dtype=torch.bool, device=best.device)
    boxes = objects.boxes
    if not len(boxes):
        return best, matched, kept
    least = boxes.new_full((len(boxes),), negative_iou)
    if low_quality_matches:
        least = least.minimum(largest_iou(shapes, boxes))
    for row, anchor in pairs_overlapping(shapes, boxes, _intersection_of(least, boxes, shapes)):
        iou = _iou(boxes[row], grid.boxes[anchor])
        key = objects.images[row] * count + anchor
        before = best[key]
        best.scatter_reduce_(0, key, iou, "amax")
        wins = (iou == best[key]) & (iou > before)  # of earlier pieces the first box wins a tie
        winner = key[wins]
        matched[winner] = len(boxes)
        matched.scatter_reduce_(0, winner, row[wins], "amin")
        if low_quality_matches:
            best_of_box = iou.new_zeros(len(boxes)).scatter_reduce_(0, row, iou, "amax")
            kept[key[(iou == best_of_box[row]) & (iou > 0)]] = True
    _rematch(grid, objects, best, matched, (kept & (best < negative_iou)).nonzero().squeeze(1))
    return best, matched, kept


def _intersection_of(iou: Tensor, boxes: Tensor, shapes: Lattice) -> Tensor:
    """`[M, Q]` intersection that a box of `[M, 4]` and an anchor of a shape have at the IoU `[M]`."""
    areas = box_area(boxes)[:, None] + shapes.width * shapes.height
    return (iou / (1 + iou))[:, None] * areas


def _rematch(grid: AnchorGrid, objects: Objects, best: Tensor, matched: Tensor, keys: Tensor) -> None:
    """The best box of anchors that are kept in spite of a small IoU: any box of the image may be it."""
    if not len(keys):
        return
    image = keys.div(len(grid.boxes), rounding_mode="floor")
    anchors = grid.boxes[keys - image * len(grid.boxes)]
    spans = (objects.starts[1:] - objects.starts[:-1]).tolist()
    padded = pad_sequence(list(objects.boxes.split(spans)), batch_first=True)
    areas = pad_sequence(list(box_area(objects.boxes).split(spans)), batch_first=True)
    step = max(1, CHUNK_ENTRIES // padded.shape[1])
    for start in range(0, len(keys), step):
        piece = slice(start, start + step)
        mine, some = image[piece], anchors[piece, None]
        inside = _intersection(padded[mine], some)
        # boxes of area 0 are padding
        iou = torch.where(areas[mine] > 0, inside / (areas[mine] + box_area(anchors[piece])[:, None] - inside), 0)
        value, column = iou.max(1)
        best[keys[piece]] = value
        matched[keys[piece]] = objects.starts[mine] + column


def _iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """`[P]` IoU of pairs of boxes and anchors, `[P, 4]` each."""
    inside = _intersection(boxes, anchors)
    return inside / (box_area(boxes) + box_area(anchors) - inside)


def _intersection(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Of boxes and anchors `[..., 4]` that broadcast."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    left, top, right, bottom = anchors.unbind(-1)
    width = (torch.minimum(x2, right) - torch.maximum(x1, left)).clamp_(min=0)
    height = (torch.minimum(y2, bottom) - torch.maximum(y1, top)).clamp_(min=0)
    return width.mul_(height)


def _enough(negative_iou: float) -> float:
    """Share of an anchor that a region covers, from which on an object in the region can make it no negative."""
    return min(0.5, negative_iou)


def _avoided(
    grid: AnchorGrid, shapes: Lattice, boxes: Tensor, classes: Tensor, images: Tensor, negative_iou: float
) -> Tensor:
    """`[P, 3]` (image, anchor, class) of the anchors that each region avoids: see `label_anchors`.

    boxes `[R, 4]`, classes, images `[R]`: the regions.
    """
    enough = (_enough(negative_iou) * shapes.width * shapes.height).expand(len(boxes), -1)
    least = boxes.new_full((len(boxes),), negative_iou).minimum(largest_iou(shapes, boxes))
    rows = [torch.zeros((0, 3), dtype=torch.int64, device=boxes.device)]
    for row, anchor in pairs_overlapping(shapes, boxes, enough.minimum(_intersection_of(least, boxes, shapes))):
        inside = _intersection(boxes[row], grid.boxes[anchor])
        area = box_area(grid.boxes[anchor])
        iou = inside / (area + box_area(boxes)[row] - inside)
        best = iou.new_zeros(len(boxes)).scatter_reduce_(0, row, iou, "amax")[row]
        avoided = (inside >= _enough(negative_iou) * area) | (iou >= negative_iou) | ((iou == best) & (iou > 0))
        row, anchor = row[avoided], anchor[avoided]
        rows.append(torch.stack([images[row], anchor, classes[row]], 1))
    return torch.cat(rows)
