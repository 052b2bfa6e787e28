"""What settings are made of: the base of a section, checked numbers, and paths. No torch in here.

A path is relative to the config file's folder (`base` of the validation context; without it the current
folder), and `${VAR}` in it is taken from the environment; nothing else is interpolated.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    Strict,
    StrictStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from crossdet.errors import UserError, show
from crossdet.models.hub import SCHEME, hub_id


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are fixed, an empty section is all defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, data: Any) -> Any:
        return {} if data is None else data


def listed(value: Any) -> Any:
    """One value may stand for a list of one; null is the empty list."""
    if value is None:
        return ()
    if isinstance(value, (list, tuple)):
        return tuple(value)
    return value if isinstance(value, dict) else (value,)


def expand(text: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if not os.environ.get(name):
            state = "is empty" if name in os.environ else "is not set"
            raise ValueError(f"environment variable `{name}` {state} (in {show(text)})")
        return os.environ[name]

    return os.path.expanduser(re.sub(r"\$\{([^}]*)\}", value, text))  # noqa: PTH111  # a str may be a pattern


def resolved_path(value: Any, info: ValidationInfo) -> Path:
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise ValueError(f"expected a path, got {show(value)}")
    base = (info.context or {}).get("base") or Path.cwd()
    return Path(base).absolute() / expand(os.fspath(value))


def path_or_hub_id(value: Any, info: ValidationInfo) -> Path | str:
    """A `str` is an id of the hub (`hub.hub_id`); a `Path` that is given is none."""
    path = resolved_path(value, info)
    return value if isinstance(value, str) and hub_id(value, path) is not None else path


def filled(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value:
        raise ValueError("expected at least one value, got []")
    return value


def _weights(value: Any, info: ValidationInfo) -> str | Path:
    if value is None or value in ("none", "imagenet"):
        return value or "none"
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError(f"expected `imagenet`, `none` or a path, got {show(value)}")
    if str(value).startswith(SCHEME):
        raise ValueError(
            f"expected `imagenet`, `none` or a backbone's file, got a detector of the hub, {show(value)}"
        )
    return resolved_path(value, info)


Count = Annotated[int, Strict(), Field(ge=1)]
CountOrZero = Annotated[int, Strict(), Field(ge=0)]
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Strict(), Field(ge=0, le=1)]
OpenFraction = Annotated[float, Strict(), Field(gt=0, lt=1)]
Positives = Annotated[tuple[Positive, ...], BeforeValidator(listed), AfterValidator(filled)]
Text = Annotated[StrictStr, Field(min_length=1)]
Weights = Annotated[str | Path, PlainValidator(_weights)]


class UsualRates(NamedTuple):
    """AdamW's learning rates at 8 pictures a step, by what a network begins with: random weights, a backbone that
    has learnt, a detector that has. share_of_backbone: of the last one, for the backbone of the detector. decay:
    AdamW's weight decay."""

    random: float = 2e-3
    backbone: float = 5e-4
    detector: float = 5e-4
    share_of_backbone: float = 1.0
    decay: float = 0.05


USUAL_RATES = UsualRates()


class Finest(NamedTuple):
    """stride: pixels of the input between two places of a network's finest features. cure: what shows it objects
    that are too small for these."""

    stride: int
    cure: str


class NetworkDefaults(NamedTuple):
    """What the recipe of a training says about a network where the config does not.

    group_norm: in what is trained from random weights. train_batch_norm: of a backbone that has weights.
    head_by_backbone: a small backbone gets a small head. side: shorter side of the pictures that it is given.
    """

    group_norm: bool = False
    train_batch_norm: bool = False
    head_by_backbone: bool = False
    side: int | None = None


def of_another_version(error: ValidationError | TypeError) -> UserError:
    """For stored settings that are none of this version's."""
    what = str(error)
    if isinstance(error, ValidationError):
        what = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return UserError(f"the weights file was written by another version of crossdet ({what})")


class NetworkSettings(Section):
    """Base of an architecture's settings: everything that decides a network and its loss.

    They are the `model` section of a config, with the `loss` section as `loss`, and what only `crossdet extend`
    adds. The defaults of all of them stand in the architecture's own module.
    """

    name: str
    weights: Weights = "none"
    loss: Any
    antialias: ClassVar[bool] = True
    """See `contract.Network`."""
    has_batch_norm: ClassVar[bool] = True
    """Whether there may be any in the backbone, which `freeze_batch_norm` fixes."""

    rates: ClassVar[UsualRates] = USUAL_RATES
    """What `train.recipe: auto` takes for such networks."""
    adjustable: ClassVar[frozenset[str]] = frozenset()
    """Keys of the `model` section that an extension may say anew: no tensor has their size."""
    decided: ClassVar[frozenset[str]] = frozenset({"freeze_batch_norm"})
    """Keys of the `model` section that are decided where it says null, and no more once a run has begun."""

    @classmethod
    def of(cls, model: Any, loss: Any, defaults: NetworkDefaults = NetworkDefaults()) -> Self:
        """Of the two sections of a config. defaults: for what they leave open."""
        raise NotImplementedError

    @classmethod
    def left_open(cls, model: Any, defaults: NetworkDefaults) -> list[str]:
        """For people: what a `model` section leaves to the recipe beside batch norm, as far as is known without
        torch."""
        del model, defaults
        return []

    def adjusted(self, values: Mapping[str, Any]) -> Self:
        """With other values of `adjustable` keys. Raises `UserError` for one that does not fit."""
        return self.model_copy(update=values)

    @property
    def finest(self) -> Finest | None:
        """For `check`; None where it says by other means which boxes are too small."""
        return None

    @property
    def stretched_to(self) -> int | None:
        """See `contract.Network`."""
        return None

    @property
    def suppresses(self) -> bool:
        """See `contract.Network`."""
        return True

    @property
    def wants_float32(self) -> bool:
        """Whether detections suffer where software computes all of an exported graph in bfloat16, as OpenVINO does
        unasked on processors that have it."""
        return False

    @classmethod
    def side_of(cls, model: Any, loss: Any, shorter: int) -> int | None:
        """`stretched_to` by the two sections of a config, also of one that was filled from weights. shorter: side
        of the pictures."""
        del model, loss, shorter
        return None

    def described(self, classes: Sequence[str]) -> list[str]:
        """For people: the network in a word or two, and a line for each thing that not every network has."""
        del classes
        return [self.name]

    def classes_of(self, weights: str | Path) -> tuple[str, ...]:
        """Of a whole detector that a network of these settings begins from, by row; none in weights of a backbone.
        weights: of the `model` section. Raises `UserError` where they cannot be read."""
        del weights
        return ()

    def to_json(self) -> str:
        """As it is stored with the weights: a JSON object with every setting that decides them, so that two of them
        can be compared key by key."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises `UserError` for what this version does not know."""
        raise NotImplementedError

    def extended(self, mode: str, adapter: int, known: int, classes: int) -> Self:
        """Those of a network that grows from `known` to `classes` classes. mode, adapter: of `extend` in a config.

        Raises `UserError` where that cannot be.
        """
        raise NotImplementedError
