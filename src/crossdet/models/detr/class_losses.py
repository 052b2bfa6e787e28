"""Class losses of set-prediction detectors as two functions each: of a negative, and of a positive with its IoU."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ClassLoss(NamedTuple):
    """negative: (logits, alpha, gamma) -> the term of every logit as a negative, same shape.
    positive: (logits `[P]`, IoU `[P]`, alpha, gamma) -> `[P]` terms of the objects' own classes.

    Finite for every finite logit: none takes the logarithm of a probability.
    """

    negative: Callable[[Tensor, float, float], Tensor]
    positive: Callable[[Tensor, Tensor, float, float], Tensor]


def _modulated(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """`alpha p^gamma softplus(logit)`, the factor without gradient."""
    return alpha * logits.detach().sigmoid().pow(gamma) * F.softplus(logits)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.softplus(logits) - target * logits


def _varifocal(logits: Tensor, iou: Tensor, _alpha: float, _gamma: float) -> Tensor:
    return iou * _cross_entropy(logits, iou)


def _matchability_aware(logits: Tensor, iou: Tensor, _alpha: float, gamma: float) -> Tensor:
    return _cross_entropy(logits, iou.pow(gamma))


def _squared(logits: Tensor, _alpha: float, gamma: float) -> Tensor:
    return logits.sigmoid().pow(gamma) * F.softplus(logits)


def _iou_aware(logits: Tensor, iou: Tensor, alpha: float, _gamma: float) -> Tensor:
    target = (logits.sigmoid().pow(alpha) * iou.pow(1 - alpha)).clamp(min=0.01).detach()
    return _cross_entropy(logits, target)


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
) -> Tensor:
    """`[B]`: sums over queries and classes.

    logits: `[B, N, C]` floating point, finite. negative: `[B, N, C]` weights, 0 at a positive's own class. image,
    query, own: `[P]` of the positives, with their IoU `[P]`.
    """
    loss = CLASS_LOSSES[kind]
    sums = (loss.negative(logits, alpha, gamma) * negative.to(logits.dtype)).sum((1, 2))
    terms = loss.positive(logits[image, query, own], iou.detach().to(logits.dtype), alpha, gamma)
    return torch.index_add(sums, 0, image, terms)
