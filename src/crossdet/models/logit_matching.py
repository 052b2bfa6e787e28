"""Holding a detector's logits of old classes at those of the detector that it was made from."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from crossdet.models.retinanet import RetinaNet
from crossdet.types import Batch

PER_IMAGE = 512
"""Anchors of an image whose logits are matched."""


def logit_matching(
    teacher: RetinaNet, weight: float, per_image: int = PER_IMAGE
) -> Callable[[RetinaNet, list[Tensor], Batch], Tensor]:
    """A loss term (detector, its pyramid features, batch) -> scalar that holds the classes of `teacher`.

    It looks at some anchors of each image: half are those where the teacher gives one of its classes the highest
    scores, half are spread evenly, most of them background. The term is the Kullback-Leibler divergence
    KL(teacher || detector) of one Bernoulli distribution per class, summed over classes and anchors, divided by
    max(1, the sum of the teacher's highest scores at the anchors) (its count of positives), times `weight`.

    The detector's classes begin with the teacher's, in the same order, and both have the same anchors. All class
    logits of the batch are held for the backward pass.
    """
    teacher.requires_grad_(False).eval()
    classes = teacher.num_classes

    def loss(detector: RetinaNet, features: list[Tensor], batch: Batch) -> Tensor:
        with torch.no_grad():
            wanted = _logits(teacher, teacher.features(batch.images), classes)
            best = wanted.amax(2).topk(min(per_image // 2, wanted.shape[1]), dim=1).indices
            even = torch.arange(
                0, wanted.shape[1], max(1, wanted.shape[1] // (per_image // 2)), device=wanted.device
            )
            picked = torch.cat([best, even.expand(len(wanted), -1)], 1)
        found = _logits(detector, features, classes)
        there = _at(wanted, picked)
        positives = there.sigmoid().amax(2).sum().clamp(min=1)
        return weight * bernoulli_divergence(there, _at(found, picked)).sum() / positives

    return loss


def bernoulli_divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """KL of sigmoid(wanted) from sigmoid(found), per entry; zero where they are equal, finite for finite
    logits.
    """
    p = wanted.sigmoid()
    cross = F.binary_cross_entropy_with_logits(found, p, reduction="none")
    return cross - F.binary_cross_entropy_with_logits(wanted, p, reduction="none")


def _logits(model: RetinaNet, features: list[Tensor], classes: int) -> Tensor:
    """`[B, N, K]` float32 logits of the first K classes at all anchors."""
    maps = [model.class_subnet(level).permute(0, 2, 3, 1) for level in features]
    by_anchor = [x.reshape(len(x), -1, model.num_classes)[..., :classes].float() for x in maps]
    return torch.cat(by_anchor, 1)


def _at(logits: Tensor, anchors: Tensor) -> Tensor:
    return logits.gather(1, anchors[..., None].expand(-1, -1, logits.shape[2]))
