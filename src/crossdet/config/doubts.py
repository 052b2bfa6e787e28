"""What a config allows and is seldom meant, above all what may be trained as background by mistake. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossdet.config import Config
from crossdet.config.listed_only import learnt_from
from crossdet.config.schema import ALL_SPLITS, SPLITS, SplitConfig
from crossdet.config.sources import Sources, named_splits, whole_split
from crossdet.data.index import (
    FAR_OVER,
    IMAGE_REASONS,
    LEFT_OUT,
    NO_LABELS,
    NO_PICTURE,
    OTHER_SPELLING,
    POSE_LIKE,
    STRAY_REGION,
    TRACK_LIKE,
    XML_BELOW,
    Index,
)
from crossdet.labels.common import common_names, parts_apart
from crossdet.labels.members import lonely_members
from crossdet.labels.space import DROPPED, LabelSpace
from crossdet.yaml_text import flow, rule

MANY_EMPTY, MANY_LEFT_OUT, MANY_FAR_OVER = 0.5, 0.01, 0.15
"""Shares of a split's pictures or boxes above which they are spoken of, or asked about."""
MANY_FOLDERS = 3
"""That a message names before it only counts."""
STRAY, OFTEN, MANY_PICTURES = 3, 0.05, 50
"""So few objects of a class, in so many pictures or more, are spoken of where it is in such a share of the pictures
of another dataset."""
OF_NO_CLASS = frozenset(
    {"dontcare", "dontcares", "ignore", "ignored", "void", "background",
     "ignoreregion", "ignoreregions", "ignoredregion", "ignoredregions"}
)  # fmt: skip
"""Names, without what is no letter, of classes whose boxes often mark places where not everything is labelled."""


def training_warnings(config: Config, sources: Sources, extends: bool) -> Iterator[str]:
    """What is allowed in a config to train by, and seldom meant. extends: trained weights."""
    yield from config.train.warnings
    yield from lonely_members(sources.space)
    if config.model.weights == "none" and "weights" not in config.model.model_fields_set and not extends:
        yield (
            "`model.weights` is not given: the whole network begins with random numbers, and needs many more "
            "pictures and steps than from weights. Name a checkpoint, or `backbone` and its `weights: imagenet`; "
            "`weights: none` says that it is meant"
        )
    if config.train.patience and not sources.val:
        yield "`train.patience`: no dataset has a `val` split to be judged on, so nothing stops early"
    if config.extend is not None and not extends:
        yield (
            "`extend`: this section is for `crossdet extend WEIGHTS CONFIG` (and `check --extends WEIGHTS`); here "
            "a new detector is trained, without it"
        )


def label_warnings(config: Config, sources: Sources, splits: Sequence[str] = SPLITS) -> Iterator[str]:
    """What may be trained as background by mistake. splits: whose pictures and boxes are looked at."""
    for where, index in named_splits(sources).items():
        name, split = where.rsplit(".", 1)
        if split in splits:
            dataset = config.datasets[name]
            yield from (f"{name} {split}: {text}" for text in pictures_without_boxes(index))
            yield from (f"{name} {split}: {text}" for text in files_not_read(config, index))
            yield from (f"{name} {split}: {text}" for text in places_as_classes(name, index))
            if split == "train" or dataset.held_out is None:  # the pictures of both shares are read once
                shares = dataset.held_out is not None or dataset.part_of is not None
                whole = whole_split(dataset, split) if shares else index  # a share has all notes, not all boxes
                yield from (f"{name} {split}: {text}" for text in doubtful_boxes(whole))
    yield from shared_by_spelling(named_splits(sources))
    yield from (_likely_one(sources.space, a, b) for a, b in sources.space.likely_duplicates())
    for name, other in merged_beside(sources.space):
        yield f"`labels.merge` makes {name!r} beside the class {other!r}: is that one class, by a slip in its name?"
    yield from beside_merged(sources.space)
    for text in sources.space.partial_merges(sources.labelled_names):
        yield f"merge of unlike classes: {text}"
    yield from parts_apart(sources.space, sources.known)
    yield from unshown_warnings(sources)
    yield from stray_warnings(sources)
    yield from unlike_before(sources)
    yield from more_than_before(sources)


