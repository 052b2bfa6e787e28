"""RetinaNet from pictures to detections as one graph: what `RetinaNet.find` does, for a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from crossdet.models.contract import Limits
from crossdet.models.detecting import Found, best_columns, found_of, rows_at
from crossdet.models.retinanet.anchors import decode_boxes

if TYPE_CHECKING:
    from crossdet.models.retinanet.network import RetinaNet


class Detecting(nn.Module):
    """See `Network.detection_module`."""

    classes: Tensor

    def __init__(self, network: RetinaNet, classes: Tensor, limits: Limits) -> None:
        super().__init__()
        self.network, self.limits = network, limits
        self.register_buffer("classes", classes)
        self.borders = network.adapter_borders(classes)

    def forward(self, images: Tensor, thresholds: Tensor, sizes: Tensor | None = None) -> Found:
        network = self.network
        features = network.features(images)
        levels = zip(features, network.anchors([(f.shape[-2], f.shape[-1]) for f in features]), strict=True)
        parts = [self._candidates(level, anchors, thresholds) for level, anchors in levels]
        boxes, scores, labels = (torch.cat(tensors, 1) for tensors in zip(*parts, strict=True))
        limits = self.limits
        size = images.shape[-2:] if sizes is None else sizes
        return found_of(boxes, scores, labels, size, limits, limits.groups(network.num_classes))

    def _candidates(self, level: Tensor, anchors: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs of anchor and class of a level: boxes, scores, labels."""
        network = self.network
        scores = network.class_logits(level, self.classes, self.borders).float().sigmoid()
        scores = torch.where(scores > thresholds[self.classes], scores, 0.0)
        best, pairs = best_columns(scores.flatten(1), self.limits.topk)
        anchor, label = pairs // len(self.classes), self.classes[pairs % len(self.classes)]
        deltas = rows_at(network.deltas(level), anchor).unflatten(2, (-1, 4)).float()
        subnet = network.box_subnet_of[label][..., None, None].expand(-1, -1, 1, 4)
        return decode_boxes(deltas.gather(2, subnet).squeeze(2), anchors[anchor]), best, label
