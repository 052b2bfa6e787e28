"""An index whose pictures are turned in the plane: every picture once per direction (paper, sec. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from crossdet.data.index import Index, Ragged
from crossdet.data.rotation_geometry import BOX_RULES, Rotation, canvas, direction_problem, rotate_boxes
from crossdet.labels.folds import direction_name
from crossdet.types import REGION_FLAGS, Flag

FULL_TURN = 360
"""Factor of image and category ids, to which the degrees are added."""


def rotated(
    index: Index,
    directions: Sequence[int],
    box: str = "enclosing",
    classes: Sequence[int] | None = None,
    difficult_as_region: bool = False,
) -> Index:
    """Every picture of `index` in each of D directions; row `i D + d` is picture i in direction d.

    Nothing is cut off: the canvas grows. `turned` says how far each row is turned; whoever decodes it with
    `decoding.read_row` gets the turned pixels.

    Args:
        index: upright pictures. One whose size is unknown cannot be turned and counts as unreadable.
        directions: degrees counter-clockwise, each in 0..359.
        box: `enclosing` or `centred`, see `rotate_boxes`. Regions (crowds, ignore regions) are always enclosing:
            too large a region only leaves out negatives.
        classes: the directions that have a class of their own, at least `directions`: class k then becomes as many
            classes `name@degrees`. None: classes stay as they are.
        difficult_as_region: DIFFICULT boxes will be regions, too (`datasets.NAME.difficult: ignore`).

    Image ids become `360 id + degrees` (not where 0 is the only direction), category ids likewise where directions
    are classes. An area that was the box's own follows the box, an annotated one stays. In a federated dataset a
    picture that shows a class in one direction verifies the absence of the others.

    Raises ValueError for directions, box rules or indexes that make no sense.
    """
    order = [int(d) for d in directions]
    named = None if classes is None else [int(d) for d in classes]
    if problem := direction_problem(order) or (named is not None and direction_problem(named)):
        raise ValueError(f"directions: {problem}")
    if box not in BOX_RULES:
        raise ValueError(f"box: expected one of {', '.join(BOX_RULES)}, got {box!r}")
    if index.rotation is not None:
        raise ValueError("this index is rotated already")
    if named is not None and not set(order) <= set(named):
        raise ValueError(f"classes: {named} lack some of the directions {order}")
    many = index.take(np.repeat(np.arange(len(index), dtype=np.int64), len(order)))
    degrees = np.tile(np.array(order, np.int16), len(index))
    image = many.image_of_box()
    regions = REGION_FLAGS | Flag.INVALID | (Flag.DIFFICULT if difficult_as_region else Flag(0))
    boxes = _boxes(many, degrees, box, int(regions))
    before, after = ((b[:, 2:] - b[:, :2]).prod(1) for b in (many.boxes, boxes))
    turned = replace(
        many,
        image_ids=many.image_ids if order == [0] else many.image_ids * FULL_TURN + degrees,
        sizes=canvas(many.sizes, degrees),
        boxes=boxes,
        area=np.where(np.isclose(many.area, before), after, many.area).astype(np.float32),
        rotation=Rotation(degrees, many.sizes),
    )
    if named is None:
        return turned
    places = np.array([named.index(d) for d in order], np.int64)
    place_of_image = np.tile(places, len(index))
    labels = np.asarray(many.labels, np.int64)
    labels = np.where(labels >= 0, labels * len(named) + place_of_image[image], labels)
    return replace(
        turned,
        classes=tuple(direction_name(name, d) for name in index.classes for d in named),
        category_ids=(index.category_ids[:, None] * FULL_TURN + np.array(named)).ravel(),
        labels=labels.astype(np.int32),
        negatives=_all_directions(many.negatives, len(many), named, _others(turned, labels, len(named))),
        not_exhaustive=_all_directions(many.not_exhaustive, len(many), named),
    )


def without_direction_classes(index: Index) -> Index:
    """What `rotated(..., classes=...)` gave with the names and ids that the classes had before, each as often as it
    has directions: for files that know no directions."""
    names = tuple(name.rpartition("@")[0] for name in index.classes)
    return replace(index, classes=names, category_ids=index.category_ids // FULL_TURN)


def pictures(index: Index) -> NDArray[np.int64]:
    """One row per picture: all rows, or those of the first direction of a turned index."""
    if index.rotation is None or not len(index):
        return np.arange(len(index), dtype=np.int64)
    return np.flatnonzero(index.rotation.degrees == index.rotation.degrees[0])


def rows_per_picture(index: Index) -> int:
    """D of a turned index as `rotated` makes it, 1 of an upright one."""
    return 1 if index.rotation is None or not len(index) else len(index) // len(pictures(index))


def _boxes(many: Index, degrees: NDArray[np.int16], rule: str, regions: int) -> NDArray[np.float32]:
    image = many.image_of_box()
    known: NDArray[np.bool_] = np.all(many.sizes[image] > 0, axis=1)
    region = (np.asarray(many.flags) & regions) != 0
    centred = ~region if rule == "centred" else np.zeros(len(image), bool)
    moved = rotate_boxes(many.boxes, many.sizes[image], degrees[image], centred)
    return np.where(known[:, None], moved, many.boxes).astype(np.float32)


def _others(turned: Index, labels: NDArray[np.int64], count: int) -> list[list[int]]:
    """Per image the classes in the directions that the image does not have, of the classes that it shows."""
    found = []
    for row in range(len(turned)):
        present = set(labels[turned.rows(row)].tolist()) - {-1}
        shown = {label // count for label in present}
        found.append(sorted({k * count + d for k in shown for d in range(count)} - present))
    return found


def _all_directions(
    lists: Ragged | None, images: int, named: Sequence[int], more: Sequence[Sequence[int]] | None = None
) -> Ragged | None:
    """Lists of classes -> lists of these in all directions, and `more`."""
    if lists is None:
        return None
    count = len(named)
    rows = [[k * count + d for k in lists[row].tolist() for d in range(count)] for row in range(images)]
    return Ragged.pack([[*row, *(more[i] if more else ())] for i, row in enumerate(rows)])
