"""Holding a detector's answers about old classes, logits and boxes, at those of the detector it was made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from crossdet.losses import smooth_l1
from crossdet.types import Batch

if TYPE_CHECKING:
    from crossdet.models.retinanet.network import Outputs, RetinaNet

PER_IMAGE = 512
"""Anchors of an image whose answers are matched."""
SURE = 0.05
"""Above this highest score of the teacher an anchor shows something; its box is matched, and it is counted."""


def logit_matching(
    teacher: RetinaNet, weight: float, per_image: int = PER_IMAGE
) -> Callable[[RetinaNet, list[Tensor], Batch], Tensor]:
    """A loss term (detector, its pyramid features, batch) -> scalar that holds the classes of `teacher`.

    It looks at some anchors of each image: half are those where the teacher gives one of its classes the highest
    scores, half are spread evenly, most of them background. The term is `weight` times `matching_loss` of these,
    with corner and weight of the detector's own box loss. Boxes are matched because the box subnet is shared by all
    classes: the boxes of new ones move it.

    The detector's classes begin with the teacher's, in the same order, and both have the same anchors. All class
    logits and box deltas of the batch are held for the backward pass.
    """
    teacher.requires_grad_(False).eval()
    classes = teacher.num_classes

    def loss(detector: RetinaNet, features: list[Tensor], batch: Batch) -> Tensor:
        with torch.no_grad():
            wanted, wanted_deltas = _answers(teacher(batch.images), classes)
            best = wanted.amax(2).topk(min(per_image // 2, wanted.shape[1]), dim=1).indices
            even = torch.arange(
                0, wanted.shape[1], max(1, wanted.shape[1] // (per_image // 2)), device=wanted.device
            )
            picked = torch.cat([best, even.expand(len(wanted), -1)], 1)
        found, found_deltas = _answers(detector.head(features), classes)
        return weight * matching_loss(
            _at(wanted, picked),
            _at(found, picked),
            _at(wanted_deltas, picked),
            _at(found_deltas, picked),
            detector.settings.loss.box_beta,
            detector.settings.loss.box_weight,
        )

    return loss


def matching_loss(
    wanted: Tensor,
    found: Tensor,
    wanted_deltas: Tensor,
    found_deltas: Tensor,
    box_beta: float = 1 / 9,
    box_weight: float = 1.0,
) -> Tensor:
    """How far a detector's answers at some anchors are from its teacher's, a scalar; 0 where they are equal.

    With p the teacher's highest score at an anchor where that is above `SURE`, else 0:

        (sum of KL(teacher || detector) + box_weight * sum of p * smooth L1 of the deltas) / max(1, sum of p)

    KL is that of one Bernoulli distribution per class, over all anchors: background is held at the teacher's
    scores, too, but not counted, or its many scores of 0.01 would make up the divisor. The sum of p stands for the
    teacher's count of positives.

    Class and box answers of the old detector are matched together as in Shmelkov et al. (arXiv 1708.06977: squared
    differences, at proposals) and RILOD (arXiv 1904.00781: one-stage). That boxes count where the old detector is
    sure, and by their highest score, follows ERD (arXiv 2204.02136), which chooses the places by statistics of the
    image and has no mean over them.

    wanted, found: `[..., K]` logits of the teacher and the detector. wanted_deltas, found_deltas: `[..., 4]`.
    """
    best = wanted.sigmoid().amax(-1)
    sure = torch.where(best > SURE, best, 0)
    classes = bernoulli_divergence(wanted, found).sum()
    boxes = (sure * smooth_l1(found_deltas, wanted_deltas, box_beta)).sum()
    return (classes + box_weight * boxes) / sure.sum().clamp(min=1)


def bernoulli_divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """KL of sigmoid(wanted) from sigmoid(found), per entry; zero where they are equal, finite for finite
    logits.
    """
    p = wanted.sigmoid()
    cross = F.binary_cross_entropy_with_logits(found, p, reduction="none")
    return cross - F.binary_cross_entropy_with_logits(wanted, p, reduction="none")


def _answers(outputs: Outputs, classes: int) -> tuple[Tensor, Tensor]:
    """`[B, N, K]` logits of the first K classes and `[B, N, 4]` deltas at all anchors, in float32."""
    logits = [level[..., :classes].float() for level in outputs.logits]
    return torch.cat(logits, 1), torch.cat([level.float() for level in outputs.deltas], 1)


def _at(answers: Tensor, anchors: Tensor) -> Tensor:
    return answers.gather(1, anchors[..., None].expand(-1, -1, answers.shape[2]))
