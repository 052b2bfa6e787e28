"""Building a detector from settings: new with a backbone's weights, or as an empty shell for trained ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from crossdet.models.architectures import ARCHITECTURES
from crossdet.models.contract import Network
from crossdet.models.settings import NetworkSettings


def build_detector(
    settings: NetworkSettings,
    num_classes: int,
    overlap: Tensor | None = None,
    weights: str | Path = "none",
    rows: Mapping[int, int] | None = None,
) -> Network:
    """A detector with a random head.

    overlap: `[C, C]` bool, classes that may share one box. weights: of the backbone: "imagenet" fetches timm's, a
    path reads a local file, "none" keeps it random. rows: class -> the class of a whole detector's weights that it
    begins as, see `NetworkSettings.classes_of`.
    """
    more = (rows,) if rows else ()
    network: Network = ARCHITECTURES[settings.name].build(settings, num_classes, overlap, weights, *more)
    return network
