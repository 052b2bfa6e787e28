"""The settings of D-FINE, RT-DETR and RF-DETR, with their defaults. No torch and no transformers in here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PlainValidator, StrictBool, ValidationError, ValidationInfo, model_validator

from crossdet.errors import UserError, show
from crossdet.models.detr import checkpoints
from crossdet.models.detr.checkpoints import IMAGENET_MEAN, IMAGENET_STD
from crossdet.models.detr.sizes import D_FINE, RF_DETR, RF_DETR_SQUARES, RT_DETR
from crossdet.models.settings import (
    Count,
    CountOrZero,
    Finest,
    Fraction,
    NetworkDefaults,
    NetworkSettings,
    NotNegative,
    OpenFraction,
    Section,
    Text,
    UsualRates,
    of_another_version,
    path_or_hub_id,
)
from crossdet.types import PAD_DIVISOR

FEAT_STRIDES = (8, 16, 32)
"""Of D-FINE and RT-DETR where their config says nothing else, as in HF transformers."""
BACKBONE_FILES = (".safetensors", ".pth")


def _weights(value: Any, info: ValidationInfo) -> str | Path:
    if value is None or value in ("none", "imagenet"):
        return value or "none"
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError(f"expected `imagenet`, `none`, a directory or a hub id, got {show(value)}")
    return path_or_hub_id(value, info)


def _square(value: Any, step: int = 1) -> int | str | None:
    if value is None or value == "auto" or (type(value) is int and value >= PAD_DIVISOR and value % step == 0):
        return value
    multiple = f"a multiple of {step}" if step > 1 else f"at least {PAD_DIVISOR}"
    raise ValueError(f"expected a side in pixels ({multiple}), auto or null, got {show(value)}")


def _square_of_strides(value: Any) -> int | str | None:
    return _square(value, PAD_DIVISOR)


class SetLoss(Section):
    """What the `loss` sections have in common."""

    classification: str
    alpha: Fraction
    gamma: NotNegative = 2.0
    foreground: Literal["none", "matched", "on_object"] = "matched"  # queries that are negatives for all classes
    duplicate_iou: Fraction = 0.7  # an unmatched query this near to an object is a second find of it
    selection: Literal["trusted", "union", "split"] = "trusted"  # classes that choose the queries of an image
    class_weight: NotNegative = 1.0
    l1_weight: NotNegative = 5.0
    giou_weight: NotNegative = 2.0
    normaliser: Literal["batch", "image"] = "batch"  # objects that the sums are divided by


class DetrLoss(SetLoss):
    """The `loss` section of a config."""

    classification: Literal["vfl", "mal"] = "vfl"
    alpha: Fraction = 0.75
    flips: Literal["own", "any"] = "own"  # classes that a denoising query may be given
    free_quality: StrictBool = False  # D-FINE's quality learns from images that do not trust all classes, too
    distribution_weight: NotNegative = 0.15  # D-FINE's FGL
    distillation_weight: NotNegative = 1.5  # D-FINE's DDF

    @model_validator(mode="after")
    def _as_published(self) -> Self:
        """DEIM's matchability-aware loss has numbers of its own."""
        for key, value in {"alpha": 1.0, "gamma": 1.5}.items() if self.classification == "mal" else ():
            if key not in self.model_fields_set:
                self.__dict__[key] = value  # values are fixed, and this one was not given
        return self


class RFDetrLoss(SetLoss):
    """The `loss` section of a config."""

    classification: Literal["iou_aware"] = "iou_aware"
    alpha: Fraction = 0.25  # share of the score in a positive's target, beside its IoU


SAID_BY_CHECKPOINTS = ("size", "queries", "denoising")


