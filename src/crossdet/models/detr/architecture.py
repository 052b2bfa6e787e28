"""D-FINE and RT-DETR as entries of `models.architectures.ARCHITECTURES`. No torch until a network is built."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from crossdet.models.architecture import Architecture, Contradiction, Foreign
from crossdet.models.detr import checkpoints
from crossdet.models.detr.settings import (
    DetrLoss,
    DetrModel,
    DetrSettings,
    DFineModel,
    DFineSettings,
    RTDetrModel,
    RTDetrSettings,
)
from crossdet.models.hub import CONFIG

if TYPE_CHECKING:
    from torch import Tensor

    from crossdet.models.detr.network import Detr


def build(settings: DetrSettings, num_classes: int, overlap: Tensor | None, weights: str | Path = "none") -> Detr:
    """See `building.build`."""
    from crossdet.models.detr import building

    return building.build(settings, num_classes, overlap, weights)


def contradictions(model: DetrModel) -> Iterator[Contradiction]:
    if model.weights == "imagenet" and model.backbone is None:
        expected = "a timm name under `model.backbone`, or a checkpoint: the sizes' own have no ImageNet weights"
        yield Contradiction(("model.weights", "model.backbone"), expected, model.weights)
    if model.weights not in ("none", "imagenet"):
        for key in ("size", "backbone"):
            if key in model.model_fields_set and getattr(model, key) is not None:
                expected = "not to be given: the checkpoint under `model.weights` says it"
                yield Contradiction((f"model.{key}", "model.weights"), expected, getattr(model, key))


def weights_problem(model: DetrModel) -> str | None:
    weights = model.weights
    if isinstance(weights, Path) and not (weights / CONFIG).is_file():
        return (
            f"model.weights: {weights} is no directory with {CONFIG}; give a checkpoint of HF "
            f"transformers, its hub id, `imagenet` or `none`"
        )
    return None


SIDE_BY_SHORTER = 2
"""Pictures are read so many times longer than the square that they are stretched to, before they are."""
OURS = 640, 1333


def foreign_d_fine(path: Path) -> Foreign | None:
    return _foreign(path, DFineModel(weights=path)) if checkpoints.model_type(path) == "d_fine" else None


def foreign_rt_detr(path: Path) -> Foreign | None:
    version = checkpoints.VERSIONS.get(checkpoints.model_type(path) or "")
    return None if version is None else _foreign(path, RTDetrModel(weights=path, version=1 if version == 1 else 2))


def _foreign(path: Path, model: DetrModel) -> Foreign:
    kind = DFineSettings if isinstance(model, DFineModel) else RTDetrSettings
    settings = kind.of(model, DetrLoss())
    classes = checkpoints.described(path, settings.family).classes
    checkpoints.check_files(path)
    side = settings.square
    shorter, longer = OURS if side is None else (side, SIDE_BY_SHORTER * side)
    return Foreign(classes, settings, shorter, longer, partial(_tensors, settings, classes, path))


def _tensors(settings: DetrSettings, classes: tuple[str, ...], path: Path) -> dict[str, Tensor]:
    from crossdet.models.detr import building

    return building.trained(settings, len(classes), path).state_dict()


GROWS_BY = frozenset({"carry_over", "begin_as", "freeze_old"})

DFINE = Architecture(
    DFineModel, DetrLoss, DFineSettings, build, contradictions, GROWS_BY, weights_problem, foreign_d_fine
)
RTDETR = Architecture(
    RTDetrModel, DetrLoss, RTDetrSettings, build, contradictions, GROWS_BY, weights_problem, foreign_rt_detr
)
