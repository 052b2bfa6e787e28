"""Ground truth and detections of a whole split as flat arrays, as every protocol takes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdet.errors import UserError

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Bools = NDArray[np.bool_]

LARGEST_COORDINATE, LARGEST_SCORE = 1e12, 1e30
"""Beyond these the area of a box or a scaled score in single precision overflows, and a number would be wrong."""


@dataclass(frozen=True)
class GroundTruth:
    """The annotations of a dataset: `I` images, `M` boxes.

    image_ids: `[I]` integers, all different. Their order decides between equal scores of different images.
    boxes: `[M, 4]` xyxy. labels: `[M]`, in the numbering of `class_ids`; others (-1) are not evaluated.
    crowd: `[M]` bool. area: `[M]`, the annotated area. image_of_box: `[M]` rows of `image_ids`.
    """

    image_ids: Ints
    boxes: Floats
    labels: Ints
    crowd: Bools
    area: Floats
    image_of_box: Ints

    def __post_init__(self) -> None:
        check_columns("GroundTruth", self.boxes, labels=self.labels, crowd=self.crowd, area=self.area,
                       image_of_box=self.image_of_box)  # fmt: skip
        if len(np.unique(self.image_ids)) != len(self.image_ids):
            raise UserError("ground truth: two images have the same id")
        check_rows("GroundTruth", self.image_of_box, len(self.image_ids))


@dataclass(frozen=True)
class DetectionArrays:
    """The detections in all images of a `GroundTruth`, in any order.

    boxes: `[N, 4]` xyxy. scores: `[N]`. labels: `[N]`. image_of_box: `[N]` rows of the truth's `image_ids`.
    """

    boxes: Floats
    scores: Floats
    labels: Ints
    image_of_box: Ints

    def __post_init__(self) -> None:
        columns = {"scores": self.scores, "labels": self.labels, "image_of_box": self.image_of_box}
        check_columns("DetectionArrays", self.boxes, **columns)
        bad = ~(np.abs(self.scores) <= LARGEST_SCORE)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise UserError(
                f"detections: {int(bad.sum())} of {len(bad)} scores are no finite numbers (at most "
                f"{LARGEST_SCORE:g}), the first in row {row} ({self.scores[row]})"
            )

    def with_boxes(self, boxes: Floats) -> DetectionArrays:
        """The same detections with other boxes `[N, 4]`, such as in another box format."""
        return replace(self, boxes=boxes)

    def above(self, threshold: float) -> DetectionArrays:
        """Those that score more than the threshold."""
        return self.take(np.flatnonzero(self.scores > threshold))

    def of_classes(self, classes: Ints) -> DetectionArrays:
        return self.take(np.flatnonzero(np.isin(self.labels, classes)))

    def take(self, rows: Ints, image_of_box: Ints | None = None) -> DetectionArrays:
        """Some detections, in the order of `rows`. image_of_box: `[N]` other image rows of all detections."""
        images = self.image_of_box if image_of_box is None else image_of_box
        return DetectionArrays(self.boxes[rows], self.scores[rows], self.labels[rows], images[rows])


def check_columns(name: str, boxes: Floats, **columns: NDArray[Any]) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name}.boxes: expected shape [*, 4], got {list(boxes.shape)}")
    for column, values in columns.items():
        if values.shape != (len(boxes),):
            raise ValueError(f"{name}.{column}: expected shape [{len(boxes)}], got {list(values.shape)}")
    bad = ~(np.abs(boxes) <= LARGEST_COORDINATE).all(1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"{name}.boxes: {int(bad.sum())} of {len(boxes)} have coordinates that are no finite numbers (at most "
            f"{LARGEST_COORDINATE:g}), the first in row {row} ({', '.join(f'{v:g}' for v in boxes[row])})"
        )


def check_rows(name: str, rows: Ints, images: int) -> None:
    if len(rows) and not 0 <= rows.min() <= rows.max() < images:
        span = f"{rows.min()}..{rows.max()}"
        raise UserError(f"{name}.image_of_box: expected image rows in 0..{images - 1}, got {span}")
