"""Which classes of a detector are asked for and reported, and from which score on. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from crossdet.errors import LabelError, UserError
from crossdet.labels.patterns import is_pattern, matching, nothing_matches
from crossdet.labels.rules import unknown
from crossdet.labels.space import LabelSpace

DEFAULT_THRESHOLD = 0.3
Threshold = float | Mapping[str, float]
"""A lowest score for all classes, or of some by name or pattern (`white_*`); the others keep their own."""
_SHOWN = 8
"""Class names that `repr` lists."""


def _check_score(score: float, of: str = "") -> None:
    if not 0 <= score <= 1:
        raise UserError(f"score_threshold: {of}expected a score from 0 to 1, got {score}")


class Reporting:
    """The names and thresholds of a detector.

    space: its label space. thresholds: class -> score from which on it is reported; `DEFAULT_THRESHOLD` for classes
    that are not in it. folding: how classes are folded; None: not at all.
    """

    def __init__(self, space: LabelSpace, thresholds: Mapping[str, float] | None, fold: bool) -> None:
        self.space = space
        self.thresholds = dict(thresholds or {})
        self.folding = space.folding if fold else None

    def __repr__(self) -> str:
        named = ", ".join(self.reported[:_SHOWN]) + (", ..." if len(self.reported) > _SHOWN else "")
        file = getattr(self, "file", None)
        return f"{type(self).__name__}({len(self.reported)} classes: {named}{f'; {file}' if file else ''})"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.space.classes

    @property
    def reported(self) -> tuple[str, ...]:
        """The names that `Detections.labels` number: `classes`, folded where there is something to fold."""
        return self.classes if self.folding is None else self.folding.names

    @property
    def offered(self) -> tuple[str, ...]:
        """Those of `reported` that may be asked for."""
        return self.reported

    def thresholds_used(self, score_threshold: Threshold | None) -> dict[str, float]:
        """Class -> threshold that applies when this one is given; of several that name a class the last, but a name
        before a pattern.

        Raises `UserError` for one outside of 0..1, and for an unknown class.
        """
        if score_threshold is not None and not isinstance(score_threshold, Mapping):  # numpy's numbers are no float
            _check_score(score_threshold)
            return dict.fromkeys(self.reported, float(score_threshold))
        if self.folding is None:
            own = dict(zip(self.classes, self.class_thresholds(), strict=True))
        else:
            own = {name: self.thresholds.get(name, DEFAULT_THRESHOLD) for name in self.reported}
        for entry, score in sorted((score_threshold or {}).items(), key=lambda one: one[0] in own):
            _check_score(score, f"{entry}: ")
            names = matching([entry], self.reported)
            if strange := [name for name in names if name not in own]:
                tell = nothing_matches if is_pattern(entry) else unknown
                raise LabelError(f"score_threshold: {tell('class', strange[0], self.reported)}")
            own |= dict.fromkeys(names, float(score))
        return own

    def member_thresholds(self, score_threshold: Threshold | None) -> list[float]:
        """Of each of `classes` what `thresholds_used` says, before anything is folded."""
        used = list(self.thresholds_used(score_threshold).values())
        return used if self.folding is None else [used[c] for c in self.folding.of]

    def class_thresholds(self) -> list[float]:
        """Of each of `classes`, also where they are members of a fold: their own, else that of the whole."""
        one = self.space.folding
        whole = self.classes if one is None else [one.names[f] for f in one.of]
        return [
            self.thresholds.get(name, self.thresholds.get(of, DEFAULT_THRESHOLD))
            for name, of in zip(self.classes, whole, strict=True)
        ]

    def class_ids(self, classes: Sequence[str] | str | None) -> list[int] | None:
        """Ids of the members of these classes (names or patterns of them), None for all. Raises `UserError` for an
        unknown one."""
        if classes is None:
            return None
        names = [classes] if isinstance(classes, str) else list(classes)
        if not names:
            raise UserError(f"classes: none given; the detector knows {', '.join(self.reported)}")
        members = {fold.name: list(fold.members) for fold in self.space.folds}
        if self.folding is None:  # a member may have the name of its merged class
            members = {name: ids for name, ids in members.items() if name not in self.classes}
        known = list(dict.fromkeys([*self.reported, *self.classes]))
        names = matching(names, known)
        if strange := [name for name in names if name not in members and name not in self.classes]:
            raise LabelError("; ".join(unknown("class", name, known) for name in strange))
        return list(dict.fromkeys(c for name in names for c in members.get(name) or [self.space.id_of(name)]))