def _likely_one(space: LabelSpace, *pair: str) -> str:
    """pair: source classes, as `likely_duplicates` names them."""
    ids = [space.index(*source.split("/", 1)) for source in pair]
    name, other = (space.classes[c] for c in ids)
    merged = list(dict.fromkeys(source for c in ids for source in space.sources_of(c)))
    return (
        f"likely the same class, not merged: {pair[0]} and {pair[1]}. If they are, "
        f"{rule('merge', {name: merged})}; if one box may show both, {rule('overlap', [[name, other]])}; "
        f"if they are different things, {rule('distinct', [pair[1]])}"
    )


def merged_beside(space: LabelSpace) -> Iterator[tuple[str, str]]:
    """Names that a merge has made up and that are much like another class's name."""
    own = {name for sources in space.sources for name in sources}
    names = common_names()
    for made in (name for name in space.classes if name not in own and "/" not in name):
        yield from ((made, other) for other in space.classes if other != made and names.alike(made, other))


def beside_merged(space: LabelSpace) -> Iterator[str]:
    """Classes whose names are much like that of a class that weights merged: objects of theirs are negatives of its
    members."""
    names = common_names()
    for fold in (fold for fold in space.folds if fold.is_merge and fold.name not in space.classes):
        for c in sorted(set(range(len(space.classes))) - {*fold.members}):
            other, overlaps = space.classes[c], space.overlap_array[c, list(fold.members)].all()
            if names.alike(fold.name, other) and not overlaps:
                sources, members = [*space.sources_of(c)], ", ".join(space.classes[m] for m in fold.members)
                yield (
                    f"likely the same class, not merged: {other!r} and {fold.name!r}, which the weights merged "
                    f"from {members}. If they are, {rule('merge', {fold.name: sources})}; if one box may "
                    f"show both, {rule('overlap', [[fold.name, other]])}; if they are different things, "
                    f"{rule('distinct', sources)}"
                )


def unshown_warnings(sources: Sources) -> Iterator[str]:
    """Classes that a dataset labels, but not in its training pictures, whose background is a negative for them: its
    boxes are in `val`, or are regions. (Where it has no box at all that has to be answered: `listed_only`.)"""
    space, labelled = sources.space, sources.labelled_names
    shown = {name: set(index.classes_shown) for name, index in sources.train.items() if name in labelled}
    learnt = {int(c) for name, own in shown.items() for c in space.ids(name, sorted(own))}
    learnt |= set(range(len(sources.known.classes))) if sources.known is not None else set()
    teachers = "other datasets" if sources.known is None else "the weights or other datasets"
    for name, own in shown.items():
        trusted = ~space.avoid_array[space.dataset_index(name)]
        lacking = {source: space.index(name, source) for source in sorted({*labelled[name]} - own)}
        asked = {source: c for source, c in lacking.items() if c != DROPPED and c in learnt and trusted[c]}
        if asked:
            unified = list(dict.fromkeys(space.classes[c] for c in asked.values()))
            yield (
                f"{name} train: no object of {', '.join(asked)}, which {teachers} teach, and its background is "
                f"a negative for it; if its pictures show it, say {rule('not_exhaustive', {name: unified})}"
            )


def stray_warnings(sources: Sources) -> Iterator[str]:
    """Classes of which a dataset has a few objects in many pictures, while another shows them often: as if somebody
    had labelled a class that is not labelled there."""
    space = sources.space
    seen = {name: _shown(space, name, index) for name, index in sources.train.items()}
    for name, (objects, _) in seen.items():
        pictures = len(sources.train[name])
        often = np.max([shares for other, (_, shares) in seen.items() if other != name], 0, initial=0.0)
        trusted = ~space.avoid_array[space.dataset_index(name)]
        stray = (objects > 0) & (objects <= STRAY) & (often >= OFTEN) & trusted
        if stray.any() and pictures >= MANY_PICTURES:
            named = [(space.classes[c], int(objects[c])) for c in np.flatnonzero(stray).tolist()]
            told, classes = ", ".join(f"{count} of {c}" for c, count in named), [c for c, _ in named]
            yield (
                f"{name} train: very few objects, {told} in {pictures:,} pictures, where another dataset shows "
                f"them often. Its background is a negative for {', '.join(classes)}; if its pictures show more "
                f"than that, say {rule('not_exhaustive', {name: classes})}"
            )


