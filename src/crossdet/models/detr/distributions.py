"""D-FINE's boxes as distributions (Peng et al., arXiv 2410.13842): edges as bins, and the two losses on them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crossdet.models.detr.boxes import centres

TEMPERATURE = 5.0
"""Of the distillation from the last layer."""


def bin_values(bins: int, up: Tensor | float, scale: Tensor | float) -> Tensor:
    """`[bins + 1]` the weighting function W(n) (eq. 2): fine steps in the middle, coarse ones outside.

    bins: even. up, scale: a and c of the paper.
    """
    up, scale = torch.as_tensor(up).abs().reshape(()), torch.as_tensor(scale).abs().reshape(())
    bound = up * scale
    step = (bound + 1) ** (2 / (bins - 2))
    half = torch.arange(1, bins // 2, device=step.device, dtype=step.dtype)
    right = step**half - 1
    zero = torch.zeros(1, device=step.device, dtype=step.dtype)
    ends = (2 * bound).reshape(1)
    return torch.cat([-ends, -right.flip(0), zero, right, ends])


def edges_to_boxes(references: Tensor, distances: Tensor, scale: Tensor | float) -> Tensor:
    """`[..., 4]` boxes (centre, width, height) of the distances (left, top, right, bottom) from reference boxes."""
    scale = torch.as_tensor(scale).abs().reshape(())
    centre, unit = references[..., :2], references[..., 2:] / scale
    low = centre - (0.5 * scale + distances[..., :2]) * unit
    high = centre + (0.5 * scale + distances[..., 2:]) * unit
    return centres(torch.cat([low, high], -1))


def boxes_to_edges(references: Tensor, corners: Tensor, scale: Tensor | float) -> Tensor:
    """`[P, 4]`: the inverse of `edges_to_boxes`, of xyxy boxes."""
    scale = torch.as_tensor(scale).abs().reshape(())
    centre, unit = references[..., :2], references[..., 2:] / scale + 1e-16
    low = (centre - corners[..., :2]) / unit - 0.5 * scale
    high = (corners[..., 2:] - centre) / unit - 0.5 * scale
    return torch.cat([low, high], -1)


def fine_grained_localisation(
    edges: Tensor, references: Tensor, corners: Tensor, iou: Tensor, values: Tensor, scale: Tensor | float
) -> Tensor:
    """`[P]`: the cross-entropy of the two bins beside each edge's true distance, times the IoU (FGL, eq. 6).

    edges: `[P, 4 (bins + 1)]` logits. references: `[P, 4]` boxes (centre, width, height) that the distances count
    from. corners: `[P, 4]` xyxy true boxes. values: of `bin_values`.
    """
    bins = len(values) - 1
    wanted = boxes_to_edges(references.detach(), corners, scale).to(values.dtype)
    left = torch.searchsorted(values.detach(), wanted.detach().contiguous(), right=True).sub(1)
    below, above = left < 0, left >= bins
    left = left.clamp(0, bins - 1)
    low, high = values[left], values[left + 1]
    share = ((wanted - low).abs() / ((wanted - low).abs() + (high - wanted).abs())).detach()
    share = share.masked_fill(below, 0.0).masked_fill(above, 1.0)
    log = F.log_softmax(edges.unflatten(-1, (4, bins + 1)), -1)
    at_left = log.gather(-1, left[..., None]).squeeze(-1)
    at_right = log.gather(-1, left[..., None] + 1).squeeze(-1)
    losses = -(at_left * (1 - share) + at_right * share)
    return (losses * iou.detach()[:, None]).sum(-1)


def distillation(
    edges: Tensor, teacher: Tensor, iou: Tensor, matched: Tensor, sure: Tensor, real: Tensor, bins: int
) -> Tensor:
    """`[B]`: how far a layer's distributions are from those of the last layer (DDF, eq. 8), a mean per image.

    Matched queries count by their IoU, others by how sure the last layer is of them.

    edges, teacher: `[B, N, 4 (bins + 1)]` logits of the layer and of the last one. iou: `[B, N]`, of the matched.
    matched: `[B, N]` bool. sure: `[B, N]` highest score of the last layer. real: `[B, N]` bool, False for padding.
    """
    found = F.log_softmax(edges.unflatten(-1, (4, bins + 1)) / TEMPERATURE, -1)
    wanted = F.softmax(teacher.detach().unflatten(-1, (4, bins + 1)) / TEMPERATURE, -1)
    distance = F.kl_div(found, wanted, reduction="none").sum(-1).sum(-1) * TEMPERATURE**2  # over bins, then edges
    terms = torch.where(matched, iou, sure).detach() * distance
    total = weight = torch.zeros_like(terms[:, 0])
    for chosen in (matched & real, ~matched & real):
        count = 4 * chosen.sum(1).to(terms.dtype)
        mean = (terms * chosen).sum(1) / count.clamp(min=1)
        total, weight = total + mean * count.sqrt(), weight + count.sqrt()
    return total / weight.clamp(min=1)
