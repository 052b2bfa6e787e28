"""Which detections are right at home, the score from which on a class is best reported, and how confidently its
objects are found.

AP needs no threshold, a detector in use does. Per class it is the score with the best F1 on the validation data
that label the class; it is stored with the weights. A teacher's threshold may be that of another F-beta. How good a
class is at its threshold is told from data that a threshold was not chosen on (`cross_fitted`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from crossdet.evaluation.arrays import Bools, DetectionArrays, Floats, GroundTruth
from crossdet.evaluation.hits import best_overlaps, by_score, first_of_each, iou_with_offset, pairs

IOU_THRESHOLD = 0.5
CONFIDENT = 0.3
"""The score threshold of `confident_share`; also `crossdet predict`'s default."""


@dataclass(frozen=True)
class Judged:
    """The detections of one split, `[N]` in the order of their `DetectionArrays`.

    hits: true positives at IoU 0.5. counted: false where a detection is neither right nor wrong (it lies on a
    crowd or ignored box), and in images that do not verify its class. objects: class id -> boxes to find in the
    images that verify it. floor: what scores less was not looked at. odd: `[N]`, the detection is in a picture with
    an odd number (from 0). odd_objects: class id -> boxes to find in these. So the halves of `cross_fitted` are
    told apart.
    """

    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    hits: Bools
    counted: Bools
    objects: dict[int, int]
    odd: Bools
    odd_objects: dict[int, int]
    floor: float = 0.0


@dataclass(frozen=True)
class OperatingPoint:
    """threshold: half-way between the lowest score reported and the next one (or the floor). objects: boxes it was
    chosen on.

    precision, recall, f1: of thresholds on pictures that these were not chosen on, if `cross_fitted` (see the
    function); else at `threshold` on the data that it was chosen on, which is optimistic.
    """

    threshold: float
    f1: float
    precision: float
    recall: float
    objects: int
    cross_fitted: bool = False


