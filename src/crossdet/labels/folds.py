"""Folds: several classes of a label space that are reported as one: directions of an object, its datasets,
or classes merged after training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NO_ANGLE, NO_CLASS = -1, -1


def direction_name(name: str, degrees: int) -> str:
    """The class of the objects of `name` that are rotated by so much: `face@90`."""
    return f"{name}@{degrees}"


@dataclass(frozen=True)
class Fold:
    """Classes that are one class with something more said about it.

    name: of the one class. members: `n` unified ids. angles: `n` degrees counter-clockwise; None where the members
    are no directions. datasets: `n` names; None where the members are not told apart by dataset. With neither it is
    a merge (`crossdet labels`), and one of its members may have its name.
    """

    name: str
    members: tuple[int, ...]
    angles: tuple[int, ...] | None = None
    datasets: tuple[str, ...] | None = None

    @property
    def is_merge(self) -> bool:
        return self.angles is None and self.datasets is None

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> Fold:
        """Of what `vars` of a fold became in JSON."""
        lists = {key: None if data[key] is None else tuple(data[key]) for key in ("angles", "datasets")}
        return cls(data["name"], tuple(data["members"]), **lists)


@dataclass(frozen=True)
class Folding:
    """All folds of a label space at once, for arrays of labels.

    names: of the folded classes, in the order of their first members. of: `[C]` folded id of every class.
    angles: `[C]` degrees, NO_ANGLE where a class is no direction. merged: all folds are merges; NMS then
    takes the members for one class from the start, elsewhere after that of each for itself.
    """

    names: tuple[str, ...]
    of: NDArray[np.int64]
    angles: NDArray[np.int64]
    merged: bool = False

    @classmethod
    def build(cls, classes: Sequence[str], folds: Sequence[Fold]) -> Folding | None:
        """None where there is nothing to fold."""
        if not folds:
            return None
        name_of, angles = list(classes), np.full(len(classes), NO_ANGLE, np.int64)
        for fold in folds:
            for place, member in enumerate(fold.members):
                name_of[member] = fold.name
                if fold.angles is not None:
                    angles[member] = fold.angles[place]
        names = tuple(dict.fromkeys(name_of))
        of = np.array([names.index(name) for name in name_of], np.int64)
        return cls(names, of, angles, all(fold.is_merge for fold in folds))

    def at_once(self, suppresses: bool) -> int:
        """As how many members one object may be found before folding, so that as many times the detections are
        kept: all of the largest fold; 1 where NMS takes them for one class. suppresses: of `Network`."""
        return 1 if self.merged and suppresses else int(np.bincount(self.of).max())

    @property
    def nms_groups(self) -> list[int] | None:
        """Of every class the group that NMS runs in (a network's `find`); None: by class."""
        return self.of.tolist() if self.merged else None

    @property
    def has_angles(self) -> bool:
        return bool((self.angles != NO_ANGLE).any())

    def members(self, folded: Iterable[int]) -> list[int]:
        """The classes of some folded ones, rising."""
        return np.flatnonzero(np.isin(self.of, list(folded))).tolist()


def mirror_map(count: int, folds: Sequence[Fold]) -> NDArray[np.int64] | None:
    """`[C]` the class that every class becomes in a mirrored picture, NO_CLASS where there is no class for it; None
    where no class is a direction."""
    if all(fold.angles is None for fold in folds):
        return None
    becomes = np.arange(count, dtype=np.int64)
    for fold in folds:
        if fold.angles is None:
            continue
        origins = fold.datasets or ("",) * len(fold.members)
        at = {(origin, angle): m for origin, angle, m in zip(origins, fold.angles, fold.members, strict=True)}
        for (origin, angle), member in at.items():
            becomes[member] = at.get((origin, -angle % 360), NO_CLASS)
    return becomes
