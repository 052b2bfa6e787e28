"""Which unified classes the images of a federated dataset (LVIS, Open Images) verify, in training and in
evaluation, and LVIS' repeat factors.

No torch in here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossdet.data.index import Index
from crossdet.labels.space import DROPPED, LabelSpace
from crossdet.types import REGION_FLAGS, Flag

Ids = NDArray[np.int64]


def verified_classes(index: Index, class_ids: Ids, space: LabelSpace, row: int, images: range) -> tuple[Ids, Ids]:
    """Pairs (image, unified class), one array each, where the image's background is a negative for the class.

    An image has verified a class of its dataset that it has boxes of or lists under `negatives`, unless it lists
    it under `not_exhaustive`. It has verified a unified class if that is so for every class that the dataset
    merges into it: an image without cars may show trucks, so it is no negative for `vehicle`. Classes under the
    rule `labels.not_exhaustive` are left out; `absent` ones, which no image has to verify, do not appear. Of a
    class with members (per dataset, per direction) an image that verifies those of its dataset verifies the others.

    index: with or without `negatives`. class_ids: `[K]` unified id of each of its classes, or `DROPPED`.
    row: of the dataset in the label space. images: consecutive rows of the index.
    """
    width = max(len(index.classes), 1)

    def keys(values: NDArray[np.integer], offsets: Ids) -> Ids:
        ends = np.asarray(offsets[images.start : images.stop + 1])
        image = np.repeat(np.arange(images.start, images.stop), np.diff(ends))
        position = np.asarray(values[ends[0] : ends[-1]], np.int64)
        known: Ids = image[position >= 0] * width + position[position >= 0]
        return known

    verified = keys(index.labels, index.box_offsets)
    if index.negatives is not None:
        verified = np.concatenate([verified, keys(index.negatives.values, index.negatives.offsets)])
    if index.not_exhaustive is not None:
        in_part = keys(index.not_exhaustive.values, index.not_exhaustive.offsets)
        verified = np.setdiff1d(verified, in_part)
    verified = np.unique(verified)
    image, unified = verified // width, class_ids[verified % width]
    kept = unified != DROPPED
    classes = max(len(space.classes), 1)
    pairs, count = np.unique(image[kept] * classes + unified[kept], return_counts=True)
    image, unified = pairs // classes, pairs % classes
    usable = space.source_counts[row].copy()
    usable[[c for r, c in space.not_exhaustive_pairs if r == row]] = -1  # never reached
    complete = count == usable[unified]
    return _with_other_members(image[complete], unified[complete], space, row)


def _with_other_members(image: Ids, unified: Ids, space: LabelSpace, row: int) -> tuple[Ids, Ids]:
    """The pairs with the members of classes that the dataset does not label: it does not tell them from its own."""
    images, classes = [image], [unified]
    for fold in space.folds:
        own = [member for member in fold.members if space.annotated_array[row, member]]
        others = [m for m in fold.members if m not in own and space.avoid_array[row, m]]
        if fold.is_merge or not own or not others:
            continue
        at, count = np.unique(image[np.isin(unified, own)], return_counts=True)
        complete = at[count == len(own)]
        images.append(np.repeat(complete, len(others)))
        classes.append(np.tile(np.array(others, np.int64), len(complete)))
    return np.concatenate(images), np.concatenate(classes)


def verified_in_evaluation(
    index: Index, class_ids: Ids, space: LabelSpace, row: int, becomes: Ids
) -> tuple[Ids, Ids, Ids] | None:
    """Where a detection without an object is wrong: exactly where training takes the background as a negative.

    becomes: `[C]` what each class of the space is called in the evaluation, or `DROPPED`. Where several become one
    class (folds), an image verifies it if it verifies all of these that the dataset labels. The rest as in
    `verified_classes`.

    Returns the classes that all images verify, and, for the other classes, pairs of an image (row) and a class that
    it verifies; None where all images verify everything.
    """
    labelled = np.flatnonzero(space.annotated_array[row] & (becomes != DROPPED))
    classes = int(becomes.max(initial=-1)) + 1
    wanted = np.bincount(becomes[labelled], minlength=classes)
    always = labelled[~space.avoid_array[row, labelled]]
    everywhere = (wanted > 0) & (np.bincount(becomes[always], minlength=classes) == wanted)
    if everywhere[becomes[labelled]].all():
        return None
    none = np.zeros(0, np.int64)
    if row not in space.federated:
        return np.flatnonzero(everywhere), none, none
    image, unified = verified_classes(index, class_ids, space, row, range(len(index)))
    kept = (becomes[unified] != DROPPED) & space.annotated_array[row, unified]
    pairs, count = np.unique(image[kept] * classes + becomes[unified[kept]], return_counts=True)
    complete = count == wanted[pairs % classes]
    return np.flatnonzero(everywhere), pairs[complete] // classes, pairs[complete] % classes


def repeat_factors(
    index: Index, class_ids: Ids, threshold: float | None, difficult_as_region: bool = False
) -> NDArray[np.float64]:
    """`[I]` repeat factor of every image: max over its classes of max(1, sqrt(t / f)) (LVIS, sec. 4.2).

    f is the share of the images that show the class, t the threshold; None: all factors are 1. Classes are unified
    ones, and only their objects count: what is dropped teaches nothing, and a region is no object. What a teacher
    labelled does not count either: where it rarely finds what is not there would be drawn most.

    class_ids: `[K]` unified id of each of the index's classes, or `DROPPED`.
    """
    factors = np.ones(len(index))
    if threshold is None or not len(index.boxes):
        return factors
    labels = np.asarray(index.labels, np.int64)
    unified = np.where(labels >= 0, class_ids[np.maximum(labels, 0)], DROPPED)
    left_out = REGION_FLAGS | Flag.INVALID | Flag.TEACHER
    left_out |= Flag.DIFFICULT if difficult_as_region else Flag(0)
    counts = ((np.asarray(index.flags) & int(left_out)) == 0) & (unified != DROPPED)
    pairs = np.unique(np.stack([index.image_of_box()[counts], unified[counts]], 1), axis=0)
    share = np.bincount(pairs[:, 1], minlength=max([0, *(class_ids + 1)])) / len(index)
    class_factor = np.maximum(1.0, np.sqrt(threshold / np.maximum(share, 1e-12)))
    np.maximum.at(factors, pairs[:, 0], class_factor[pairs[:, 1]])
    return factors
