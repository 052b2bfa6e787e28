"""How far the answers of an exported file are from those of the network it was made of, as sets, and how long both
take. No torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdet.types import Detections

SAME_OBJECT = 0.5
"""IoU from which on two detections of a class can be one."""
ROUNDS = 3


@dataclass(frozen=True)
class Difference:
    """Of two lists of detections per picture. matched: pairs of one class with an IoU of `SAME_OBJECT`, the nearest
    first, each detection once. boxes, scores: the largest difference of a coordinate in pixels and of a score.
    alone: detections of either side without a partner. alone_score: the highest score among them; 0 without any.
    """

    pictures: int
    matched: int
    boxes: float
    scores: float
    alone: int
    alone_score: float


def difference(ours: Sequence[Detections], theirs: Sequence[Detections]) -> Difference:
    """Both by picture."""
    boxes, scores, alone, matched = [0.0], [0.0], [0.0], 0
    for a, b in zip(ours, theirs, strict=True):
        (boxes_a, scores_a, labels_a), (boxes_b, scores_b, labels_b) = _arrays(a), _arrays(b)
        iou = _iou(boxes_a, boxes_b) * (labels_a[:, None] == labels_b)
        nearness = iou - np.abs(scores_a[:, None] - scores_b)  # of equal boxes that with the nearest score
        left_a, left_b = set(range(len(a))), set(range(len(b)))
        for place in np.argsort(-nearness, axis=None, kind="stable").tolist():
            row, column = divmod(place, len(b))
            if iou[row, column] >= SAME_OBJECT and row in left_a and column in left_b:
                left_a.remove(row)
                left_b.remove(column)
                matched += 1
                boxes.append(float(np.abs(boxes_a[row] - boxes_b[column]).max()))
                scores.append(float(abs(scores_a[row] - scores_b[column])))
        alone += [float(scores_a[row]) for row in left_a] + [float(scores_b[row]) for row in left_b]
    return Difference(len(ours), matched, max(boxes), max(scores), len(alone) - 1, max(alone))


def _arrays(found: Detections) -> tuple[NDArray[Any], ...]:
    return tuple(np.asarray(values) for values in (found.boxes, found.scores, found.labels))


def _iou(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    shared = np.maximum(high - low, 0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b)]
    iou: NDArray[Any] = shared / np.maximum(areas[0][:, None] + areas[1] - shared, 1e-12)
    return iou


def milliseconds(functions: Sequence[Callable[[Any], Any]], inputs: Sequence[Any]) -> list[float]:
    """Median time of each function for an input; they take turns."""
    spent: list[list[float]] = [[] for _ in functions]
    for turn in range(ROUNDS + 1):
        for one in inputs:
            for times, function in zip(spent, functions, strict=True):
                start = time.perf_counter()
                function(one)
                if turn:  # the first is a warm-up
                    times.append(1000 * (time.perf_counter() - start))
    return [statistics.median(times) for times in spent]
