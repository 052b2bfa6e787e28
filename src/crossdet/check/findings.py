"""What a report means, in words: errors (the run would fail), warnings, and notes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from crossdet.check.boxes import learnt_boxes
from crossdet.check.files import Split
from crossdet.check.fitting import fitting_problems
from crossdet.check.near import MOST_PICTURES
from crossdet.check.report import UNION_TEST, DuplicateReport, FileReport, Report, SplitReport
from crossdet.check.teachers import look_at_teachers
from crossdet.config import Config
from crossdet.config.doubts import label_warnings, training_warnings
from crossdet.config.listed_only import listed_only_notes, listed_only_problem
from crossdet.config.sources import NO_BOX, Sources, named_splits, only_tests, union_test_index, whole_split
from crossdet.data.annotation_files import too_many
from crossdet.data.canvases import resized_sizes, too_few
from crossdet.data.formats import FORMATS
from crossdet.data.groups import group
from crossdet.data.index import Index
from crossdet.data.nearby import instead
from crossdet.errors import UserError, problem_list, some
from crossdet.evaluation.protocols import lists_of
from crossdet.labels.common import only_alike
from crossdet.labels.members import lonely_members
from crossdet.labels.rules import normalised_name
from crossdet.labels.space import DROPPED, LabelSpace
from crossdet.models.architectures import ARCHITECTURES
from crossdet.models.settings import NetworkDefaults
from crossdet.types import PAD_DIVISOR
from crossdet.yaml_text import rule

_NAMED = 8  # classes that a message names before it only counts
SMALL_SHARE = 0.25
"""Of a dataset's boxes: so many are told to be too small to be seen."""
ENLARGED = 1.5
"""By so much in the middle, pictures are made larger than they need to be."""


def with_findings(report: Report, config: Config, sources: Sources, old: int) -> Report:
    """The report with its errors, warnings and notes. old: so many classes are known to the extended weights."""
    teacher_errors, teacher_notes = look_at_teachers(config, sources)
    return replace(
        report,
        errors=(*_errors(report, config, sources, extends=old > 0), *teacher_errors),
        warnings=tuple(_warnings(report, config, sources, old)),
        notes=(*_notes(report, config, sources, extends=old > 0), *teacher_notes),
        not_looked_at=tuple(_not_looked_at(report, config, extends=old > 0)),
    )


# ------------------------------------------------------------------------------------------------- errors


def _errors(report: Report, config: Config, sources: Sources, extends: bool) -> Iterator[str]:
    yield from config.train.missing_loggers
    yield from fitting_problems(config, sources.space, extends)
    for split in report.splits:
        where = f"datasets.{split.dataset}.{split.split}"
        if not split.images:
            yield f"{where}: no images"
        elif split.files.bad == split.files.checked:
            yield f"{where}: {_none_usable(split.files)}{_where_it_is(config, sources, split)}"
    if sources.without_box:
        yield NO_BOX
    pieces = config.train.devices * config.train.accumulate
    if 0 < report.train_images < pieces:
        yield too_few(report.train_images, pieces)
    if sources.train and sources.listed_only and not config.train.plain:
        yield listed_only_problem(sources.listed_only)


def _none_usable(files: FileReport) -> str:
    found = {kind: getattr(files, kind) for kind in ("missing", "unreadable", "contradicting")}
    counts = ", ".join(f"{places.count:,} {kind}" for kind, places in found.items() if places.count)
    first = next(places.first[0] for places in found.values() if places.count)
    return f"none of its image files can be used ({counts}), such as {first}"


def _where_it_is(config: Config, sources: Sources, split: SplitReport) -> str:
    """Of the first missing picture of a split of which all are missing; empty where nothing is like it."""
    if split.files.missing.count < split.files.checked:
        return ""
    kind = FORMATS.get(config.datasets[split.dataset].format or "")
    index = named_splits(sources)[f"{split.dataset}.{split.split}"]
    return _elsewhere(sources, split) or _instead(split.files, index, kind is not None and "images" in kind.keys)


def _instead(files: FileReport, index: Index, with_root: bool = False) -> str:
    if not files.missing.count:
        return ""
    root = Path(index.root)
    return instead(os.path.relpath(files.missing.first[0], root), root, with_root)


