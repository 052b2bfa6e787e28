"""What an exported file finds in a split, picture by picture. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from crossdet.data.index import Index
from crossdet.data.picture_files import UnreadableImage, read_pixels
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.evaluation.run import EvalSettings, Found
from crossdet.export.detector import ExportedDetector, answers_at, check_limits, thresholds_of


def detect(
    detector: ExportedDetector, index: Index, classes: Sequence[int] | None, settings: EvalSettings
) -> Found:
    """See `run.detect`; not folded. Raises `UserError` for limits that the file does not keep and for classes that
    it does not look for."""
    limits, about = settings.limits(PROTOCOLS["coco"]), detector.about
    check_limits(about, replace(settings, max_detections=limits.max_detections))
    floors = np.full(len(about.card.space.classes), limits.score_threshold, np.float32)
    thresholds = thresholds_of(about, classes, floors)
    found, unread = [], []
    for row in range(len(index)):
        try:
            picture = read_pixels(index, row)
        except UnreadableImage as error:
            unread.append((row, str(error)))
            continue
        answers = answers_at(detector.session, picture, thresholds, settings.shorter, settings.longer)
        boxes, scores, labels = (values[: limits.max_detections] for values in answers)
        found.append(DetectionArrays(boxes, scores, labels, np.full(len(labels), row, np.int64)))
    lines = tuple(line for _, line in unread)
    return Found(DetectionArrays.joined(found), lines, unseen=tuple(row for row, _ in unread))
