"""What no protocol sees: detections of a class in datasets that do not label it.

Each dataset judges a detector on the classes that it labels, so a face fired on every dog costs nothing where dogs
are in another dataset. Here exactly these detections are counted: on objects that the dataset labels as something
else they are certainly wrong; on background they are wrong or unlabelled objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdet.data.index import Index
from crossdet.data.rotation import rows_per_picture
from crossdet.evaluation.arrays import Bools, DetectionArrays, Floats, GroundTruth
from crossdet.evaluation.hits import best_overlaps, by_score, iou_with_offset
from crossdet.evaluation.operating import (
    IOU_THRESHOLD,
    Judged,
    OperatingPoint,
    covered_share,
    judge,
    operating_point,
)
from crossdet.evaluation.protocols.coco import coco_scores
from crossdet.evaluation.protocols.entry import best_per_image
from crossdet.labels.reporting import DEFAULT_THRESHOLD

BINS = 20
Calibration = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Lower ends of score intervals, rising, and the precision in each."""


@dataclass(frozen=True)
class AuditedSplit:
    """A split of one dataset and what a detector found in it, `C` classes of the detector.

    truth: its boxes in unified ids. annotated: `[C]` it labels the class. trusted: `[C]` its background is a
    negative for the class; a class trusted but not annotated is declared absent. detections: of all classes.
    """

    name: str
    index: Index
    truth: GroundTruth
    annotated: Bools
    trusted: Bools
    detections: DetectionArrays


@dataclass(frozen=True)
class Home:
    """A class on the data that label it, in the images that verify it in full. false_per_image: false positives per
    such image above the threshold; nan without one.

    histogram: `[20]` counts of the scores of true positives, bins of 0.05. calibration: see `calibrate`.
    """

    threshold: float
    operating: OperatingPoint | None
    false_per_image: float
    histogram: NDArray[np.int64]
    calibration: Calibration


@dataclass(frozen=True)
class Foreign:
    """A class in a dataset that does not label it; rows are those of the split's detections, by falling score.

    rows: all above the class's threshold = on_object + ignored + background. on_class: for each of on_object the
    class that is labelled there, box: and its row in the split's truth. probability: for each of background the
    precision that the class has at home at this score. absent: the class is declared not to occur here, so
    every detection is wrong. histogram: `[20]` counts of all scores, bins of 0.05.
    """

    class_id: int
    dataset: str
    images: int
    rows: NDArray[np.int64]
    on_object: NDArray[np.int64]
    on_class: NDArray[np.int64]
    box: NDArray[np.int64]
    ignored: NDArray[np.int64]
    background: NDArray[np.int64]
    probability: NDArray[np.float64]
    absent: bool
    histogram: NDArray[np.int64]

    @property
    def per_image(self) -> float:
        return len(self.rows) / self.images if self.images else float("nan")

    @property
    def expected_unlabelled(self) -> float:
        """How many of the background detections are probably objects: the sum of their probabilities.

        It assumes that the precision at home holds on this dataset. Elsewhere it is lower as a rule, so of the
        detections counted here fewer are objects; objects that were not found at all are not in the number. The
        crops decide. nan where nothing is known about the class at home.
        """
        return 0.0 if self.absent else float(self.probability.sum())


@dataclass(frozen=True)
class Audit:
    """thresholds: `[C]` scores above which detections count. home: by class id, of the classes that a split labels.
    foreign: of every (class, split) that does not. judged: per split its detections of what it labels."""

    classes: tuple[str, ...]
    thresholds: NDArray[np.float64]
    home: dict[int, Home]
    foreign: list[Foreign]
    judged: list[Judged]

    def ranked(self) -> list[Foreign]:
        """The pairs that may hold unlabelled objects (at least one), most first."""
        likely = [f for f in self.foreign if f.expected_unlabelled >= 0.5]
        return sorted(likely, key=lambda f: -f.expected_unlabelled)


def audit(
    splits: Sequence[AuditedSplit],
    classes: tuple[str, ...],
    overlap: Bools,
    thresholds: Sequence[float] | None = None,
) -> Audit:
    """Looks at all detections of classes that a split does not label.

    A class counts from its operating point on (best F1 over the splits that label it). overlap: `[C, C]`, pairs of
    classes that may share a box: there a detection is not "on another object". thresholds: of the detector, for
    classes that are not found at home; None = 0.3.
    """
    at_home = [np.flatnonzero(split.annotated) for split in splits]
    judged = [
        judge(split.truth, split.detections.of_classes(ids), ids.tolist(), directions=rows_per_picture(split.index))
        for split, ids in zip(splits, at_home, strict=True)
    ]
    used = np.array([DEFAULT_THRESHOLD] * len(classes) if thresholds is None else thresholds, np.float64)
    home = {}
    for c in np.unique(np.concatenate([np.zeros(0, int), *at_home])).tolist():
        home[c] = _home(judged, [split.truth.images_verifying(c) for split in splits], c, float(used[c]))
        used[c] = home[c].threshold
    foreign = [f for split in splits for f in _foreign(split, used, home, overlap)]
    return Audit(classes, used, home, foreign, judged)


