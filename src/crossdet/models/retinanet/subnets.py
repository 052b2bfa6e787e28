"""The subnets of the head: convolutions shared by all pyramid levels, and what the last one predicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """Group norm with up to 32 groups, as torchvision's second RetinaNet has in its subnets.

    A group has at least `least` channels: P7 of a small image is a single position, and of two values there only
    the order would be left.
    """

    def __init__(self, channels: int, least: int) -> None:
        most = max(1, min(32, channels // least))
        super().__init__(next(groups for groups in range(most, 0, -1) if channels % groups == 0), channels)


class Tower(nn.Module):
    """`depth` 3x3 convolutions, each with ReLU. group_norm: least channels per group of `GroupNorm`; 0: none."""

    def __init__(self, in_channels: int, channels: int, depth: int, group_norm: int) -> None:
        super().__init__()
        inputs = [in_channels, *[channels] * depth][:depth]
        self.tower = nn.ModuleList(nn.Conv2d(width, channels, 3, 1, 1) for width in inputs)
        self.norms = nn.ModuleList(
            GroupNorm(channels, group_norm) if group_norm else nn.Identity() for _ in range(depth)
        )

    def before_prediction(self, x: Tensor) -> Tensor:
        """What a prediction takes."""
        for conv, norm in zip(self.tower, self.norms, strict=True):
            x = F.relu(norm(conv(x)), inplace=True)
        return x


class Subnet(Tower):
    """A tower and a 3x3 convolution that predicts; shared by all levels.

    adapters: widths of further towers beside it, which read the same pyramid and are as deep, but at least one
    convolution. Their channels follow its own as inputs of the prediction.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        depth: int,
        outputs: int,
        group_norm: int = 0,
        adapters: Sequence[int] = (),
    ) -> None:
        super().__init__(in_channels, channels, depth, group_norm)
        self.predict = nn.Conv2d(channels + sum(adapters), outputs, 3, 1, 1)
        self.adapters = nn.ModuleList(Tower(in_channels, width, max(1, depth), group_norm) for width in adapters)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.normal_(conv.weight, std=0.01)
                nn.init.zeros_(cast(Tensor, conv.bias))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.predict(self.before_prediction(x)))

    def before_prediction(self, x: Tensor) -> Tensor:
        own = super().before_prediction(x)
        if not self.adapters:
            return own
        return torch.cat([own, *(cast(Tower, adapter).before_prediction(x) for adapter in self.adapters)], 1)
