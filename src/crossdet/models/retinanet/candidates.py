"""From scores of all anchors to detections: the best pairs of each level, and NMS over all levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from crossdet.models.contract import Limits
from crossdet.types import Detections


class Candidates(NamedTuple):
    """The best pairs of one level of one image: scores `[n]`, anchor rows `[n]`, unified class ids `[n]`."""

    scores: Tensor
    anchor: Tensor
    label: Tensor


class Boxes(NamedTuple):
    """Decoded candidates: boxes `[n, 4]`, scores `[n]`, labels `[n]`."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def best_candidates(logits: Tensor, classes: Tensor, limits: Limits) -> Candidates:
    """The `topk` best pairs above the threshold of `logits [n, K]`; equal ones by anchor, then by class.

    classes: `[K]` ids of the columns.
    """
    scores = logits.float().sigmoid()
    pairs = (scores > limits.threshold_of(classes)).flatten().nonzero().squeeze(1)
    kept, order = scores.flatten()[pairs].sort(descending=True, stable=True)
    pairs = pairs[order[: limits.topk]]
    width = max(1, logits.shape[1])
    return Candidates(kept[: limits.topk], pairs.div(width, rounding_mode="floor"), classes[pairs % width])


def merged(known: Candidates | None, more: Candidates, topk: int) -> Candidates:
    if known is None:
        return more
    scores, anchor, label = (torch.cat(pair) for pair in zip(known, more, strict=True))
    order = torch.argsort(anchor, stable=True)  # the classes come in order already
    order = order[scores[order].sort(descending=True, stable=True).indices[:topk]]
    return Candidates(scores[order], anchor[order], label[order])


def detections_of(levels: Sequence[Boxes], size: Tensor, limits: Limits) -> Detections:
    """Boxes of all levels clipped to the image, NMS, and the cap. size: `[2]` (height, width)."""
    boxes, scores, labels = (torch.cat(parts) for parts in zip(*levels, strict=True))
    high = torch.stack([size[1], size[0], size[1], size[0]]).to(boxes.dtype)
    boxes = boxes.clamp(min=0).minimum(high)
    visible = (boxes[:, 2:] > boxes[:, :2]).all(1)
    boxes, scores, labels = boxes[visible], scores[visible], labels[visible]
    keep = batched_nms(boxes, scores, limits.rivals(labels), limits.nms_iou)[: limits.max_detections]
    return Detections(boxes[keep], scores[keep], labels[keep])
