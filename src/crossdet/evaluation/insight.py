"""What scores alone do not say of a detector: what it takes for what, what its scores mean, and in which pictures
it fails. All from the detections of an audit, at the thresholds of best F1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossdet.evaluation.arrays import Bools
from crossdet.evaluation.audit import Audit, AuditedSplit
from crossdet.evaluation.hits import by_score, iou_with_offset, pairs
from crossdet.evaluation.operating import IOU_THRESHOLD, Judged
from crossdet.evaluation.precision_recall import Curve, area_ap, exact_curve

BINS = 10


@dataclass(frozen=True)
class Taken:
    """What became of the objects of one class in one dataset: every object counts once.

    found: by a detection of its own class. missed: by none. taken_for: class id -> objects on which only detections
    of other classes lie, counted for the best of them.
    """

    dataset: str
    class_id: int
    objects: int
    found: int
    missed: int
    taken_for: dict[int, int]


@dataclass(frozen=True)
class Reliability:
    """score, precision: `[10]` means over the detections in score intervals of 0.1, nan where there are none.

    count: `[10]` detections. error: the expected calibration error, the mean of |score - precision| over the
    detections (Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning").
    """

    score: NDArray[np.float64]
    precision: NDArray[np.float64]
    count: NDArray[np.int64]
    error: float


@dataclass(frozen=True)
class PictureScore:
    """One picture at the thresholds: labelled objects that are found and missed, and detections that are wrong."""

    dataset: str
    image: int
    found: int
    missed: int
    wrong: int

    @property
    def mistakes(self) -> int:
        return self.missed + self.wrong


def above_threshold(found: Audit, labels: NDArray[np.int64], scores: NDArray[np.float64]) -> Bools:
    """`[N]` whether detections count at their class's threshold."""
    above: Bools = scores > found.thresholds[labels]
    return above


def confusions(splits: Sequence[AuditedSplit], found: Audit, overlap: Bools) -> list[Taken]:
    """What the labelled objects of every dataset are taken for, also by classes that only other datasets label.

    A detection above its threshold lies on an object from an IoU of 0.5 on. overlap: `[C, C]` classes that may
    share a box, such as a face and a head: such a detection takes the object for nothing else.
    """
    rows = []
    for split in splits:
        taken = _taken_for(split, found, overlap)
        objects = ~split.truth.crowd & (split.truth.labels >= 0)
        for class_id in np.flatnonzero(split.annotated).tolist():
            mine = taken[objects & (split.truth.labels == class_id)]
            other = mine[(mine >= 0) & (mine != class_id)]
            counts = {int(c): int(n) for c, n in zip(*np.unique(other, return_counts=True), strict=True)}
            found_own, missed = int((mine == class_id).sum()), int((mine < 0).sum())
            rows.append(Taken(split.name, class_id, len(mine), found_own, missed, counts))
    return rows


def _taken_for(split: AuditedSplit, found: Audit, overlap: Bools) -> NDArray[np.int64]:
    """`[M]` for every box of the truth its own class if that is found there, else the best other one, else -1."""
    truth, d = split.truth, split.detections
    d = d.take(np.flatnonzero(above_threshold(found, d.labels.astype(np.int64), d.scores.astype(np.float64))))
    taken, best = np.full(len(truth.boxes), -1, np.int64), np.full(len(truth.boxes), -np.inf)
    overlaps = iou_with_offset(0.0)
    for box, row in pairs(truth.image_of_box, d.image_of_box):
        on = overlaps(truth.boxes[box], d.boxes[row].astype(np.float64)) >= IOU_THRESHOLD
        on &= ~overlap[truth.labels[box], d.labels[row]] | (truth.labels[box] == d.labels[row])
        box, row = box[on], row[on]
        # its own class counts more than any score of another
        value = d.scores[row].astype(np.float64) + np.where(truth.labels[box] == d.labels[row], 2.0, 0.0)
        for at in np.argsort(value, kind="stable").tolist():
            if value[at] > best[box[at]]:
                best[box[at]], taken[box[at]] = value[at], d.labels[row[at]]
    return taken


def reliability(judged: Sequence[Judged]) -> Reliability:
    """Of all detections at home that are right or wrong, whatever their class."""
    scores = np.concatenate([np.zeros(0), *(j.scores[j.counted] for j in judged)])
    hits = np.concatenate([np.zeros(0, bool), *(j.hits[j.counted] for j in judged)])
    at = np.clip((scores * BINS).astype(np.int64), 0, BINS - 1)
    count = np.bincount(at, minlength=BINS)
    with np.errstate(invalid="ignore"):
        score, precision = (np.bincount(at, values, BINS) / count for values in (scores, hits))
    error = float(np.nansum(count * np.abs(score - precision)) / count.sum()) if len(scores) else float("nan")
    return Reliability(score, precision, count, error)


def class_curves(judged: Sequence[Judged], classes: Sequence[int]) -> dict[int, Curve]:
    """Precision-recall curves at IoU 0.5 over all datasets that label the class; without those with no object."""
    curves = {}
    for c in classes:
        parts = [(j, (j.labels == c) & j.counted) for j in judged if c in j.objects]
        objects = sum(j.objects[c] for j, _ in parts)
        if not objects:
            continue
        scores, hits = (np.concatenate([getattr(j, key)[rows] for j, rows in parts]) for key in ("scores", "hits"))
        order = by_score(scores)
        recall, precision = exact_curve(hits[order], np.ones(len(order), bool), objects)
        curves[c] = Curve(recall, precision, area_ap(recall, precision))
    return curves


def picture_scores(splits: Sequence[AuditedSplit], found: Audit) -> list[PictureScore]:
    """Of every picture, on the classes that its dataset labels."""
    rows = []
    for split, j in zip(splits, found.judged, strict=True):
        images = len(split.index)
        home = split.detections.of_classes(np.flatnonzero(split.annotated))
        above = above_threshold(found, j.labels, j.scores)
        right = np.bincount(home.image_of_box[above & j.hits], minlength=images)
        wrong = np.bincount(home.image_of_box[above & j.counted & ~j.hits], minlength=images)
        objects = ~split.truth.crowd & (split.truth.labels >= 0)
        total = np.bincount(split.truth.image_of_box[objects], minlength=images)
        rows += [
            PictureScore(split.name, image, int(right[image]), int(total[image] - right[image]), int(wrong[image]))
            for image in range(images)
        ]
    return rows


def worst_and_best(pictures: Sequence[PictureScore], number: int) -> tuple[list[PictureScore], list[PictureScore]]:
    """The pictures with most mistakes, and of those without one the ones with most objects."""
    worst = [p for p in sorted(pictures, key=lambda p: -p.mistakes) if p.mistakes][:number]
    best = [p for p in sorted(pictures, key=lambda p: -p.found) if p.found and not p.mistakes][:number]
    return worst, best
