"""RetinaNet as an entry of `models.architectures.ARCHITECTURES`. No torch until a network is built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from crossdet.models.architecture import ADAPTER, Architecture, Contradiction
from crossdet.models.retinanet.settings import RetinaNetLoss, RetinaNetModel, RetinaNetSettings

if TYPE_CHECKING:
    from torch import Tensor

    from crossdet.models.retinanet.network import RetinaNet


def build(
    settings: RetinaNetSettings, num_classes: int, overlap: Tensor | None, weights: str | Path = "none"
) -> RetinaNet:
    """With random pyramid and head. weights: of the backbone, see `build_detector`."""
    from crossdet.models.backbones import Backbone, freeze_batch_norm, load_backbone_weights
    from crossdet.models.retinanet.network import RetinaNet

    backbone = Backbone(settings.backbone, pretrained=weights == "imagenet")
    if isinstance(weights, Path):
        load_backbone_weights(backbone, weights)
    if settings.freeze_batch_norm:
        freeze_batch_norm(backbone)
    return RetinaNet(backbone, num_classes, settings, overlap)


def contradictions(model: RetinaNetModel) -> Iterator[Contradiction]:
    if model.negative_iou > model.positive_iou:
        expected = f"at most `model.positive_iou` = {model.positive_iou:g}"
        yield Contradiction(("model.negative_iou", "model.positive_iou"), expected, model.negative_iou)


RETINANET = Architecture(
    RetinaNetModel,
    RetinaNetLoss,
    RetinaNetSettings,
    build,
    contradictions,
    grows_by=frozenset({"carry_over", "begin_as", "freeze_old", "hold_to", ADAPTER}),
)
