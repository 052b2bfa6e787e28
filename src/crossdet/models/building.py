"""Building a detector from settings: new with a backbone's weights, or as an empty shell for trained ones."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from crossdet.errors import UserError
from crossdet.models.backbones import Backbone, freeze_batch_norm, load_backbone_weights
from crossdet.models.retinanet.network import RetinaNet
from crossdet.models.retinanet.subnets import Adapter


@dataclass(frozen=True)
class DetectorSettings:
    """Everything that decides a detector's architecture and loss; stored with its weights as JSON.

    group_channels: least channels per group of the group norm.
    """

    backbone: str = "resnet50"
    channels: int = 256
    head_depth: int = 4
    group_norm: bool = False
    group_channels: int = 4
    scales: tuple[float, ...] = (2.0, 3.0, 4.0)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    prior: float = 0.01
    positive_iou: float = 0.5
    negative_iou: float = 0.4
    low_quality_matches: bool = True
    alpha: float = 0.25
    gamma: float = 2.0
    foreground_negatives: bool = True
    box_beta: float = 1 / 9
    box_weight: float = 1.0
    normaliser: Literal["batch", "image"] = "batch"
    frozen_batch_norm: bool = True
    adapters: tuple[Adapter, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DetectorSettings:
        data: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}
        data.setdefault("group_channels", 2)  # of weights that do not say it yet
        try:
            data["adapters"] = tuple(Adapter(*entry) for entry in data.get("adapters", ()))
            return cls(**data)
        except TypeError as error:
            raise UserError(f"the weights file was written by another version of crossdet ({error})") from None


def build_detector(
    settings: DetectorSettings, num_classes: int, overlap: Tensor | None = None, weights: str | Path = "none"
) -> RetinaNet:
    """A detector with random head and pyramid.

    weights: of the backbone: "imagenet" fetches timm's, a path reads a local file, "none" keeps it random.
    """
    backbone = Backbone(settings.backbone, pretrained=weights == "imagenet")
    if isinstance(weights, Path):
        load_backbone_weights(backbone, weights)
    if settings.frozen_batch_norm:
        freeze_batch_norm(backbone)
    return RetinaNet(
        backbone,
        num_classes,
        channels=settings.channels,
        head_depth=settings.head_depth,
        group_norm=settings.group_channels if settings.group_norm else 0,
        scales=settings.scales,
        ratios=settings.ratios,
        prior=settings.prior,
        positive_iou=settings.positive_iou,
        negative_iou=settings.negative_iou,
        low_quality_matches=settings.low_quality_matches,
        alpha=settings.alpha,
        gamma=settings.gamma,
        foreground_negatives=settings.foreground_negatives,
        overlap=overlap,
        box_beta=settings.box_beta,
        box_weight=settings.box_weight,
        normaliser=settings.normaliser,
        adapters=settings.adapters,
    )
