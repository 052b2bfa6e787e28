"""`crossdet new`: the data sets below a folder, as a config to begin with. No torch."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np

from crossdet.config import Config
from crossdet.config.files import parsed
from crossdet.data.formats import FORMATS
from crossdet.data.formats.format import SplitFiles
from crossdet.data.formats.tree import WORDS, Found, Refused, Tree
from crossdet.data.index import Index
from crossdet.data.reading import read_split
from crossdet.errors import LabelError, UserError, problem_list
from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.files import write_atomically
from crossdet.labels.common import label_in_part, parts_of
from crossdet.labels.space import LabelSpace, check_class_names
from crossdet.yaml_text import flow

SHOWN = 8
"""Class names that a comment lists before it only counts."""
COPIES = r"([^/]+)_[A-Za-z]+\.rf\."
"""In the names that Roboflow gives to copies of one photograph: `street_12_jpg.rf.0123abcd.jpg`."""
_HELD_OUT = 6
"""One of so many training pictures is validated on where a dataset has no split for it."""


@dataclass(frozen=True)
class Dataset:
    """splits, indexes: by `tree.WORDS`; there is `train` or `val`. stand_in: `val` is the test split. refused: why
    other splits could not be read."""

    name: str
    format: str
    home: Path
    splits: Mapping[str, SplitFiles]
    indexes: Mapping[str, Index]
    stand_in: bool
    refused: Mapping[str, str]

    @property
    def held_out(self) -> str | None:
        """The share of the training pictures that is validated on, where no split is and there are enough."""
        lacks = "val" not in {*self.splits, *self.refused}
        return f"1/{_HELD_OUT}" if lacks and len(self.indexes["train"]) >= 2 * _HELD_OUT else None

    @property
    def classes(self) -> list[str]:
        """In the order of the files, of all splits."""
        return list(dict.fromkeys(name for index in self.indexes.values() for name in index.classes))

    @property
    def without_box(self) -> list[str]:
        """Classes that the dataset lists and has no box of."""
        indexes = self.indexes.values()
        seen = {index.classes[c] for index in indexes for c in np.unique(index.labels[index.labels >= 0]).tolist()}
        return [name for name in self.classes if name not in seen]


@dataclass(frozen=True)
class Recognised:
    """notes: what was not taken, and why."""

    root: Path
    datasets: tuple[Dataset, ...]
    notes: tuple[str, ...]


def write_new(folder: Path, output: Path, overwrite: bool = False) -> dict[str, Any]:
    """Writes a config of all data sets below `folder`; returns what was recognised and what was not.

    Raises `UserError`: nothing was recognised, or the file is there and shall not be overwritten.
    """
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists; give another file with --output, or replace it with --overwrite")
    found = recognise(folder)
    text = config_text(found, output.absolute().parent)
    Config.from_dict(parsed(text), output.absolute().parent)
    write_atomically(output, text.encode())
    datasets = {
        dataset.name: {
            "format": dataset.format,
            "folder": str(dataset.home),
            "classes": dataset.classes,
            "images": {split: len(index) for split, index in dataset.indexes.items()},
            "held_out": dataset.held_out,
        }
        for dataset in found.datasets
    }
    return {"config": str(output), "datasets": datasets, "not_taken": list(found.notes)}


def recognise(folder: Path) -> Recognised:
    """The data sets below a folder, by the formats' own `find`, and read once.

    Raises `UserError` where there are none."""
    tree = Tree.of(folder)
    notes: list[str] = []
    refused: list[Refused] = []
    groups: dict[tuple[str, Path, str], dict[str, Found]] = {}
    for kind in reversed(FORMATS):  # COCO last: it is what others are converted to
        for one in FORMATS[kind].find(tree):
            if isinstance(one, Refused):
                refused.append(one)
                continue
            splits = groups.setdefault((kind, one.home, one.variant), {})
            split = one.split or "train"
            if split in splits:
                notes.append(f"{one.files.annotations[0]}: another {split} split of {one.home}")
            splits.setdefault(split, one)
    taken = {picture for splits in groups.values() for one in splits.values() for picture in one.pictures}
    notes += [f"{one.path}: {one.reason}" for one in refused if not one.pictures or not one.pictures <= taken]
    kept = _without_copies(groups, notes)
    names = _names(list(kept), tree.root)
    datasets = [
        dataset
        for name, ((kind, home, _), splits) in zip(names, kept.items(), strict=True)
        if (dataset := _read(name, kind, home, splits, notes)) is not None
    ]
    if not datasets:
        known = f"nothing below {folder} was recognised as one of {', '.join(FORMATS)}"
        raise UserError(problem_list(known, notes[:20]) if notes else known)
    return Recognised(tree.root, tuple(sorted(datasets, key=lambda dataset: dataset.name)), tuple(notes))


def _without_copies(
    groups: Mapping[tuple[str, Path, str], dict[str, Found]], notes: list[str]
) -> dict[tuple[str, Path, str], dict[str, Found]]:
    """Of several annotations of the same pictures those with most splits, then the shortest name."""
    kept: dict[tuple[str, Path, str], dict[str, Found]] = {}
    for key in sorted(groups, key=lambda key: (-len(groups[key]), len(key[2]))):
        earlier = [one for group in kept.values() for one in group.values()]
        shared = [
            f"{mine.files.annotations[0]}: other labels of the pictures of {one.files.annotations[0]}; choose one"
            for mine in groups[key].values()
            for one in earlier
            if not one.pictures.isdisjoint(mine.pictures)
        ]
        notes += shared
        if not shared:
            kept[key] = groups[key]
    return kept


def _names(keys: Sequence[tuple[str, Path, str]], root: Path) -> list[str]:
    """A name for each dataset (format, home, variant), of its folder; all different."""
    names: list[str] = []
    homes = [home for _, home, _ in keys]
    for kind, home, variant in keys:
        name = home.name or "data"
        long = "_".join(home.relative_to(root).parts)
        several = homes.count(home) > 1
        possible = [f"{name}_{variant}" if several and variant else "" if several else name, f"{name}_{kind}", long]
        possible += [f"{name}_{number}" for number in range(2, len(keys) + 2)]
        names.append(next(one for one in possible if one and one not in names))
    return names


def _read(name: str, kind: str, home: Path, splits: Mapping[str, Found], notes: list[str]) -> Dataset | None:
    """None where no split can be used. A test split stands in where there is no other to validate on."""
    files: dict[str, SplitFiles] = {}
    indexes: dict[str, Index] = {}
    refused: dict[str, str] = {}
    for split in WORDS:
        if split not in splits:
            continue
        try:
            index = read_split(kind, splits[split].files)
            if "train" in indexes and "classes" not in FORMATS[kind].keys:
                check_class_names(name, indexes["train"].classes, index.classes, f"the {split} split")
        except UserError as error:
            refused[split] = Refused.of(home, error).reason
            notes.append(f"{splits[split].files.annotations[0]}: {refused[split]}")
            continue
        files[split], indexes[split] = splits[split].files, index
    stand_in = "test" in files and "val" not in files
    if stand_in:
        files["val"], indexes["val"] = files.pop("test"), indexes.pop("test")
    return Dataset(name, kind, home, files, indexes, stand_in, refused) if files else None


# ------------------------------------------------------------------------------------------- the text


def config_text(found: Recognised, base: Path) -> str:
    """The YAML. base: its folder; paths are relative to it."""
    lines = [
        "# Written by `crossdet new`. `crossdet check` reads it and trains nothing, then `crossdet train`.",
        "# What a dataset has boxes of is taken as labelled in all of its pictures. All keys: docs/config.md",
        "datasets:",
    ]
    for dataset in found.datasets:
        lines += _dataset_lines(dataset, base)
    lines += ["", *_label_lines(found.datasets)]
    lines += [
        "",
        "# model: {backbone: mobilenetv2_100, weights: imagenet}  # small, also for a CPU; left out: resnet50",
        "# train: {minutes: 60}                # or {epochs: 20}; left out: as long as the pictures ask for",
        "# input: {shorter: 480, longer: 800}  # pixels of the sides; smaller is faster and misses small objects",
    ]
    return "\n".join(lines) + "\n"


def _dataset_lines(dataset: Dataset, base: Path) -> Iterator[str]:
    names = dataset.classes
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    yield f"  {flow(dataset.name)}:  # {len(names)} class{'es' * (len(names) != 1)}: {_one_line(shown)}"
    yield f"    format: {dataset.format}"
    for split, files in dataset.splits.items():
        index = dataset.indexes[split]
        key, why = split, f"{len(index):,} images, {len(index.boxes):,} boxes"
        if split == "test":
            why += ", for a last score: `crossdet eval --split test`"
        elif split == "val" and dataset.stand_in:
            why += "; the test split, as there is no other: best weights and thresholds are chosen on it"
        yield f"    {key}: {flow(_places(files, base))}  # {why}"
    for split, why in dataset.refused.items():
        yield f"    # {split}: could not be read: {_one_line(why)}"
    if "val" not in {*dataset.splits, *dataset.refused}:
        yield "    # no validation split was found, and without one there are no scores and no thresholds"
        if dataset.held_out is None:
            few = len(dataset.indexes["train"])
            yield f"    # val: 1/{_HELD_OUT}  # only {few} picture{'s' * (few != 1)}: too few to hold some out"
        else:
            why = f"about every {_HELD_OUT}th training picture, by its name; not trained on then"
            yield f"    val: {dataset.held_out}  # {why}"
            yield from _group_lines(dataset.indexes["train"])
    if "classes" in FORMATS[dataset.format].keys:
        yield f"    classes: {_wrapped(sorted(names))}"
    protocol = "lvis" if any(index.federated for index in dataset.indexes.values()) else dataset.format
    if protocol in PROTOCOLS and protocol != "coco":
        yield f"    protocol: {protocol}  # how it is scored; left out: as COCO"


def _group_lines(index: Index) -> Iterator[str]:
    """What keeps copies of one photograph on one side of a share."""
    if sum(bool(re.search(COPIES, index.names[row])) for row in range(len(index))) * 2 > len(index):
        yield f"    group_by: '{COPIES}'  # as Roboflow names copies of one photograph, which stay on one side"
    else:
        yield "    # group_by: (.*)_frame  # keeps frames of one film, or copies of one photograph, on one side"


def _places(files: SplitFiles, base: Path) -> dict[str, Any]:
    """As the config says them; one stands for a list of one."""
    found: dict[str, Any] = {}
    for key in ("images", "annotations", "ignore"):
        paths = [os.path.relpath(path, base) for path in getattr(files, key)]
        if any(path.startswith("../../") for path in paths):  # far away: as it is
            paths = [str(path) for path in getattr(files, key)]
        if paths:
            found[key] = paths[0] if len(paths) == 1 else paths
    return found | ({"image_set": files.image_set[0]} if files.image_set else {})


def _label_lines(datasets: tuple[Dataset, ...]) -> Iterator[str]:
    """What only the user knows, as comments; the careful choice of what nothing can be read without."""
    dropped = [*_without_any_box(datasets), *(f"{d}/{c}" for d, own in _unlabelled(datasets).items() for c in own)]
    owners = _owners(datasets, dropped)
    equal = {name: own for name, own in owners.items() if len(own) > 1}
    alone = [(own[0], name) for name, own in owners.items() if len(own) == 1]
    space = _of_one_name_each(datasets, dropped)
    likely = {} if space is None else _same_meaning(space)
    parts, narrow = ({}, {}) if space is None else (_parts(space), _narrow(space, likely))
    alike = {source for group in [*likely.values(), *parts.values()] for source in group}
    clear = [pair for pair in alone if "/".join(pair) not in alike]
    (one, a), *others = clear or alone or [(datasets[0].name, datasets[0].classes[0])]
    two = next((other for other, _ in others if other != one), "") if clear else ""
    pairs = [[f"{p}/{n}", f"{q}/{n}"] for n, own in equal.items() for p, q in combinations(own, 2)]
    for group in likely.values():  # unified names: those of several datasets have the dataset before them
        names = dict.fromkeys(s if (name := s.partition("/")[2]) in equal else name for s in group)
        pairs += [list(pair) for pair in combinations(names, 2) if list(pair) not in pairs]
    for whole, group in parts.items():
        pairs += [pair for pair in _with_parts(whole, group, equal) if pair not in pairs]
    yield "labels:  # what only you know; take the # away where it is so"
    if pairs:
        yield "  # Names that may mean the same: nothing is merged unasked, and none is a negative for the other."
        if equal:
            yield f"  distinct: {_wrapped(list(equal))}"
        yield f"  overlap: {_wrapped(pairs)}"
    yield from _merge_lines(list(equal), likely, parts, narrow)
    if two and not equal and not likely and not parts:
        yield "  # Names that mean the same become one class by `merge: {NAME: [DATASET/NAME, DATASET/NAME]}`."
    if two:
        yield f"  # No picture of {_one_line(two)} shows this, so its background may be a negative for it."
        yield f"  # absent: {_comment({two: [a]})}"
    if not narrow:
        yield f"  # {_one_line(one)} labels this in some pictures only, so its background is no negative for it."
        yield f"  # not_exhaustive: {_comment({one: [f'{one}/{a}' if a in equal else a]})}"
    yield from _boxless_lines(datasets)


def _merge_lines(
    equal: Sequence[str],
    likely: Mapping[str, Sequence[str]],
    parts: Mapping[str, Sequence[str]],
    narrow: Mapping[str, Sequence[str]],
) -> Iterator[str]:
    """What to write if names mean the same. Each `merge` is whole by itself: a config has one."""
    same: dict[str, Any] = {"same_names": True} if equal else {}
    if equal:
        yield "  # If they mean the same, this instead of these two: one class of every name."
        yield "  # merge: {same_names: true}  # or common: also what well-known datasets spell differently"
    if likely:
        instead = "Or this, also" if equal else "If they mean the same, this instead of `overlap`:"
        yield f"  # {instead} one class of what is spelt differently."
        yield f"  # merge: {_comment({**same, **likely})}"
    if parts:
        instead = "all these" if equal or likely else "`overlap`"
        yield f"  # By their names parts of one of these classes. To learn them as that, this instead of {instead}:"
        yield f"  # merge: {_comment({**same, **_joined_groups(likely, parts)})}"
    if narrow:
        yield "  # and this, unless their pictures show nothing else of that class, which nobody labelled there:"
        yield f"  # not_exhaustive: {_comment(_as_merged(narrow, _joined_groups(likely, parts)))}"


def _as_merged(narrow: Mapping[str, Sequence[str]], groups: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The names that the classes have once these groups are merged."""
    merged = {source.partition("/")[2]: whole for whole, group in groups.items() for source in group}
    return {dataset: list(dict.fromkeys(merged.get(n, n) for n in names)) for dataset, names in narrow.items()}


