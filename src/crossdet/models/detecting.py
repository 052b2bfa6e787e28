"""Suppression within groups; and what graphs from pictures to detections have in common
(`Network.detection_module`): choosing without loops over images, in tensors whose shapes do not depend on what is
seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms, nms

from crossdet.models.contract import Limits

NOTHING = -1
"""Label of a row that is no detection."""
HIGHEST_SCORE = 1.0
"""A threshold above it says that a class is not looked for."""


def nms_within(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> Tensor:
    """Rows that non-maximum suppression leaves, by falling score; those of one group suppress each other where
    their IoU is above `iou`. boxes: `[n, 4]` xyxy, scores: `[n]`, groups: `[n]` integers.

    torchvision moves each group to a place of its own, by what it adds to the coordinates. float64 keeps them
    exact; in float32 those of the 2,000th class on a picture of 1,333 pixels are rounded to quarters of a pixel.
    """
    if boxes.device.type == "mps":  # it has no float64
        return nms_within(boxes.cpu(), scores.cpu(), groups.cpu(), iou).to(boxes.device)
    return batched_nms(boxes.double(), scores.double(), groups, iou)


class Found(NamedTuple):
    """A batch, each image with the same number of rows, by falling score: boxes `[B, M, 4]` xyxy in pixels, scores
    `[B, M]`, labels `[B, M]` int64. Rows without a detection come last: zeros with the label `NOTHING`."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def best_columns(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """`[B, most]` of scores `[B, n]` by falling score, and their columns; fewer where n is a smaller constant."""
    count = scores.shape[1]
    if isinstance(count, int):
        return scores.topk(min(most, count), dim=1)
    best, columns = F.pad(scores, (0, most)).topk(most, dim=1)  # a graph for any size: always `most`
    return best, columns.clamp(max=count - 1)


def rows_at(values: Tensor, rows: Tensor) -> Tensor:
    """`[B, n, ...]` of `values [B, N, ...]` at rows `[B, n]`."""
    more = (1,) * (values.dim() - 2)
    return values.gather(1, rows.view(*rows.shape, *more).expand(-1, -1, *values.shape[2:]))


def clipped(boxes: Tensor, size: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
    """Boxes `[B, N, 4]` cut at the borders of the image, and `[B, N]` bool: what has an area left. size: (height,
    width) in pixels, of all images or `[B, 2]` of each."""
    if isinstance(size, Tensor):
        edges = size.flip(1).repeat(1, 2)[:, None].to(boxes.dtype)
        boxes = torch.minimum(boxes.clamp(min=0), edges)
    else:
        height, width = size
        boxes = torch.stack([boxes[..., i].clamp(min=0).clamp(max=(width, height)[i % 2]) for i in range(4)], -1)
    return boxes, (boxes[..., 2:] > boxes[..., :2]).all(2)


def found_of(
    boxes: Tensor, scores: Tensor, labels: Tensor, size: Sequence[int] | Tensor, limits: Limits, groups: int
) -> Found:
    """The best candidates (scores of 0: none) with boxes clipped to the image, after suppression where there are
    groups.

    boxes: `[B, N, 4]`. scores, labels: `[B, N]`. size: as of `clipped`. groups: of `Limits.rivals`; 0:
    nothing is suppressed.
    """
    boxes, visible = clipped(boxes, size)
    scores = torch.where(visible, scores, 0.0)
    if groups:
        rivals = limits.rivals(labels)
        mask = kept(boxes, scores, rivals, groups, limits.nms_iou, limits.max_detections)
        scores = torch.where(mask, scores, 0.0)
    best, rows = best_columns(scores, limits.max_detections)
    some = best > 0
    return Found(
        torch.where(some[..., None], rows_at(boxes, rows), 0.0),
        best,
        torch.where(some, rows_at(labels, rows), NOTHING),
    )


@torch.library.custom_op("crossdet::kept", mutates_args=())
def kept(boxes: Tensor, scores: Tensor, groups: Tensor, count: int, iou: float, most: int) -> Tensor:
    """`[B, N]` bool: what non-maximum suppression leaves of candidates with a score above 0. ONNX has it for
    batches, torch for single images; one operator is what an exporter can translate.

    boxes: `[B, N, 4]` xyxy. scores: `[B, N]`. groups: `[B, N]` int64 below `count`; those of one group
    suppress each other where their IoU is above `iou`. most: of every group.
    """
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for image in range(len(boxes)):
        for group in range(count):
            rows = ((groups[image] == group) & (scores[image] > 0)).nonzero().squeeze(1)
            mask[image, rows[nms(boxes[image, rows], scores[image, rows], iou)[:most]]] = True
    return mask


kept.register_fake(lambda _boxes, scores, *_: torch.empty_like(scores, dtype=torch.bool))
