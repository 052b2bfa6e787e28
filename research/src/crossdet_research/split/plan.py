"""From one fully labelled dataset several partially labelled ones, to measure what missing labels cost.

`split_dataset` decides (arrays only), `crossdet_research.split.files.write_split` writes. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crossdet.data.annotation_files import too_many
from crossdet.data.groups import Groups
from crossdet.data.index import Index
from crossdet.errors import UserError, problem_list
from crossdet.labels.patterns import matching
from crossdet.labels.rules import unknown
from crossdet.types import REGION_FLAGS, Flag
from crossdet_research.split import assignment
from crossdet_research.split.looks import LOOKS, ORIGINAL, can_be_erased

Method = Literal["choose", "erase", "mark"]
METHODS: tuple[Method, ...] = ("choose", "erase", "mark")
NO_LOOK = "none"
"""Another word for `ORIGINAL` where looks are given."""
RESERVED = ("images", "test", "runs")
"""Folders of the output that no part may be called."""

Bools = NDArray[np.bool_]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """One partially labelled dataset. M boxes of the training index.

    classes: what it labels, in the dataset's order. look: a key of `LOOKS`, or `ORIGINAL`.
    images: rows of the training index, rising. erased_images: those of them in which all objects of other
    classes are painted over. marked_images: those in which they are marked as regions of their class.
    conflict_images: those that show at least one object that the part neither labels nor marks.
    labelled: `[M]` boxes of its images and classes, and regions of no class. erased: `[M]` boxes painted over.
    marked: `[M]` boxes marked.
    """

    name: str
    classes: tuple[str, ...]
    look: str
    images: Rows
    erased_images: Rows
    marked_images: Rows
    conflict_images: Rows
    labelled: Bools
    erased: Bools
    marked: Bools

    @property
    def conflict(self) -> float:
        """The share of the images that show an object that is not labelled."""
        return len(self.conflict_images) / len(self.images)


@dataclass(frozen=True)
class SplitPlan:
    """Who gets what. `conflict` is what was asked for, 1 for "as the data come"; `Part.conflict` what it became.

    labels_as_they_come: `[P, K]` labelled objects of every part and class under `conflict` 1 (same seed and sizes).
    groups: of the training images, where some were kept together.
    """

    train: Index
    val: Index
    parts: tuple[Part, ...]
    share: float
    conflict: float
    method: Method
    seed: int
    labels_as_they_come: NDArray[np.int64]
    groups: Groups | None = None

    def has_places(self, part: Part) -> bool:
        """Whether its training pictures have regions of no class in particular, which are of every class."""
        return bool((np.isin(self.train.image_of_box(), part.images) & (self.train.labels < 0)).any())


def split_dataset(
    train: Index,
    val: Index,
    parts: Mapping[str, Sequence[str]],
    *,
    looks: Mapping[str, str] | None = None,
    share: float = 0.0,
    conflict: float = 1.0,
    method: Method = "choose",
    images: int | None = None,
    seed: int = 0,
    groups: Groups | None = None,
) -> SplitPlan:
    """Deals the training images out to the parts; every part labels its own classes only.

    parts: name -> classes, or patterns of their names; a class may be in several. looks: part -> look (`LOOKS`).
    share: of the images, the share that is in every part; each of the others is in exactly one, at random.
    conflict: 1: as the data come. Below: of every part's images, the share (nearest whole number) that shows at
        least one object which the part does not label. Any row of another class is such an object, also a crowd.
    method: how less conflict is reached. "choose": images move to parts that label all they show; the sizes stay,
        the labelled objects per class stay as near as swaps can bring them to those of `conflict=1`. "erase":
        foreign objects are painted over, in more images for less conflict; all levels (also 1) have the same deal,
        one with few images in which a foreign object lies under labelled ones and cannot be painted over. "mark":
        foreign objects are marked as regions of their class, in more images for less conflict: pictures and
        labelled objects are those of `conflict=1` at every level.
    images: training images per part, with which some may stay unused; None: all are used, and the sizes differ
        by at most one. To be compared, levels of conflict need the same.
    groups: all images of a group are in the same part (or in every part, or unused), so that the sizes of parts
        differ by up to the largest group; less conflict is then by "erase" or "mark" alone.

    Raises `UserError` that lists all mistakes.
    """
    looks = {part: ORIGINAL if look == NO_LOOK else look for part, look in (looks or {}).items()}
    parts = {name: matching(own, train.classes) for name, own in parts.items()}
    asked = _Asked(train, val, parts, looks, share, conflict, method, images, seed, groups)
    problems = list(_mistakes(asked))
    if all(problem.startswith("--look") for problem in problems):  # then the images can be dealt out
        try:
            plan = _planned(asked)
        except _Unreachable as error:
            problems.append(str(error))
    if problems:
        raise UserError(problem_list(f"split: {len(problems)} mistake(s)", problems))
    return plan


@dataclass(frozen=True)
class _Asked:
    """What `split_dataset` was asked for."""

    train: Index
    val: Index
    parts: Mapping[str, Sequence[str]]
    looks: Mapping[str, str]
    share: float
    conflict: float
    method: Method
    images: int | None
    seed: int
    groups: Groups | None


class _Unreachable(Exception):
    """The wanted share of conflict, or size of the parts, cannot be had; the message says which can."""


def _planned(asked: _Asked) -> SplitPlan:
    train, method, conflict, names = asked.train, asked.method, asked.conflict, list(asked.parts)
    own = np.array([[c in asked.parts[name] for c in train.classes] for name in names])  # [P, K]
    shown = objects_per_image(train, every=True) > 0
    in_conflict = np.stack([(shown & ~row).any(axis=1) for row in own])  # [P, I]
    boxes = objects_per_image(train)
    home = _dealt(asked)
    as_they_come = np.stack([boxes[assignment.members(home, p)].sum(axis=0) * own[p] for p in range(len(names))])
    rng = np.random.default_rng([asked.seed, 1])
    stuck = np.zeros_like(in_conflict)
    if method == "erase":  # also at conflict 1: all levels have the same images
        stuck = in_conflict & ~_erasable(train, own)
        if asked.groups is None:
            home = assignment.balance(assignment.avoid(home, stuck, rng), stuck, boxes, as_they_come, own, rng)
    elif method == "choose" and conflict < 1:
        chosen = assignment.choose(home, in_conflict, conflict, rng)
        if chosen is None:
            raise _Unreachable(_reach_of_choosing(asked, home, in_conflict))
        home = assignment.balance(chosen, in_conflict, boxes, as_they_come, own, rng)
    rows = [assignment.members(home, p) for p in range(len(names))]
    none = [np.zeros(0, np.int64) for _ in names]
    cleared = none if method == "choose" or conflict == 1 else _to_clear(asked, rows, in_conflict, stuck, rng)
    erased, marked = (cleared, none) if method == "erase" else (none, cleared)
    made = []
    for p, name in enumerate(names):
        in_part = np.isin(train.image_of_box(), rows[p])
        foreign = (train.labels >= 0) & ~own[p][train.labels]
        made.append(
            Part(
                name=name,
                classes=tuple(c for c, has in zip(train.classes, own[p], strict=True) if has),
                look=asked.looks.get(name, ORIGINAL),
                images=rows[p],
                erased_images=erased[p],
                marked_images=marked[p],
                conflict_images=np.setdiff1d(rows[p][in_conflict[p, rows[p]]], cleared[p]),
                labelled=in_part & ~foreign,
                erased=np.isin(train.image_of_box(), erased[p]) & foreign,
                marked=np.isin(train.image_of_box(), marked[p]) & foreign,
            )
        )
    shares = (asked.share, conflict, method, asked.seed)
    return SplitPlan(train, asked.val, tuple(made), *shares, as_they_come, asked.groups)


def _dealt(asked: _Asked) -> NDArray[np.int64]:
    """`[I]` home of every training image, at random."""
    rng, options = np.random.default_rng(asked.seed), (len(asked.parts), asked.share, asked.images)
    if asked.groups is None:
        return assignment.deal(len(asked.train), *options, rng)
    home = assignment.deal_groups(asked.groups.of, *options, rng)
    if empty := [name for p, name in enumerate(asked.parts) if not len(assignment.members(home, p))]:
        smallest = int(np.bincount(asked.groups.of).min())
        raise _Unreachable(
            f"--group-by: nothing is left for {', '.join(empty)}: {asked.groups}, the smallest of {smallest}; take "
            f"larger --images or fewer parts"
        )
    return home


def objects_per_image(index: Index, every: bool = False) -> NDArray[np.int64]:
    """`[I, K]` objects of every class. every: count also crowds, ignore regions and invalid boxes of a class."""
    counted = (index.labels >= 0) & (index.boxes[:, 2:] > index.boxes[:, :2]).all(axis=1)
    if not every:
        counted &= (index.flags & int(REGION_FLAGS | Flag.INVALID)) == 0
    counts = np.zeros((len(index), len(index.classes)), np.int64)
    np.add.at(counts, (index.image_of_box()[counted], index.labels[counted]), 1)
    return counts


# ------------------------------------------------------------------------------------------- painting over, marking


def _to_clear(
    asked: _Asked, rows: Sequence[Rows], in_conflict: Bools, stuck: Bools, rng: np.random.Generator
) -> list[Rows]:
    """Per part the images in which foreign objects are painted over or marked, rising. stuck: `[P, I]` where they
    cannot be. The order in which images are taken does not depend on `conflict`: an image without foreign objects
    at one level has none at any lower level."""
    conflict = asked.conflict
    cleared, problems = [], []
    for p, name in enumerate(asked.parts):
        bad = rows[p][in_conflict[p, rows[p]]]
        possible = bad[~stuck[p, bad]]
        under = len(bad) - len(possible)
        wanted = assignment.nearest(conflict * len(rows[p]))
        order = rng.permutation(possible)
        if under <= wanted <= len(bad):
            cleared.append(np.sort(order[: len(bad) - wanted]))
        else:
            why = f" (in {under} image(s) foreign objects lie under objects that it labels)" if under else ""
            problems.append(f"{name} {_span(under / len(rows[p]), len(bad) / len(rows[p]), len(rows[p]))}{why}")
    if problems:
        most = assignment.largest_size_with(stuck, asked.share, conflict, asked.seed, fewer=True)
        way = "marking" if asked.method == "mark" else "painting over"
        raise _Unreachable(
            f"--conflict {conflict:g} cannot be reached by {way}; "
            f"possible is: {'; '.join(problems)}"
            + (f"; or take --images {most} or fewer" if 0 < most < min(len(one) for one in rows) else "")
        )
    return cleared


def _erasable(train: Index, own: Bools) -> Bools:
    """`[P, I]` whether the objects of other classes can be painted over. own: `[P, K]` classes of the parts."""
    possible = np.ones((len(own), len(train)), bool)
    for row in range(len(train)):
        height, width = (int(v) for v in train.sizes[row])
        for p, classes in enumerate(own):
            possible[p, row] = can_be_erased(*foreign_and_kept(train, row, classes), height, width)
    return possible


def foreign_and_kept(index: Index, image: int, own: Bools) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Boxes of the image's objects of other classes, and of the part's own. own: `[K]` classes of the part."""
    rows = index.rows(image)
    labels, boxes = index.labels[rows], index.boxes[rows]
    of_class = own[labels]
    return boxes[(labels >= 0) & ~of_class], boxes[(labels >= 0) & of_class]


