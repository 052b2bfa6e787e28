"""Paired bootstrap over images: is the difference in AP between two detectors more than the choice of images?

Images are drawn with replacement, the same ones for both detectors, and the COCO protocol's AP (all areas) is
computed anew from each draw (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", sec. 13.3: percentile
interval). Detections are matched once per image, since a match depends on its image alone: a draw only says how
often each image counts. Equal scores of different images stay in the order of the images, also where these are
drawn several times; for scores that are all different a draw has exactly the AP that `coco_scores` gives for its
images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from crossdet.evaluation.arrays import Bools, DetectionArrays, Floats, GroundTruth, Ints, check_rows
from crossdet.evaluation.protocols.coco import RECALLS

IOUS = np.linspace(0.5, 0.95, 10)
NUMBERS = ("AP", "AP50")
RESAMPLES = 1000
INTERVAL = (2.5, 97.5)
"""Percentiles of the differences: 95 % lie between."""
CELLS_AT_ONCE = 2_000_000
"""Draws times detections per chunk: bounds the memory."""


@dataclass(frozen=True)
class ClassMatches:
    """The detections of one class, `[D]` by falling score, at `T` IoU thresholds. image: `[D]` image rows. hits:
    `[T, D]` true positives. counted: `[T, D]` false where a detection is neither right nor wrong: it took a crowd,
    or found nothing in an image that does not verify its class. objects: `[I]` boxes to find in each image."""

    image: NDArray[np.int64]
    hits: Bools
    counted: Bools
    objects: NDArray[np.int64]


@dataclass(frozen=True)
class Paired:
    """Two detectors on the same images, 0..1; nan without objects. low, high: 95 % interval of after - before."""

    before: float
    after: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        return self.after - self.before

    @property
    def interval(self) -> tuple[float, float]:
        return self.low, self.high


@dataclass(frozen=True)
class Bootstrap:
    """per_class: class id -> "AP" and "AP50". mean: of the classes, draw by draw. subsets: name -> mean of some."""

    per_class: dict[int, dict[str, Paired]]
    mean: dict[str, Paired]
    subsets: dict[str, dict[str, Paired]] = field(default_factory=dict)


def paired_bootstrap(
    truth: GroundTruth,
    before: DetectionArrays,
    after: DetectionArrays,
    class_ids: Sequence[int] | Ints,
    resamples: int = RESAMPLES,
    seed: int = 0,
    strata: Ints | None = None,
    max_detections: int = 100,
    subsets: Mapping[str, Sequence[int]] | None = None,
) -> Bootstrap:
    """Intervals of after - before for the classes `class_ids`.

    strata: `[I]` group of every image, such as its dataset; as many images are drawn from each group as it has.
    None: one group. max_detections: per class and image, best first. subsets: name -> some of the classes, whose
    mean is wanted too, from the same draws. A draw without an object of a class says nothing about it and is left
    out of its interval.

    Raises `UserError` for detections in images that the truth does not have, `ValueError` for wrong shapes.
    """
    images = len(truth.image_ids)
    if strata is not None and len(strata) != images:
        raise ValueError(f"strata: expected shape [{images}], got {list(strata.shape)}")
    groups = np.zeros(images, np.int64) if strata is None else np.asarray(strata)
    draws = np.concatenate([np.ones((1, images), np.int64), drawn(groups, resamples, seed)])
    classes = [int(c) for c in np.unique(np.asarray(class_ids, np.int64))]
    found = {}  # [2, 1 + B, numbers] of every class; the first draw is every image once
    for class_id in classes:
        pair = [class_matches(truth, one, class_id, max_detections) for one in (before, after)]
        aps = np.stack([average_precision(matches, draws) for matches in pair])
        found[class_id] = np.stack([aps.mean(2), aps[..., 0]], axis=2)

    def mean_of(ids: Sequence[int]) -> dict[str, Paired]:
        rows = [found[c] for c in ids] or [np.full((2, len(draws), len(NUMBERS)), np.nan)]
        return _paired(_known_mean(np.stack(rows)))

    return Bootstrap(
        {c: _paired(values) for c, values in found.items()},
        mean_of(classes),
        {name: mean_of(ids) for name, ids in (subsets or {}).items()},
    )


def _paired(values: Floats) -> dict[str, Paired]:
    """Of `[2, 1 + B, numbers]`: before and after, of all images and of every draw."""
    result = {}
    for column, name in enumerate(NUMBERS):
        before, after = values[0, :, column], values[1, :, column]
        differences = (after - before)[1:]
        known = differences[~np.isnan(differences)]
        low, high = np.percentile(known, INTERVAL) if len(known) else (np.nan, np.nan)
        result[name] = Paired(float(before[0]), float(after[0]), float(low), float(high))
    return result


def _known_mean(values: Floats) -> Floats:
    """Mean over the first axis of what is not nan; nan where nothing is."""
    known = ~np.isnan(values)
    count = known.sum(0)
    total = np.where(known, values, 0.0).sum(0)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def drawn(groups: Ints, resamples: int, seed: int) -> NDArray[np.int64]:
    """`[resamples, I]` how often each image is drawn; from each group as many as it has."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((resamples, len(groups)), np.int64)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=resamples)
    return counts


