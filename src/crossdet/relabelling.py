"""`crossdet labels`: classes of a trained detector renamed and merged, without training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crossdet.checkpoint import load_weights, save_weights
from crossdet.errors import UserError
from crossdet.label_edits import edited
from crossdet.labels import LabelSpace
from crossdet.models.building import DetectorSettings
from crossdet.models.class_rows import merge_rows, merged_adapters
from crossdet.provenance import (
    Generation,
    file_digest,
    generations,
    new_generation,
    to_metadata,
    weights_path,
)


def relabel(
    weights: Path,
    output: Path,
    renames: Sequence[tuple[str, str]] = (),
    merges: Sequence[tuple[str, Sequence[str]]] = (),
) -> LabelSpace:
    """Writes the weights with classes renamed and merged to `output`; returns their label space.

    Label rules, rows of the head (`merge_rows`), thresholds and provenance follow. A merged class is reported
    from the lowest threshold of its members on, until `crossdet eval --store-thresholds` finds a better one.

    renames: (old, new). merges: (new, classes that it joins).

    Raises:
        UserError: unreadable weights, an output that is the weights themselves, or a list of all mistakes in the
            names.
    """
    if output.resolve() == weights_path(weights).resolve():
        raise UserError(f"{output}: these are the weights themselves; give another file")
    tensors, metadata = load_weights(weights)
    space = LabelSpace.from_json(metadata["labels"])
    changed, groups = edited(space, renames, merges)
    settings = DetectorSettings.from_json(metadata["model"])
    settings = replace(settings, adapters=merged_adapters(settings.adapters, groups))
    edits = [f"rename {old}={new}" for old, new in renames]
    edits += [f"merge {new}={','.join(members)}" for new, members in merges]
    history = _renamed(generations(metadata), dict(renames))
    history.append(new_generation("labels", {}, changed, file_digest(weights), edits))
    metadata = {key: value for key, value in metadata.items() if key != "format"}
    metadata |= {"labels": changed.to_json(), "model": settings.to_json(), **to_metadata(history)}
    if "operating" in metadata:
        points = _points(json.loads(metadata["operating"]), space, changed, groups)
        metadata["operating"] = json.dumps(points)
    save_weights(output, merge_rows(tensors, groups, len(space.classes), settings.prior), metadata)
    return changed


def _renamed(history: Sequence[Generation], names: Mapping[str, str]) -> list[Generation]:
    """The generations with their scores under today's names. Members of a merged class keep theirs: no number of it
    is known."""
    return [
        replace(one, scores=tuple(replace(s, name=names.get(s.name, s.name)) for s in one.scores))
        for one in history
    ]


def _points(
    points: dict[str, Any], old: LabelSpace, new: LabelSpace, groups: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Operating points by new names; of a merged class the threshold alone is known."""
    changed: dict[str, Any] = {}
    for name, group in zip(new.classes, groups, strict=True):
        known = [points[old.classes[c]] for c in group if old.classes[c] in points]
        if len(group) == 1 and known:
            changed[name] = known[0]
        elif known:
            changed[name] = {"threshold": min(point["threshold"] for point in known)}
    return changed
