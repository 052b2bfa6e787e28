"""The settings of RetinaNet, with their defaults: the paper's. No torch in here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, ValidationError

from crossdet.errors import UserError
from crossdet.models.settings import (
    Count,
    CountOrZero,
    Fraction,
    NetworkDefaults,
    NetworkSettings,
    NotNegative,
    OpenFraction,
    Positive,
    Section,
    Text,
    Weights,
    filled,
    listed,
    of_another_version,
)

PYRAMID_STRIDES = (8, 16, 32, 64, 128)
"""Strides of the pyramid levels P3 to P7."""
Channels = Annotated[Count, Field(le=4096)]
Depth = Annotated[CountOrZero, Field(le=64)]
HEAD, SMALL_HEAD = (256, 4), (128, 2)
"""Channels of the pyramid and convolutions before each output: the paper's, and behind small backbones."""
SMALL_BACKBONE = 15_000_000
"""Parameters. Behind MobileNetV2 (1.8 million) a step with the paper's head took 6.8 seconds on a CPU, with the
small one 1.9; ResNet-18 has 11 million, ResNet-50 23. In the same minutes the small head was better (docs/log.md,
2026-11-28)."""


class Adapter(NamedTuple):
    """What a frozen extension adds: a class tower and a box subnet, both of so many channels.

    first: the classes from here on use the class tower, see `Subnet`; the rows of those before have zeros there. 0
    where all classes were trained since.
    boxes, until: the classes `boxes <= c < until` have their boxes from the box subnet; until None: all from
    `boxes` on that no later adapter has, as in weights that know no end. The boxes that the old classes taught the
    old subnet need not fit new ones. Classes that come later have the old subnet again, which is wider.
    """

    first: int
    channels: int
    boxes: int
    until: int | None = None

    def has_boxes_of(self, c: int) -> bool:
        return self.boxes <= c and (self.until is None or c < self.until)


Factors = Annotated[
    tuple[Annotated[Positive, Field(ge=0.001, le=1000)], ...], BeforeValidator(listed), AfterValidator(filled)
]


class Anchors(Section):
    """Anchor area = (scale x stride)^2; ratio = height / width."""

    scales: Factors = (2.0, 3.0, 4.0)
    ratios: Factors = (0.5, 1.0, 2.0)


class RetinaNetModel(Section):
    """The `model` section of a config."""

    name: Literal["retinanet"] = "retinanet"
    backbone: Text = "resnet50"  # a timm name
    weights: Weights = "imagenet"  # or `none`, or a file
    channels: Channels | None = None  # of the pyramid; null: 256, by `recipe: auto` 128 behind a small backbone
    head_depth: Depth | None = None  # convolutions before each output; null: 4, or 2
    group_norm: StrictBool | None = None  # in pyramid and head; null: by `train.recipe` (auto: yes, paper: no)
    anchors: Anchors = Anchors()
    positive_iou: Fraction = 0.5
    negative_iou: Fraction = 0.4  # between the two an anchor is ignored
    low_quality_matches: StrictBool = True  # each box keeps its best anchors, whatever their IoU
    # of the backbone; null: trained if there are no weights, else by `train.recipe` (paper: frozen; auto: trained
    # if a device has at least 4 pictures at once)
    freeze_batch_norm: StrictBool | None = None
    prior: OpenFraction = 0.01  # initial probability of every class


class RetinaNetLoss(Section):
    """The `loss` section of a config."""

    alpha: Fraction = 0.25
    gamma: NotNegative = 2.0
    # an object is a negative for all other datasets' classes; "all": also by anchors that hardly lie on it
    foreground_negatives: StrictBool | Literal["all"] = True
    box_beta: NotNegative = 1 / 9  # of smooth L1; 0: L1
    box_weight: NotNegative = 1.0
    normaliser: Literal["batch", "image"] = "batch"  # positives that the sums are divided by


