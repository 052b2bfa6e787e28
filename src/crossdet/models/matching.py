"""Which anchor learns which box: IoU matching, ignored anchors and avoided regions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_area

from crossdet.types import BACKGROUND, IGNORE, REGION_FLAGS, Annotations

CHUNK_ENTRIES = 4_000_000
"""Box-anchor pairs held at once (16 MB per tensor): 2,000 faces must not need the whole matrix."""


class AnchorLabels(NamedTuple):
    """What every anchor of a batch learns.

    labels: `[B, N]` int64, class id, BACKGROUND or IGNORE. image, anchor: `[F]` int64, the foreground anchors, by
    image and then by anchor. boxes: `[F, 4]` the box of each. avoid: `[P, 3]` int64 rows (image, anchor, class
    or -1).
    """

    labels: Tensor
    image: Tensor
    anchor: Tensor
    boxes: Tensor
    avoid: Tensor


def label_anchors(
    anchors: Tensor,
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
    such an anchor still takes the box that is best for *it*.

    Region rows (crowds, ignore regions, AVOID) are matched to nothing: an anchor covered by one
    (intersection / anchor area >= 0.5) is listed under `avoid`.

    anchors: `[N, 4]` xyxy, the same for every image. targets: `B` annotations, pixels like the anchors.
    has_regions: whether there is any region row; None = look, which waits for the device.
    """
    counts = torch.tensor([len(target) for target in targets])
    order = counts.argsort(descending=True, stable=True)  # images with many boxes come first
    ranked = [targets[row] for row in order.tolist()]
    boxes = pad_sequence([t.boxes for t in ranked], batch_first=True)
    classes = pad_sequence([t.labels for t in ranked], batch_first=True)
    flags = pad_sequence([t.flags for t in ranked], batch_first=True)
    device = anchors.device
    row_of_image = order.argsort().to(device, non_blocking=True)
    region = (flags & int(REGION_FLAGS)) != 0
    exists = torch.arange(boxes.shape[1], device=device) < counts[order].to(device)[:, None]
    matched, best, kept = _match(anchors, boxes, exists & ~region, counts[order], low_quality_matches)
    labels = torch.where(
        (best >= positive_iou) | kept,
        classes.gather(1, matched) if classes.shape[1] else matched,
        torch.where(best < negative_iou, BACKGROUND, IGNORE),
    )
    labels, matched = labels[row_of_image], matched[row_of_image]
    image, anchor = (labels >= 0).nonzero(as_tuple=True)
    chosen = boxes[row_of_image[image], matched[image, anchor]]
    avoid = anchors.new_zeros((0, 3), dtype=torch.int64)
    if has_regions is None:
        has_regions = bool(region.any())
    if has_regions:
        avoid = _covered(anchors, boxes, classes, region, order.to(device))
    return AnchorLabels(labels, image, anchor, chosen, avoid)


def _chunks(counts: Tensor, anchors: int) -> Iterator[tuple[int, int, int]]:
    """(images, first box, end): columns of boxes to look at together, for as many images as have that many.

    counts: `[B]` boxes per image, falling. One image with 2,000 boxes does not make the others wait.
    """
    most = int(counts[0]) if len(counts) else 0
    start = 0
    while start < most:
        images = int((counts > start).sum())
        # until the next image runs out of boxes, or as many as fit
        until = int(counts[images - 1])
        end = min(max(start + 1, until), start + max(1, CHUNK_ENTRIES // (images * anchors)))
        yield images, start, end
        start = end


def _match(
    anchors: Tensor, boxes: Tensor, usable: Tensor, counts: Tensor, low_quality_matches: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`[B, N]`: row of the best box of every anchor (0 where there is none), its IoU, and whether it is kept
    because it is the best anchor of a box. Images by falling number of boxes."""
    shape = (len(boxes), len(anchors))
    best = anchors.new_zeros(shape)
    matched = torch.zeros(shape, dtype=torch.int64, device=anchors.device)
    kept = torch.zeros(shape, dtype=torch.bool, device=anchors.device)
    for images, start, end in _chunks(counts, len(anchors)):
        iou = _iou(boxes[:images, start:end], anchors)
        iou = iou.masked_fill_(~usable[:images, start:end, None], 0)
        chunk_best, column = iou.max(1)
        better = chunk_best > best[:images]  # strict: the first box wins a tie
        best[:images] = torch.where(better, chunk_best, best[:images])
        matched[:images] = torch.where(better, column + start, matched[:images])
        if low_quality_matches:
            best_of_box = iou.amax(2, keepdim=True)
            kept[:images] |= ((iou == best_of_box) & (best_of_box > 0)).any(1)
    return matched, best, kept


def _iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """`[B, M, N]` IoU of boxes `[B, M, 4]` and anchors `[N, 4]`."""
    inside = _intersection(boxes, anchors)
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return inside / (areas[..., None] + box_area(anchors) - inside)


def _intersection(boxes: Tensor, anchors: Tensor) -> Tensor:
    x1, y1, x2, y2 = (boxes[..., i, None] for i in range(4))
    left, top, right, bottom = anchors.unbind(1)
    width = (torch.minimum(x2, right) - torch.maximum(x1, left)).clamp_(min=0)
    height = (torch.minimum(y2, bottom) - torch.maximum(y1, top)).clamp_(min=0)
    return width.mul_(height)


def _covered(anchors: Tensor, boxes: Tensor, classes: Tensor, region: Tensor, order: Tensor) -> Tensor:
    """`[P, 3]` (image, anchor, class) of all region-anchor pairs with intersection / anchor area >= 0.5.

    boxes, classes, region: `[B, M, ...]`; row i is image `order[i]`.
    """
    image, column = region.nonzero(as_tuple=True)
    area = box_area(anchors)
    rows = []
    chunk = max(1, CHUNK_ENTRIES // max(1, len(anchors)))
    for start in range(0, len(image), chunk):
        part = image[start : start + chunk], column[start : start + chunk]
        inside = _intersection(boxes[part], anchors)
        one, anchor = (inside >= 0.5 * area).nonzero(as_tuple=True)
        rows.append(torch.stack([order[part[0][one]], anchor, classes[part][one]], 1))
    return torch.cat(rows) if rows else anchors.new_zeros((0, 3), dtype=torch.int64)