def _elsewhere(sources: Sources, split: SplitReport) -> str:
    """Where the missing pictures of a split lie, if that is the folder of another split."""
    indexes = named_splits(sources)
    own = indexes[f"{split.dataset}.{split.split}"]
    missing = split.files.missing
    if missing.count < split.files.checked or not Path(missing.first[0]).is_relative_to(own.root):
        return ""
    name = Path(missing.first[0]).relative_to(own.root)
    for where, other in indexes.items():
        if other.root != own.root and (other.root / name).exists():
            return f"; it lies in the folder of `datasets.{where}`: are the annotations or the images swapped?"
    return ""


# ----------------------------------------------------------------------------------------------- warnings


def _warnings(report: Report, config: Config, sources: Sources, old: int) -> Iterator[str]:
    for duplicate in report.duplicates:
        if duplicate.leak:
            yield _leak(duplicate)
    if report.alike:
        yield _alike(report, report.alike)
    for split in report.splits:
        yield from _split_warnings(split, sources)
    yield from _union_test_warnings(report, config)
    if sources.train:
        yield from _class_warnings(report, old, config.train.plain)
    yield from label_warnings(config, sources)
    if report.network is not None:
        yield from report.network.warnings()
    if not old:
        yield from _too_small(config, sources)
    yield from _config_warnings(config, sources, extends=old > 0)


def _config_warnings(config: Config, sources: Sources, extends: bool) -> Iterator[str]:
    if sources.train:
        yield from training_warnings(config, sources, extends)
    else:
        yield from lonely_members(sources.space)


def _union_test_warnings(report: Report, config: Config) -> Iterator[str]:
    if (files := report.union_test) is not None:
        yield from _file_warnings(files, "union_test")
        if files.checked and files.bad == files.checked:
            yield f"union_test: {_none_usable(files)}"
    elif config.union_test is not None:
        try:
            union_test_index(config.union_test)
        except UserError as error:
            yield f"union_test: {error}"


def _leak(duplicate: DuplicateReport) -> str:
    train, held_out = duplicate.one, duplicate.other
    if train[1] != "train":
        train, held_out = held_out, train
    return (
        f"LEAK: {_pictures(duplicate.pictures, f' of {_name(held_out)}')} also in {_name(train)}, so scores on "
        f"{_name(held_out)} say little; {_example(duplicate)}"
    )


def _alike(report: Report, found: Sequence[DuplicateReport]) -> str:
    """Copies of one photograph on both sides, which are no equal files."""
    checked = {(split.dataset, split.split): split.files.checked for split in report.splits}
    if report.union_test is not None:
        checked[UNION_TEST] = report.union_test.checked
    told = "; ".join(
        f"{d.pictures:,} of {checked[d.other]:,} pictures of {_name(d.other)} look like "
        f"{'mirrored or turned ' if d.turned else ''}pictures of {_name(d.one)}, {_example(d)}"
        f"{''.join(f' ({way})' for way in d.turned[:1])}"
        for d in found
    )
    return (
        f"{told}. If they are copies of one photograph or frames of one scene, what was learnt on one side is not "
        "new on the other, and scores on it say little; keep them together (`group_by` beside "
        "`part` or a share as `val`, `crossdet-research split --group-by`)"
    )


def _split_warnings(split: SplitReport, sources: Sources) -> Iterator[str]:
    space, index = sources.space, named_splits(sources)[f"{split.dataset}.{split.split}"]
    where, training = f"{split.dataset} {split.split}", split.split == "train"
    if training and split.images and not split.boxes:
        yield f"datasets.{split.dataset}.train: no boxes; it only gives negatives from its background"
    yield from _file_warnings(split.files, where, _instead(split.files, index))
    if not training and split.images and not split.boxes:
        yield f"{where}: no boxes, so it gives no score"
    if split.repeated.count:
        many = f"{split.repeated.count:,} of {split.boxes:,} boxes are there a second time"
        yield (
            f"{where}: {many} (same picture, class and box), such as {split.repeated.first[0]}: both count, so "
            f"that one of them is always missed in scores. Leave one of the two out"
        )
    if training and split.boxes:
        ids = space.sources[space.dataset_index(split.dataset)]
        none = [n for n, count in split.boxes_per_class.items() if not count and ids[n] != DROPPED]
        if none:
            yield f"{where}: no boxes of {some(none, _NAMED)}"


