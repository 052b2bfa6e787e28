"""What an architecture tells the rest of the package before there is a network. No torch in here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from crossdet.models.settings import NetworkSettings, Section

if TYPE_CHECKING:
    from torch import Tensor


class Contradiction(NamedTuple):
    """Values of a `model` section that do not go together. keys: dotted, the first is named in the message."""

    keys: tuple[str, ...]
    expected: str
    value: Any


ADAPTER = "adapter"


@dataclass(frozen=True)
class Foreign:
    """A checkpoint that other software wrote: what it says of itself, as a trained network of ours.

    classes: in the order of its rows. shorter, longer: see `card.InputSettings`. tensors: reads them, by the names
    of a network with the given settings: its own, or those that stand beside it. keys: of `model`, besides name and
    weights, that a config says to begin from it.
    """

    classes: tuple[str, ...]
    settings: NetworkSettings
    shorter: int
    longer: int
    tensors: Callable[[Any], dict[str, Tensor]]
    keys: Mapping[str, Any] = field(default_factory=dict)


def file_problem(model: Any) -> str | None:
    """Of `model.weights` where a path is one of a file."""
    weights = model.weights
    if isinstance(weights, Path) and not weights.is_file():
        what = "is a folder" if weights.is_dir() else "does not exist"
        return f"model.weights: {weights} {what}; give a file, `imagenet` or `none`"
    return None


@dataclass(frozen=True)
class Architecture:
    """One entry of `ARCHITECTURES`.

    model, loss: the sections of a config; `model` has `name` and `weights`.
    settings: both together, and what is stored with weights.
    build: (settings, number of classes, overlap `[C, C]` or None, weights of the backbone) -> `contract.Network`
    with a new head; it imports torch when it is called. Where `settings.classes_of(weights)` names classes it takes
    one more: class -> the row of theirs that it begins as.
    contradictions: what single values of the `model` section cannot show.
    grows_by: the methods of `contract.Growable` that its networks have, and `ADAPTER` where new classes may have
    layers of their own.
    weights_problem: what is wrong with the path under `model.weights`, in words.
    foreign: a path -> what other software left there, None where that is not of this architecture.
    """

    model: type[Section]
    loss: type[Section]
    settings: type[NetworkSettings]
    build: Callable[..., Any]
    contradictions: Callable[[Any], Iterator[Contradiction]]
    grows_by: frozenset[str] = frozenset()
    weights_problem: Callable[[Any], str | None] = file_problem
    foreign: Callable[[Path], Foreign | None] = lambda _path: None
