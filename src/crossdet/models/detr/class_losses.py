"""Class losses of set-prediction detectors as two functions each: of a negative, and of what a positive aims at."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ClassLoss(NamedTuple):
    """negative: (logits, alpha, gamma) -> the term of every logit as a negative, same shape.
    positive: (logits `[P]`, IoU `[P]`, alpha, gamma) -> `[P]` targets of the objects' own classes, without
    gradient, and factors of their cross-entropies, `[P]` or 1.

    Finite for every finite logit: none takes the logarithm of a probability.
    """

    negative: Callable[[Tensor, float, float], Tensor]
    positive: Callable[[Tensor, Tensor, float, float], tuple[Tensor, Tensor | int]]


def _modulated(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """`alpha p^gamma softplus(logit)`, the factor without gradient."""
    return alpha * logits.detach().sigmoid().pow(gamma) * F.softplus(logits)


def _varifocal(_logits: Tensor, iou: Tensor, _alpha: float, _gamma: float) -> tuple[Tensor, Tensor]:
    return iou, iou


def _matchability_aware(_logits: Tensor, iou: Tensor, _alpha: float, gamma: float) -> tuple[Tensor, int]:
    return iou.pow(gamma), 1


def _squared(logits: Tensor, _alpha: float, gamma: float) -> Tensor:
    return logits.sigmoid().pow(gamma) * F.softplus(logits)


def _iou_aware(logits: Tensor, iou: Tensor, alpha: float, _gamma: float) -> tuple[Tensor, int]:
    return (logits.detach().sigmoid().pow(alpha) * iou.pow(1 - alpha)).clamp(min=0.01), 1


CLASS_LOSSES = {
    "vfl": ClassLoss(_modulated, _varifocal),
    "mal": ClassLoss(_modulated, _matchability_aware),
    "iou_aware": ClassLoss(_squared, _iou_aware),
}
"""vfl: varifocal loss (arXiv 2008.13367) of RT-DETR and D-FINE. mal: matchability-aware loss of DEIM (arXiv
2412.04234). iou_aware: IoU-aware binary cross-entropy of LW-DETR and RF-DETR (arXiv 2406.03459), whose negatives'
factor has a gradient."""


def class_sums(
    kind: str,
    logits: Tensor,
    negative: Tensor,
    image: Tensor,
    query: Tensor,
    own: Tensor,
    iou: Tensor,
    alpha: float,
    gamma: float,
    only_up: Tensor | None = None,
) -> Tensor:
    """`[B]`: sums over queries and classes.

    logits: `[B, N, C]` floating point, finite. negative: `[B, N, C]` weights, 0 at a positive's own class. image,
    query, own: `[P]` of the positives, with their IoU `[P]`. only_up: `[P]` bool, positives whose scores may rise
    and not fall, see `negatives.spare_beside_objects`.
    """
    loss = CLASS_LOSSES[kind]
    sums = (loss.negative(logits, alpha, gamma) * negative.to(logits.dtype)).sum((1, 2))
    positive = logits[image, query, own]
    target, factor = loss.positive(positive, iou.detach().to(logits.dtype), alpha, gamma)
    if only_up is not None:  # 0 and not a target that is the score: rounding would leave a gradient
        factor = torch.where(only_up & (positive.detach().sigmoid() >= target), 0.0, factor)
    terms = factor * (F.softplus(positive) - target * positive)
    return torch.index_add(sums, 0, image, terms)