def _shown(space: LabelSpace, name: str, index: Index) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """`[C]` objects of each class, and `[C]` the share of the pictures that show it."""
    ids = np.asarray(space.ids(name, index.classes), np.int64)
    labels, images = ids[index.labels[index.is_object]], index.image_of_box()[index.is_object]
    kept = labels != DROPPED
    labels, images = labels[kept], images[kept]
    pairs = np.unique(images * len(space.classes) + labels) % len(space.classes)
    objects, pictures = (np.bincount(some, minlength=len(space.classes)) for some in (labels, pairs))
    return objects, pictures / max(1, len(index))


def unlike_before(sources: Sources) -> Iterator[str]:
    """Datasets of an extension whose files list old classes that the weights learnt from them, without a box. A few
    old pictures need not show every class; other pictures under an old name may not be labelled for it."""
    space, known = sources.space, sources.known
    for name in sources.train if known is not None else ():
        if known is None or name not in known.datasets or name not in sources.labelled_names:
            continue
        with_box = {space.index(name, own) for own in sources.labelled[name]}
        trusted = ~space.avoid_array[space.dataset_index(name)]
        lacking = [space.classes[c] for c in sorted(learnt_from(known, name) - with_box) if trusted[c]]
        if lacking:
            yield (
                f"{name} train: no box of {', '.join(lacking)}, which the weights learnt from {name}, and its "
                f"background is a negative for it. That is so for pictures they learnt from; if these are others "
                f"and may show it, say {rule('not_exhaustive', {name: lacking})}, or give them a dataset name of "
                f"their own"
            )


def more_than_before(sources: Sources) -> Iterator[str]:
    """Old datasets of an extension with classes that the weights do not know them with: what is not learnt any more
    as a region is an object, and a negative of all other classes. (`ignore_classes` is not in the weights.)"""
    known = sources.known
    for name, index in sources.train.items() if known is not None else ():
        if known is not None and name in known.datasets:
            before = known.sources[known.dataset_index(name)]
            if more := [own for own in index.classes_shown if own not in before]:
                yield (
                    f"{name} train: the weights do not know this dataset with boxes of {', '.join(more)}; if these "
                    f"were regions before, say it again: `datasets.{name}.ignore_classes: {flow(more)}`"
                )


def pictures_without_boxes(index: Index) -> Iterator[str]:
    """Signs that nobody has labelled some pictures of a split."""
    skipped = index.skipped
    if places := skipped.get(NO_LABELS):
        yield (
            f"{len(places):,} images have no label file, such as {places[0]}, and count as pictures without any "
            f"object. {_orphans(skipped.get(NO_PICTURE, ()))}If nobody has labelled them, take them out"
        )
    known_empty = sum(len(skipped.get(reason, ())) for reason in (NO_LABELS, *IMAGE_REASONS))
    empty = int(np.count_nonzero(np.diff(index.box_offsets) == 0)) - known_empty
    if len(index.boxes) and not index.federated and empty > MANY_EMPTY * len(index):
        yield (
            f"{empty:,} of {len(index):,} pictures have no box, and all of them is background. If nobody has "
            "labelled them, take them out"
        )


def _orphans(labels: Sequence[str]) -> str:
    """Of label files without a picture, where there are pictures without one."""
    if not labels:
        return ""
    return (
        f"{len(labels):,} label files have no picture, such as {labels[0]}: are they of these pictures, by names "
        "of before? Then their objects are background; give a picture and its label file one name. "
    )


