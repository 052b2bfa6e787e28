"""`inspect`: config -> `Report`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossdet.check import report as states
from crossdet.check.files import Split, find_duplicates, image_paths, look_at_files
from crossdet.check.report import (
    AnchorReport,
    ClassReport,
    DuplicateReport,
    FileReport,
    Places,
    Report,
    SplitReport,
)
from crossdet.check.teachers import look_at_teachers
from crossdet.config import Config
from crossdet.config.sources import SPLITS, Sources, listed_only_problem, open_sources
from crossdet.data.federated import verified_classes
from crossdet.data.formats import FORMATS
from crossdet.data.index import Index
from crossdet.data.reading import IMAGE_REASONS
from crossdet.data.rotation import pictures, rows_per_picture
from crossdet.errors import LabelError
from crossdet.evaluation.protocols import lists_of
from crossdet.labels.members import lonely_members
from crossdet.labels.space import DROPPED, LabelSpace
from crossdet.models.retinanet.anchor_stats import best_anchor_iou, resized_boxes, resized_sizes
from crossdet.models.retinanet.settings import PYRAMID_STRIDES
from crossdet.types import REGION_FLAGS, Flag

LOW_RECALL = 0.9
"""Below it boxes are missed by the anchors often enough to cost accuracy: a warning."""

SMALL, LARGE = 32**2, 96**2
"""COCO's limits of box area, here in pixels of the network's input, where the anchors are."""

_NAMED = 8  # classes that a message names before it only counts


def inspect(config: Config, max_images: int | None = None) -> Report:
    """Reads all annotations and looks at the image files.

    max_images: look at no more files per split (headers and duplicates), evenly spread; None = all.

    Raises `UserError` with all mistakes of the config's files and label rules.
    """
    try:
        sources = open_sources(config)
    except LabelError as error:
        raise LabelError(
            f"{error}\nIf the config is for `crossdet extend`: `crossdet check CONFIG --extends WEIGHTS` knows "
            f"the names of the weights"
        ) from None
    return report_on(config, sources, max_images)


def report_on(config: Config, sources: Sources, max_images: int | None = None, old: int = 0) -> Report:
    """The report on what was read. old: so many classes are known to the weights that the config extends."""
    indexes = {(name, s): getattr(sources, s)[name] for name in config.datasets for s in SPLITS
               if name in getattr(sources, s)}  # fmt: skip
    paths = {split: image_paths(index, max_images) for split, index in indexes.items()}
    kinds = {name: FORMATS[dataset.format] for name, dataset in config.datasets.items() if dataset.format}
    from_headers = {name for name, kind in kinds.items() if not kind.tells_sizes}
    splits = tuple(
        _split_report(split, index, look_at_files(index, paths[split], split[0] in from_headers))
        for split, index in indexes.items()
    )
    classes, avoiding = _class_reports(sources)
    anchors = tuple(
        _anchor_report(config, sources.space, split, index)
        for split, index in indexes.items()
        if split[1] == "train" or split[0] not in sources.train
    )
    duplicates = tuple(find_duplicates({split: found.values() for split, found in paths.items()}))
    space = sources.space
    partial, likely = space.partial_merges(_labelled(sources)), space.likely_duplicates()
    teacher_errors, teacher_notes = look_at_teachers(config, sources)
    warnings = [
        *_leak_warnings(duplicates),
        *_split_warnings(splits, space),
        *_class_warnings(sources, classes, old, config.train.plain),
        *(f"likely the same class, not merged: {a} and {b}; merge them under `labels.merge`, or list the "
          "name under `labels.distinct`" for a, b in likely),
        *(f"merge of unlike classes: {text}" for text in partial),
        *_anchor_warnings(anchors, config.model.positive_iou),
        *filter(None, [config.train.early_decay if sources.train else None]),
        *lonely_members(space),
    ]  # fmt: skip
    return Report(
        datasets=space.datasets,
        federated=tuple(space.datasets[row] for row in sorted(space.federated)),
        dropped=_dropped(config, space),
        splits=splits,
        classes=classes,
        train_images=sum(len(pictures(index)) for index in sources.train.values()),
        avoiding_images=avoiding,
        likely_duplicates=tuple(likely),
        partial_merges=tuple(partial),
        positive_iou=config.model.positive_iou,
        anchors=anchors,
        duplicates=duplicates,
        max_images=max_images,
        errors=(*_errors(config, splits, extends=old > 0), *_label_errors(config, sources), *teacher_errors),
        warnings=tuple(warnings),
        notes=(*_notes(config, sources, splits, duplicates), *teacher_notes),
    )


def _labelled(sources: Sources) -> dict[str, Collection[str]]:
    """`Sources.labelled` as far as the label space knows the classes by their own names, without directions."""
    turned = {sources.space.datasets[row] for row in sources.space.directions}
    return {name: own for name, own in sources.labelled.items() if name not in turned}


def _dropped(config: Config, space: LabelSpace) -> tuple[str, ...]:
    """Source classes that the rules drop; those that a dataset only lists are in the matrix."""
    labels = config.labels
    return tuple(
        source
        for dataset, names in zip(space.datasets, space.sources, strict=True)
        for source in (f"{dataset}/{name}" for name, unified in names.items() if unified == DROPPED)
        if source in labels.drop or dataset not in {*labels.unlabelled, *labels.absent}
    )


# ------------------------------------------------------------------------------------------------- splits


def _split_report(split: Split, index: Index, files: FileReport) -> SplitReport:
    is_object = _objects(index)
    labels = np.asarray(index.labels)[is_object]
    counts = np.bincount(labels, minlength=len(index.classes))
    flags = np.asarray(index.flags)

    def flagged(flag: Flag) -> int:
        return int(np.count_nonzero(flags & int(flag)))

    # images that cannot be read are in `files`, as they are today
    skipped = {reason: places for reason, places in index.skipped.items() if reason not in IMAGE_REASONS}
    return SplitReport(
        dataset=split[0],
        split=split[1],
        images=len(index),
        empty_images=len(index) - len(np.unique(index.image_of_box()[is_object])),
        boxes=int(is_object.sum()),
        boxes_per_class=dict(zip(index.classes, counts.tolist(), strict=True)),
        crowd=flagged(Flag.CROWD),
        ignore_regions=flagged(Flag.IGNORE_REGION),
        avoided_regions=flagged(Flag.AVOID),
        invalid=flagged(Flag.INVALID),
        difficult=flagged(Flag.DIFFICULT),
        skipped={reason: Places.of(places) for reason, places in skipped.items()},
        files=files,
        directions=rows_per_picture(index),
    )


def _objects(index: Index) -> NDArray[np.bool_]:
    """`[M]` bool: boxes that are neither regions nor invalid."""
    plain: NDArray[np.bool_] = (np.asarray(index.flags) & int(REGION_FLAGS | Flag.INVALID)) == 0
    return plain & (np.asarray(index.labels) >= 0)


# ------------------------------------------------------------------------------------------------- classes


def _class_reports(sources: Sources) -> tuple[tuple[ClassReport, ...], int]:
    """The unified classes, and how many training images avoid their background for at least one."""
    space = sources.space
    boxes = np.zeros(len(space.classes), np.int64)
    trusting = np.zeros(len(space.classes), np.int64)
    avoiding = 0
    for dataset, index in sources.train.items():
        ids = space.ids(dataset, index.classes)
        unified = ids[np.asarray(index.labels)[_objects(index)]]
        boxes += np.bincount(unified[unified != DROPPED], minlength=len(boxes))
        images = _trusting_images(space, dataset, index, ids)
        trusting += images.per_class
        avoiding += images.avoiding
    matrix = _state_matrix(space)
    reports = tuple(
        ClassReport(
            name=name,
            sources=tuple(space.sources_of(c)),
            states=dict(zip(space.datasets, matrix[c], strict=True)),
            train_boxes=int(boxes[c]),
            trusting_images=int(trusting[c]),
        )
        for c, name in enumerate(space.classes)
    )
    return reports, avoiding


def _state_matrix(space: LabelSpace) -> list[list[str]]:
    """Per class the state of every dataset."""

    def state(row: int, c: int) -> str:
        labels, avoids = space.annotated_array[row, c], space.avoid_array[row, c]
        if not labels:
            return states.AVOIDED if avoids else states.ABSENT
        if row in space.federated:
            return states.PER_IMAGE
        return states.NOT_EXHAUSTIVE if avoids else states.LABELLED

    return [[state(row, c) for row in range(len(space.datasets))] for c in range(len(space.classes))]


class _Trusting(NamedTuple):
    per_class: NDArray[np.int64]
    avoiding: int


def _trusting_images(space: LabelSpace, dataset: str, index: Index, ids: NDArray[np.int64]) -> _Trusting:
    """`[C]` images whose background is a negative for the class, and images that avoid some class.

    The rule is that of `HybridDataset`, here for all images at once.
    """
    row, classes = space.dataset_index(dataset), len(space.classes)
    always = ~space.avoid_array[row]
    per_class = always.astype(np.int64) * len(index)
    if row not in space.federated:
        return _Trusting(per_class, 0 if always.all() else len(index))

    images, verified = verified_classes(index, ids, space, row, range(len(index)))
    per_class += np.bincount(verified, minlength=classes)
    per_image = np.bincount(images, minlength=len(index)) + int(always.sum())
    return _Trusting(per_class, int((per_image < classes).sum()))


# ------------------------------------------------------------------------------------------------- anchors


def _anchor_report(config: Config, space: LabelSpace, split: Split, index: Index) -> AnchorReport:
    image = index.image_of_box()
    ids = space.ids(split[0], index.classes)
    sizes = np.asarray(index.sizes, np.int64)
    used = _objects(index) & (ids[np.asarray(index.labels)] != DROPPED) & (sizes[image] > 0).all(1)
    if config.datasets[split[0]].difficult == "ignore":
        used &= (np.asarray(index.flags) & int(Flag.DIFFICULT)) == 0
    image = image[used]
    at_input = resized_sizes(np.maximum(sizes, 1), config.input.shorter, config.input.longer)
    boxes = resized_boxes(index.boxes[used], sizes[image], at_input[image])
    anchors = config.model.anchors
    best = best_anchor_iou(boxes, at_input[image], anchors.scales, anchors.ratios)
    reached = best >= config.model.positive_iou
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    parts = (area < SMALL, (area >= SMALL) & (area <= LARGE), area > LARGE)
    recalls = [float(reached[part].mean()) if part.any() else None for part in parts]
    counts = [int(part.sum()) for part in parts]
    recall = float(reached.mean()) if len(reached) else None
    low = recall is not None and recall < LOW_RECALL
    return AnchorReport(
        *split, len(boxes), recall, counts[0], recalls[0], counts[1], recalls[1], counts[2], recalls[2],
        hint=_anchor_hint(config, boxes[~reached]) if low else "",
    )  # fmt: skip


def _anchor_hint(config: Config, missed: NDArray[np.float64]) -> str:
    """What most boxes without an anchor have in common, and the keys to change. missed: `[N, 4]`, N > 0."""
    scales, ratios = config.model.anchors.scales, config.model.anchors.ratios
    side = missed[:, 2:] - missed[:, :2]
    length = np.sqrt(side.prod(1))
    ratio = side[:, 1] / side[:, 0]
    smallest, largest = min(scales) * PYRAMID_STRIDES[0], max(scales) * PYRAMID_STRIDES[-1]
    small, large = length < smallest, length > largest
    kinds = {
        "small": small,
        "large": large,
        "high": ~(small | large) & (ratio > 1.3 * max(ratios)),
        "wide": ~(small | large) & (ratio < min(ratios) / 1.3),
    }
    kinds["between"] = ~np.logical_or.reduce(list(kinds.values()))
    kind, mask = max(kinds.items(), key=lambda item: int(item[1].sum()))
    share = f"{mask.mean():.0%} are"
    shape = f"height / width about {np.median(ratio[mask]):.2g}: add that to `model.anchors.ratios`"
    now = f"(now {config.input.shorter})"
    return {
        "small": f"{share} smaller than the smallest anchor, {smallest:g} px: add a smaller scale to "
        f"`model.anchors.scales`, or raise `input.shorter` {now}",
        "large": f"{share} larger than the largest anchor, {largest:g} px: add a larger scale to "
        f"`model.anchors.scales`, or lower `input.shorter` {now}",
        "high": f"{share} too tall for the anchors, {shape}",
        "wide": f"{share} too wide for the anchors, {shape}",
        "between": f"{share} between two anchors: add scales to `model.anchors.scales`, or raise "
        f"`input.shorter` {now}",
    }[kind]


# ------------------------------------------------------------------------------- errors, warnings and notes


def _errors(config: Config, splits: Sequence[SplitReport], extends: bool) -> Iterator[str]:
    weights = config.model.weights
    if isinstance(weights, Path) and not weights.is_file() and not extends:  # an extension does not use them
        yield f"model.weights: {weights} does not exist; give a file, `imagenet` or `none`"
    for split in splits:
        where = f"datasets.{split.dataset}.{split.split}"
        if not split.images:
            yield f"{where}: no images"
        elif split.files.bad == split.files.checked:
            kinds = ("missing", "unreadable", "contradicting")
            found = {kind: getattr(split.files, kind) for kind in kinds}
            counts = ", ".join(f"{places.count:,} {kind}" for kind, places in found.items() if places.count)
            first = next(places.first[0] for places in found.values() if places.count)
            yield f"{where}: none of its image files can be used ({counts}), such as {first}"


def _label_errors(config: Config, sources: Sources) -> Iterator[str]:
    if sources.listed_only and not config.train.plain:
        yield listed_only_problem(sources.listed_only)


def _split_warnings(splits: Sequence[SplitReport], space: LabelSpace) -> Iterator[str]:
    for split in splits:
        if split.images and split.split == "train" and not split.boxes:
            yield f"datasets.{split.dataset}.train: no boxes; it only gives negatives from its background"
        where = f"{split.dataset} {split.split}"
        for what, places in (
            ("are missing", split.files.missing),
            ("cannot be read", split.files.unreadable),
            ("are not the annotated pictures", split.files.contradicting),
        ):
            if places.count and split.files.bad < split.files.checked:
                count = f"{places.count:,} of {split.files.checked:,} image files"
                yield f"{where}: {count} {what}, such as {places.first[0]}"
        if turned := split.files.turned.count:
            count = f"{turned:,} of {split.files.checked:,} image files, such as {split.files.turned.first[0]}"
            yield (
                f"{where}: EXIF would turn or mirror {count}: training and evaluation read them as stored, "
                "`predict` turns them upright. If their boxes fit what is stored (`crossdet check CONFIG "
                "--pictures DIR` draws them on it), remove the mark from the files; if they fit the upright "
                "pictures, store the pixels upright, without the mark"
            )
        if split.split == "val" and split.images and not split.boxes:
            yield f"{where}: no boxes, so it gives no score"
        if split.split == "train" and split.boxes:
            ids = space.sources[space.dataset_index(split.dataset)]
            none = [n for n, count in split.boxes_per_class.items() if not count and ids[n] != DROPPED]
            if none:
                yield f"{where}: no boxes of {_listed(none)}"


def _class_warnings(sources: Sources, classes: Sequence[ClassReport], old: int, plain: bool) -> Iterator[str]:
    if not sources.train:
        return
    unlearnt = [c.name for c in classes[old:] if not c.train_boxes and len(c.sources) > 1]
    if unlearnt:
        yield f"no training boxes in any dataset for {_listed(unlearnt)}"
    blind = [c.name for c in classes if not c.trusting_images and c.train_boxes]
    if blind and not plain:
        yield (
            f"no training image gives background for {_listed(blind)}: only other objects teach what is not "
            "one; see `labels.not_exhaustive` and `labels.absent`"
        )


def _leak_warnings(duplicates: Sequence[DuplicateReport]) -> Iterator[str]:
    for d in duplicates:
        if d.leak:
            train, held_out = (d.one, d.other) if d.one[1] == "train" else (d.other, d.one)
            yield (
                f"LEAK: {_pictures(d.pictures, f' of {_name(held_out)}')} also in {_name(train)}, so scores on "
                f"{_name(held_out)} say little; {_example(d)}"
            )


def _anchor_warnings(anchors: Sequence[AnchorReport], iou: float) -> Iterator[str]:
    for report in anchors:
        if report.recall is not None and report.recall < LOW_RECALL:
            yield (
                f"{report.dataset} {report.split}: anchors reach only {int(report.recall * 100)}% of the "
                f"boxes with IoU >= {iou:g} (`model.positive_iou`); of the others {report.hint}"
            )


def _notes(
    config: Config, sources: Sources, splits: Sequence[SplitReport], duplicates: Sequence[DuplicateReport]
) -> Iterator[str]:
    if not sources.train:
        yield "no dataset has a `train` split: this config can only evaluate"
    for dataset in sources.train:
        if dataset not in sources.val:
            yield f"{dataset} has no `val` split: no score for it"
    for name, dataset_config in config.datasets.items():
        lists = lists_of(dataset_config.protocol)
        if lists is not None and name in sources.val and name not in sources.lists:
            yield f"{name}: {lists.without}"
    if config.train.plain:
        yield "`train.plain` is on: all background is a negative for every class, avoided or not"
    for split in splits:
        number = split.images // split.directions
        if split.directions > 1:
            drawn = ", an epoch draws each once" if split.split == "train" else ""
            yield f"{split.dataset} {split.split}: {number:,} pictures in {split.directions} directions{drawn}"
        if split.files.checked < number:
            looked = f"{split.files.checked:,} of {number:,} image files"
            yield f"{split.dataset} {split.split}: only {looked} were looked at"
    for d in duplicates:
        if d.leak:
            continue
        if d.one == d.other:
            where = f"more than once in {_name(d.one)}"
        else:
            where = f"in {_name(d.one)} and in {_name(d.other)}"
        yield f"{_pictures(d.pictures)} {where}, {_example(d)}"


def _pictures(count: int, of: str = "") -> str:
    return f"{count:,} pictures{of} are" if count > 1 else f"1 picture{of} is"


def _name(split: Split) -> str:
    return " ".join(split)


def _example(duplicate: DuplicateReport) -> str:
    """The first pair; one path if both use the same file."""
    return "such as " + " = ".join(dict.fromkeys(duplicate.files[0]))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"
