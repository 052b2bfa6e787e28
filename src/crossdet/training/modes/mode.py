"""What a mode of `crossdet extend` is. No torch at import."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field, StrictBool, StrictStr

from crossdet.errors import UserError, problem_list, show
from crossdet.labels.placeholders import used
from crossdet.labels.rules import unknown
from crossdet.labels.space import DROPPED, LabelSpace
from crossdet.models.settings import CountOrZero, Fraction, NotNegative, Section

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from crossdet.data.index import Index
    from crossdet.evaluation.run import EvalSettings
    from crossdet.inference import Detector
    from crossdet.models.contract import Growable
    from crossdet.training.state import Course


def _known(name: str) -> str:
    from crossdet.training.modes import MODES  # the dict of the modes, which are made of this module

    if name not in MODES:
        *some, last = (f"'{mode}'" for mode in MODES)
        raise ValueError(f"expected {', '.join(some)} or {last}, got {show(name)}")
    return name


class ExtendSettings(Section):
    """The `extend` section of a config: how a trained detector learns more (docs/extend.md)."""

    mode: Annotated[StrictStr, AfterValidator(_known)] = "replay"
    tolerance: NotNegative | None = 0.5  # points an old class may lose before exit status 3; null: any
    fixed_statistics: StrictBool = True  # batch norm of the backbone keeps the weights' running statistics
    match: NotNegative = 1.0  # distill: weight of matching the old detector's logits and boxes; 0: off
    pseudo: StrictBool = False  # distill: what the old detector finds becomes labels of its classes
    uncertain_from: Fraction = 0.25  # pseudo: of a class's threshold; scores between the two are avoided
    trust: StrictBool = False  # pseudo: the background that the old detector leaves is a negative
    init: dict[StrictStr, StrictStr] = Field(default_factory=dict)  # new class -> old one, as which it begins
    adapter: CountOrZero = 0  # frozen: channels of the new classes' own tower and box subnet; 0: none


@dataclass(frozen=True)
class Growth:
    """A label space that grows. known, space: before and after. train: what it is trained on."""

    known: LabelSpace
    space: LabelSpace
    train: Mapping[str, Index]

    @property
    def new(self) -> tuple[str, ...]:
        return self.space.classes[len(self.known.classes) :]

    def without_images(self) -> list[str]:
        """Old classes that no training image has a box of; a list of names holds nothing. Rows that mean nothing
        have nothing to lose."""
        learnt = {int(c) for name, index in self.train.items() for c in self.space.ids(name, index.classes_shown)}
        return used([name for c, name in enumerate(self.known.classes) if c not in learnt - {DROPPED}])

    def begins_as(self, init: Mapping[str, str]) -> dict[int, int]:
        """New class id -> the old one as which it begins, by `extend.init`; `UserError` with all mistakes."""
        problems = [text for new, old in init.items() for text in (self._not_new(new), self._not_old(old)) if text]
        if problems:
            raise UserError(problem_list(f"extend.init: {len(problems)} mistake(s)", problems))
        return {self.space.id_of(new): self.known.id_of(old) for new, old in init.items()}

    def _not_new(self, name: str) -> str | None:
        if name in self.new:
            return None
        if name in self.known.classes:
            return f"{name!r} is a class of the weights and keeps its rows; leave it out"
        if members := self._merged(name):
            return f"{name!r} is merged from {members}, which have rows of their own; leave it out"
        return unknown("new class", name, self.new) if self.new else f"{name!r}: this config brings no new class"

    def _not_old(self, name: str) -> str | None:
        if name in self.known.classes:
            return None
        if members := self._merged(name):
            return f"{name!r} is merged from {members}; say as which of them"
        if name in self.new:
            return f"{name!r} is new itself; a class begins as one of the weights: {', '.join(self.known.classes)}"
        return unknown("class of the weights", name, self.known.classes)

    def _merged(self, name: str) -> str:
        """The members of a merged class of the weights; empty for other names."""
        folds = [fold for fold in self.known.folds if fold.name == name]
        return ", ".join(self.known.classes[c] for fold in folds for c in fold.members)


@dataclass(frozen=True)
class Extension:
    """What a mode prepares a training from.

    network: carries the old weights already. old: the detector before. teacher_settings: how it looks at training
    images. folder: for what it finds there. goes_on: the training has a state; what lies in
    the folder is taken.
    """

    fabric: Fabric
    settings: ExtendSettings
    growth: Growth
    network: Growable
    old: Detector
    teacher_settings: EvalSettings
    folder: Path
    goes_on: bool


class Remark(NamedTuple):
    """kind: a warning is about what is seldom meant."""

    kind: Literal["warning", "note"]
    text: str


class Plan(NamedTuple):
    """How the training goes: what it does besides its recipe, the label space and the indexes that it reads."""

    course: Course
    space: LabelSpace
    train: Mapping[str, Index]


@dataclass(frozen=True)
class Mode:
    """One entry of `MODES`.

    keys: of the `extend` section that are of this mode alone.
    check: (settings, growth, `Architecture.grows_by`) -> what is worth saying; raises `UserError` for what cannot
    work.
    prepare: changes the network where the mode asks for it. needs: of the network, methods of `contract.Growable`.
    keeps_thresholds: old classes are not changed, and neither are their thresholds.
    adapted: (settings, methods of `contract.Growable` that the network has) -> what settings that the config leaves
    open are for such a network.
    without: a method of `needs` -> what to do where a network does not have it.
    """

    keys: tuple[str, ...]
    check: Callable[[ExtendSettings, Growth, frozenset[str]], Iterable[Remark]]
    prepare: Callable[[Extension], Plan]
    needs: Callable[[ExtendSettings], frozenset[str]]
    keeps_thresholds: bool = False
    adapted: Callable[[ExtendSettings, frozenset[str]], ExtendSettings] = lambda settings, _can: settings
    without: Mapping[str, str] = field(default_factory=dict)