class SetModel(Section):
    """What the `model` sections have in common."""

    name: str
    size: str | None  # null: of a network that began as a checkpoint
    weights: Annotated[str | Path, PlainValidator(_weights)] = "none"
    queries: Count | None = 300
    # side that pictures are stretched to; auto: a checkpoint's, else `input.shorter`; null: they keep their shape
    square: Annotated[int | str | None, PlainValidator(_square)] = "auto"
    prior: OpenFraction = 0.01  # initial probability of every class
    # finds of a class suppress each other, within `eval.nms_iou`; null: unless it began as a checkpoint
    nms: StrictBool | None = None

    @model_validator(mode="after")
    def _left_to_the_checkpoint(self) -> Self:
        """What a checkpoint says and the config does not is null: a run's own config, which has all values, then
        means the same when it is read again."""
        for key in SAID_BY_CHECKPOINTS if self.of_checkpoint else ():
            if key in type(self).model_fields and key not in self.model_fields_set:
                self.__dict__[key] = None  # values are fixed, and this one was not given
        return self

    @property
    def of_backbone(self) -> bool:
        """Whether `weights` are those of the timm backbone alone: `imagenet`, or a file beside `backbone`."""
        is_file = isinstance(self.weights, Path) and self.weights.suffix in BACKBONE_FILES
        return self.weights == "imagenet" or (is_file and getattr(self, "backbone", None) is not None)

    @property
    def of_checkpoint(self) -> bool:
        """Whether `weights` are those of a whole detector."""
        return self.weights != "none" and not self.of_backbone


class DetrModel(SetModel):
    """What those of D-FINE and RT-DETR have in common."""

    backbone: Text | None = None  # a timm name, in place of the size's own
    denoising: CountOrZero | None = 100
    square: Annotated[int | str | None, PlainValidator(_square_of_strides)] = "auto"
    # of the backbone; null: frozen in a checkpoint, trained if there are no weights, else by `train.recipe`
    freeze_batch_norm: StrictBool | None = None


DFineSize = Literal["nano", "small", "medium", "large", "xlarge"]
RTDetrSize = Literal["r18", "r34", "r50m", "r50", "r101"]
RFDetrSize = Literal["nano", "small", "medium", "large", "base"]


class DFineModel(DetrModel):
    """The `model` section of a config."""

    name: Literal["dfine"] = "dfine"
    size: DFineSize | None = "small"


class RTDetrModel(DetrModel):
    """The `model` section of a config."""

    name: Literal["rtdetr"] = "rtdetr"
    size: RTDetrSize | None = "r50"
    version: Literal[1, 2] = 2


class RFDetrModel(SetModel):
    """The `model` section of a config."""

    name: Literal["rfdetr"] = "rfdetr"
    size: RFDetrSize | None = "small"


