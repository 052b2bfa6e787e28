"""Folded classes in evaluation: the members of a class, such as its directions, count as one."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import batched_nms

from crossdet.evaluation.arrays import DetectionArrays
from crossdet.labels.folds import Folding


def fold_detections(
    detections: DetectionArrays, folding: Folding, nms_iou: float
) -> tuple[DetectionArrays, NDArray[np.int64]]:
    """Detections of a split in folded classes, with NMS among the members of each, and the `[N]` degrees of the
    members that are left (NO_ANGLE where they are no directions)."""
    labels = folding.of[detections.labels]
    chosen = rows_after_nms(detections, labels, nms_iou)
    folded = DetectionArrays(
        detections.boxes[chosen], detections.scores[chosen], labels[chosen], detections.image_of_box[chosen]
    )
    return folded, folding.angles[detections.labels[chosen]]


def rows_after_nms(detections: DetectionArrays, labels: NDArray[np.int64], nms_iou: float) -> NDArray[np.int64]:
    """The rows, ascending, that NMS in each image and class leaves. labels: `[N]`, not the detections' own."""
    rows = [np.zeros(0, np.int64)]
    order = np.argsort(detections.image_of_box, kind="stable")
    starts = np.flatnonzero(np.diff(detections.image_of_box[order], prepend=-1))
    for mine in np.split(order, starts[1:]):
        kept = batched_nms(
            torch.from_numpy(detections.boxes[mine].astype(np.float32)),
            torch.from_numpy(detections.scores[mine].astype(np.float32)),
            torch.from_numpy(labels[mine]),
            nms_iou,
        )
        rows.append(mine[kept.numpy()])
    return np.sort(np.concatenate(rows))