def _file_warnings(files: FileReport, where: str, missing: str = "") -> Iterator[str]:
    """missing: what is said of the first missing file."""
    for what, places in (
        ("are missing", files.missing),
        ("cannot be read", files.unreadable),
        ("are not the annotated pictures", files.contradicting),
    ):
        if places.count and files.bad < files.checked:
            count = f"{places.count:,} of {files.checked:,} image files"
            yield f"{where}: {count} {what}, such as {places.first[0]}{missing if places is files.missing else ''}"
    if files.damaged:
        yield problem_list(f"{where}: {len(files.damaged):,} of {files.checked:,} image files are damaged",
                           too_many([*files.damaged]))  # fmt: skip
    marked = files.exif_orientation
    if marked.count:
        count = f"{marked.count:,} of {files.checked:,} image files, such as {marked.first[0]}"
        yield (
            f"{where}: EXIF would turn or mirror {count}: training and evaluation read them as stored, "
            "`predict` turns them upright. If their boxes fit what is stored (`crossdet check CONFIG "
            "--pictures DIR` draws them on it), remove the mark from the files; if they fit the upright "
            "pictures, store the pixels upright, without the mark"
        )


def _class_warnings(report: Report, old: int, plain: bool) -> Iterator[str]:
    trained = {split.dataset for split in report.splits if split.split == "train"}
    unlearnt = [
        c.name
        for c in report.classes[old:]
        if not c.train_boxes and (len(c.sources) > 1 or c.sources[0].split("/")[0] not in trained)
    ]
    if unlearnt:
        yield f"no training boxes in any dataset for {some(unlearnt, _NAMED)}"
    blind = [c.name for c in report.classes if not c.trusting_images and c.train_boxes]
    if blind and not plain:
        yield (
            f"no training image gives background for {some(blind, _NAMED)}: only other objects teach what is not "
            "one; see `labels.not_exhaustive` and `labels.absent`"
        )


# -------------------------------------------------------------------------------------------------- notes


def _notes(report: Report, config: Config, sources: Sources, extends: bool) -> Iterator[str]:
    yield from _config_notes(config, sources)
    if not extends:  # that keeps the input of its weights
        yield from _enlarged(config, sources)
    for split in report.splits:
        number = split.images // split.directions
        if split.directions > 1:
            drawn = ", an epoch draws each once" if split.split == "train" else ""
            yield f"{split.dataset} {split.split}: {number:,} pictures in {split.directions} directions{drawn}"
        if split.files.checked < number:
            looked = f"{split.files.checked:,} of {number:,} image files"
            yield f"{split.dataset} {split.split}: only {looked} were looked at"
    yield from _not_judged(report, sources.space)
    for d in report.duplicates:
        if not d.leak:
            one, other = _name(d.one), _name(d.other)
            where = f"more than once in {one}" if one == other else f"in {one} and in {other}"
            yield f"{_pictures(d.pictures)} {where}, {_example(d)}"


def _not_judged(report: Report, space: LabelSpace) -> Iterator[str]:
    """Classes that a dataset shows in training and not in validation."""
    shown = {(split.dataset, split.split): split.boxes_per_class for split in report.splits}
    for (dataset, split), counts in shown.items():
        learnt, ids = shown.get((dataset, "train"), {}), space.sources[space.dataset_index(dataset)]
        none = [n for n, count in counts.items() if not count and learnt.get(n) and ids.get(n) != DROPPED]
        if split == "val" and none:
            yield f"{dataset} val: no boxes of {some(none, _NAMED)}, so no score there, and no threshold from there"


def _config_notes(config: Config, sources: Sources) -> Iterator[str]:
    if not sources.train:
        yield "no dataset has a `train` split: this config can only evaluate"
        yield from (f"{name} {note}" for name, note in listed_only_notes(sources.listed_only).items())
    for name, dataset in config.datasets.items():
        if only_tests(dataset):
            yield f"{name} has a `test` split alone: it is for `eval --split test`, and was not looked at"
    for name in sources.train:
        if name not in sources.val:
            yield f"{name} has no `val` split: no score for it"
    for name, dataset in config.datasets.items():
        if dataset.group_by is not None and dataset.train is not None:
            shares = [f"`{key}` {s}" for key in ("val", "part") if isinstance(s := getattr(dataset, key), str)]
            whole = group(whole_split(dataset, "train"), dataset.group_by)
            yield f"{name}: {' and '.join(shares)} leave{'s' * (len(shares) == 1)} no group in pieces: {whole}"
        lists = lists_of(dataset.protocol)
        if lists is not None and name in sources.val and name not in sources.lists:
            yield f"{name}: {lists.without}"
    yield from only_alike(sources.space)
    yield from _kept_apart(sources.space)
    if config.train.plain:
        yield "`train.plain` is on: all background is a negative for every class, avoided or not"


