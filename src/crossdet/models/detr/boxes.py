"""Boxes of set-prediction detectors: (x, y, width, height) of the centre, in shares of the image's frame."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-12
"""Least area to divide by: two empty boxes have IoU 0."""


def corners(boxes: Tensor) -> Tensor:
    """`[..., 4]` centre, width, height -> xyxy."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def centres(boxes: Tensor) -> Tensor:
    """`[..., 4]` xyxy -> centre, width, height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def inverse_sigmoid(share: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of a share, which is kept `eps` away from 0 and 1."""
    share = share.clamp(0, 1)
    return torch.log(share.clamp(min=eps) / (1 - share).clamp(min=eps))


def area(boxes: Tensor) -> Tensor:
    """`[...]` of xyxy boxes `[..., 4]`."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(one: Tensor, other: Tensor) -> Tensor:
    """`[...]` area that xyxy boxes `[..., 4]` share, which broadcast."""
    low = torch.maximum(one[..., :2], other[..., :2])
    high = torch.minimum(one[..., 2:], other[..., 2:])
    return (high - low).clamp(min=0).prod(-1)


def iou(one: Tensor, other: Tensor) -> Tensor:
    """`[...]` IoU of xyxy boxes `[..., 4]`, which broadcast."""
    both = intersection(one, other)
    return both / (area(one) + area(other) - both).clamp(min=TINY)


def generalised_iou(one: Tensor, other: Tensor) -> Tensor:
    """`[...]` GIoU (Rezatofighi et al., arXiv 1902.09630) of xyxy boxes `[..., 4]`, which broadcast."""
    both = intersection(one, other)
    union = area(one) + area(other) - both
    low = torch.minimum(one[..., :2], other[..., :2])
    high = torch.maximum(one[..., 2:], other[..., 2:])
    hull = (high - low).prod(-1)
    return both / union.clamp(min=TINY) - (hull - union) / hull.clamp(min=TINY)