# ------------------------------------------------------------------------------------------- mistakes


def _mistakes(asked: _Asked) -> Iterator[str]:
    train = asked.train
    if len(asked.parts) < 2:
        yield f"--part: expected at least two parts, got {len(asked.parts)}"
    yield from _part_mistakes(asked.parts, train.classes)
    for part, look in asked.looks.items():
        if part not in asked.parts:
            yield f"--look {part}={look}: {unknown('part', part, list(asked.parts))}"
        if look not in (ORIGINAL, *LOOKS):
            yield f"--look {part}={look}: {unknown('look', look, [NO_LOOK, *LOOKS])}"
    for option, value in (("--share", asked.share), ("--conflict", asked.conflict)):
        if not 0 <= value <= 1:
            yield f"{option} {value:g}: expected a number from 0 to 1"
    if asked.method not in METHODS:
        yield f"--conflict-by {asked.method}: {unknown('way', asked.method, METHODS)}"
    if asked.groups is not None and asked.method == "choose" and asked.conflict < 1:
        yield (
            f"--conflict {asked.conflict:g}: choosing among single images would tear the groups of --group-by "
            f"apart; take --conflict-by mark or erase"
        )
    yield from _size_mistakes(len(train), len(asked.parts), asked.share, asked.images)
    yield from _unusable(train, asked.val)


