"""A trained detector as a teacher: what it finds in images becomes labels of classes that their dataset
lacks.

Confident detections become objects, its uncertain ones AVOID regions of their class. What a person labelled
always wins: a detection on a labelled object of another class is left out, since the object says that it is
not that class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdet.data.index import Index
from crossdet.evaluation.arrays import Bools, DetectionArrays, Floats
from crossdet.evaluation.matching import iou_with_offset, pairs
from crossdet.labels import DROPPED, LabelSpace
from crossdet.types import REGION_FLAGS, Flag

SAME_BOX = 0.5
"""IoU from which on a detection and a labelled object are the same thing."""

Ids = NDArray[np.int64]


def teacher_name(unified: str) -> str:
    """Under which own name of the dataset the teacher's labels of a class stand."""
    return f"{unified} (teacher)"


def taught_classes(space: LabelSpace, dataset: str, known: int) -> list[int]:
    """Those of the first `known` classes that the teacher labels in a dataset.

    It labels what the dataset does not label at all and is not known not to contain.
    """
    row = space.dataset_index(dataset)
    wanted = space.avoid_array[row] & ~space.annotated_array[row]
    return [c for c in range(known) if wanted[c]]


def taught_space(space: LabelSpace, taught: Mapping[str, Sequence[int]], trust: bool) -> LabelSpace:
    """The label space of a training on the teacher's labels: they are classes of the dataset like its own.

    trust: the background that the teacher leaves is a negative for them; else it stays avoided.
    """
    sources = [dict(row) for row in space.sources]
    in_part = set(space.not_exhaustive_pairs)
    for dataset, classes in taught.items():
        row = space.dataset_index(dataset)
        sources[row] |= {teacher_name(space.classes[c]): c for c in classes}
        if not trust:
            in_part |= {(row, c) for c in classes}
    return replace(space, sources=tuple(sources), not_exhaustive_pairs=frozenset(in_part))


def with_pseudo_labels(
    index: Index,
    class_ids: Ids,
    found: DetectionArrays,
    taught: Sequence[int],
    names: Sequence[str],
    confident: Floats,
    uncertain: Floats,
    overlap: Bools,
) -> Index:
    """The index with the teacher's labels; its images, boxes and classes stay as they are, new ones come
    after.

    class_ids: `[K]` unified ids of the index's classes, or `DROPPED`. found: the detections, in original
    pixels. taught: the classes to label, names: unified names by id. confident, uncertain: `[C]` a score of
    at least `confident` is an object, one of at least `uncertain` an AVOID
        region. overlap: `[C, C]`, pairs that one box can show at once.
    """
    position = np.full(len(names), -1, np.int64)
    position[list(taught)] = len(index.classes) + np.arange(len(taught))
    labels = np.asarray(found.labels, np.int64)
    wanted = (position[labels] >= 0) & (found.scores >= uncertain[labels])
    wanted &= ~_on_labelled_objects(index, class_ids, found, overlap)
    kept = np.flatnonzero(wanted)
    labels, scores = labels[kept], found.scores[kept]
    flags = np.where(scores >= confident[labels], 0, int(Flag.AVOID)).astype(np.uint8)
    boxes = np.asarray(found.boxes, np.float32)[kept]
    image = np.concatenate([index.image_of_box(), np.asarray(found.image_of_box, np.int64)[kept]])
    order = np.argsort(image, kind="stable")
    offsets = np.zeros(len(index) + 1, np.int64)
    np.cumsum(np.bincount(image, minlength=len(index)), out=offsets[1:])

    def joined(own: NDArray[Any], more: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([np.asarray(own), more.astype(own.dtype)])[order]

    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return replace(
        index,
        classes=(*index.classes, *(teacher_name(names[c]) for c in taught)),
        category_ids=np.concatenate(
            [index.category_ids, index.category_ids.max(initial=0) + 1 + np.arange(len(taught))]
        ),
        box_offsets=offsets,
        boxes=joined(index.boxes, boxes),
        labels=joined(index.labels, position[labels]),
        flags=joined(index.flags, flags),
        area=joined(index.area, area),
        columns={
            name: joined(column, np.zeros(len(kept), column.dtype)) for name, column in index.columns.items()
        },
    )


def _on_labelled_objects(index: Index, class_ids: Ids, found: DetectionArrays, overlap: Bools) -> Bools:
    """`[N]` whether a detection is the same box as a labelled object of a class that it cannot show as well."""
    own = np.asarray(index.labels, np.int64)
    unified = np.where(own >= 0, class_ids[np.maximum(own, 0)], DROPPED) if len(class_ids) else own
    objects = (unified != DROPPED) & ((np.asarray(index.flags) & int(REGION_FLAGS | Flag.INVALID)) == 0)
    truth, of = np.asarray(index.boxes, np.float64)[objects], unified[objects]
    boxes, labels = np.asarray(found.boxes, np.float64), np.asarray(found.labels, np.int64)
    on = np.zeros(len(boxes), bool)
    iou = iou_with_offset(0.0)
    for detection, object_ in pairs(found.image_of_box, index.image_of_box()[objects]):
        same = iou(boxes[detection], truth[object_]) >= SAME_BOX
        on[detection[same & ~overlap[labels[detection], of[object_]]]] = True
    return on
