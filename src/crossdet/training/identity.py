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
from crossdet.labels.space import DROPPED, LabelSpace
from crossdet.models.architectures import ARCHITECTURES, DEFAULT
from crossdet.models.card import WEIGHTS_FILE, Card, read_card
from crossdet.models.settings import NetworkSettings

Identity = dict[str, str]
"""labels, architecture, model: as in the weights' metadata. data, pictures: what `described` and `file_sizes` say
of every split, as JSON; older states have no pictures."""
COMPARED = 64
"""Picture files of a split by whose sizes it is seen that they are the same."""


def run_identity(card: Card, splits: Mapping[str, Index]) -> Identity:
    """Of the weights' card and the splits that are trained and judged on, by the names that messages use."""
    data = {name: described(index) for name, index in splits.items()}
    pictures = {name: file_sizes(index) for name, index in splits.items()}
    return {**_of_card(card), "data": json.dumps(data), "pictures": json.dumps(pictures)}


def _of_card(card: Card) -> Identity:
    settings = card.settings
    return {"labels": card.space.to_json(), "architecture": settings.name, "model": settings.to_json()}


def described(index: Index) -> dict[str, Any]:
    """Number of images and boxes of an index, and the SHA-256 of all that a training sees of it but the pixels."""
    digest = hashlib.sha256(json.dumps([*index.classes]).encode())
    arrays = [index.names.blob, index.names.offsets, index.sizes, index.box_offsets, index.boxes]
    arrays += [index.labels, index.flags, index.area]
    for lists in (index.negatives, index.not_exhaustive):
        arrays += [] if lists is None else [lists.values, lists.offsets]
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return {"images": len(index), "boxes": len(index.boxes), "sha256": digest.hexdigest()}


def file_sizes(index: Index) -> dict[str, int]:
    """Name -> bytes of some picture files, evenly spread; -1 of one that is not there."""
    rows = np.unique(np.linspace(0, len(index) - 1, min(COMPARED, len(index))).astype(np.int64)).tolist()
    return {index.names[row]: _bytes(index.path(row)) for row in rows}


def _bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except (OSError, ValueError):
        return -1


def check_identity(run_dir: Path, stored: Identity | None, now: Identity) -> None:
    """Raises `UserError` that names what is another than when the run began.

    stored: of its state; None where an older version wrote it. Then what the weights beside it say is compared.
    """
    before = begun_as(run_dir, stored)
    found = [*_changes(before, now)] if before else ["its state does not say which classes it has"]
    if found:
        head = f"{run_dir}: this run cannot be resumed, it would go on with something else"
        raise UserError(f"{problem_list(head, found)}\nPut back what was there, or start a new run with --output")


def begun_as(run_dir: Path, stored: Identity | None) -> Identity | None:
    """What a run began with. stored: of its state; None of an older one, where the weights beside it say a part."""
    if stored:
        return stored
    if not (run_dir / WEIGHTS_FILE).is_file():
        return None
    return _of_card(read_card(run_dir))


def _changes(before: Identity, now: Identity) -> Iterator[str]:
    yield from differences(LabelSpace.from_json(before["labels"]), LabelSpace.from_json(now["labels"]))
    then_name, name = before.get("architecture", DEFAULT), now["architecture"]
    if then_name != name:
        yield f"model.name: {then_name} then, {name} now"
    else:
        old, new = (_by_key(ARCHITECTURES[name].settings.from_json(i["model"])) for i in (before, now))
        for key in dict.fromkeys([*old, *new]):
            if old.get(key) != new.get(key):
                yield f"{key}: {old.get(key)} then, {new.get(key)} now"
    then, data = json.loads(before.get("data", now["data"])), json.loads(now["data"])
    yield from (f"datasets.{name}: was not there" for name in data if name not in then)
    for name, was in then.items():
        if name not in data:
            yield f"datasets.{name}: is gone"
        elif was != data[name]:
            one, other = (f"{d['images']:,} images with {d['boxes']:,} boxes" for d in (was, data[name]))
            same = "as many as before, but not the same" if one == other else f"{one} then"
            yield f"datasets.{name}: {other} now, {same}"
        else:
            yield from _other_pictures(name, before, now)


def _by_key(settings: NetworkSettings) -> dict[str, Any]:
    """Values by the keys that a config has for them; stored settings may have other names for some."""
    found = {}
    for key, value in settings.model_dump(mode="json").items():
        at = key if key == "loss" else f"model.{key}"
        found.update({f"{at}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {at: value})
    return found


def _other_pictures(split: str, before: Identity, now: Identity) -> Iterator[str]:
    then, files = (json.loads(identity.get("pictures", "{}")).get(split, {}) for identity in (before, now))
    other = [name for name in files if files[name] != then.get(name, files[name])]
    if other:
        first = other[0]
        sizes = f"{_told(then[first])} then, {_told(files[first])} now"
        yield f"datasets.{split}: {len(other)} of {len(files)} pictures are other files, such as {first} ({sizes})"


def _told(size: int) -> str:
    return f"{size:,} bytes" if size >= 0 else "not there"


def differences(old: LabelSpace, new: LabelSpace) -> list[str]:
    """What is another in `new`, a line each, for people; the order of the classes counts, it is that of the head's
    rows."""
    found = []
    if old.classes != new.classes:
        found.append(f"classes: {', '.join(old.classes)} then, {', '.join(new.classes)} now")
    if old.datasets != new.datasets:
        found.append(f"datasets: {', '.join(old.datasets)} then, {', '.join(new.datasets)} now")
    meant, means = _by_source(old), _by_source(new)
    for source in dict.fromkeys([*meant, *means]):
        was, now = meant.get(source, "not there"), means.get(source, "not there")
        found += [f"{source}: {was} then, {now} now"] if was != now else []
    said, says = _statements(old), _statements(new)
    found += [f"no longer said: {text}" for text in said if text not in says]
    return found + [f"newly said: {text}" for text in says if text not in said]


def _by_source(space: LabelSpace) -> dict[str, str]:
    """Source class `dataset/name` -> its unified name, or that it is dropped."""
    return {
        f"{dataset}/{name}": "dropped" if c == DROPPED else repr(space.classes[c])
        for dataset, sources in zip(space.datasets, space.sources, strict=True)
        for name, c in sources.items()
    }


def _statements(space: LabelSpace) -> list[str]:
    """The relations of a label space, a line each."""
    pairs = {"absent": space.absent_pairs, "not exhaustive": space.not_exhaustive_pairs}
    lines = [
        f"{space.classes[c]} is {rule} in {space.datasets[row]}"
        for rule, of_rule in pairs.items()
        for row, c in sorted(of_rule)
    ]
    lines += [f"{space.classes[a]} and {space.classes[b]} overlap" for a, b in sorted(space.overlap_pairs)]
    lines += [f"{space.datasets[row]} is federated" for row in sorted(space.federated)]
    names = [(fold.name, [space.classes[c] for c in fold.members]) for fold in space.folds]
    return lines + [f"{name} stands for {', '.join(members)}" for name, members in names]
