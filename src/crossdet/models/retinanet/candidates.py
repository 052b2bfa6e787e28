"""From scores of all anchors to detections: the best pairs of each level, and NMS over all levels.

Everything but NMS is done for all images of a batch at once. On a GPU a loop over images and levels would start
kernels, and wait for what they find, more often than the network does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from crossdet.models.contract import Limits
from crossdet.models.detecting import nms_within
from crossdet.types import Detections


class Candidates(NamedTuple):
    """The best pairs of one level, by image and then by falling score: scores `[n]`, images `[n]` (rows of the
    batch), anchor rows `[n]`, unified class ids `[n]`."""

    scores: Tensor
    image: Tensor
    anchor: Tensor
    label: Tensor


class Boxes(NamedTuple):
    """Decoded candidates: boxes `[n, 4]`, scores `[n]`, images `[n]`, labels `[n]`."""

    boxes: Tensor
    scores: Tensor
    image: Tensor
    labels: Tensor


def best_candidates(logits: Tensor, classes: Tensor, limits: Limits) -> Candidates:
    """The `topk` best pairs of every image above the threshold of `logits [B, N, K]`; equal ones by anchor, then by
    class.

    classes: `[K]` ids of the columns.
    """
    images, anchors, width = logits.shape
    scores = logits.float().sigmoid()
    pairs = (scores > limits.threshold_of(classes)).flatten().nonzero().squeeze(1)
    image = pairs.div(max(1, anchors * width), rounding_mode="floor")
    kept = scores.flatten()[pairs]
    if len(pairs) > images * limits.topk:
        rows = _not_below_the_last(kept, image, images, limits.topk)
        pairs, image, kept = pairs[rows], image[rows], kept[rows]
    anchor = pairs.div(max(1, width), rounding_mode="floor") - image * anchors
    return _best(Candidates(kept, image, anchor, classes[pairs % max(1, width)]), images, limits.topk)


def _not_below_the_last(scores: Tensor, image: Tensor, images: int, most: int) -> Tensor:
    """Rows of the `most` highest scores of each image, and of those that equal the last of these. Selecting is
    cheaper than sorting all. scores: `[n]`, image: `[n]` rising."""
    place = torch.arange(len(image), device=image.device) - _begins(image, images)[image]
    padded = scores.new_zeros(images, max(most, int(place.max()) + 1))
    padded[image, place] = scores
    return (scores >= padded.topk(most).values[:, -1][image]).nonzero().squeeze(1)


def merged(known: Candidates | None, more: Candidates, images: int, topk: int) -> Candidates:
    """images: B. `more` are of classes that come after those of `known`."""
    if known is None:
        return more
    both = Candidates(*(torch.cat(pair) for pair in zip(known, more, strict=True)))
    return _best(_rows(both, torch.argsort(both.anchor, stable=True)), images, topk)


def _best(found: Candidates, images: int, most: int) -> Candidates:
    """Of each image the `most` with the highest scores; equal ones in the order in which they come."""
    order = found.scores.sort(descending=True, stable=True).indices
    order = order[found.image[order].sort(stable=True).indices]
    if len(order) <= most:
        return _rows(found, order)
    image = found.image[order]
    rank = torch.arange(len(order), device=image.device) - _begins(image, images)[image]
    return _rows(found, order[rank < most])


def _begins(image: Tensor, images: int) -> Tensor:
    """`[images]`: the first row of every image in `image [n]`, which rises."""
    return torch.searchsorted(image, torch.arange(images, device=image.device))


def _rows(found: Candidates, rows: Tensor) -> Candidates:
    return Candidates(*(values[rows] for values in found))


def detections_of(levels: Sequence[Boxes], sizes: Tensor, limits: Limits) -> list[Detections]:
    """Boxes of all levels clipped to their image, NMS, and the cap. sizes: `[B, 2]` (height, width)."""
    boxes, scores, image, labels = (torch.cat(parts) for parts in zip(*levels, strict=True))
    boxes = boxes.clamp(min=0).minimum(sizes.flip(1).repeat(1, 2).to(boxes.dtype)[image])
    rows = (boxes[:, 2:] > boxes[:, :2]).all(1).nonzero().squeeze(1)
    rows = rows[image[rows].sort(stable=True).indices]
    boxes, scores, image, labels = boxes[rows], scores[rows], image[rows], labels[rows]
    ends = torch.searchsorted(image, torch.arange(len(sizes), device=image.device), right=True).tolist()
    found = []
    for begin, end in zip([0, *ends], ends, strict=False):
        one = Detections(boxes[begin:end], scores[begin:end], labels[begin:end])
        keep = nms_within(one.boxes, one.scores, limits.rivals(one.labels), limits.nms_iou)
        keep = keep[: limits.max_detections]
        found.append(Detections(one.boxes[keep], one.scores[keep], one.labels[keep]))
    return found
