"""Classes that a dataset lists and has not one box of, while others have: unlabelled, or not there? No torch.

The background of such a dataset would be a negative for them, so the label rules have to say what is so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossdet.data.index import Index
from crossdet.errors import problem_list
from crossdet.labels.space import DROPPED, LabelSpace
from crossdet.yaml_text import flow, rule


class ListedOnly(NamedTuple):
    """dataset: that lists the unified `classes`, and has no box of them. others: who has, of any of them."""

    dataset: str
    classes: tuple[str, ...]
    others: tuple[str, ...]


def without_box(
    space: LabelSpace,
    indexes: Mapping[str, Index],
    labelled: Mapping[str, Collection[str]],
    known: LabelSpace | None,
) -> tuple[ListedOnly, ...]:
    """What the label rules do not say (`Sources.listed_only`).

    indexes: of every dataset its training split, or the other one.
    known: weights that are extended; they count as one who has boxes of their classes, but not for datasets that
    these classes were learnt from: a few of their old pictures need not show all (`doubts` warns of it).
    """
    names, whole = _names(space)
    boxes, empty = {}, {}
    for dataset, index in indexes.items():
        boxes[dataset], empty[dataset] = _listed_classes(space, dataset, index, labelled[dataset], whole)
    found = []
    for dataset, classes in empty.items():
        has = {other: own & set(classes) for other, own in boxes.items() if other != dataset}
        if known is not None:
            has["the weights"] = {c for c in classes if c < len(known.classes)} - learnt_from(known, dataset)
        asked = [c for c in classes if any(c in own for own in has.values())]
        if asked:
            others = tuple(other for other, own in has.items() if own)
            found.append(ListedOnly(dataset, tuple(names[c] for c in asked), others))
    return tuple(found)


def listed_without_box(
    space: LabelSpace, indexes: Mapping[str, Index], labelled: Mapping[str, Collection[str]]
) -> dict[str, list[str]]:
    """Dataset -> unified names that it lists without a box and trusts its background for, whoever has boxes."""
    names, whole = _names(space)
    empty = {d: _listed_classes(space, d, index, labelled[d], whole)[1] for d, index in indexes.items()}
    return {dataset: [names[c] for c in classes] for dataset, classes in empty.items()}


def _names(space: LabelSpace) -> tuple[list[str], NDArray[np.int64]]:
    """`C` names, and `[C]` the class that stands for each: the members of a class that is told apart are one here,
    merged ones are different things, each asked about."""
    names, whole = list(space.classes), np.arange(len(space.classes))
    for fold in space.folds:
        if not fold.is_merge:
            whole[list(fold.members)] = fold.members[0]
            names[fold.members[0]] = fold.name
    return names, whole


def _listed_classes(
    space: LabelSpace, dataset: str, index: Index, labelled: Collection[str], whole: NDArray[np.int64]
) -> tuple[set[int], list[int]]:
    """The classes (by `whole`, `[C]`) that a dataset has boxes of, and those that it lists without and trusts its
    background for. index: upright, or turned as the label space says. labelled: names without directions."""
    row = space.dataset_index(dataset)
    end = f"@{space.directions[row][0]}" if row in space.directions else ""
    names: Sequence[str] = index.classes
    if index.rotation is not None:  # then each stands there once per direction
        names = [name.removesuffix(end) for name in names if name.endswith(end)]
    ids = {name: space.index(dataset, name + end) for name in names}
    kept = {name: int(whole[c]) for name, c in ids.items() if c != DROPPED}
    boxes = {c for name, c in kept.items() if name in labelled}
    trusts = {int(c) for c in whole[~space.avoid_array[row]]}
    return boxes, sorted((set(kept.values()) - boxes) & trusts)


def names_learnt_from(known: LabelSpace, dataset: str) -> set[str]:
    """`learnt_from` by the names of `listed_without_box`."""
    names, whole = _names(known)
    return {names[whole[c]] for c in learnt_from(known, dataset)}


def learnt_from(known: LabelSpace, dataset: str) -> set[int]:
    """The classes that the weights learnt from a dataset."""
    if dataset not in known.datasets:
        return set()
    return set(np.flatnonzero(known.annotated_array[known.dataset_index(dataset)]).tolist())


def listed_only_notes(listed_only: Sequence[ListedOnly]) -> dict[str, str]:
    """Dataset -> what `Sources.listed_only` means where nothing is trained."""
    return {
        dataset: f"lists {', '.join(classes)} and has no box of it, while {', '.join(others)} has; what is found "
        f"of it counts as wrong in thresholds. If the pictures may show it: "
        f"{rule('unlabelled', {dataset: list(classes)})}"
        for dataset, classes, others in listed_only
    }


def listed_only_problem(listed_only: Sequence[ListedOnly]) -> str:
    """What to say about `Sources.listed_only`, and how to answer."""
    lines = [
        f"{dataset}: {', '.join(classes)} (boxes in {', '.join(others)})"
        for dataset, classes, others in listed_only
    ]
    answer = flow({dataset: list(classes) for dataset, classes, _ in listed_only})
    head = (
        "classes that a dataset lists and has not one box of, while others have: its background would be taken for "
        "a negative"
    )
    return (
        f"{problem_list(head, lines)}\nSay under `labels` what is so:\n"
        f"    unlabelled: {answer}    # its pictures may show them: background avoided\n"
        f"    absent: {answer}    # no picture of it shows them: background trusted\n"
        f"or take a class out of the union: list all its source classes under `labels.drop`"
    )