def _home(judged: Sequence[Judged], images: Sequence[int], class_id: int, otherwise: float) -> Home:
    """otherwise: the threshold where no detection is right."""
    point = operating_point(judged, class_id)
    threshold = point.threshold if point else otherwise
    mine = [
        (j, count, (j.labels == class_id) & j.counted)
        for j, count in zip(judged, images, strict=True)
        if class_id in j.objects
    ]
    scores = np.concatenate([j.scores[rows] for j, _, rows in mine])
    hits = np.concatenate([j.hits[rows] for j, _, rows in mine])
    wrong, searched = int((~hits & (scores > threshold)).sum()), sum(count for _, count, _ in mine)
    return Home(
        threshold=threshold,
        operating=point,
        false_per_image=wrong / searched if searched else float("nan"),
        histogram=_histogram(scores[hits]),
        calibration=calibrate(scores, hits),
    )


def calibrate(scores: Floats, hits: Bools) -> Calibration:
    """Precision as a function of the score that never falls (isotonic regression by pooling adjacent violators)."""
    levels, level_of = np.unique(scores, return_inverse=True)
    hits_at = np.bincount(level_of, hits, len(levels))
    counts_at = np.bincount(level_of, minlength=len(levels))
    starts, right, counts = list[float](), list[float](), list[int]()
    for level, hit, count in zip(levels.tolist(), hits_at.tolist(), counts_at.tolist(), strict=True):
        starts.append(level)
        right.append(hit)
        counts.append(count)
        while len(starts) > 1 and right[-2] * counts[-1] >= right[-1] * counts[-2]:
            starts.pop()
            later, more = right.pop(), counts.pop()
            right[-1] += later
            counts[-1] += more
    return np.array(starts), np.array(right) / np.maximum(np.array(counts, np.float64), 1)


def precision_at(calibration: Calibration, scores: Floats) -> NDArray[np.float64]:
    """`[N]` calibrated precision; below the lowest known score as there, nan where nothing is known."""
    starts, precision = calibration
    if not len(starts):
        return np.full(len(scores), np.nan)
    return precision[np.maximum(np.searchsorted(starts, scores, "right") - 1, 0)]


def _histogram(scores: Floats) -> NDArray[np.int64]:
    return np.histogram(scores, bins=BINS, range=(0.0, 1.0))[0].astype(np.int64)


# ------------------------------------------------------------------------------------------ foreign


def _foreign(
    split: AuditedSplit, thresholds: NDArray[np.float64], home: dict[int, Home], overlap: Bools
) -> list[Foreign]:
    detections = split.detections
    labels = detections.labels
    box, on_object, ignored = where_detections_lie(split.truth, detections, overlap)
    _, beside = _on_objects(split.truth, detections, overlap)  # of a class that one box can show with it
    above = detections.scores > thresholds[labels]
    found = []
    for class_id in np.flatnonzero(~split.annotated).tolist():
        mine = np.flatnonzero(labels == class_id)
        mine = mine[by_score(detections.scores[mine])]
        rows = mine[above[mine]]
        known = home[class_id].calibration if class_id in home else (np.zeros(0), np.zeros(0))
        on = rows[on_object[rows]]
        absent = bool(split.trusted[class_id])  # then the object of a class that it may share a box with is none
        neither = ignored[rows] | (absent & beside[rows])
        background = rows[~on_object[rows] & ~neither]
        found.append(
            Foreign(
                class_id=class_id,
                dataset=split.name,
                images=len(split.index),
                rows=rows,
                on_object=on,
                on_class=split.truth.labels[box[on]].astype(np.int64),
                box=box[on],
                ignored=rows[~on_object[rows] & neither],
                background=background,
                probability=precision_at(known, detections.scores[background]),
                absent=absent,
                histogram=_histogram(detections.scores[mine]),
            )
        )
    return found


