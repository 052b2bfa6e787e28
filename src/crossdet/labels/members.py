"""One class becomes several: one per direction of its objects, one per dataset, or both (paper, sec. 5).

The members know what their class knew: they are trusted and avoided as it was. A dataset that labels all faces has
no face of any direction in its background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from crossdet.errors import LabelError, problem_list
from crossdet.labels.folds import Fold, direction_name
from crossdet.labels.rules import DROPPED, unknown
from crossdet.labels.space import LabelSpace

Member = tuple[int | None, int | None]
"""Row of the dataset, and degrees; None where the members do not differ in it."""


def with_members(
    space: LabelSpace,
    per_dataset: Sequence[str] = (),
    directions: Mapping[str, Sequence[int]] | None = None,
    open_members: bool = False,
) -> LabelSpace:
    """The label space with members in place of some classes, and with the `folds` that put them together again.

    per_dataset: unified classes with one member `name@DATASET` per dataset that labels them.
    directions: dataset -> the directions (degrees) that its classes have, as `rotated(..., classes=...)` makes
        them; its source classes are then called `name@DEGREES`, too.
    open_members: members of one class that differ by their dataset alone may share a box (`overlap`): an object of
        one is no negative for the other.

    Members are negatives of each other on labelled objects, as any two classes are, but for those. Both at once
    gives `name@DATASET@DEGREES`; different directions stay negatives, also of different datasets.

    Raises `LabelError` that lists all mistakes.
    """
    rotated = {space.dataset_index(name): tuple(angles) for name, angles in (directions or {}).items()}
    problems = _problems(space, per_dataset, rotated)
    if problems:
        raise LabelError(problem_list(f"labels: {len(problems)} mistake(s)", problems))
    if not per_dataset and not rotated:
        return space
    members = [_members(space, c, name in per_dataset, rotated) for c, name in enumerate(space.classes)]
    flat = [(c, member) for c, own in enumerate(members) for member in own]
    names = [_name(space, c, member) for c, member in flat]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise LabelError(f"labels: {', '.join(map(repr, twice))} would be the name of two classes; rename one")
    ids = {key: number for number, key in enumerate(flat)}
    sources = tuple(_sources(space, row, ids, per_dataset, rotated) for row in range(len(space.datasets)))
    return LabelSpace(
        datasets=space.datasets,
        classes=tuple(names),
        sources=sources,
        **_relations(space, sources, flat, open_members),
        federated=space.federated,
        folds=tuple(
            Fold(
                name,
                tuple(ids[c, member] for member in own),
                None if own[0][1] is None else tuple(angle for _, angle in own if angle is not None),
                None if own[0][0] is None else tuple(space.datasets[row] for row, _ in own if row is not None),
            )
            for c, (name, own) in enumerate(zip(space.classes, members, strict=True))
            if own != [(None, None)]
        ),
        directions=rotated,
    )


def lonely_members(space: LabelSpace) -> list[str]:
    """Warnings about classes of `per_dataset` that only one dataset labels: there is nothing to tell apart."""
    return [
        f"labels.per_dataset: {fold.name!r} is labelled in {fold.datasets[0]} alone, so it only becomes "
        f"{space.classes[fold.members[0]]!r}, and such weights cannot be extended; leave it out of the list"
        for fold in space.folds
        if fold.datasets is not None and len(set(fold.datasets)) == 1
    ]


def _problems(space: LabelSpace, per_dataset: Sequence[str], rotated: Mapping[int, tuple[int, ...]]) -> list[str]:
    found = [f"per_dataset: {unknown('class', n, space.classes)}" for n in per_dataset if n not in space.classes]
    for c, name in enumerate(space.classes if rotated else ()):
        rows = _rows(space, c)
        without = [space.datasets[row] for row in rows if row not in rotated]
        if without and len(without) < len(rows):
            given = ", ".join(space.datasets[row] for row in rows if row in rotated)
            found.append(
                f"class {name!r} has directions in {given} but not in {', '.join(without)}; give "
                f"{'them' if len(without) > 1 else 'it'} `directions`, too (`[0]` if all its objects are upright)"
            )
    return found


def _rows(space: LabelSpace, c: int) -> list[int]:
    return [row for row, sources in enumerate(space.sources) if c in sources.values()]


def _members(space: LabelSpace, c: int, per_dataset: bool, rotated: Mapping[int, tuple[int, ...]]) -> list[Member]:
    rows = _rows(space, c)
    angles: list[int | None] = [*sorted({a for row in rows for a in rotated.get(row, ())})] or [None]
    if not per_dataset:
        return [(None, angle) for angle in angles]
    return [(row, angle) for row in rows for angle in (sorted(rotated[row]) if row in rotated else [None])]


def _name(space: LabelSpace, c: int, member: Member) -> str:
    row, angle = member
    name = space.classes[c] if row is None else f"{space.classes[c]}@{space.datasets[row]}"
    return name if angle is None else direction_name(name, angle)


def _sources(
    space: LabelSpace,
    row: int,
    ids: Mapping[tuple[int, Member], int],
    per_dataset: Sequence[str],
    rotated: Mapping[int, tuple[int, ...]],
) -> dict[str, int]:
    found = {}
    for source, c in space.sources[row].items():
        own = row if c != DROPPED and space.classes[c] in per_dataset else None
        for angle in rotated.get(row, (None,)):
            name = source if angle is None else direction_name(source, angle)
            found[name] = DROPPED if c == DROPPED else ids[c, (own, angle)]
    return found


def _relations(
    space: LabelSpace, sources: Sequence[Mapping[str, int]], flat: Sequence[tuple[int, Member]], open_members: bool
) -> dict[str, Any]:
    """absent, not exhaustive and overlapping pairs such that every member is avoided where its class was.

    open_members: members of a class that differ in their dataset, not in their direction, overlap as well.
    """
    absent, in_part = set(), set()
    for row, own in enumerate(sources):
        labelled = set(own.values())
        for member, (c, _) in enumerate(flat):
            if (row, c) in space.absent_pairs or not (space.avoid_array[row, c] or member in labelled):
                absent.add((row, member))
            if (row, c) in space.not_exhaustive_pairs and member in labelled:
                in_part.add((row, member))
    of_class: dict[int, list[int]] = {}
    for member, (c, _) in enumerate(flat):
        of_class.setdefault(c, []).append(member)
    overlap = {
        (min(a, b), max(a, b)) for one, other in space.overlap_pairs for a in of_class[one] for b in of_class[other]
    }
    if open_members:
        for members in of_class.values():
            overlap |= {(a, b) for a, b in combinations(members, 2) if flat[a][1][1] == flat[b][1][1]}
    return {
        "absent_pairs": frozenset(absent),
        "not_exhaustive_pairs": frozenset(in_part),
        "overlap_pairs": frozenset(overlap),
    }
