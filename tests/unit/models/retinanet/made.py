"""A small RetinaNet for tests."""

import torch

from crossdet.models.backbones import Backbone, freeze_batch_norm
from crossdet.models.retinanet.network import RetinaNet
from crossdet.models.retinanet.settings import RetinaNetLoss, RetinaNetSettings

CLASSES = 4


def make(classes: int = CLASSES, freeze: bool = True, **options) -> RetinaNet:
    torch.manual_seed(0)
    backbone = Backbone("mobilenetv2_100")
    if freeze:
        freeze_batch_norm(backbone)
    overlap = options.pop("overlap", None)
    loss = RetinaNetLoss(**{key: options.pop(key) for key in RetinaNetLoss.model_fields if key in options})
    settings = RetinaNetSettings(loss=loss, **{"channels": 32, "head_depth": 1} | options)
    return RetinaNet(backbone, classes, settings, overlap)
