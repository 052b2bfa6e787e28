"""A network that nobody in the package knows: 40 lines, no anchors, one feature level.

Every cell of an 8-pixel grid says which classes' objects have their centre in it, and where its edges are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from crossdet.losses import negative_weights
from crossdet.models.architecture import Architecture, Contradiction
from crossdet.models.contract import Growable, Limits, Losses
from crossdet.models.detecting import Found, best_columns, found_of, rows_at
from crossdet.models.settings import Count, NetworkDefaults, NetworkSettings, Section, Weights
from crossdet.types import BACKGROUND, REGION_FLAGS, Annotations, Batch, Detections

STRIDE = 8


class TinyModel(Section):
    name: Literal["tiny"] = "tiny"
    weights: Weights = "none"
    width: Count = 24


class TinyLoss(Section):
    box: float = 2.0


class TinySettings(TinyModel, NetworkSettings):
    loss: TinyLoss = TinyLoss()

    @classmethod
    def of(cls, model: Any, loss: Any, defaults: NetworkDefaults = NetworkDefaults()) -> Self:
        return cls(width=model.width, loss=loss)

    def to_json(self) -> str:
        return json.dumps({"width": self.width, "box": self.loss.box})

    @classmethod
    def from_json(cls, text: str) -> Self:
        values = json.loads(text)
        return cls(width=values["width"], loss=TinyLoss(box=values["box"]))

    def extended(self, mode: str, adapter: int, known: int, classes: int) -> Self:
        del mode, adapter, known, classes
        return self


class Tiny(Growable):
    terms = ("objects", "edges")
    fill_colour = (127, 127, 127)

    def __init__(self, settings: TinySettings, num_classes: int, overlap: Tensor | None) -> None:
        super().__init__()
        self.num_classes, self.settings, self.overlap = num_classes, settings, overlap
        widths = [3, settings.width, settings.width, settings.width]
        self.backbone = nn.Sequential(
            *(layer for a, b in pairwise(widths)
              for layer in (nn.Conv2d(a, b, 3, 2, 1), nn.ReLU()))
        )  # fmt: skip
        self.classes = nn.Conv2d(settings.width, num_classes, 3, 1, 1)
        self.edges = nn.Conv2d(settings.width, 4, 3, 1, 1)
        nn.init.constant_(self.classes.bias, -4.0)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, N, C]` logits and `[B, N, 4]` boxes xyxy in pixels, row by row of the grid."""
        (x,) = self.feature_maps(images)
        rows, columns = x.shape[-2:]
        y, x_ = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        centre = ((torch.stack([x_, y, x_, y], -1).reshape(-1, 4) + 0.5) * STRIDE).to(x)
        reach = self.edges(x).float().exp().flatten(2).transpose(1, 2) * STRIDE
        sign = centre.new_tensor([-1, -1, 1, 1])
        return self.classes(x).float().flatten(2).transpose(1, 2), centre + sign * reach

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        return [self.backbone(images.to(self.edges.weight.dtype) / 127.5 - 1)]

    def positives(self, batch: Batch) -> Tensor:
        places = [self._places(target, batch) for target in batch.targets]
        return torch.tensor([len(place.unique()) for place in places])

    @staticmethod
    def _places(target: Annotations, batch: Batch, regions: bool = False) -> Tensor:
        """The cells of the centres of objects, or of regions."""
        cell = (target.boxes[:, :2] + target.boxes[:, 2:]).div(2 * STRIDE).long()
        region = (target.flags & int(REGION_FLAGS)) != 0
        return (cell[:, 1] * -(-batch.images.shape[-1] // STRIDE) + cell[:, 0])[region == regions]

    def losses(self, batch: Batch) -> Losses:
        logits, boxes = self(batch.images)
        labels = torch.full(logits.shape[:2], BACKGROUND, device=logits.device)
        avoid, edges = [], logits.new_zeros(len(labels))
        for image, target in enumerate(batch.targets):
            place = self._places(target, batch)
            region = (target.flags & int(REGION_FLAGS)) != 0
            labels[image, place] = target.labels[~region]
            found = boxes[image, place]
            edges[image] = F.l1_loss(found / STRIDE, target.boxes[~region] / STRIDE, reduction="none").sum()
            around = zip(self._places(target, batch, regions=True), target.labels[region], strict=True)
            avoid += [(image, int(p), int(c)) for p, c in around]
        weights = negative_weights(
            labels,
            batch.trusted,
            self.overlap,
            torch.tensor(avoid, dtype=torch.int64, device=labels.device).reshape(-1, 3),
            background_weight=batch.background_weight,
        )
        wanted = F.one_hot(labels.clamp(min=0), self.num_classes) * (labels >= 0)[..., None]
        soft = F.softplus(logits)
        objects = (weights * soft + wanted * (soft - logits)).sum((1, 2))
        return Losses({"objects": objects, "edges": self.settings.loss.box * edges}, (labels >= 0).sum(1))

    @torch.no_grad()
    def find(
        self,
        images: Tensor,
        sizes: Tensor,
        classes: Sequence[int] | Tensor | None = None,
        limits: Limits = Limits(),
    ) -> list[Detections]:
        wanted = (
            torch.arange(self.num_classes)
            if classes is None
            else torch.as_tensor(classes, dtype=torch.int64).unique()
        )
        found = []
        for scores, boxes, (height, width) in zip(*self._scored(images), sizes.tolist(), strict=True):
            row, column = (scores[:, wanted] > limits.threshold_of(wanted)).nonzero(as_tuple=True)
            label = wanted[column]
            score = scores[row, label]
            first = score.argsort(descending=True, stable=True)[: limits.topk]
            row, label, score = row[first], label[first], score[first]
            box = boxes[row].clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
            some = (box[:, 2:] > box[:, :2]).all(1)
            box, label, score = box[some], label[some], score[some]
            kept = batched_nms(box, score, limits.rivals(label), limits.nms_iou)[: limits.max_detections]
            found.append(Detections(box[kept], score[kept], label[kept]))
        return found

    def _scored(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, boxes = self(images)
        return logits.sigmoid(), boxes

    def export_module(self) -> nn.Module:
        return self

    def detection_module(self, classes: Tensor, limits: Limits) -> nn.Module:
        return Detecting(self, classes, limits)

    def carry_over(self, state: Any, classes: int) -> None:
        own = self.state_dict()
        with torch.no_grad():
            for name, tensor in state.items():
                (own[name][:classes] if name.startswith("classes.") else own[name]).copy_(tensor)


class Detecting(nn.Module):
    """`Tiny.find` as a graph, for `crossdet export`."""

    def __init__(self, network: Tiny, classes: Tensor, limits: Limits) -> None:
        super().__init__()
        self.network, self.classes, self.limits = network, classes, limits

    def forward(self, images: Tensor, thresholds: Tensor, sizes: Tensor | None = None) -> Found:
        scores, boxes = self.network._scored(images)
        scores = scores[:, :, self.classes]
        scores = torch.where(scores > thresholds[self.classes], scores, 0.0).flatten(1)
        best, pairs = best_columns(scores, self.limits.topk)
        width, groups = len(self.classes), self.network.num_classes
        labels = self.classes[pairs % width]
        size = images.shape[-2:] if sizes is None else sizes
        return found_of(rows_at(boxes, pairs // width), best, labels, size, self.limits, groups)


def build(settings: TinySettings, num_classes: int, overlap: Tensor | None, weights: Any = "none") -> Tiny:
    del weights
    return Tiny(settings, num_classes, overlap)


def contradictions(model: TinyModel) -> Iterator[Contradiction]:
    if model.width == 13:
        yield Contradiction(("model.width",), "a luckier number", model.width)


TINY = Architecture(TinyModel, TinyLoss, TinySettings, build, contradictions, grows_by=frozenset({"carry_over"}))
