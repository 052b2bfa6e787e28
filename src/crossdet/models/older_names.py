"""Class names in weights that were made before readers of datasets composed and stripped them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from crossdet.labels.patterns import all_composed, class_name


def with_names_as_read(metadata: Mapping[str, str], generations: str) -> Mapping[str, str]:
    """The metadata of weights with their names as readers give them today (`class_name`): an extension would give
    the class a twin. As they are where two would become one.

    generations: the entry of these.
    """
    kept = {key: json.loads(metadata[key]) for key in ("labels", "operating", generations) if key in metadata}
    try:
        written = {key: all_composed(value) for key, value in kept.items()}
    except ValueError:
        return metadata
    classes = written["labels"]["classes"]
    if len({*classes}) < len(classes):
        return metadata
    written = _without_spaces(written, generations)
    return {**metadata, **{key: json.dumps(value) for key, value in written.items()}}


def _without_spaces(written: dict[str, Any], generations: str) -> dict[str, Any]:
    """As it is, too, for members (`name@DATASET`, `name@90`): those weights cannot be extended, and a name within a
    name is not worth the risk."""
    labels = written["labels"]
    folds = labels.get("folds", [])
    names = [*labels["classes"], *(fold["name"] for fold in folds)]
    every = [*names, *(name for own in labels["sources"] for name in own)]
    with_members = labels.get("directions") or any(fold["angles"] or fold["datasets"] for fold in folds)
    if with_members or all(name == name.strip() for name in every):
        return written
    unified = _unified(labels)
    sources = [{class_name(name): c for name, c in own.items()} for own in labels["sources"]]
    read = {name: unified.get(name, class_name(name)) for name in names}
    fewer = any(len(new) < len(old) for new, old in zip(sources, labels["sources"], strict=True))
    if fewer or len({*read.values()}) < len(read) or not all(read.values()):
        return written

    def anew(name: str) -> str:
        return read.get(name, class_name(name))

    changed = {**labels, "classes": [*map(anew, labels["classes"])], "sources": sources}
    if folds:
        changed["folds"] = [{**fold, "name": anew(fold["name"])} for fold in folds]
    if "listed_only" in labels:
        changed["listed_only"] = [[row, class_name(name), c] for row, name, c in labels["listed_only"]]
    found = {**written, "labels": changed}
    if written.get("operating"):
        found["operating"] = {anew(name): point for name, point in written["operating"].items()}
    if generations in written:
        found[generations] = [
            {
                **one,
                "datasets": {d: [*map(class_name, own)] for d, own in one["datasets"].items()},
                "classes": [*map(anew, one["classes"])],
                "scores": [{**score, "name": anew(score["name"])} for score in one.get("scores", ())],
            }
            for one in written[generations]
        ]
    return found


def _unified(labels: Mapping[str, Any]) -> dict[str, str]:
    """Of classes that `distinct` calls `DATASET/NAME`: old name -> that with the name as it is read."""
    return {
        f"{dataset}/{name}": f"{dataset}/{class_name(name)}"
        for dataset, own in zip(labels["datasets"], labels["sources"], strict=True)
        for name, c in own.items()
        if c >= 0 and labels["classes"][c] == f"{dataset}/{name}"
    }
