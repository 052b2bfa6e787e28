"""What a run trains on, stored with its state: a resumed run goes on with the same, or says what is another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from crossdet.data.index import Index
from crossdet.errors import UserError, problem_list
from crossdet.label_edits import differences
from crossdet.labels import LabelSpace
from crossdet.models.building import DetectorSettings
from crossdet.provenance import WEIGHTS_FILE, read_metadata

Identity = dict[str, str]
"""labels, model: as in the weights' metadata. data: what `described` says of every split, as JSON."""


def run_identity(metadata: Mapping[str, str], splits: Mapping[str, Index]) -> Identity:
    """Of the weights' metadata and the splits that are trained and judged on, by the names that messages use."""
    data = {name: described(index) for name, index in splits.items()}
    return {"labels": metadata["labels"], "model": metadata["model"], "data": json.dumps(data)}


def described(index: Index) -> dict[str, Any]:
    """Number of images and boxes of an index, and the SHA-256 of all that a training sees of it but the pixels."""
    digest = hashlib.sha256(json.dumps([*index.classes]).encode())
    arrays = [index.names.blob, index.names.offsets, index.sizes, index.box_offsets, index.boxes]
    arrays += [index.labels, index.flags]
    for lists in (index.negatives, index.not_exhaustive):
        arrays += [] if lists is None else [lists.values, lists.offsets]
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return {"images": len(index), "boxes": len(index.boxes), "sha256": digest.hexdigest()}


def check_identity(run_dir: Path, stored: Identity | None, now: Identity) -> None:
    """Raises `UserError` that names what is another than when the run began.

    stored: of its state; None where an older version wrote it. Then what the weights beside it say is compared.
    """
    before = stored or _of_weights(run_dir)
    found = [*_changes(before, now)] if before else ["its state does not say which classes it has"]
    if found:
        head = f"{run_dir}: this run cannot be resumed, it would go on with something else"
        raise UserError(
            f"{problem_list(head, found)}\nPut back what was there, or start a new run with --output"
        )


def _of_weights(run_dir: Path) -> Identity | None:
    if not (run_dir / WEIGHTS_FILE).is_file():
        return None
    metadata = read_metadata(run_dir)
    return {key: metadata[key] for key in ("labels", "model")}


def _changes(before: Identity, now: Identity) -> Iterator[str]:
    yield from differences(LabelSpace.from_json(before["labels"]), LabelSpace.from_json(now["labels"]))
    old, new = (vars(DetectorSettings.from_json(one["model"])) for one in (before, now))
    yield from (f"model.{key}: {old[key]} then, {new[key]} now" for key in new if old[key] != new[key])
    then, data = json.loads(before.get("data", now["data"])), json.loads(now["data"])
    yield from (f"datasets.{name}: was not there" for name in data if name not in then)
    for name, was in then.items():
        if name not in data:
            yield f"datasets.{name}: is gone"
        elif was != data[name]:
            one, other = (f"{d['images']:,} images with {d['boxes']:,} boxes" for d in (was, data[name]))
            same = "as many as before, but not the same" if one == other else f"{one} then"
            yield f"datasets.{name}: {other} now, {same}"
