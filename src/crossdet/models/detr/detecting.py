"""D-FINE and RT-DETR from pictures to detections as one graph: what `Detr.find` does, for a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from crossdet.models.contract import Limits
from crossdet.models.detecting import HIGHEST_SCORE, Found, best_columns, clipped, found_of, rows_at
from crossdet.models.detr.boxes import corners

if TYPE_CHECKING:
    from crossdet.models.detr.network import Detr


class Detecting(nn.Module):
    """See `Network.detection_module`."""

    def __init__(self, network: Detr, classes: Tensor, limits: Limits) -> None:
        super().__init__()
        self.network, self.limits = network, limits
        self.sets = network.query_sets(classes)

    def forward(self, images: Tensor, thresholds: Tensor, sizes: Tensor | None = None) -> Found:
        network = self.network
        height, width = network.frame_of(images.shape[-2:])
        frame = [width, height, width, height]
        size = images.shape[-2:] if sizes is None else sizes
        memory = network.graph.memory(network.pictures(images, None))
        limits, parts = self.limits, []
        groups = limits.groups(network.num_classes) if network.suppresses or limits.agnostic_nms else 0
        most = limits.topk if groups else min(limits.topk, limits.max_detections)
        for looked in self.sets:
            answers = network.answers(memory, looked, thresholds[looked] <= HIGHEST_SCORE)
            scores = answers.scored.float().sigmoid()
            places = corners(answers.boxes.float())
            boxes = torch.stack([places[..., i] * frame[i] for i in range(4)], -1)
            boxes, visible = clipped(boxes, size)
            above = (scores > thresholds[looked]) & visible[..., None]
            scores = torch.where(above, scores, 0.0).flatten(1)
            best, pairs = best_columns(scores, most)
            parts.append((rows_at(boxes, pairs // len(looked)), best, looked[pairs % len(looked)]))
        boxes, scores, labels = (torch.cat(tensors, 1) for tensors in zip(*parts, strict=True))
        return found_of(boxes, scores, labels, size, limits, groups)
