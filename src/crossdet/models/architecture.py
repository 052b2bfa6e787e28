"""What an architecture tells the rest of the package before there is a network. No torch in here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from crossdet.models.settings import NetworkSettings, Section


class Contradiction(NamedTuple):
    """Values of a `model` section that do not go together. keys: dotted, the first is named in the message."""

    keys: tuple[str, ...]
    expected: str
    value: Any


@dataclass(frozen=True)
class Architecture:
    """One entry of `ARCHITECTURES`.

    model, loss: the sections of a config; `model` has `name` and `weights`.
    settings: both together, and what is stored with weights.
    build: (settings, number of classes, overlap `[C, C]` or None, weights of the backbone) -> `contract.Network`
    with a new head; it imports torch when it is called.
    contradictions: what single values of the `model` section cannot show.
    grows_by: the methods of `contract.Growable` that its networks have.
    """

    model: type[Section]
    loss: type[Section]
    settings: type[NetworkSettings]
    build: Callable[..., Any]
    contradictions: Callable[[Any], Iterator[Contradiction]]
    grows_by: frozenset[str] = frozenset()
