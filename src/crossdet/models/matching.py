"""Which anchor learns which box: IoU matching, ignored anchors and avoided regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from crossdet.types import BACKGROUND, IGNORE, REGION_FLAGS, Annotations

CHUNK_ENTRIES = 8_000_000
"""Entries of an anchors x boxes matrix held at once (32 MB): 2,000 faces must not need the whole matrix."""


class AnchorLabels(NamedTuple):
    """labels `[B, N]` int64 (class id, BACKGROUND, IGNORE); boxes `[F, 4]`: the box of every foreground anchor, in
    the order of `(labels >= 0).nonzero()`; avoid `[P, 3]` int64 rows (image, anchor, class or -1)."""

    labels: Tensor
    boxes: Tensor
    avoid: Tensor


def label_anchors(
    anchors: Tensor,
    targets: Sequence[Annotations],
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    low_quality_matches: bool = True,
) -> AnchorLabels:
    """Labels the anchors of every image of a batch.

    An anchor takes the class of the box with its largest IoU if that is >= `positive_iou`; it is background
    below `negative_iou` and ignored in between (RetinaNet sec. 4). With `low_quality_matches` the anchors that
    are best for a box are kept whatever their IoU, so that no box is without an anchor; as in torchvision,
    such an anchor still takes the box that is best for *it*.

    Region rows (crowds, ignore regions, AVOID) are matched to nothing: an anchor covered by one
    (intersection / anchor area >= 0.5) is listed under `avoid`.

    anchors: `[N, 4]` xyxy, the same for every image. targets: `B` annotations, pixels like the anchors.
    """
    labels, boxes, avoid = [], [], []
    for row, target in enumerate(targets):
        is_region = (target.flags & int(REGION_FLAGS)) != 0
        objects = ~is_region
        image_labels, matched = _match(
            anchors,
            target.boxes[objects],
            target.labels[objects],
            positive_iou,
            negative_iou,
            low_quality_matches,
        )
        labels.append(image_labels)
        boxes.append(target.boxes[objects][matched[image_labels >= 0]])
        if bool(is_region.any()):
            anchor, cls = _covered(anchors, target.boxes[is_region], target.labels[is_region])
            avoid.append(torch.stack([torch.full_like(anchor, row), anchor, cls], 1))
    none = anchors.new_zeros((0, 3), dtype=torch.int64)
    return AnchorLabels(torch.stack(labels), torch.cat(boxes), torch.cat(avoid) if avoid else none)


def _match(
    anchors: Tensor,
    boxes: Tensor,
    classes: Tensor,
    positive_iou: float,
    negative_iou: float,
    low_quality_matches: bool,
) -> tuple[Tensor, Tensor]:
    """`[N]` labels and `[N]` row of the best box of every anchor (0 where there is none)."""
    best = anchors.new_zeros(len(anchors))
    matched = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
    kept = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
    chunk = max(1, CHUNK_ENTRIES // max(1, len(anchors)))
    for start in range(0, len(boxes), chunk):
        iou = box_iou(boxes[start : start + chunk], anchors)
        chunk_best, chunk_row = iou.max(0)
        better = chunk_best > best  # strict: the first box wins a tie, as argmax over the whole matrix
        best = torch.where(better, chunk_best, best)
        matched = torch.where(better, chunk_row + start, matched)
        if low_quality_matches:
            best_of_box = iou.amax(1, keepdim=True)
            kept |= ((iou == best_of_box) & (best_of_box > 0)).any(0)
    labels = torch.full_like(matched, IGNORE)
    labels[best < negative_iou] = BACKGROUND
    positive = (best >= positive_iou) | kept
    labels[positive] = classes[matched[positive]]
    return labels, matched


def _covered(anchors: Tensor, regions: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Anchor rows and region labels of all pairs with intersection / anchor area >= 0.5."""
    area = box_area(anchors)
    rows, labels = [], []
    chunk = max(1, CHUNK_ENTRIES // max(1, len(anchors)))
    for start in range(0, len(regions), chunk):
        part = regions[start : start + chunk]
        low = torch.maximum(part[:, None, :2], anchors[None, :, :2])
        high = torch.minimum(part[:, None, 2:], anchors[None, :, 2:])
        inside = (high - low).clamp(min=0).prod(-1)
        region, anchor = (inside >= 0.5 * area).nonzero(as_tuple=True)
        rows.append(anchor)
        labels.append(classes[start + region])
    return torch.cat(rows), torch.cat(labels)