def judge(
    truth: GroundTruth, detections: DetectionArrays, classes: Sequence[int], floor: float = 0.0, directions: int = 1
) -> Judged:
    """Compares detections with the boxes of their class: by falling score each takes the box with the largest IoU,
    a second one on the same box is wrong.

    Only images that verify a class in full count for it, also with what is right there: where nothing can be wrong
    precision would be too good, and a threshold chosen by it too low.

    directions: so many images in a row are one picture (`rotation.rows_per_picture`); it is odd or even as a whole.
    """
    span = 1 + max([-1, *detections.labels.tolist(), *truth.labels.tolist()])
    groups = detections.image_of_box * span + detections.labels
    truth_groups = truth.image_of_box * span + truth.labels
    boxes = detections.boxes.astype(np.float64)
    objects = ~truth.crowd & (truth.labels >= 0)
    best, iou = best_overlaps(boxes, groups, truth.boxes[objects], truth_groups[objects], iou_with_offset(0.0))
    passed = (best >= 0) & (iou >= IOU_THRESHOLD)
    hits = first_of_each(best, passed, by_score(detections.scores))
    counted = objects & truth.verifies(truth.image_of_box, truth.labels)
    odd, odd_box = (rows // directions % 2 == 1 for rows in (detections.image_of_box, truth.image_of_box))

    def per_class(which: Bools) -> dict[int, int]:
        counts = np.bincount(truth.labels[which], minlength=1 + max([span - 1, *classes]))
        return {c: int(counts[c]) for c in classes}

    return Judged(
        labels=detections.labels.astype(np.int64),
        scores=detections.scores.astype(np.float64),
        hits=hits,
        counted=(hits | ~in_regions(truth, detections))
        & truth.verifies(detections.image_of_box, detections.labels),
        objects=per_class(counted),
        odd=odd,
        odd_objects=per_class(counted & odd_box),
        floor=floor,
    )


def in_regions(truth: GroundTruth, detections: DetectionArrays) -> Bools:
    """`[N]` whether half of the detection or more lies in a crowd box of its class."""
    span = 1 + max([-1, *detections.labels.tolist(), *truth.labels.tolist()])
    regions = truth.crowd & (truth.labels >= 0)
    _, inside = best_overlaps(
        detections.boxes.astype(np.float64),
        detections.image_of_box * span + detections.labels,
        truth.boxes[regions],
        truth.image_of_box[regions] * span + truth.labels[regions],
        covered_share,
    )
    return inside >= IOU_THRESHOLD


def covered_share(boxes: Floats, truth: Floats) -> Floats:
    """`[P]` share of each box's area inside its partner."""
    sides = np.minimum(boxes[:, 2:], truth[:, 2:]) - np.maximum(boxes[:, :2], truth[:, :2])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return np.divide(np.clip(sides, 0, None).prod(1), area, out=np.zeros(len(boxes)), where=area > 0)


def best_f1(judged: Sequence[Judged], class_id: int) -> OperatingPoint | None:
    """The operating point of a class over all splits that label it; None without a single right detection.

    Its precision, recall and F1 are on the same data, and optimistic; see `cross_fitted`.
    """
    return best_f_beta(judged, class_id, 1.0)


def f_beta(point: OperatingPoint, beta: float) -> float:
    """(1 + beta²) P R / (beta² P + R) (van Rijsbergen): recall counts beta times as much as precision."""
    weighed = beta**2 * point.precision + point.recall
    return (1 + beta**2) * point.precision * point.recall / weighed if weighed else 0.0


def best_f_beta(judged: Sequence[Judged], class_id: int, beta: float) -> OperatingPoint | None:
    """As `best_f1`, with the threshold of the best F-beta.

    It lies above the floor of every split: below one nobody knows what is wrong there."""
    objects = sum(j.objects.get(class_id, 0) for j in judged)
    own = [j for j in judged if class_id in j.objects]
    if not own or not objects:
        return None
    floor = max(j.floor for j in own)
    mine = [(j, (j.labels == class_id) & j.counted & (j.scores > floor)) for j in own]
    scores = np.concatenate([j.scores[rows] for j, rows in mine])
    hits = np.concatenate([j.hits[rows] for j, rows in mine])
    order = by_score(scores)
    scores, right = scores[order], np.cumsum(hits[order])
    if not len(right) or not right[-1]:
        return None
    reported = np.arange(1, len(scores) + 1)
    value = (1 + beta**2) * right / (reported + beta**2 * objects)
    value[:-1][scores[:-1] == scores[1:]] = -1.0  # a threshold cannot separate equal scores
    best = int(value.argmax())
    below = scores[best + 1] if best + 1 < len(scores) else floor
    return OperatingPoint(
        threshold=float((scores[best] + below) / 2),
        f1=float(2 * right[best] / (reported[best] + objects)),
        precision=float(right[best] / reported[best]),
        recall=float(right[best] / objects),
        objects=objects,
    )


def cross_fitted(
    judged: Sequence[Judged], class_id: int, point: OperatingPoint, beta: float = 1.0
) -> OperatingPoint:
    """`point`, a class's point of best F-beta over `judged`, with precision, recall and F1 on pictures that no
    threshold was chosen on; its threshold stays.

    Two-fold cross-fitting: the threshold of the pictures with even numbers is judged on those with odd ones and the
    other way round, and both counts are put together. Nothing reported at all is precision 0. As it is where one
    half alone has no right detection, since then it has no threshold to be judged.
    """
    halves = [_half(judged, odd) for odd in (False, True)]
    points = [best_f_beta(half, class_id, beta) for half in halves]
    right = reported = 0
    for chosen, other in zip(points, reversed(halves), strict=True):
        if chosen is None:
            return point
        for part in other:
            above = (part.labels == class_id) & part.counted & (part.scores > chosen.threshold)
            if class_id in part.objects:
                reported += int(above.sum())
                right += int((above & part.hits).sum())
    return replace(
        point,
        precision=right / max(1, reported),
        recall=right / point.objects,
        f1=2 * right / (reported + point.objects),
        cross_fitted=True,
    )


def operating_point(judged: Sequence[Judged], class_id: int) -> OperatingPoint | None:
    """`best_f1`, with numbers that are not optimistic (`cross_fitted`)."""
    point = best_f1(judged, class_id)
    return None if point is None else cross_fitted(judged, class_id, point)


def _half(judged: Sequence[Judged], odd: bool) -> list[Judged]:
    """The pictures with odd numbers, or the others."""
    halves = []
    for part in judged:
        rows = part.odd == odd
        arrays = {key: getattr(part, key)[rows] for key in ("labels", "scores", "hits", "counted", "odd")}
        even = {c: count - part.odd_objects[c] for c, count in part.objects.items()}
        halves.append(replace(part, objects=part.odd_objects if odd else even, **arrays))
    return halves


# ------------------------------------------------------------------------------------------ confidence


def best_scores(truth: GroundTruth, found: DetectionArrays, iou: float = 0.5) -> NDArray[np.float64]:
    """`[M]` for every box of `truth` the best score of a detection of its class with at least `iou`; 0 if none."""
    best = np.zeros(len(truth.boxes))
    overlap = iou_with_offset(0.0)
    for box, row in pairs(truth.image_of_box, found.image_of_box):
        same = truth.labels[box] == found.labels[row]
        box, row = box[same], row[same]
        good = overlap(found.boxes[row], truth.boxes[box]) >= iou
        np.maximum.at(best, box[good], found.scores[row[good]])
    return best


def confident_share(truth: GroundTruth, found: DetectionArrays, classes: Sequence[int]) -> dict[int, float]:
    """Per class the share of its boxes (crowds aside) found with a score of at least `CONFIDENT`; nan without.

    AP ranks the detections of one class, so evenly lowered scores cost it nothing; this shows what AP forgives.
    """
    confident = best_scores(truth, found) >= CONFIDENT
    shares = {}
    for class_id in classes:
        mine = (truth.labels == class_id) & ~truth.crowd
        shares[class_id] = float(confident[mine].mean()) if mine.any() else float("nan")
    return shares
