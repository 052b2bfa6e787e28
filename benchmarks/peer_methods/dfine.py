"""Hugging Face's D-FINE, nano, by the settings of transformers' examples/pytorch/object-detection.

Theirs: the model and its loss; AdamW at 5e-5 with weight decay 1e-4, gradients clipped at 1, a rate that falls
linearly to 0 (the Trainer's), the augmentations of `run_object_detection.py`, pictures with the longer side at one
size and padded to a square, the 300 queries' best class scores.
Ours: the shape of D-FINE-N (two levels, 128 channels, 3 decoder layers) on timm's MobileNetV2, so that it starts
from the same weights; pictures are normalised as these want it (D-FINE's own processor does not); the fall of the
rate follows the clock. `dfine_fast` is the same at 4e-4, half of it for the backbone, nearer to D-FINE's own recipe
for training from ImageNet weights, since 5e-5 is meant for a detector that was trained on COCO before.
The shape and the higher rate were written from memory, without D-FINE's configuration files at hand.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as F

from crossdet.data.decoding import read_row
from crossdet.data.index import Index

from .fitting import MEAN, STD, At, batches, fit, load_mobilenet, update
from .job import MOST, Job, Training
from .sets import Found, Photographs

RATES = {"dfine": (5e-5, 1.0), "dfine_fast": (4e-4, 0.5)}
"""Method -> learning rate, factor of the backbone."""


def build(classes: int, size: int, weights: str | None) -> nn.Module:
    from transformers import DFineConfig, DFineForObjectDetection, TimmBackboneConfig

    config = DFineConfig(
        backbone_config=TimmBackboneConfig(backbone="mobilenetv2_100", out_indices=[3, 4]),
        freeze_backbone_batch_norms=weights is not None,
        num_labels=classes,
        encoder_in_channels=[96, 320],
        feat_strides=[16, 32],
        encode_proj_layers=[1],
        encoder_hidden_dim=128,
        encoder_ffn_dim=512,
        hidden_expansion=0.34,
        depth_mult=0.5,
        d_model=128,
        decoder_in_channels=[128, 128],
        decoder_ffn_dim=512,
        decoder_layers=3,
        decoder_n_points=[6, 6],
        num_feature_levels=2,
        num_queries=min(300, (size // 16) ** 2 + (size // 32) ** 2),  # a small picture has fewer places
    )
    model: Any = DFineForObjectDetection(config)
    if weights is not None:
        load_mobilenet(model.model.backbone.model._backbone, weights)
    return model


def letterbox(picture: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """`[3, H, W]` uint8 -> `[3, side, side]` with the longer side filled, padded at the right and the bottom; and
    `[2]` the factors of x and y."""
    height, width = picture.shape[1:]
    scale = side / max(height, width)
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    resized = F.resize(picture, size, antialias=True)
    return F.pad(resized, [0, 0, side - size[1], side - size[0]]), torch.tensor([size[1] / width, size[0] / height])


def to_square(boxes: Tensor, factors: Tensor, side: int) -> Tensor:
    """Boxes xyxy in pixels of a picture -> cx, cy, w, h in 0..1 of its square."""
    return box_convert(boxes * factors.repeat(2) / side, "xyxy", "cxcywh")


def from_square(boxes: Tensor, factors: Tensor, side: int) -> Tensor:
    """The other way."""
    return box_convert(boxes, "cxcywh", "xyxy") * side / factors.repeat(2)


def normalised(square: Tensor) -> Tensor:
    return F.normalize(square.float() / 255, list(MEAN), list(STD))


class Prepare:
    """One picture as the example script has it."""

    def __init__(self, size: int, seed: int) -> None:
        import albumentations as A

        self.size = size
        crop = [A.SmallestMaxSize(size), A.RandomSizedBBoxSafeCrop(height=size, width=size)]
        blur = [
            A.Blur(blur_limit=7, p=0.5),
            A.MotionBlur(blur_limit=7, p=0.5),
            A.Defocus(radius=(1, 5), alias_blur=(0.1, 0.25), p=0.1),
        ]
        vary = [
            A.Compose(crop, p=0.2),
            A.OneOf(blur, p=0.1),
            A.Perspective(p=0.1),
            A.HorizontalFlip(p=0.5),
            A.RandomBrightnessContrast(p=0.5),
            A.HueSaturationValue(p=0.1),
        ]
        boxes = A.BboxParams(format="pascal_voc", label_fields=["labels"], clip=True, min_area=25)
        self.vary = A.Compose(vary, bbox_params=boxes, seed=seed)

    def __call__(self, picture: Tensor, boxes: Tensor, labels: Tensor) -> dict[str, Any]:
        pixels = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
        varied = self.vary(image=pixels, bboxes=boxes.numpy(), labels=labels.numpy())
        square, factors = letterbox(torch.from_numpy(varied["image"]).permute(2, 0, 1), self.size)
        kept = torch.as_tensor(np.array(varied["bboxes"], np.float32).reshape(-1, 4))
        return {
            "picture": normalised(square),
            "boxes": to_square(kept, factors, self.size),
            "class_labels": torch.as_tensor(np.array(varied["labels"], np.int64)),
        }


def parameter_groups(model: nn.Module, rate: float, backbone_factor: float) -> list[dict[str, Any]]:
    """No decay of norms and biases, as the Trainer has it. base: the rate from which the group's rate falls."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (name.startswith("model.backbone."), parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": members, "base": rate * (backbone_factor if backbone else 1.0), "weight_decay": 1e-4 * decays}
        for (backbone, decays), members in groups.items()
    ]


def train(job: Job, photographs: Photographs) -> tuple[Training, nn.Module]:
    settings = job.settings
    device = torch.device(settings.device)
    model = build(len(photographs.classes), settings.size, settings.weights).to(device).train()
    optimiser = torch.optim.AdamW(parameter_groups(model, *RATES[job.method]), lr=0.0)

    def step(batch: list[Any], at: At) -> float:
        for group in optimiser.param_groups:
            group["lr"] = group["base"] * (1 - at.share)
        pictures = torch.stack([one["picture"] for one in batch]).to(device)
        labels = [{name: one[name].to(device) for name in ("boxes", "class_labels")} for one in batch]
        return update(model(pixel_values=pictures, labels=labels).loss, optimiser, clip=1.0)

    prepare = Prepare(settings.size, settings.seed)
    one_group = [0] * len(photographs.train)
    return fit(job, batches(job, photographs.train, prepare, one_group), step), model


@torch.inference_mode()
def detect(model: nn.Module, index: Index, size: int, batch: int, device: str) -> Found:
    found = Found()
    model.eval()
    for start in range(0, len(index), batch):
        rows = range(start, min(start + batch, len(index)))
        squares = [letterbox(read_row(index, row), size) for row in rows]
        answer = model(pixel_values=torch.stack([normalised(square) for square, _ in squares]).to(device))
        scores, places = answer.logits.sigmoid().flatten(1).topk(MOST)
        labels, queries = places % answer.logits.shape[2], places // answer.logits.shape[2]
        for at, (row, (_, factors)) in enumerate(zip(rows, squares, strict=True)):
            boxes = from_square(answer.pred_boxes[at].cpu()[queries[at].cpu()], factors, size)
            found.add(row, boxes, scores[at], labels[at])
    return found


def run(job: Job, photographs: Photographs) -> tuple[Training, Any]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    settings = job.settings
    training, model = train(job, photographs)
    training.about["parameters"] = sum(p.numel() for p in model.parameters())
    return training, lambda: detect(model, photographs.val, settings.size, settings.batch, settings.device)
