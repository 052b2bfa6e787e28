"""Writes a `SplitPlan`: pictures, COCO files, configs ready to train, and `split.json`. No torch."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdet.data.annotation_files import too_many
from crossdet.data.formats.coco import write_coco
from crossdet.data.index import Index, Strings
from crossdet.errors import UserError, problem_list
from crossdet.files import safe_name, write_json
from crossdet.types import Flag
from crossdet_research.split.configs import PLACES, write_configs
from crossdet_research.split.looks import ORIGINAL, BadPicture, erase, read_picture, with_look, write_picture
from crossdet_research.split.plan import Part, SplitPlan, foreign_and_kept, summary

MARKER = "split.json"
TOOL = "crossdet split"
"""Mark of its files; older than the name of the command, so that earlier results stay readable."""

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class _Picture:
    """A picture to be made from row `row` of `index`, below `images`. own: `[K]` classes of the part; all other
    objects are painted over. None: nothing is."""

    index: Index
    row: int
    look: str
    name: str
    own: Bools | None = None

    @property
    def source(self) -> Path:
        return self.index.path(self.row)


def write_split(
    plan: SplitPlan,
    folder: Path,
    sections: Mapping[str, Any] | None = None,
    protocols: Sequence[str] = ("coco",),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes everything below `folder` and returns what `split.json` says. The same plan gives the same files.

    sections: the config's `model`, `loss`, `input`, `augment`, `train`, `eval` and `seed`, as plain values, for the
        configs. protocols: how the parts are scored.
    overwrite: replace what an earlier split wrote there; runs below it stay.

    Raises `UserError`: the folder holds something else, two pictures would become one file, or pictures are missing
    or broken (all are named).
    """
    pictures = _pictures(plan)
    _make_room(folder, overwrite)
    record = summary(plan)
    write_json(folder / MARKER, {"tool": TOOL, "complete": False, "wrote": _top_names(plan)})
    _write_pictures(pictures, folder / "images", plan.seed)
    for part in plan.parts:
        _write_part(plan, part, folder)
    _write_tests(plan, folder / "test")
    write_configs(plan, folder, dict(sections or {}), protocols)
    content = {"tool": TOOL, "complete": True, **record, "wrote": _top_names(plan)}
    write_json(folder / MARKER, content)
    return content


def _top_names(plan: SplitPlan) -> list[str]:
    """What stands in the folder besides the marker, for the day when it is replaced."""
    names = [part.name for part in plan.parts]
    configs = ["aware", "naive", "same_positives", "full", *(f"expert_{name}" for name in names)]
    return ["images", "test", *names, *(f"{name}.yaml" for name in configs)]


def _make_room(folder: Path, overwrite: bool) -> None:
    """Refuses to delete what is no split; empties one that may be replaced."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another directory with --output")
    if not folder.exists() or not any(folder.iterdir()):
        folder.mkdir(parents=True, exist_ok=True)
        return
    try:
        earlier = json.loads((folder / MARKER).read_text())
        wrote = [str(name) for name in earlier["wrote"]] if earlier["tool"] == TOOL else None
    except (OSError, ValueError, TypeError, KeyError):
        wrote = None
    if wrote is None:
        raise UserError(
            f"{folder} holds files and no split; nothing is deleted, choose another directory with --output"
        )
    if not overwrite:
        raise UserError(
            f"{folder} already holds a split; replace it with --overwrite, or choose another directory with "
            "--output"
        )
    for name in wrote:
        path = folder / PurePosixPath(name).name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def looks_of(plan: SplitPlan) -> list[str]:
    """The looks that occur, in the order of the parts."""
    return list(dict.fromkeys(part.look for part in plan.parts))


def _picture_name(index: Index, row: int, look: str, split: str, changed: bool) -> str:
    """Path below `images`, of safe names. A changed picture is a JPEG; a name that leads out of its folder becomes
    a flat one."""
    name = PurePosixPath(index.names[row].replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts:
        name = PurePosixPath(f"{row:07d}_{name.name}")
    kept = name.suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,8}", name.suffix) else ""  # readers go by it
    file = safe_name(name.name.removesuffix(kept)) + kept
    name = PurePosixPath(*(safe_name(part) for part in name.parts[:-1]), file)
    if changed and name.suffix.lower() not in (".jpg", ".jpeg"):
        name = name.with_name(f"{name.name}.jpg")
    return f"{look}/{split}/{name}"


def _train_names(plan: SplitPlan, part: Part) -> dict[int, str]:
    """Row of the training index -> picture of the part. Painted-over pictures lie in a folder of the part's own."""
    painted = set(part.erased_images.tolist())
    names = {}
    for row in part.images.tolist():
        split = f"train_without_foreign_{part.name}" if row in painted else "train"
        changed = row in painted or part.look != ORIGINAL
        names[row] = _picture_name(plan.train, row, part.look, split, changed)
    return names


