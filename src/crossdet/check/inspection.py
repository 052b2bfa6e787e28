"""`inspect`: config -> `Report`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from crossdet.check.anchors_coverage import anchor_coverage
from crossdet.check.canvases import canvas_report
from crossdet.check.files import Split, find_duplicates, image_paths, look_at_files
from crossdet.check.findings import with_findings
from crossdet.check.near import MOST_PICTURES, find_alike
from crossdet.check.report import (
    FIRST,
    UNION_TEST,
    ClassReport,
    DuplicateReport,
    FileReport,
    Places,
    Report,
    SplitReport,
)
from crossdet.config import Config
from crossdet.config.beginning import beginning
from crossdet.config.chosen import batch_norm_lines, open_lines, start_of
from crossdet.config.schema import ALL_SPLITS
from crossdet.config.sources import Sources, open_sources, union_test_index
from crossdet.data.federated import verified_classes
from crossdet.data.formats import FORMATS
from crossdet.data.index import IMAGE_REASONS, Index
from crossdet.data.rotation import rows_per_picture
from crossdet.errors import LabelError, UserError
from crossdet.labels.patterns import matching
from crossdet.labels.space import DROPPED, LabelSpace
from crossdet.labels.states import state_of
from crossdet.models.architectures import ARCHITECTURES
from crossdet.training.schedule import Schedule
from crossdet.types import Flag


def inspect(config: Config, max_images: int | None = None, decode: bool = False) -> Report:
    """Reads all annotations and looks at the image files.

    max_images: look at no more files per split, evenly spread; None = all. decode: read them to their end, not the
    headers alone.

    Raises `UserError` with all mistakes of the config's files and label rules.
    """
    try:
        sources = open_sources(config, ALL_SPLITS)
    except LabelError as error:
        raise LabelError(
            f"{error}\nIf the config is for `crossdet extend`: `crossdet check CONFIG --extends WEIGHTS` knows "
            f"the names of the weights"
        ) from None
    return report_on(config, sources, max_images, decode=decode)


def report_on(
    config: Config,
    sources: Sources,
    max_images: int | None = None,
    old: int = 0,
    decode: bool = False,
    rate_share: float = 1.0,
) -> Report:
    """The report on what was read. old: so many classes are known to the weights that the config extends.
    max_images, decode: as for `inspect`. rate_share: of `Start`."""
    space = sources.space
    indexes = {(name, s): getattr(sources, s)[name] for name in config.datasets for s in ALL_SPLITS
               if name in getattr(sources, s)}  # fmt: skip
    paths = {split: image_paths(index, max_images) for split, index in indexes.items()}
    kinds = {name: FORMATS[dataset.format] for name, dataset in config.datasets.items() if dataset.format}
    from_headers = {name for name, kind in kinds.items() if not kind.tells_sizes}
    splits = tuple(
        _split_report(split, index, look_at_files(index, paths[split], split[0] in from_headers, decode))
        for split, index in indexes.items()
    )
    files = {split: found.values() for split, found in paths.items()}
    fully_labelled = _union_test(config)
    union_test = None
    if fully_labelled is not None:
        chosen = image_paths(fully_labelled, max_images)
        files[UNION_TEST] = chosen.values()
        own_sizes = not getattr(FORMATS.get(getattr(config.union_test, "format", "")), "tells_sizes", True)
        union_test = look_at_files(fully_labelled, chosen, own_sizes, decode)
    duplicates, equal = find_duplicates(files)
    alike = find_alike(files, equal) if decode or sum(map(len, files.values())) <= MOST_PICTURES else None
    classes, avoiding = _class_reports(sources)
    train_images = sources.train_pictures
    start = start_of(config, old > 0, rate_share)
    schedule = Schedule.of(config.train, train_images, start) if train_images else None
    of_recipe = [] if old else [*batch_norm_lines(config, config.train.devices), *open_lines(config)]
    wrong_weights = ARCHITECTURES[config.model.name].weights_problem(config.model) is not None
    report = Report(
        datasets=space.datasets,
        federated=tuple(space.datasets[row] for row in sorted(space.federated)),
        dropped=_dropped(config, space),
        patterns=sources.patterns,
        splits=splits,
        classes=classes,
        train_images=train_images,
        avoiding_images=avoiding,
        likely_duplicates=tuple(space.likely_duplicates()),
        partial_merges=tuple(space.partial_merges(sources.labelled_names)),
        network=anchor_coverage(config, sources, old > 0),
        duplicates=tuple(_told(duplicates)),
        alike=None if alike is None else tuple(_told(alike)),
        union_test=union_test,
        max_images=max_images,
        recipe=() if schedule is None else (*_beginning(config, space, old > 0), *schedule.lines(), *of_recipe),
        canvases=None if wrong_weights else canvas_report(config, sources),
    )
    return with_findings(report, config, sources, old)


def _beginning(config: Config, space: LabelSpace, extends: bool) -> list[str]:
    """Empty, too, for weights that cannot be read: that is told as a problem."""
    if extends or not getattr(config.model, "of_checkpoint", False):
        return []
    with suppress(UserError):
        settings = ARCHITECTURES[config.model.name].settings.of(config.model, config.loss)
        return beginning(settings, space, config.model.weights)
    return []


def _union_test(config: Config) -> Index | None:
    """The fully labelled pictures; None where there are none, or they cannot be read (a warning)."""
    if config.union_test is None:
        return None
    with suppress(UserError):
        return union_test_index(config.union_test)
    return None


def _told(found: Iterable[DuplicateReport]) -> Iterator[DuplicateReport]:
    """Without pictures that are in `union_test` and in a validation split: these may be the same."""
    return (one for one in found if one.leak or UNION_TEST not in (one.one, one.other))


def _dropped(config: Config, space: LabelSpace) -> tuple[str, ...]:
    """Source classes that the rules drop; those that a dataset only lists are in the matrix."""
    labels, sources = config.labels, zip(space.datasets, space.sources, strict=True)
    not_learnt = [(d, f"{d}/{name}") for d, names in sources for name, c in names.items() if c == DROPPED]
    dropped = matching(labels.drop, [source for _, source in not_learnt])
    return tuple(
        source
        for dataset, source in not_learnt
        if source in dropped or dataset not in {*labels.unlabelled, *labels.absent}
    )


# ------------------------------------------------------------------------------------------------- splits


def _split_report(split: Split, index: Index, files: FileReport) -> SplitReport:
    is_object = index.is_object
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
        repeated=_repeated(index),
    )


def _repeated(index: Index) -> Places:
    rows = repeated_objects(index)
    images, labels = index.image_of_box()[rows[:FIRST]].tolist(), index.labels[rows[:FIRST]].tolist()
    pairs = zip(images, labels, strict=True)
    return Places(len(rows), tuple(f"{index.path(image)} ({index.classes[label]})" for image, label in pairs))


def repeated_objects(index: Index) -> NDArray[np.int64]:
    """Rows of objects that an earlier row has already: of the same picture, class and box."""
    rows = index.is_object.nonzero()[0]
    if index.rotation is not None:  # every picture stands there in each direction
        rows = rows[:0]
    boxes = (np.asarray(index.boxes[rows], np.float32) + 0.0).view(np.uint32).reshape(-1, 4)  # no -0.0
    keys = np.column_stack([index.image_of_box()[rows], index.labels[rows], boxes]).astype(np.uint64)
    mixed = np.zeros(len(rows), np.uint64)
    for column in keys.T:  # whole rows would take a minute to sort in a data set of 20 million boxes
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    order = mixed.argsort(kind="stable")
    again = (keys[order[1:]] == keys[order[:-1]]).all(1)
    return np.sort(rows[order[1:][again]])


# ------------------------------------------------------------------------------------------------- classes


def _class_reports(sources: Sources) -> tuple[tuple[ClassReport, ...], int]:
    """The unified classes, and how many training images avoid their background for at least one."""
    space = sources.space
    boxes = np.zeros(len(space.classes), np.int64)
    trusting = np.zeros(len(space.classes), np.int64)
    avoiding = 0
    for dataset, index in sources.train.items():
        ids = space.ids(dataset, index.classes)
        unified = ids[np.asarray(index.labels)[index.is_object]]
        boxes += np.bincount(unified[unified != DROPPED], minlength=len(boxes))
        per_class, some_avoided = _trusting_images(space, dataset, index, ids)
        trusting += per_class
        avoiding += some_avoided
    reports = tuple(
        ClassReport(
            name=name,
            sources=tuple(space.sources_of(c)),
            states={dataset: state_of(space, row, c) for row, dataset in enumerate(space.datasets)},
            train_boxes=int(boxes[c]),
            trusting_images=int(trusting[c]),
        )
        for c, name in enumerate(space.classes)
    )
    return reports, avoiding


def _trusting_images(
    space: LabelSpace, dataset: str, index: Index, ids: NDArray[np.int64]
) -> tuple[NDArray[np.int64], int]:
    """`[C]` images whose background is a negative for the class, and images that avoid some class.

    The rule is that of `HybridDataset`, here for all images at once.
    """
    row, classes = space.dataset_index(dataset), len(space.classes)
    always = ~space.avoid_array[row]
    per_class = always.astype(np.int64) * len(index)
    if row not in space.federated:
        return per_class, 0 if always.all() else len(index)

    images, verified = verified_classes(index, ids, space, row, range(len(index)))
    per_class += np.bincount(verified, minlength=classes)
    per_image = np.bincount(images, minlength=len(index)) + int(always.sum())
    return per_class, int((per_image < classes).sum())