def average_precision(matches: ClassMatches, draws: Ints) -> NDArray[np.float64]:
    """`[B, T]` AP at 101 recalls where image i counts `draws[b, i]` times; nan for draws without an object."""
    objects = draws @ matches.objects
    result = np.full((len(draws), len(matches.hits)), np.nan)
    known = np.flatnonzero(objects)
    if not len(matches.image):
        result[known] = 0.0
        return result
    step = max(1, CELLS_AT_ONCE // len(matches.image))
    for start in range(0, len(known), step):
        rows = known[start : start + step]
        times = draws[np.ix_(rows, matches.image)]
        needed = _hits_needed(objects[rows])
        for t in range(len(matches.hits)):
            result[rows, t] = _interpolated(times * matches.hits[t], times * matches.counted[t], needed)
    return result


def _interpolated(hits: Ints, counted: Ints, needed: Ints) -> NDArray[np.float64]:
    """`[B]` mean precision at the recalls. Images that are drawn several times are one step each: within a step
    hits raise recall and precision together, and false detections lower the precision at equal recall."""
    right, reported = hits.cumsum(1), counted.cumsum(1)
    precision = right / (reported + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # one search for all draws: each has its own range of whole numbers
    length, row = hits.shape[1], np.arange(len(hits))[:, None]
    span = max(int(right[:, -1].max()), int(needed.max())) + 1
    at = np.searchsorted((right + row * span).ravel(), (needed + row * span).ravel()).reshape(needed.shape)
    padded = np.concatenate([precision, np.zeros((len(hits), 1))], axis=1)
    mean: NDArray[np.float64] = np.take_along_axis(padded, at - row * length, axis=1).mean(1)
    return mean


def _hits_needed(objects: Ints) -> NDArray[np.int64]:
    """`[B, 101]` the fewest hits whose recall, hits / objects in double precision, reaches each recall."""
    count = objects[:, None]
    needed = np.ceil(RECALLS * count).astype(np.int64)
    needed -= (needed > 0) & ((needed - 1) / count >= RECALLS)
    needed += needed / count < RECALLS
    return needed


def class_matches(
    truth: GroundTruth, detections: DetectionArrays, class_id: int, max_detections: int = 100
) -> ClassMatches:
    """Matches of one class by COCO's rule (pycocotools, `cocoeval.py`, `evaluateImg`): by falling score each
    detection takes the free object with the largest IoU of at least the threshold, else a crowd."""
    images = len(truth.image_ids)
    check_rows("detections", detections.image_of_box, images)
    rank = np.empty(images, np.int64)
    rank[np.argsort(truth.image_ids)] = np.arange(images)
    mine = np.flatnonzero(detections.labels == class_id)
    scores = detections.scores[mine].astype(np.float64)
    by_image = np.lexsort((-scores, detections.image_of_box[mine]))
    of = detections.image_of_box[mine][by_image]
    kept = by_image[np.arange(len(of)) - np.searchsorted(of, of) < max_detections]
    kept = kept[np.lexsort((rank[detections.image_of_box[mine[kept]]], -scores[kept]))]
    rows = mine[kept]
    image, boxes = detections.image_of_box[rows].astype(np.int64), _xywh(detections.boxes[rows])
    labelled = np.flatnonzero(truth.labels == class_id)
    crowd, home = truth.crowd[labelled], truth.image_of_box[labelled]
    targets = _xywh(truth.boxes[labelled])
    hits = np.zeros((len(IOUS), len(rows)), bool)
    counted = np.ones((len(IOUS), len(rows)), bool)
    for one in np.intersect1d(image, home):
        here, there = np.flatnonzero(image == one), np.flatnonzero(home == one)
        iou = _iou(boxes[here], targets[there], crowd[there])
        hits[:, here], counted[:, here] = _match(iou, crowd[there])
    counted &= hits | truth.verifies(image, np.full(len(image), class_id))
    return ClassMatches(image, hits, counted, np.bincount(home[~crowd], minlength=images))


def _match(iou: Floats, crowd: Bools) -> tuple[Bools, Bools]:
    """Hits and counted, `[T, D]` each, of the detections of one image by falling score. iou: `[D, G]`."""
    hits = np.zeros((len(IOUS), len(iou)), bool)
    counted = np.ones((len(IOUS), len(iou)), bool)
    free = np.tile(~crowd, (len(IOUS), 1))
    last = len(crowd) - 1
    for row in np.flatnonzero(iou.max(1) >= IOUS[0]):
        reached = iou[row] >= IOUS[:, None]  # [T, G]
        value = np.where(free & reached, iou[row], -1.0)
        best = last - value[:, ::-1].argmax(1)  # of equal ones the last, as the evaluator has it
        taken = np.flatnonzero(value.max(1) >= 0)
        hits[taken, row] = True
        free[taken, best[taken]] = False
        counted[:, row] = hits[:, row] | ~(reached & crowd).any(1)
    return hits, counted


def _xywh(boxes: Floats) -> NDArray[np.float64]:
    sized = boxes.astype(np.float64)
    sized[:, 2:] -= sized[:, :2]
    return sized


def _iou(boxes: Floats, targets: Floats, crowd: Bools) -> NDArray[np.float64]:
    """`[D, G]` of x, y, width, height; with a crowd the share of the detection that lies in it."""
    low = np.maximum(boxes[:, None, :2], targets[None, :, :2])
    high = np.minimum((boxes[:, :2] + boxes[:, 2:])[:, None], (targets[:, :2] + targets[:, 2:])[None])
    inside = np.clip(high - low, 0, None).prod(2)
    own, other = boxes[:, 2:].prod(1)[:, None], targets[:, 2:].prod(1)[None]
    union = np.where(crowd[None], own, own + other - inside)
    iou: NDArray[np.float64] = np.divide(inside, union, out=np.zeros(inside.shape), where=union > 0)
    return iou