def _owners(datasets: Sequence[Dataset], dropped: Sequence[str]) -> dict[str, list[str]]:
    """Class name -> the datasets that have it."""
    owners: dict[str, list[str]] = {}
    for dataset in datasets:
        for name in dataset.classes:
            if f"{dataset.name}/{name}" not in dropped:
                owners.setdefault(name, []).append(dataset.name)
    return owners


def _without_any_box(datasets: Sequence[Dataset]) -> list[str]:
    """Source classes that a dataset has no box of and that are not `_unlabelled`, while there are other classes."""
    boxed = _boxed(datasets)
    found = [f"{dataset.name}/{c}" for dataset in datasets for c in dataset.without_box if boxed[c] != 1]
    return found if boxed else []


def _boxed(datasets: Sequence[Dataset]) -> Counter[str]:
    """Class name -> how many datasets have boxes of it."""
    return Counter(name for dataset in datasets for name in dataset.classes if name not in dataset.without_box)


def _of_one_name_each(datasets: Sequence[Dataset], dropped: Sequence[str]) -> LabelSpace | None:
    """All classes, those of one name merged; None where that cannot be (`check` tells it)."""
    classes = {d.name: [c for c in d.classes if f"{d.name}/{c}" not in dropped] for d in datasets}
    with suppress(LabelError):
        return LabelSpace.build(classes, merge={"same_names": True})
    return None