class DetrSettings(DetrModel, NetworkSettings):
    """Everything that decides the network and its loss; stored with the weights as JSON.

    size: None where it began as a checkpoint.
    config: of HF transformers, what differs from the defaults of the family; with the number of classes it is all.
    mean, std: RGB that pictures in 0..1 are normalised with; of a timm backbone they are timm's.
    nms: whether finds of a class suppress each other. That an object is found once is learnt, and not in a training
    of some hundred steps; whole checkpoints have learnt it, and answer without as HF does.
    begins: first classes of frozen extensions, oldest first. The classes from one to the next have queries of their
    own, which those of the others do not see.
    """

    size: str | None = None
    queries: Count = 300
    denoising: CountOrZero = 100
    weights: Annotated[str | Path, PlainValidator(_weights)] = "none"
    square: Annotated[int, Field(ge=32, multiple_of=32)] | None = None
    loss: SetLoss
    freeze_batch_norm: StrictBool = True
    nms: StrictBool = False
    config: dict[str, Any] = Field(default_factory=dict)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    begins: tuple[int, ...] = ()
    # behind a backbone that has learnt: blood cells and dice want more, animals, which it was judged on, no more
    # (docs/log.md, 2026-11-30); from random weights the one that was tried for long; for checkpoints one among
    # those that others fine-tune with
    # the backbone's share is near that of their authors; with 1 features died (docs/log.md, 2026-11-30). The decay
    # is theirs: in trainings as short as ours it cannot be told
    rates: ClassVar[UsualRates] = UsualRates(
        random=5e-4, backbone=5e-4, detector=2e-4, share_of_backbone=0.1, decay=1e-4
    )
    adjustable: ClassVar[frozenset[str]] = frozenset({"square", "nms"})
    decided: ClassVar[frozenset[str]] = frozenset({"freeze_batch_norm", "nms"})

    @property
    def stretched_to(self) -> int | None:
        return self.square

    @property
    def suppresses(self) -> bool:
        return self.nms

    @property
    def newest(self) -> int:
        """The first class of those that are trained together: of the newest frozen extension, or of all."""
        return self.begins[-1] if self.begins else 0

    @property
    def finest(self) -> Finest | None:
        stride = min(self.config.get("feat_strides") or FEAT_STRIDES)
        larger = (
            f"raise `model.square` (now {self.square})" if self.square else "raise `input.shorter` and `longer`"
        )
        finer = f", or take a larger `model.size`, which sees every {min(FEAT_STRIDES)} px" if self.size else ""
        return Finest(stride, larger + (finer if stride > min(FEAT_STRIDES) else ""))

    @property
    def wants_float32(self) -> bool:
        return True  # D-FINE lost 2.6 AP on photographs (docs/export.md)

    @classmethod
    def side_of(cls, model: Any, loss: Any, shorter: int) -> int | None:
        filled = model.size is None and not model.of_checkpoint
        if filled or isinstance(model.square, int):
            side: int | None = model.square
            return side
        return cls.of(model, loss, NetworkDefaults(side=shorter)).stretched_to

    @property
    def family(self) -> str:
        """The `model_type` of HF transformers."""
        raise NotImplementedError

    @classmethod
    def sizes(cls) -> dict[str, dict[str, Any]]:
        raise NotImplementedError

    @classmethod
    def of(cls, model: Any, loss: SetLoss, defaults: NetworkDefaults = NetworkDefaults()) -> Self:
        """Of the two sections of a config. Where the weights are a checkpoint of HF, config, size of the pictures
        and normalisation are the checkpoint's. Raises `UserError` for one that does not fit."""
        values = dict(model) | {"weights": "none", "loss": loss}
        if getattr(model, "freeze_batch_norm", False) is None:
            frozen = model.weights != "none" and not (model.of_backbone and defaults.train_batch_norm)
            values["freeze_batch_norm"] = frozen
        if model.nms is None:
            values["nms"] = not model.of_checkpoint or checkpoints.wants_nms(model.weights)
        if not model.of_checkpoint:
            if model.size is None:
                raise UserError("model.size: null, and no checkpoint under `model.weights` says it; name a size")
            if model.square == "auto":
                values["square"] = cls.usual_square(model.size, defaults.side)
            return cls.model_construct(**values, config=cls.sizes()[model.size])
        source = checkpoints.described(model.weights, cls.model_construct(**values).family)
        theirs = {"queries": source.config.get("num_queries", 300)}
        theirs["denoising"] = source.config.get("num_denoising", 100)
        if model.square == "auto":
            values["square"] = source.square
        values |= {key: value for key, value in theirs.items() if values.get(key) is None}
        return cls.model_construct(**values | {"size": None, **source.settings})

    @classmethod
    def usual_square(cls, size: str, side: int | None) -> int | None:
        """Without a checkpoint. side: of `NetworkDefaults`."""
        del size
        return None if side is None else max(PAD_DIVISOR, round(side / PAD_DIVISOR) * PAD_DIVISOR)

    def described(self, classes: Sequence[str]) -> list[str]:
        del classes
        return [
            f"{self.name} on {self.backbone}" if self.backbone else " ".join(filter(None, [self.name, self.size]))
        ]

    def classes_of(self, weights: str | Path) -> tuple[str, ...]:
        of_backbone = weights in ("none", "imagenet") or getattr(self, "backbone", None) is not None
        return () if of_backbone else checkpoints.described(weights, self.family).classes

    def to_json(self) -> str:
        values = {name: getattr(self, name) for name in type(self).model_fields if name not in ("weights", "name")}
        return json.dumps({**values, "loss": dict(self.loss)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises `UserError` for keys that this version does not know."""
        try:
            return cls.model_validate(json.loads(text))
        except ValidationError as error:
            raise of_another_version(error) from None

    def extended(self, mode: str, adapter: int, known: int, classes: int) -> Self:
        del classes
        if mode != "frozen":
            return self.model_copy(update={"begins": ()})
        if adapter:
            what = f"networks of the architecture {self.name} have none; leave it out"
            raise UserError(f"extend.adapter: {adapter}, but {what}")
        return self.model_copy(update={"begins": (*self.begins, known)})


class DFineSettings(DetrSettings):
    name: Literal["dfine"] = "dfine"
    size: DFineSize | None = "small"
    loss: DetrLoss = DetrLoss()

    @property
    def family(self) -> str:
        return "d_fine"

    @classmethod
    def sizes(cls) -> dict[str, dict[str, Any]]:
        return D_FINE


class RTDetrSettings(DetrSettings):
    name: Literal["rtdetr"] = "rtdetr"
    size: RTDetrSize | None = "r50"
    loss: DetrLoss = DetrLoss()
    version: Literal[1, 2] = 2

    @property
    def family(self) -> str:
        return "rt_detr" if self.version == 1 else "rt_detr_v2"

    @classmethod
    def sizes(cls) -> dict[str, dict[str, Any]]:
        return RT_DETR


class RFDetrSettings(DetrSettings):
    """mean, std: of the vision transformer. It has no denoising and no batch norm."""

    name: Literal["rfdetr"] = "rfdetr"
    size: RFDetrSize | None = "small"
    loss: RFDetrLoss = RFDetrLoss()
    denoising: Literal[0] = 0
    square: Annotated[int, Field(ge=32)] | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    antialias: ClassVar[bool] = False  # as HF's processor of the family
    has_batch_norm: ClassVar[bool] = False

    @property
    def finest(self) -> Finest | None:
        """Places are patches."""
        patch = (self.config.get("backbone_config") or {}).get("patch_size", 14)  # HF's default
        return Finest(patch, f"raise `model.square` (now {self.square})")

    @property
    def family(self) -> str:
        return "rf_detr"

    @classmethod
    def sizes(cls) -> dict[str, dict[str, Any]]:
        return RF_DETR

    @classmethod
    def usual_square(cls, size: str, side: int | None) -> int | None:
        del side
        return RF_DETR_SQUARES[size]

    @classmethod
    def of(cls, model: Any, loss: SetLoss, defaults: NetworkDefaults = NetworkDefaults()) -> Self:
        """Raises `UserError` also for a number of queries that a checkpoint has no embeddings of, and where
        pictures are stretched to a side that the windows do not divide."""
        made = super().of(model, loss, defaults)
        if model.of_checkpoint and made.queries != (theirs := made.config.get("num_queries", 300)):
            raise UserError(
                f"model.queries: {made.queries}, but the checkpoint has the embeddings of {theirs}; leave it out"
            )
        side = cls.usual_square(made.size, None) if made.square is None and made.size is not None else made.square
        return made.adjusted({"square": side}).model_copy(update={"denoising": 0})

    def adjusted(self, values: Mapping[str, Any]) -> Self:
        made = super().adjusted(values)
        side, backbone = made.square, made.config.get("backbone_config") or {}
        patch, windows = backbone.get("patch_size", 14), backbone.get("num_windows", 4)  # HF's defaults
        step = patch * windows
        if side is None or side % step:
            raise UserError(
                f"model.square: {show(side)}, but this rfdetr needs square pictures with a side that is a multiple "
                f"of {step} (patches of {patch}, {windows} windows)"
            )
        return made
