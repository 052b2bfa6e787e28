"""D-FINE, RT-DETR and RF-DETR as entries of `ARCHITECTURES`. No torch until a network is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from crossdet.models.architecture import Architecture, Contradiction, Foreign, file_problem
from crossdet.models.detr import checkpoints
from crossdet.models.detr.settings import (
    DetrLoss,
    DetrModel,
    DetrSettings,
    DFineModel,
    DFineSettings,
    RFDetrLoss,
    RFDetrModel,
    RFDetrSettings,
    RTDetrModel,
    RTDetrSettings,
    SetModel,
)
from crossdet.models.hub import CONFIG, example_in

if TYPE_CHECKING:
    from torch import Tensor

    from crossdet.models.detr.network import Detr


def build(
    settings: DetrSettings,
    num_classes: int,
    overlap: Tensor | None,
    weights: str | Path = "none",
    rows: Mapping[int, int] = MappingProxyType({}),
) -> Detr:
    """See `building.build`."""
    from crossdet.models.detr import building

    return building.build(settings, num_classes, overlap, weights, rows)


def contradictions(model: SetModel) -> Iterator[Contradiction]:
    if model.weights == "imagenet":
        if not isinstance(model, DetrModel):
            expected = "a checkpoint or `none`: there are no ImageNet weights"
            yield Contradiction(("model.weights",), expected, model.weights)
        elif model.backbone is None:
            expected = "a timm name under `model.backbone`, or a checkpoint: the sizes have no ImageNet weights"
            yield Contradiction(("model.weights", "model.backbone"), expected, model.weights)
    for key in () if model.of_checkpoint else ("queries", "denoising"):
        if getattr(model, key, 0) is None:
            expected = "a number, where no checkpoint under `model.weights` says it"
            yield Contradiction((f"model.{key}", "model.weights"), expected, None)
    if model.of_checkpoint:
        for key in ("size", "backbone"):
            if key in model.model_fields_set and getattr(model, key) is not None:
                expected = "not to be given: the checkpoint under `model.weights` says it"
                yield Contradiction((f"model.{key}", "model.weights"), expected, getattr(model, key))


def weights_problem(model: SetModel) -> str | None:
    weights = model.weights
    if model.of_backbone:
        return file_problem(model)
    if isinstance(weights, Path) and not (weights / CONFIG).is_file():
        return (
            f"model.weights: {weights} is no directory with {CONFIG}; give a checkpoint of HF transformers"
            f"{example_in(weights)}, its hub id, `imagenet`, `none`, or beside `model.backbone` a file of that "
            f"backbone's weights"
        )
    return None


SIDE_BY_SHORTER = 2
"""Pictures are read so many times longer than the square that they are stretched to, before they are."""
OURS = 640, 1333


def foreign_d_fine(path: Path) -> Foreign | None:
    if checkpoints.model_type(path) != "d_fine":
        return None
    return _foreign(path, DFineSettings.of(DFineModel(weights=path), DetrLoss()))


def foreign_rt_detr(path: Path) -> Foreign | None:
    version = checkpoints.VERSIONS.get(checkpoints.model_type(path) or "")
    if version is None:
        return None
    model = RTDetrModel(weights=path, version=1 if version == 1 else 2)
    keys = {} if model.version == RTDetrModel().version else {"version": model.version}
    return replace(_foreign(path, RTDetrSettings.of(model, DetrLoss())), keys=keys)


def foreign_rf_detr(path: Path) -> Foreign | None:
    if checkpoints.model_type(path) != "rf_detr":
        return None
    return _foreign(path, RFDetrSettings.of(RFDetrModel(weights=path), RFDetrLoss()))


def _foreign(path: Path, settings: DetrSettings) -> Foreign:
    source = checkpoints.described(path, settings.family)
    classes, side = source.classes, settings.square
    checkpoints.check_files(path)
    shorter, longer = source.edges or OURS if side is None else (side, SIDE_BY_SHORTER * side)
    return Foreign(classes, settings, shorter, longer, partial(_tensors, settings, classes, path))


def _tensors(
    settings: DetrSettings, classes: tuple[str, ...], path: Path, wanted: DetrSettings
) -> dict[str, Tensor]:
    from crossdet.models.detr import building

    return building.trained_as(wanted, settings, len(classes), path).state_dict()


GROWS_BY = frozenset({"carry_over", "begin_as", "freeze_old"})

DFINE = Architecture(
    DFineModel, DetrLoss, DFineSettings, build, contradictions, GROWS_BY, weights_problem, foreign_d_fine
)
RTDETR = Architecture(
    RTDetrModel, DetrLoss, RTDetrSettings, build, contradictions, GROWS_BY, weights_problem, foreign_rt_detr
)
RFDETR = Architecture(
    RFDetrModel, RFDetrLoss, RFDetrSettings, build, contradictions, GROWS_BY, weights_problem, foreign_rf_detr
)