def _val_names(plan: SplitPlan, look: str) -> list[str]:
    changed = look != ORIGINAL
    return [_picture_name(plan.val, row, look, "val", changed) for row in range(len(plan.val))]


def _pictures(plan: SplitPlan) -> list[_Picture]:
    """All that are made, each once. Raises `UserError` where two would become one file."""
    found: dict[str, _Picture] = {}
    problems = {}
    for picture in _pictures_of_parts(plan):
        first = found.setdefault(picture.name, picture)
        if first.row != picture.row and first.source != picture.source:
            problems[picture.name] = f"{first.source} and {picture.source}: images/{picture.name}"
    if problems:
        head = f"{len(problems)} time(s) two pictures would become one file; rename one of the two"
        raise UserError(problem_list(head, too_many(list(problems.values()))))
    return list(found.values())


def _pictures_of_parts(plan: SplitPlan) -> Iterator[_Picture]:
    """Some several times: parts of one look share pictures."""
    for part in plan.parts:
        painted = set(part.erased_images.tolist())
        own = np.array([c in part.classes for c in plan.train.classes])
        for row, name in _train_names(plan, part).items():
            yield _Picture(plan.train, row, part.look, name, own if row in painted else None)
    for look in looks_of(plan):
        for row, name in enumerate(_val_names(plan, look)):
            yield _Picture(plan.val, row, look, name)


def _write_pictures(pictures: list[_Picture], folder: Path, seed: int) -> None:
    for parent in {(folder / picture.name).parent for picture in pictures}:
        parent.mkdir(parents=True, exist_ok=True)

    def made(picture: _Picture) -> str:
        return _write_one(picture, folder / picture.name, seed)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        problems = sorted(set(filter(None, pool.map(made, pictures))))
    if problems:
        raise UserError(problem_list(f"{len(problems)} picture(s) cannot be used", too_many(problems)))


def _write_one(picture: _Picture, target: Path, seed: int) -> str:
    """Makes one picture; returns what is wrong with it, "" if nothing."""
    source = picture.source
    if picture.look == ORIGINAL and picture.own is None:
        if not source.is_file():
            return f"{source}: does not exist"
        try:
            os.link(source.resolve(), target)
        except FileExistsError:  # to write into a link would change the original
            return f"{source}: another picture lies in its place, {target}; rename one of the two"
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, target)
        return ""
    height, width = (int(v) for v in picture.index.sizes[picture.row])
    try:
        pixels = read_picture(source, (height, width), picture.index.upright)
    except BadPicture as error:
        return str(error)
    if picture.own is not None:
        pixels = erase(pixels, *foreign_and_kept(picture.index, picture.row, picture.own))
    write_picture(with_look(pixels, picture.look, seed, picture.name), target)
    return ""


