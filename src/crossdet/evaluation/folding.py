"""Folded classes in evaluation: the members of a class, such as its directions, count as one; and how often the
direction of a found object is right."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdet.evaluation.arrays import Bools, DetectionArrays, GroundTruth, Ints
from crossdet.evaluation.hits import best_overlaps, by_score, first_of_each, iou_with_offset
from crossdet.evaluation.operating import CONFIDENT, IOU_THRESHOLD
from crossdet.evaluation.splits import Split, ground_truth
from crossdet.export.detector import suppressed
from crossdet.labels.folds import NO_ANGLE, Folding


def fold_detections(
    detections: DetectionArrays, folding: Folding, nms_iou: float, suppresses: bool = True
) -> tuple[DetectionArrays, NDArray[np.int64]]:
    """Detections of a split in folded classes, with NMS among the members of each, and the `[N]` degrees of the
    members that are left (NO_ANGLE where they are no directions). suppresses: as of `models.contract.Network`."""
    labels = folding.of[detections.labels]
    chosen = rows_after_nms(detections, labels, nms_iou, None if suppresses else np.asarray(detections.labels))
    folded = DetectionArrays(
        detections.boxes[chosen], detections.scores[chosen], labels[chosen], detections.image_of_box[chosen]
    )
    return folded, folding.angles[detections.labels[chosen]]


def rows_after_nms(
    detections: DetectionArrays, labels: NDArray[np.int64], nms_iou: float, members: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """The rows, ascending, that NMS in each image and class leaves. labels: `[N]`, not the detections' own.
    members: `[N]`, of `suppressed`."""
    rows = [np.zeros(0, np.int64)]
    order = np.argsort(detections.image_of_box, kind="stable")
    starts = np.flatnonzero(np.diff(detections.image_of_box[order], prepend=-1))
    for mine in np.split(order, starts[1:]):
        boxes, scores = (values[mine].astype(np.float32) for values in (detections.boxes, detections.scores))
        of = None if members is None else members[mine]
        rows.append(mine[suppressed(boxes, scores, labels[mine], nms_iou, of)])
    return np.sort(np.concatenate(rows))


def angular_error(a: Ints, b: Ints) -> NDArray[np.int64]:
    """Degrees between directions, 0..180."""
    apart = np.abs(np.asarray(a, np.int64) - np.asarray(b, np.int64)) % 360
    return np.minimum(apart, 360 - apart)


def orientation_scores(split: Split, detections: DetectionArrays, degrees: Ints) -> dict[str, Any] | None:
    """How right the directions of found objects are; None where the split has no directions.

    An object (no crowd) is found by the best-scored detection of its class whose best IoU is with it, at least 0.5
    (as operating points count). `accuracy`: share of the found ones with the right direction; `mean_error`:
    degrees, of which chance makes 90 in equally spaced directions; `confident`: the same of those found with a
    score of at least 0.3. nan where nothing is found.

    degrees: `[N]` of the detections. Directions of the truth: `split.angles`, by class of the index.
    """
    if split.angles is None or not (split.angles != NO_ANGLE).any():
        return None
    truth, angles = ground_truth(split), _object_angles(split)
    objects = np.flatnonzero(~truth.crowd & (truth.labels >= 0) & (angles != NO_ANGLE))
    hits, found = finders(truth, objects, detections, np.asarray(degrees) != NO_ANGLE)
    error = angular_error(np.asarray(degrees)[hits], angles[found])
    sure = detections.scores[hits] >= CONFIDENT
    return {"objects": len(objects), **_summary(error), "confident": _summary(error[sure])}


def finders(
    truth: GroundTruth, objects: NDArray[np.int64], detections: DetectionArrays, usable: Bools
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the `usable` detections that find one of the `objects` (rows of the truth), at most one for each, and
    the rows of the truth that they find."""
    width = 1 + max([0, *detections.labels.tolist(), *truth.labels.tolist()])
    best, iou = best_overlaps(
        detections.boxes.astype(np.float64),
        detections.image_of_box * width + detections.labels,
        truth.boxes[objects],
        (truth.image_of_box * width + truth.labels)[objects],
        iou_with_offset(0.0),
    )
    right = (best >= 0) & (iou >= IOU_THRESHOLD) & usable
    hits = np.flatnonzero(first_of_each(best, right, by_score(detections.scores)))
    return hits, objects[best[hits]]


def _object_angles(split: Split) -> NDArray[np.int64]:
    """`[M]` degrees of the boxes in the order of `ground_truth`, which puts objects first."""
    assert split.angles is not None
    index, labels = split.index, np.asarray(split.index.labels, np.int64)
    usable = (index.boxes[:, 2:] > index.boxes[:, :2]).all(1)
    objects = labels[usable & (labels >= 0) & (split.labels() >= 0)]
    regions = int((usable & (labels < 0)).sum()) * len(split.classes)
    return np.concatenate([split.angles[objects], np.full(regions, NO_ANGLE, np.int64)])


def _summary(error: NDArray[np.int64]) -> dict[str, Any]:
    if not len(error):
        return {"found": 0, "accuracy": float("nan"), "mean_error": float("nan")}
    return {"found": len(error), "accuracy": float((error == 0).mean()), "mean_error": float(error.mean())}
