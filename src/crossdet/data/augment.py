"""Geometry and colour of training and evaluation images, on torchvision's v2 kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

_MIRRORED, _SIGNS = [2, 1, 0, 3], [-1, 1, -1, 1]


def resized(height: int, width: int, shorter: int, longer: int, scale: float = 1.0) -> tuple[int, int]:
    """(height, width) with the shorter side `shorter * scale`, but the longer side at most `longer * scale`."""
    factor = min(shorter / min(height, width), longer / max(height, width)) * scale
    return max(1, round(height * factor)), max(1, round(width * factor))


@dataclass(frozen=True)
class Resize:
    """Evaluation: the shorter side to `shorter` pixels with a cap on the longer; nothing random."""

    shorter: int
    longer: int

    def __call__(self, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """image `[3, H, W]` uint8, boxes `[M, 4]` xyxy -> the same, resized."""
        return _resize(image, boxes, resized(image.shape[1], image.shape[2], self.shorter, self.longer))


@dataclass(frozen=True)
class Augment:
    """Training: optional photometric distortion, resize with optional scale jitter, horizontal flip.

    All randomness comes from torch's global generator, which the dataset seeds for every draw.
    """

    shorter: int
    longer: int
    flip: float = 0.5
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    photometric: bool = False

    def __call__(self, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """image `[3, H, W]` uint8, boxes `[M, 4]` xyxy -> the same, transformed."""
        if self.photometric:
            image = v2.RandomPhotometricDistort(p=0.5)(image)
        low, high = self.scale_jitter
        scale = low + (high - low) * float(torch.rand(()))
        image, boxes = _resize(
            image, boxes, resized(image.shape[1], image.shape[2], self.shorter, self.longer, scale)
        )
        if float(torch.rand(())) < self.flip:
            image = F.horizontal_flip(image)
            width = image.shape[2]
            boxes = boxes.new_tensor([width, 0, width, 0]) + boxes[:, _MIRRORED] * boxes.new_tensor(_SIGNS)
        return image, boxes


def _resize(image: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    height, width = image.shape[1:]
    if (height, width) == size:
        return image, boxes
    factor = boxes.new_tensor([size[1] / width, size[0] / height] * 2)
    return F.resize(image, list(size), antialias=True), boxes * factor