def _same_meaning(space: LabelSpace) -> dict[str, list[str]]:
    """Name -> source classes that are called otherwise and probably mean the same, as `check` tells them."""
    groups: list[list[str]] = []
    for pair in space.likely_duplicates():
        near = [group for group in groups if not set(group).isdisjoint(pair)]
        groups = [group for group in groups if group not in near]
        groups.append(list(dict.fromkeys([*chain.from_iterable(near), *pair])))
    return {group[0].partition("/")[2]: group for group in groups}


def _parts(space: LabelSpace) -> dict[str, list[str]]:
    """Name of a class -> its source classes, and those of other datasets that are by their names a part of it."""
    return {
        space.classes[whole]: [*space.sources_of(whole), *(f"{d}/{name}" for d, name, _ in parts)]
        for whole, parts in parts_of(space)
    }


def _narrow(space: LabelSpace, likely: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Dataset -> names of classes of which it labels, by the names, only a part. likely: of `_same_meaning`; what
    is the same as the whole is all of it."""
    found: dict[str, list[str]] = {}
    for whole, parts in parts_of(space):
        sources = {*space.sources_of(whole)}
        same = {source for group in likely.values() if not sources.isdisjoint(group) for source in group}
        labelling = {source.partition("/")[0] for source in same}
        for dataset in (d for d in label_in_part(space, whole, parts) if d not in labelling):
            found.setdefault(dataset, []).append(space.classes[whole])
    return found


def _joined_groups(likely: Mapping[str, Sequence[str]], parts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Groups of both kinds, each class in one: what is the same as a whole has its parts."""
    found = {name: list(group) for name, group in likely.items()}
    for whole, group in parts.items():
        name = next((name for name, own in found.items() if not {*own}.isdisjoint(group)), whole)
        found[name] = list(dict.fromkeys([*found.get(name, ()), *group]))
    return found


def _with_parts(whole: str, group: Sequence[str], equal: Collection[str]) -> Iterator[list[str]]:
    """Pairs of unified names for `overlap`: the class and each of its parts. equal: names of several datasets,
    which have the dataset before them."""
    named = {s: s if (name := s.partition("/")[2]) in equal else name for s in group}
    of_whole = [s for s in group if s.partition("/")[2] == whole]
    yield from ([named[s], named[part]] for s in of_whole for part in group if part not in of_whole)


def _unlabelled(datasets: Sequence[Dataset]) -> dict[str, list[str]]:
    """Dataset -> names that it lists without a box while one other has some. Several that have may mean different
    things: then it is no class of that name that is not labelled, and it is dropped (`_without_any_box`)."""
    boxed, empty = _boxed(datasets), {dataset.name: dataset.without_box for dataset in datasets}
    return {name: own for name, names in empty.items() if (own := [c for c in names if boxed[c] == 1])}


def _boxless_lines(datasets: Sequence[Dataset]) -> Iterator[str]:
    """Of classes that a dataset lists without a box: objects that nobody labelled must not become background."""
    unlabelled, unknown = _unlabelled(datasets), _without_any_box(datasets)
    if unlabelled:
        yield "  # Listed without one box, while others have some: perhaps shown, and nobody marked them, so the"
        yield "  # background is no negative for them. `absent` in place of `unlabelled`: no picture shows them."
        yield f"  unlabelled: {_wrapped(unlabelled)}"
    if unknown:
        yield "  # Listed without one box, so there is nothing to learn it from."
        yield f"  drop: {_wrapped(unknown)}"


def _wrapped(value: Any) -> str:
    return flow(value, 100).replace("\n", "\n     ")


def _one_line(text: str) -> str:
    """For a comment, which ends with its line."""
    return " ".join(text.split())


def _comment(value: Any) -> str:
    return _one_line(flow(value))