def _on_objects(truth: GroundTruth, detections: DetectionArrays, pairs: Bools) -> tuple[NDArray[np.int64], Bools]:
    """Row of the labelled object with the largest IoU (-1 if it is below 0.5), and whether there is one. pairs:
    `[C, C]` (class of the detection, class of the object) that are looked at."""

    def chosen(boxes: Floats, objects: Floats) -> Floats:
        labels, other = boxes[:, 4].astype(np.int64), objects[:, 4].astype(np.int64)
        return np.where(pairs[labels, other], iou(boxes, objects), 0.0)

    iou = iou_with_offset(0.0)
    boxes = np.concatenate([detections.boxes, detections.labels[:, None]], 1).astype(np.float64)
    labelled = np.concatenate([truth.boxes, truth.labels[:, None]], 1).astype(np.float64)
    objects = np.flatnonzero(~truth.crowd & (truth.labels >= 0))
    best, value = best_overlaps(
        boxes, detections.image_of_box, labelled[objects], truth.image_of_box[objects], chosen
    )
    on_object = value >= IOU_THRESHOLD
    row = np.full(len(boxes), -1, np.int64)
    row[on_object] = objects[best[on_object]]
    return row, on_object


def where_detections_lie(
    truth: GroundTruth, detections: DetectionArrays, overlap: Bools
) -> tuple[NDArray[np.int64], Bools, Bools]:
    """For every detection the labelled object of another class with the largest IoU.

    Returns:
        row of that object in the truth (-1 if none), whether the IoU is at least 0.5, and whether half of the
        detection or more lies in one crowd or ignored box.
    """
    row, on_object = _on_objects(truth, detections, ~(overlap | np.eye(len(overlap), dtype=bool)))
    regions = np.flatnonzero(truth.crowd)
    _, share = best_overlaps(
        detections.boxes.astype(np.float64),
        detections.image_of_box,
        truth.boxes[regions].astype(np.float64),
        truth.image_of_box[regions],
        covered_share,
    )
    return row, on_object, share >= IOU_THRESHOLD


# ------------------------------------------------------------------------------------------ union test


def union_scores(
    truth: GroundTruth, detections: DetectionArrays, labelled: Sequence[int], found: Audit, overlap: Bools
) -> dict[str, Any]:
    """Scores on fully labelled images, all classes at once, so that foreign false positives cost what they cost.

    labelled: unified ids of the classes that the images label, also where none is to be seen. AP and AP50 are means
    over those that have a box, with the best 100 detections of all classes per image. Per class also its false
    positives above the threshold, per image: on objects of other classes, and elsewhere (background, a box too
    far off, or an object found twice).
    """
    best = best_per_image(detections, 100)
    scores = coco_scores(truth, best, labelled)
    judged = judge(truth, detections, labelled)
    _, on_object, _ = where_detections_lie(truth, detections, overlap)
    images = max(1, len(truth.image_ids))
    per_class = {}
    for class_id in labelled:
        above = judged.scores > found.thresholds[class_id]
        wrong = (judged.labels == class_id) & ~judged.hits & judged.counted & above
        per_class[found.classes[class_id]] = {
            "AP": scores.per_class[class_id]["AP"],
            "AP50": scores.per_class[class_id]["AP50"],
            "boxes": scores.per_class[class_id]["boxes"],
            "false_on_other_objects_per_image": float((wrong & on_object).sum() / images),
            "false_elsewhere_per_image": float((wrong & ~on_object).sum() / images),
        }
    return {
        "images": len(truth.image_ids),
        "AP": scores.scores["AP"],
        "AP50": scores.scores["AP50"],
        "per_class": per_class,
    }


# ------------------------------------------------------------------------------------------ JSON


def to_json(found: Audit) -> dict[str, Any]:
    """Plain values, ratios not rounded."""
    names = found.classes
    return {
        "home": {
            names[c]: {
                "threshold": h.threshold,
                "operating": None if h.operating is None else vars(h.operating),
                "false_positives_per_image": h.false_per_image,
                "true_positive_scores": h.histogram.tolist(),
            }
            for c, h in found.home.items()
        },
        "foreign": [
            {
                "class": names[f.class_id],
                "dataset": f.dataset,
                "images": f.images,
                "declared_absent": f.absent,
                "threshold": float(found.thresholds[f.class_id]),
                "above_threshold": len(f.rows),
                "per_image": f.per_image,
                "on_labelled_objects": {
                    names[c]: int((f.on_class == c).sum()) for c in np.unique(f.on_class).tolist()
                },
                "in_ignored_regions": len(f.ignored),
                "on_background": len(f.background),
                "expected_unlabelled": f.expected_unlabelled,
                "scores": f.histogram.tolist(),
            }
            for f in found.foreign
        ],
        "probably_unlabelled": [
            {"dataset": f.dataset, "class": names[f.class_id], "count": f.expected_unlabelled}
            for f in found.ranked()
        ],
    }
