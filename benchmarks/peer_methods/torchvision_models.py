"""torchvision's RetinaNet and FCOS by its reference recipe (references/detection/train.py), fitted to a clock.

Theirs: the models with all their defaults, the pyramid, SGD with momentum 0.9 and weight decay 1e-4, 0.01 per 16
images (the README's rate of both; the script's own default is 0.02, of Faster R-CNN) in proportion to the batch,
warm-up from a thousandth over the first epoch or 1,000 steps, a tenth of the rate after 16 and 22 of 26 epochs,
horizontal flip, batches of upright or lying pictures, pictures without objects left out; with ImageNet weights
fixed batch norm and the first blocks of the MobileNet frozen (`_mobilenet_extractor` with 3 trainable stages).
Ours: epochs are shares of the time, and warm-up takes at most a tenth of it, since it may be less than an epoch.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from crossdet.data.decoding import read_row
from crossdet.data.index import Index

from .fitting import At, batches, fit, mobilenet, update
from .job import MOST, SCORE, Job, Training
from .sets import Found, Photographs, objects

MODELS: dict[str, Any] = {"retinanet": RetinaNet, "fcos": FCOS}
RATE = 0.01 / 16
"""Per image of a batch."""
FALLS = (16 / 26, 22 / 26)
WARMUP, WARMUP_SHARE, WARMUP_FACTOR = 1000, 0.1, 0.001
FROZEN = ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2")
"""Of timm's MobileNetV2: what torchvision's `_mobilenet_extractor` freezes of its own, up to stride 8."""


class Backbone(nn.Module):
    """MobileNetV2 with torchvision's pyramid, levels at strides 8 to 128."""

    def __init__(self, weights: str | None) -> None:
        super().__init__()
        self.body: Any = mobilenet(weights)
        if weights is not None:
            for name, parameter in self.body.named_parameters():
                parameter.requires_grad_(not name.startswith(tuple(f"{part}." for part in FROZEN)))
        self.out_channels = 256
        channels = self.body.feature_info.channels()
        self.pyramid = FeaturePyramidNetwork(channels, self.out_channels, LastLevelP6P7(256, 256))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = OrderedDict((str(level), features) for level, features in enumerate(self.body(images)))
        found: dict[str, Tensor] = self.pyramid(maps)
        return found


def build(kind: str, classes: int, size: int, weights: str | None) -> nn.Module:
    """kind: of `MODELS`. The longer side of every picture becomes `size`."""
    limits = {"min_size": size, "max_size": size, "score_thresh": SCORE, "detections_per_img": MOST}
    model: nn.Module = MODELS[kind](Backbone(weights), classes, **limits)
    return model


def rate(at: At, batch: int, epoch_steps: int) -> float:
    """The learning rate of a step. epoch_steps: steps of an epoch."""
    falls = sum(at.share >= fall for fall in FALLS)
    warm = max(at.step / max(1, min(WARMUP, epoch_steps - 1)), at.share / WARMUP_SHARE)
    return RATE * batch * 0.1**falls * (WARMUP_FACTOR + (1 - WARMUP_FACTOR) * min(1.0, warm))


def flipped(picture: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    width = picture.shape[2]
    return picture.flip(2), torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)


def prepare(picture: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    if torch.rand(()) < 0.5:
        picture, boxes = flipped(picture, boxes)
    return picture.float() / 255, {"boxes": boxes, "labels": labels}


def train(job: Job, photographs: Photographs) -> tuple[Training, nn.Module]:
    settings, index = job.settings, photographs.train
    with_objects = np.array([row for row in range(len(index)) if len(objects(index, row))], np.int64)
    index = index.take(with_objects)
    device = torch.device(settings.device)
    model = build(job.method, len(photographs.classes), settings.size, settings.weights).to(device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.0, momentum=0.9, weight_decay=1e-4)
    epoch_steps = max(1, len(index) // settings.batch)

    def step(batch: list[Any], at: At) -> float:
        for group in optimiser.param_groups:
            group["lr"] = rate(at, settings.batch, epoch_steps)
        pictures = [picture.to(device) for picture, _ in batch]
        targets = [{name: value.to(device) for name, value in target.items()} for _, target in batch]
        return update(sum(model(pictures, targets).values()), optimiser)

    upright = (index.sizes[:, 0] > index.sizes[:, 1]).astype(int).tolist()
    return fit(job, batches(job, index, prepare, upright), step), model


@torch.inference_mode()
def detect(model: nn.Module, index: Index, batch: int, device: str) -> Found:
    found = Found()
    model.eval()
    for start in range(0, len(index), batch):
        rows = range(start, min(start + batch, len(index)))
        answers = model([read_row(index, row).to(device).float() / 255 for row in rows])
        for row, answer in zip(rows, answers, strict=True):
            found.add(row, answer["boxes"], answer["scores"], answer["labels"])
    return found


def run(job: Job, photographs: Photographs) -> tuple[Training, Any]:
    training, model = train(job, photographs)
    training.about["parameters"] = sum(p.numel() for p in model.parameters())
    return training, lambda: detect(model, photographs.val, job.settings.batch, job.settings.device)