class RetinaNetSettings(RetinaNetModel, NetworkSettings):  # type: ignore[misc]
    """Everything that decides the network and its loss; stored with the weights as JSON.

    weights: not known, where the backbone started decides nothing afterwards. group_channels: least channels per
    group of the group norm. adapters: of frozen extensions, oldest first.
    """

    weights: Weights = "none"
    channels: Channels = HEAD[0]
    head_depth: Depth = HEAD[1]
    loss: RetinaNetLoss = RetinaNetLoss()
    freeze_batch_norm: StrictBool = True
    group_norm: StrictBool = False
    group_channels: Annotated[int, Field(ge=1)] = 4
    adapters: tuple[Adapter, ...] = ()

    @classmethod
    def of(cls, model: RetinaNetModel, loss: RetinaNetLoss, defaults: NetworkDefaults = NetworkDefaults()) -> Self:
        """Of the two sections of a config. Batch norm that begins at random is trained, unless the config says."""
        values = dict(model) | {"weights": "none"}
        if None in (model.channels, model.head_depth):
            small = defaults.head_by_backbone and _parameters(model.backbone) < SMALL_BACKBONE
            usual = dict(zip(("channels", "head_depth"), SMALL_HEAD if small else HEAD, strict=True))
            values |= {key: value for key, value in usual.items() if values[key] is None}
        if model.freeze_batch_norm is None:
            values["freeze_batch_norm"] = model.weights != "none" and not defaults.train_batch_norm
        if model.group_norm is None:
            values["group_norm"] = defaults.group_norm
        return cls.model_construct(**values, loss=loss)

    @classmethod
    def left_open(cls, model: RetinaNetModel, defaults: NetworkDefaults) -> list[str]:
        if None not in (model.channels, model.head_depth):
            return []
        usual = _of_head(model, HEAD)
        if not defaults.head_by_backbone:
            return [f"head: {usual}"]
        million = SMALL_BACKBONE // 1_000_000
        return [
            f"head: {_of_head(model, SMALL_HEAD)} behind a backbone of less than {million} million parameters, "
            f"else {usual}"
        ]

    def described(self, classes: Sequence[str]) -> list[str]:
        before = f"{self.head_depth} convolution{'s' * (self.head_depth != 1)} before each output"
        lines = [f"{self.backbone}, {self.channels} channels, {before}"]
        ends = [later.boxes for later in self.adapters[1:]] + [len(classes)]
        for adapter, next_one in zip(self.adapters, ends, strict=False):
            boxes = classes[adapter.boxes : next_one if adapter.until is None else adapter.until]
            scores = ", ".join(classes[adapter.first :])
            lines.append(
                f"adapter of {adapter.channels} channels: scores of {scores}; boxes of {', '.join(boxes) or 'none'}"
            )
        return lines

    def to_json(self) -> str:
        """Flat, and by the names that the first weights files had."""
        first = ("backbone", "channels", "head_depth", "group_norm", "group_channels")
        then = ("prior", "positive_iou", "negative_iou", "low_quality_matches")
        values = {
            **{key: getattr(self, key) for key in first},
            **dict(self.anchors),
            **{key: getattr(self, key) for key in then},
            **dict(self.loss),
            "frozen_batch_norm": self.freeze_batch_norm,
            "adapters": self.adapters,
        }
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises `UserError` for keys that this version does not know."""
        values: dict[str, Any] = json.loads(text)
        values.setdefault("group_channels", 2)  # of weights that do not say it yet
        if "frozen_batch_norm" in values:
            values["freeze_batch_norm"] = values.pop("frozen_batch_norm")
        for name, kind in (("anchors", Anchors), ("loss", RetinaNetLoss)):
            values[name] = {key: values.pop(key) for key in kind.model_fields if key in values}
        try:
            values["adapters"] = tuple(Adapter(*entry) for entry in values.get("adapters", ()))
            return cls.model_validate(values)
        except (ValidationError, TypeError) as error:
            raise of_another_version(error) from None

    def extended(self, mode: str, adapter: int, known: int, classes: int) -> Self:
        """With the adapters of the network, and a new one for the new classes where that is asked for. Where old
        rows train, too, they may use all channels."""
        if mode != "frozen":
            return self.model_copy(update={"adapters": tuple(old._replace(first=0) for old in self.adapters)})
        if not adapter:
            return self
        if self.group_norm and adapter == 1:
            raise UserError("extend.adapter: 1, but group norm needs at least two channels; take 2 or more")
        return self.model_copy(update={"adapters": (*self.adapters, Adapter(known, adapter, known, classes))})


def _of_head(model: RetinaNetModel, usual: tuple[int, int]) -> str:
    given = zip((model.channels, model.head_depth), usual, strict=True)
    channels, depth = (default if value is None else value for value, default in given)
    return f"{channels} channels, {depth} convolution{'s' * (depth != 1)}"


def _parameters(backbone: str) -> int:
    """Raises `UserError` for names that are no backbone's."""
    from crossdet.models.backbones import Backbone

    return sum(p.numel() for p in Backbone(backbone).parameters())
