"""Which query stands for which object: the assignment of least cost, one query per object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from crossdet.models.detr.boxes import corners, generalised_iou
from crossdet.models.detr.objects import Objects


class Costs(NamedTuple):
    """Weights of the matching cost (DETR, arXiv 2005.12872 sec. 3.1; focal class cost of Deformable DETR)."""

    classes: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0


class Matches(NamedTuple):
    """Pairs: `[P]` image, its query, and the row of the object in `Objects`."""

    image: Tensor
    query: Tensor
    object: Tensor


def match(
    logits: Sequence[Tensor], boxes: Sequence[Tensor], objects: Objects, costs: Costs, groups: int = 1
) -> list[Matches]:
    """The matches of every layer; the costs of all layers go to the CPU at once, and so their matches back.

    logits: per layer `[B, N, C]`. boxes: per layer `[B, N, 4]`. groups: the queries are so many sets of equal size,
    one after another, each matched on its own. Logits of classes that an image does not show do not enter. Costs
    that are not finite come last, so that a broken step shows in the loss and not here.
    """
    if not logits:
        return []
    with torch.no_grad():
        # of another number of queries each: the encoder's, say
        costed = [_costs(one, places, objects, costs) for one, places in zip(logits, boxes, strict=True)]
        sizes = [tuple(cost.shape) for cost in costed]
        flat = torch.cat([cost.flatten() for cost in costed]).cpu().numpy()
    found, begin = [], 0
    for size in sizes:
        count = size[0] * size[1] * size[2]
        found.append(_assigned(flat[begin : begin + count].reshape(size), objects, groups))
        begin += count
    ends = np.cumsum([part.shape[1] for part in found])[:-1].tolist()
    rows = torch.from_numpy(np.concatenate(found, 1)).to(objects.boxes.device, non_blocking=True)
    return [Matches(*part) for part in rows.tensor_split(ends, 1)]


def _costs(logits: Tensor, boxes: Tensor, objects: Objects, costs: Costs) -> Tensor:
    """`[B, N, most]` of every query and each object of its image; what is behind the last object means nothing."""
    labels = objects.padded(objects.labels)
    wanted = objects.padded(objects.boxes).to(boxes.dtype)[:, None]
    p = logits.gather(2, labels[:, None].expand(-1, logits.shape[1], -1)).sigmoid()
    positive = costs.alpha * (1 - p) ** costs.gamma * -(p + 1e-8).log()
    negative = (1 - costs.alpha) * p**costs.gamma * -(1 - p + 1e-8).log()
    found = boxes[:, :, None]
    cost = costs.classes * (positive - negative) + costs.l1 * (found - wanted).abs().sum(-1)
    cost = cost - costs.giou * generalised_iou(corners(found), corners(wanted))
    largest = torch.finfo(cost.dtype).max
    return cost.nan_to_num(largest, largest, largest)


def _assigned(cost: np.ndarray, objects: Objects, groups: int) -> NDArray[np.int64]:
    """`[3, P]` what `Matches` are made of."""
    images, queries, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    size = cost.shape[1] // groups
    for image, (count, first) in enumerate(zip(objects.counts, objects.first, strict=True)):
        for group in range(groups) if count else ():
            begin = group * size
            query, column = linear_sum_assignment(cost[image, begin : begin + size, :count])
            images.append(np.full(len(query), image))
            queries.append(query + begin)
            rows.append(column + first)
    return np.stack([np.concatenate(part) for part in (images, queries, rows)])