def _kept_apart(space: LabelSpace) -> Iterator[str]:
    """Classes of one name, but for capitals and plurals, that `distinct` makes several of: `new` writes it so."""
    alike: dict[str, list[int]] = {}
    for c, name in enumerate(space.classes):
        alike.setdefault(normalised_name(name.rpartition("/")[2]), []).append(c)
    for classes in alike.values():
        names = [space.classes[c] for c in classes]
        if len(names) > 1 and any("/" in name for name in names):
            target, members = names[0].rpartition("/")[2], [s for c in classes for s in space.sources_of(c)]
            yield (
                f"kept apart, each a class of its own: {', '.join(names)}. If they mean the same, "
                f"{rule('merge', {target: members})} in place of their entries in `distinct` and `overlap`"
            )


def _enlarged(config: Config, sources: Sources) -> Iterator[str]:
    """Where small pictures are made much larger: that costs time, and shows nothing more."""
    sizes = np.concatenate([index.sizes for index in sources.train.values()] or [np.zeros((0, 2), np.int32)])
    known = sizes[(sizes > 0).all(1)]
    square: int | None = 1
    with suppress(UserError):  # for weights that say it and cannot be read, which is told as an error
        square = config.square
    if not len(known) or square is not None:
        return
    given, (shorter, longer) = float(np.median(known.min(1))), (config.input.shorter, config.input.longer)
    factor = float(np.median(resized_sizes(known, shorter, longer).min(1) / known.min(1)))
    if factor >= ENLARGED:
        lower = max(PAD_DIVISOR, round(given / PAD_DIVISOR) * PAD_DIVISOR)
        yield (
            f"half of the training pictures are made {factor:.1f} times as large or more for the network (`input`, "
            f"their shorter side is {given:.0f} pixels), which takes about {factor**2:.0f} times as long. Where "
            f"objects are not tiny, try `input: {{shorter: {lower}, longer: {max(lower, round(longer / factor))}}}`"
        )


def _too_small(config: Config, sources: Sources) -> Iterator[str]:
    """Boxes whose area is below that of half the distance of two features: hardly one place sees them."""
    with suppress(UserError):  # weights that cannot be read are a problem of their own
        defaults = NetworkDefaults(side=config.input.shorter)
        settings = ARCHITECTURES[config.model.name].settings.of(config.model, config.loss, defaults)
        finest, square = settings.finest, settings.stretched_to
        if finest is None:
            return
        for name, index in sources.train.items():
            ids, as_region = sources.space.ids(name, index.classes), config.datasets[name].difficult == "ignore"
            boxes, _ = learnt_boxes(index, ids, config.input.shorter, config.input.longer, as_region, square)
            small = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1)) < finest.stride / 2
            if len(boxes) and small.mean() >= SMALL_SHARE:
                yield (
                    f"{name} train: {small.mean():.0%} of the boxes are smaller than {finest.stride / 2:g} px at "
                    f"the network's input, whose finest features are {finest.stride} px apart: few of them will be "
                    f"found. To see them {finest.cure}"
                )


def _not_looked_at(report: Report, config: Config, extends: bool) -> Iterator[str]:
    if any(split.files.damaged is None for split in report.splits):
        yield "pictures beyond their headers and thumbnails (--decode reads them to their end)"
    if report.alike is None:
        yield f"whether pictures of two splits look alike (they are over {MOST_PICTURES:,}; --decode compares them)"
    yield "whether boxes and pictures fit (--pictures draws training batches)"
    if report.train_images and config.model.weights == "imagenet" and not extends:
        yield "whether the ImageNet weights can be fetched"
    if report.train_images:
        yield "memory and time of the training"


def _pictures(count: int, of: str = "") -> str:
    return f"{count:,} pictures{of} are" if count > 1 else f"1 picture{of} is"


def _name(split: Split) -> str:
    return " ".join(split)


def _example(duplicate: DuplicateReport) -> str:
    """The first pair; one path if both use the same file."""
    return "such as " + " = ".join(dict.fromkeys(duplicate.files[0]))
