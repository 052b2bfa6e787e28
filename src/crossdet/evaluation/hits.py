"""Which ground truth each detection overlaps most, for all images of a split at once.

VOC, WIDER FACE and WIDER Pedestrian match alike: each detection takes the one ground truth with the largest IoU
in its image, whatever other detections do, and never a second-best one. So the IoU of all pairs is computed in
large arrays, without a loop over images; only the first detection of each ground truth depends on the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from crossdet.evaluation.arrays import Bools, Floats, Ints

PAIRS_AT_ONCE = 1 << 18
"""Pairs of boxes per chunk: small enough for the cache, and the memory stays bounded at any size."""

Overlap = Callable[[Floats, Floats], Floats]
"""(boxes `[P, 4]`, ground truth `[P, 4]`) -> `[P]` overlaps of the pairs."""


def iou_with_offset(offset: float) -> Overlap:
    """IoU of corner boxes whose sides are `high - low + offset`: 0 for continuous, 1 for inclusive pixels."""

    def iou(boxes: Floats, truth: Floats) -> Floats:
        width = np.minimum(boxes[:, 2], truth[:, 2]) - np.maximum(boxes[:, 0], truth[:, 0]) + offset
        height = np.minimum(boxes[:, 3], truth[:, 3]) - np.maximum(boxes[:, 1], truth[:, 1]) + offset
        inside = width * height
        union = _area(boxes, offset) + _area(truth, offset) - inside
        meet = (width > 0) & (height > 0)
        return np.divide(inside, union, out=np.zeros(len(boxes)), where=meet & (union != 0))

    return iou


def _area(boxes: Floats, offset: float) -> Floats:
    return (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)


def pairs(first_groups: Ints, second_groups: Ints) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows (first, second) of all pairs in the same group, in chunks; by first row, then by second row.

    A first row without a partner has no pair. All pairs of a first row lie in one chunk.
    """
    order = np.argsort(second_groups, kind="stable")
    in_order = second_groups[order]
    start = np.searchsorted(in_order, first_groups, "left")
    count = np.searchsorted(in_order, first_groups, "right") - start
    chunk_of_row = np.cumsum(count) // PAIRS_AT_ONCE
    bounds = [0, *(np.flatnonzero(np.diff(chunk_of_row)) + 1).tolist(), len(first_groups)]
    for low, high in pairwise(bounds):
        counts = count[low:high]
        total = int(counts.sum())
        if not total:
            continue
        first = np.repeat(np.arange(low, high), counts)
        within = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
        yield first, order[np.repeat(start[low:high], counts) + within]


def best_overlaps(
    boxes: Floats, groups: Ints, truth: Floats, truth_groups: Ints, overlap: Overlap
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For every detection the ground truth of its group with the largest overlap, the first one on ties.

    boxes: `[N, 4]` corners. truth: `[M, 4]`. groups: `[N]` and `[M]`, such as the image or image and class.

    Returns:
        rows `[N]` of `truth`, -1 where the group has none, and the overlaps `[N]`, 0 there.
    """
    best = np.full(len(boxes), -1, np.int64)
    value = np.zeros(len(boxes))
    for first, second in pairs(groups, truth_groups):
        overlaps = overlap(boxes[first], truth[second])
        starts = np.flatnonzero(np.diff(first, prepend=-1))
        largest = np.maximum.reduceat(overlaps, starts)
        lengths = np.diff(starts, append=len(first))
        at_best = np.flatnonzero(overlaps == np.repeat(largest, lengths))
        rows = first[starts]
        best[rows] = second[at_best[np.searchsorted(at_best, starts)]]
        value[rows] = largest
    return best, value


def first_of_each(best: Ints, passed: Bools, order: Ints) -> Bools:
    """`[N]` true for the first detection (in `order`, by falling score) of those that `passed` on each target."""
    rows = order[passed[order]]
    _, first = np.unique(best[rows], return_index=True)
    hits = np.zeros(len(best), bool)
    hits[rows[first]] = True
    return hits


def by_score(scores: Floats) -> NDArray[np.int64]:
    """Rows by falling score; equal scores stay in the given order."""
    return np.argsort(-scores, kind="stable")