def _part_mistakes(parts: Mapping[str, Sequence[str]], classes: Sequence[str]) -> Iterator[str]:
    for name, own in parts.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name.casefold() in RESERVED:
            yield (f"--part {name}: expected a name of letters, digits, _ . -, other than {', '.join(RESERVED)}")
        if not own:
            yield f"--part {name}: no class"
        yield from (f"--part {name}: {unknown('class', c, classes)}" for c in own if c not in classes)
    twice = [name for name in parts if [other.casefold() for other in parts].count(name.casefold()) > 1]
    if twice:
        yield f"--part: {', '.join(twice)} differ by case only; they are folders, choose other names"
    nowhere = [name for name in classes if not any(name in own for own in parts.values())]
    if nowhere and parts:
        yield f"--part: {', '.join(nowhere)} in no part; every class needs at least one that labels it"


def _size_mistakes(total: int, parts: int, share: float, images: int | None) -> Iterator[str]:
    if parts < 1 or not 0 <= share <= 1:
        return
    most = assignment.largest_size(total, parts, share)
    if most < 1:
        yield f"--part: {parts} parts, but only {total} training image(s): a part would have none"
    elif images is not None and not 1 <= images <= most:
        yield f"--images {images}: expected 1 to {most} ({total} training images, {parts} parts)"