def _write_part(plan: SplitPlan, part: Part, folder: Path) -> None:
    # in the order in which the parts bring them, as in the label space of aware.yaml: `audit` compares detectors
    every = list(dict.fromkeys(plan.train.classes.index(name) for one in plan.parts for name in one.classes))
    own = [plan.train.classes.index(name) for name in part.classes]
    train_names = list(_train_names(plan, part).values())
    in_part = np.isin(plan.train.image_of_box(), part.images)
    visible = in_part & ~part.erased

    def written(file: str, keep: Bools, classes: Iterable[int], crowd: Bools | None = None) -> None:
        one = subset(plan.train, part.images, keep, list(classes), train_names, crowd)
        write_coco(one, folder / part.name / f"{file}.json")

    written("train", part.labelled, own)
    written("train_full", visible, every)
    written("train_same_positives", visible, every, crowd=visible & ~part.labelled)
    if plan.method == "mark":
        written("train_marked", part.labelled | part.marked, every, crowd=part.marked)
    elif plan.has_places(part):
        one = subset(plan.train, part.images, part.labelled, own, train_names)
        write_coco(with_places_as_class(one), folder / part.name / "train_naive.json")
    val, names = _in_train_classes(plan), _val_names(plan, part.look)
    rows = np.arange(len(val))
    of_class = (val.labels < 0) | np.isin(val.labels, own)
    write_coco(subset(val, rows, of_class, own, names), folder / part.name / "val.json")
    all_boxes = np.ones(len(val.boxes), bool)
    write_coco(subset(val, rows, all_boxes, every, names), folder / part.name / "val_full.json")


def _write_tests(plan: SplitPlan, folder: Path) -> None:
    """The val split with all its labels, in every look by itself and in all of them as one."""
    val = _in_train_classes(plan)
    every, kept = list(range(len(val.classes))), np.ones(len(val.boxes), bool)
    looks = looks_of(plan)
    for look in looks:
        one = subset(val, np.arange(len(val)), kept, every, _val_names(plan, look))
        write_coco(one, folder / f"{look}.json")
    rows = np.tile(np.arange(len(val)), len(looks))
    names = [name for look in looks for name in _val_names(plan, look)]
    together = subset(val, rows, kept, every, names)
    ids = np.arange(1, len(rows) + 1, dtype=np.int64)  # a picture in two looks is two images
    write_coco(replace(together, image_ids=ids), folder / "all.json")


def _in_train_classes(plan: SplitPlan) -> Index:
    """The val split with the class list of the training split (its own may be shorter, or in another order)."""
    train, val = plan.train, plan.val
    if val.classes == train.classes:
        return val
    ids = np.array([train.classes.index(name) for name in val.classes], np.int32)
    labels = np.where(val.labels < 0, val.labels, ids[val.labels]) if len(ids) else val.labels
    return replace(val, classes=train.classes, category_ids=train.category_ids, labels=labels.astype(np.int32))


def with_places_as_class(index: Index) -> Index:
    """Regions of no class in particular as boxes of a class `PLACES`, which a config can make such regions again:
    COCO has none, and writes them as regions of the classes that it lists."""
    places = index.labels < 0
    return replace(
        index,
        classes=(*index.classes, PLACES),
        category_ids=np.append(index.category_ids, index.category_ids.max(initial=0) + 1),
        labels=np.where(places, len(index.classes), index.labels).astype(np.int32),
        flags=np.where(places, 0, index.flags).astype(np.uint8),
    )


def subset(
    index: Index,
    images: NDArray[np.int64],
    keep: Bools,
    classes: Sequence[int],
    names: Sequence[str],
    crowd: Bools | None = None,
) -> Index:
    """Some images of an index under other names, with the boxes `keep [M]`, of the given classes only. crowd: `[M]`
    boxes that become crowds: no positives, and no negatives of their class there."""
    flags = index.flags.copy()
    if crowd is not None:
        flags[crowd] |= np.uint8(Flag.CROWD)
    new = np.full(len(index.classes), -1, np.int32)
    new[list(classes)] = np.arange(len(classes))
    offsets = np.zeros(len(index) + 1, np.int64)
    np.cumsum(np.bincount(index.image_of_box()[keep], minlength=len(index)), out=offsets[1:])
    labels = index.labels[keep]
    kept = replace(
        index,
        classes=tuple(index.classes[c] for c in classes),
        category_ids=index.category_ids[list(classes)],
        box_offsets=offsets,
        boxes=index.boxes[keep],
        labels=np.where(labels < 0, labels, new[labels]).astype(np.int32),
        flags=flags[keep],
        area=index.area[keep],
        columns={},
        skipped={},
    )
    return replace(kept.take(np.asarray(images, np.int64)), names=Strings.pack(names))
