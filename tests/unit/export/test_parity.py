"""Lists of detections compared as sets, by hand."""

import numpy as np
import pytest

from crossdet.export.detector import suppressed
from crossdet.export.parity import difference
from crossdet.types import Detections


def found(*rows):
    boxes, scores, labels = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64)
    )


A, B, FAR = [0, 0, 10, 10], [0, 0, 10, 12], [50, 50, 60, 60]


def test_order_is_no_difference():
    one, other = found((A, 0.9, 0), (FAR, 0.8, 1)), found((FAR, 0.8, 1), (A, 0.9, 0))
    result = difference([one], [other])
    assert (result.matched, result.boxes, result.scores, result.alone) == (2, 0, 0, 0)


def test_pairs_are_of_one_class_and_the_rest_is_alone():
    result = difference([found((A, 0.9, 0), (FAR, 0.8, 1)), found()], [found((B, 0.85, 0), (FAR, 0.7, 0)), found()])
    assert (result.pictures, result.matched, result.alone) == (2, 1, 2)
    assert result.boxes == 2
    assert result.scores == pytest.approx(0.05)
    assert result.alone_score == pytest.approx(0.8)


def test_equal_boxes_are_matched_by_score():
    result = difference([found((A, 0.9, 0), (A, 0.5, 0))], [found((A, 0.5, 0), (A, 0.9, 0))])
    assert (result.matched, result.scores) == (2, 0)


def test_suppression_is_by_label_and_by_score():
    boxes = np.array([A, B, A, FAR], np.float32)
    scores, labels = np.array([0.5, 0.9, 0.7, 0.1], np.float32), np.array([0, 0, 1, 0])
    assert suppressed(boxes, scores, labels, 0.5).tolist() == [1, 2, 3]
    assert suppressed(boxes, scores, labels, 0.9).tolist() == [1, 2, 0, 3]
