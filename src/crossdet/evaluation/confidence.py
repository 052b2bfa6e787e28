"""How confidently the labelled objects are found.

AP ranks the detections of one class, so evenly lowered scores cost it nothing. A detector in use has one threshold:
the share of objects found above it shows what AP forgives.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossdet.evaluation.arrays import DetectionArrays, GroundTruth

CONFIDENT = 0.3
"""The score threshold of the reported share; also `crossdet predict`'s default."""


def best_scores(truth: GroundTruth, found: DetectionArrays, iou: float = 0.5) -> NDArray[np.float64]:
    """`[M]` for every box of `truth` the best score of a detection of its class with at least `iou`; 0 if none."""
    best = np.zeros(len(truth.boxes))
    order = np.argsort(found.image_of_box, kind="stable")
    bounds = np.searchsorted(found.image_of_box[order], np.arange(len(truth.image_ids) + 1))
    for row in range(len(truth.boxes)):
        image = int(truth.image_of_box[row])
        here = order[bounds[image] : bounds[image + 1]]
        same = here[found.labels[here] == truth.labels[row]]
        best[row] = found.scores[same[_iou(truth.boxes[row], found.boxes[same]) >= iou]].max(initial=0)
    return best


def _iou(box: NDArray[np.floating], boxes: NDArray[np.floating]) -> NDArray[np.floating]:
    """`[N]` IoU of one box `[4]` with `boxes [N, 4]`, xyxy."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    inside = np.clip(high - low, 0, None).prod(1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - inside
    return inside / np.maximum(union, 1e-12)


def confident_share(truth: GroundTruth, found: DetectionArrays, classes: range | list[int]) -> dict[int, float]:
    """Per class the share of its boxes (crowds aside) found with a score of at least `CONFIDENT`; nan without."""
    confident = best_scores(truth, found) >= CONFIDENT
    shares = {}
    for class_id in classes:
        mine = (truth.labels == class_id) & ~truth.crowd
        shares[class_id] = float(confident[mine].mean()) if mine.any() else float("nan")
    return shares
