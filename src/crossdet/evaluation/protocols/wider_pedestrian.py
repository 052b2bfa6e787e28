"""The metric of the WIDER Pedestrian challenge on arrays, editions 2018 and 2019.

Source: the challenge's evaluation scripts (CodaLab 19118 and 20132). Classes are joined: a cyclist is a pedestrian.
First every box, annotated or detected, that is covered by ignore regions for more than half of its area is taken
away. Then AP by area for ten IoU thresholds, 0.50 to 0.95: detections by falling score (equal ones in the given
order) take the box with the largest IoU in their image, which must exceed the threshold; a second detection of a
box is wrong. The result is the mean. There is no limit on detections per image.

The COCO-style numbers of the paper are another metric: `coco_scores` with ignore regions as crowd boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossdet.errors import UserError
from crossdet.evaluation.arrays import Bools, DetectionArrays, Floats, Ints, check_columns, check_rows
from crossdet.evaluation.hits import best_overlaps, by_score, first_of_each, iou_with_offset, pairs
from crossdet.evaluation.precision_recall import Curve, area_ap, exact_curve

IOU_THRESHOLDS = np.arange(0.5, 1.0, 0.05)
EDITIONS = (2018, 2019)


@dataclass(frozen=True)
class PedestrianTruth:
    """The boxes and ignore regions of `images` images, `[M, 4]` and `[R, 4]` x, y, w, h in pixels.

    image_of_box: `[M]`, image_of_region: `[R]`, rows in 0..images - 1.
    """

    images: int
    boxes: Floats
    image_of_box: Ints
    regions: Floats
    image_of_region: Ints

    def __post_init__(self) -> None:
        check_columns("PedestrianTruth", self.boxes, image_of_box=self.image_of_box)
        check_columns("PedestrianTruth (regions)", self.regions, image_of_region=self.image_of_region)
        check_rows("PedestrianTruth", self.image_of_box, self.images)
        check_rows("PedestrianTruth (regions)", self.image_of_region, self.images)


@dataclass(frozen=True)
class ChallengeScores:
    """AP: mean of `per_iou`, the AP at IoU 0.50, 0.55, ... 0.95, all in 0..1, nan without a box to find.

    boxes, detections: how many were left by the ignore regions. curves: one per entry of `per_iou`.
    """

    AP: float
    per_iou: list[float]
    edition: int
    boxes: int
    detections: int
    curves: list[Curve]


def challenge_scores(truth: PedestrianTruth, detections: DetectionArrays, edition: int) -> ChallengeScores:
    """The challenge's AP. detections: boxes `[N, 4]` x, y, w, h; their labels are not looked at.

    Raises `UserError` for another edition and for detections in images that the truth does not have.
    """
    if edition not in EDITIONS:
        raise UserError(f"WIDER Pedestrian edition: expected 2018 or 2019, got {edition!r}")
    check_rows("detections", detections.image_of_box, truth.images)
    boxes, found, regions = (_corners(b) for b in (truth.boxes, detections.boxes, truth.regions))
    kept = ~_mostly_ignored(boxes, truth.image_of_box, regions, truth.image_of_region, edition)
    counted = ~_mostly_ignored(found, detections.image_of_box, regions, truth.image_of_region, edition)
    scores = detections.scores[counted]
    best, iou = best_overlaps(
        found[counted],
        detections.image_of_box[counted],
        boxes[kept],
        truth.image_of_box[kept],
        iou_with_offset(1.0),
    )
    order, positives = by_score(scores), int(kept.sum())
    curves = []
    for threshold in IOU_THRESHOLDS:
        hits = first_of_each(best, iou > threshold, order)[order]
        recall, precision = exact_curve(hits, np.ones(len(hits), bool), positives)
        ap = area_ap(recall, precision) if positives else float("nan")
        curves.append(Curve(recall, precision, ap))
    per_iou = [curve.ap for curve in curves]
    return ChallengeScores(float(np.mean(per_iou)), per_iou, edition, positives, int(counted.sum()), curves)


def _corners(boxes: Floats) -> NDArray[np.float64]:
    corners = boxes.astype(np.float64)
    corners[:, 2:] += corners[:, :2]
    return corners


def _mostly_ignored(boxes: Floats, images: Ints, regions: Floats, images_of_regions: Ints, edition: int) -> Bools:
    """`[N]` boxes covered for more than half of their area by the regions of their image.

    The overlaps of several regions add up, starting from -0.01 px^2. 2019 counts overlaps, not the box's own
    area, with inclusive pixels (+ 1).
    """
    boxes, regions = _ordered(boxes), _ordered(regions)
    offset = 1.0 if edition == 2019 else 0.0
    covered = np.full(len(boxes), -0.01)
    for box, region in pairs(images, images_of_regions):
        low = np.maximum(boxes[box, :2], regions[region, :2])
        sides = np.minimum(boxes[box, 2:], regions[region, 2:]) - low
        inside = np.where((sides >= 0).all(1), (sides + offset).prod(1), 0.0)
        covered += np.bincount(box, inside, len(boxes))
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return (covered > 0) & (covered > 0.5 * area)


def _ordered(corners: Floats) -> Floats:
    """Corners of boxes with negative sides put in order."""
    return np.concatenate(
        [np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1
    )