def files_not_read(config: Config, index: Index) -> Iterator[str]:
    """XMLs in folders below those of the annotations; but for folders that another split reads."""
    splits = [getattr(dataset, split) for dataset in config.datasets.values() for split in ALL_SPLITS]
    read = {folder for split in splits if isinstance(split, SplitConfig) for folder in split.annotations}
    files = [file for file in map(Path, index.skipped.get(XML_BELOW, ())) if file.parent not in read]
    if files:
        folders = list(dict.fromkeys(str(file.parent) for file in files))
        named = flow([*folders[:MANY_FOLDERS], *(["..."] if len(folders) > MANY_FOLDERS else [])])
        yield (
            f"{len(files):,} XML files lie in folders below, such as {files[0]}, and are not read: their pictures "
            f"and objects take no part. If they should, name their folders, too, in `annotations` ({named}), and "
            "in `images` those of their pictures"
        )


def shared_by_spelling(splits: Mapping[str, Index]) -> Iterator[str]:
    """Splits that share pictures, where some were found by another spelling than the annotations have: one that is
    lost takes that of another split then, whose objects are background in it."""
    for where, index in splits.items():
        if not (places := index.skipped.get(OTHER_SPELLING)):
            continue
        mine = {str(index.path(row)) for row in range(len(index))}
        for other, theirs in splits.items():
            both = mine & {str(theirs.path(row)) for row in range(len(theirs))} if other != where else ()
            if both:
                yield (
                    f"{where}: names were found in another spelling ({places[0]}), and {len(both):,} of its "
                    f"pictures are in {other}, too, such as {min(both)}: is it the picture of that split alone?"
                )


def places_as_classes(dataset: str, index: Index) -> Iterator[str]:
    """Classes that by their names are none: learnt, their boxes are negatives of all others, dropped background."""
    for name in index.classes_shown:
        if "".join(filter(str.isalpha, name.casefold())) in OF_NO_CLASS:
            yield (
                f"boxes of {name!r} may mark places where not every object is labelled, and what is there would be "
                f"a negative, also where the class is dropped: `datasets.{dataset}.ignore_classes: {flow([name])}` "
                "makes regions of them, in which nothing is a negative"
            )


def doubtful_boxes(index: Index) -> Iterator[str]:
    """Signs that boxes of a split are lost, or not where their objects are."""
    skipped, boxes = index.skipped, len(index.boxes)
    left_out = {reason: places for reason in LEFT_OUT if (places := skipped.get(reason))}
    count = sum(map(len, left_out.values()))
    if count:
        kinds = ", ".join(f"{len(places):,} x {reason}" for reason, places in left_out.items())
        first = next(iter(left_out.values()))[0]
        many = count > MANY_LEFT_OUT * (boxes + count)
        yield (
            f"{count:,} of {boxes + count:,} boxes cannot be used ({kinds}), such as {first}: what they mean is "
            f"background{'. Do the annotations belong to these pictures, at this size?' if many else ''}"
        )
    if stray := skipped.get(STRAY_REGION):
        yield (
            f"{len(stray):,} line(s) with ignore regions name pictures that are not there, such as {stray[0]}. If "
            "these are other names of pictures of this split, what is in their regions is background"
        )
    far = skipped.get(FAR_OVER, [])
    if len(far) > MANY_FAR_OVER * boxes:
        yield (
            f"{len(far):,} of {boxes:,} boxes reach far over the border of their picture and are cut there, such "
            f"as {far[0]}. Are they corners where the format has width and height, or of another size of it?"
        )
    if pose := skipped.get(POSE_LIKE):
        yield (
            f"{len(pose):,} line(s) were read as polygons, such as {pose[0]}: polygon or pose? In every one the "
            "first four numbers would be a box inside the picture. Pose labels need `kpt_shape` in data.yaml; "
            "without it their boxes are wrong"
        )
    if track := skipped.get(TRACK_LIKE):
        yield (
            f"{len(track):,} line(s) were read as polygons of three points, such as {track[0]}: are they boxes "
            "with confidence and track id? Of such, leave out what follows `class cx cy w h`; else their boxes are "
            "wrong"
        )
