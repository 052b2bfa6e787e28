"""`crossdet labels`: classes of a trained detector renamed and merged, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crossdet.errors import UserError
from crossdet.labels.edits import edited
from crossdet.labels.space import LabelSpace
from crossdet.models.card import Generation, file_digest, new_generation, weights_path
from crossdet.models.weights import load_weights, save_weights


def relabel(
    weights: Path,
    output: Path,
    renames: Sequence[tuple[str, str]] = (),
    merges: Sequence[tuple[str, Sequence[str]]] = (),
) -> LabelSpace:
    """Writes the weights with classes renamed and merged to `output`; returns their label space.

    The tensors stay as they are: a merged class is a fold over its members (`labels.edits.edited`). Label rules,
    thresholds and provenance follow the names. A merged class has no threshold until `crossdet eval
    --store-thresholds` finds one: its members' say nothing about both together.

    renames: (old, new). merges: (new, classes that it joins).

    Raises:
        UserError: unreadable weights, an output that is the weights themselves, or a list of all mistakes in the
            names.
    """
    if output.resolve() == weights_path(weights).resolve():
        raise UserError(f"{output}: these are the weights themselves; give another file")
    tensors, card = load_weights(weights)
    space = card.space
    changed = edited(space, renames, merges)
    edits = [f"rename {old}={new}" for old, new in renames]
    edits += [f"merge {new}={','.join(members)}" for new, members in merges]
    history = _renamed(card.generations, dict(renames))
    history.append(new_generation("labels", {}, changed, file_digest(weights), edits))
    points = None if card.operating is None else _points(card.operating, space, renames, merges)
    save_weights(output, tensors, replace(card, space=changed, operating=points, generations=tuple(history)))
    return changed


def _renamed(history: Sequence[Generation], names: Mapping[str, str]) -> list[Generation]:
    """The generations with their scores under today's names. Members of a merged class keep theirs: no number of it
    is known."""
    return [
        replace(one, scores=tuple(replace(s, name=names.get(s.name, s.name)) for s in one.scores))
        for one in history
    ]


def _points(
    points: Mapping[str, Any],
    old: LabelSpace,
    renames: Sequence[tuple[str, str]],
    merges: Sequence[tuple[str, Sequence[str]]],
) -> dict[str, Any]:
    """Operating points by new names. Members keep theirs, for use under their own names; what would be read as that
    of a merged class goes, and so does that of a merged class that is a part of another now."""
    names = dict(renames)
    joined = {name for _, members in merges for name in members}
    gone = {fold.name for fold in old.folds if fold.name in joined}
    kept = {names.get(name, name): point for name, point in points.items() if name not in gone}
    return {name: point for name, point in kept.items() if name not in {new for new, _ in merges}}