def _unusable(train: Index, val: Index) -> Iterator[str]:
    for split, index in (("train", train), ("val", val)):
        if index.federated:
            yield f"{split}: the dataset is federated (no image is labelled in full); it cannot be split"
        if not len(index):
            yield f"{split}: no images"
        lost = [index.path(int(row)) for row in np.flatnonzero((index.sizes == 0).any(axis=1))]
        yield from too_many([f"{split}: {path} cannot be read" for path in lost])
    strange = [name for name in val.classes if name not in train.classes]
    if strange:
        yield f"val: class {', '.join(strange)} is not among those of the training split"


def _reach_of_choosing(asked: _Asked, home: NDArray[np.int64], in_conflict: Bools) -> str:
    names, conflict = list(asked.parts), asked.conflict
    sizes = [len(assignment.members(home, p)) for p in range(len(names))]
    per_part = "; ".join(
        f"{name} {_span(*assignment.range_of_part(home, in_conflict, p), sizes[p])}" for p, name in enumerate(names)
    )
    both = assignment.equal_range(home, in_conflict)
    equal = "no equal share" if both is None else f"equal shares {_span(*both, max(sizes))}"
    most = assignment.largest_size_with(in_conflict, asked.share, conflict, asked.seed)
    fewer = f"--images {most} or fewer" if 0 < most < (asked.images or max(sizes)) else ""
    ways = " or ".join(filter(None, [fewer, "--conflict-by mark", "--conflict-by erase"]))
    return (
        f"--conflict {conflict:g} cannot be reached by choosing among the images, with {max(sizes)} per part: "
        f"possible are {equal} (each part alone: {per_part}); take {ways}"
    )


def _span(low: float, high: float, count: int) -> str:
    """Shares with as many digits as `--conflict` needs to hit that image count."""
    digits = max(2, len(str(count)))
    return f"{low:.{digits}f} to {high:.{digits}f}"


def summary(plan: SplitPlan) -> dict[str, Any]:
    """What `split.json` says of the plan; shares in 0..1."""
    classes = plan.train.classes
    used = np.unique(np.concatenate([part.images for part in plan.parts]))
    in_parts = np.bincount(np.concatenate([part.images for part in plan.parts]), minlength=len(plan.train))
    total = sum(len(part.images) for part in plan.parts)
    conflict = sum(len(part.conflict_images) for part in plan.parts)
    return {
        "seed": plan.seed,
        "share": plan.share,
        "conflict_wanted": plan.conflict,
        "conflict_by": plan.method,
        "conflict": conflict / total,
        "train_images": len(plan.train),
        "unused_images": len(plan.train) - len(used),
        **({} if plan.groups is None else {"groups": plan.groups.count, "ungrouped_images": plan.groups.alone}),
        "images_in_every_part": int((in_parts == len(plan.parts)).sum()),
        "val_images": len(plan.val),
        "parts": {
            part.name: {
                "classes": list(part.classes),
                "look": part.look,
                "images": len(part.images),
                "conflict": part.conflict,
                "conflict_images": len(part.conflict_images),
                "erased_images": len(part.erased_images),
                **({"marked_images": len(part.marked_images)} if plan.method == "mark" else {}),
                "boxes_labelled": _counts(plan.train, part.labelled, part.classes),
                "boxes_labelled_as_the_data_come": {
                    name: int(plan.labels_as_they_come[p, classes.index(name)]) for name in part.classes
                },
                "boxes_unlabelled": _counts(
                    plan.train,
                    np.isin(plan.train.image_of_box(), part.images) & ~part.labelled & ~part.erased,
                    [name for name in classes if name not in part.classes],
                ),
                "boxes_erased": int(part.erased.sum()),
                **({"boxes_marked": int(part.marked.sum())} if plan.method == "mark" else {}),
            }
            for p, part in enumerate(plan.parts)
        },
    }


def _counts(index: Index, boxes: Bools, names: Sequence[str]) -> dict[str, int]:
    """Objects among the boxes, per class name."""
    counted = boxes & (index.labels >= 0) & ((index.flags & int(REGION_FLAGS | Flag.INVALID)) == 0)
    counts = np.bincount(index.labels[counted], minlength=len(index.classes))
    return {name: int(counts[index.classes.index(name)]) for name in names}
