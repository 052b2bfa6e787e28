"""Precision-recall curves and the two ways in which the VOC family turns one into a number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossdet.evaluation.arrays import Bools, Floats


@dataclass(frozen=True)
class Curve:
    """One precision-recall curve. recall, precision: `[P]` in 0..1, by falling score. ap: its AP, nan if none."""

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    ap: float


def exact_curve(hits: Bools, counted: Bools, positives: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Recall and precision after each detection, by falling score.

    hits: `[N]` true positives. counted: `[N]` false for detections that are neither right nor wrong; they leave
    the curve where it was. positives: number of objects to find. Precision before the first counted detection is
    0, as in the VOC development kit.
    """
    right, all_counted = np.cumsum(hits), np.cumsum(counted)
    precision = np.divide(right, all_counted, out=np.zeros(len(hits)), where=all_counted > 0)
    recall = right / positives if positives else np.full(len(hits), np.nan)
    return recall, precision


def area_ap(recall: Floats, precision: Floats) -> float:
    """Area under the curve whose precision is made non-increasing from the right (VOC 2010 and later; WIDER)."""
    recall = np.concatenate([[0.0], recall, [1.0]])
    precision = np.concatenate([[0.0], precision, [0.0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return float(((recall[steps] - recall[steps - 1]) * precision[steps]).sum())


def eleven_point_ap(recall: Floats, precision: Floats) -> float:
    """Mean of the largest precision at a recall of at least 0, 0.1, ... 1 (VOC 2007), 0 where there is none.

    The grid is k * 0.1 in double precision, as the development kit has it: the fourth point lies just above 0.3.
    """
    points = [precision[recall >= k * 0.1] for k in range(11)]
    return float(np.mean([values.max() if len(values) else 0.0 for values in points]))
