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

from crossdet.errors import UserError
from crossdet.evaluation.arrays import (
    Bools,
    DetectionArrays,
    Floats,
    Ints,
    PedestrianTruth,
    check_rows,
    to_corners,
    to_xywh,
)
from crossdet.evaluation.files.wider_pedestrian import write_submission
from crossdet.evaluation.hits import best_overlaps, by_score, first_of_each, iou_with_offset, pairs
from crossdet.evaluation.precision_recall import Curve, area_ap, exact_curve
from crossdet.evaluation.protocols.coco import coco_scores
from crossdet.evaluation.protocols.entry import (
    Protocol,
    ProtocolLimits,
    Record,
    Scores,
    best_per_image,
    counts_everything,
    of_class,
)
from crossdet.evaluation.splits import Split, ground_truth
from crossdet.types import REGION_FLAGS, Flag

IOU_THRESHOLDS = np.arange(0.5, 1.0, 0.05)
EDITIONS = (2018, 2019)


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
    boxes, found, regions = (to_corners(b) for b in (truth.boxes, detections.boxes, truth.regions))
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


def _score(split: Split, detections: DetectionArrays, _most: int) -> Scores:
    """The challenge joins all classes, also those that the label rules drop; COCO-style is per class."""
    index, labels = split.index, np.asarray(split.index.labels)
    regions = split.flagged(int(REGION_FLAGS | Flag.INVALID))
    objects, image, boxes = (labels >= 0) & ~regions, index.image_of_box(), to_xywh(np.asarray(index.boxes))
    challenge = challenge_scores(
        PedestrianTruth(len(index), boxes[objects], image[objects], boxes[regions], image[regions]),
        detections.with_boxes(to_xywh(detections.boxes)),
        split.edition or (2018 if len(index.classes) > 1 else 2019),
    )
    coco = coco_scores(ground_truth(split), best_per_image(detections, 100), split.classes)
    record = {
        "challenge": {"AP": challenge.AP, "per_iou": challenge.per_iou, "edition": challenge.edition},
        "coco_style": {key: coco.scores[key] for key in ("AP", "AP50", "AP75")},
        "per_class": {split.names[c]: dict(values) for c, values in coco.per_class.items()},
    }
    curves = {"challenge IoU .50": challenge.curves[0], "challenge IoU .75": challenge.curves[5]}
    curves |= {f"COCO-style {key}": coco.curves[key] for key in ("AP50", "AP75")}
    return Scores(record, curves, tuple(counts_everything("the challenge", split)))


def _columns(record: Record) -> list[tuple[str, float]]:
    """The two metrics, named in full."""
    challenge = record["challenge"]
    style = [(f"COCO-style {key}", value) for key, value in record["coco_style"].items()]
    return [(f"challenge {challenge['edition']} AP", challenge["AP"]), *style]


PROTOCOL = Protocol(
    name="wider_pedestrian",
    limits=ProtocolLimits(300, 0.01),
    score=_score,
    headline=lambda record: record["coco_style"]["AP"],
    columns=_columns,
    class_number=of_class("AP"),
    write=write_submission,
)
