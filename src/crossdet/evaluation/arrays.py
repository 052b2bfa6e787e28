"""Ground truth and detections of a whole split as flat arrays, as the protocols take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
class Verified:
    """The images in which a detection without an object is wrong, per class: those that verify the class in full.

    In others it is neither right nor wrong: nobody looked for the class there, or not for all of it (Gupta et al.
    2019, "LVIS: A Dataset for Large Vocabulary Instance Segmentation"). The LVIS API has two rules: detections in
    unverified images are dropped, and unmatched ones ignored where the class is not labelled exhaustively. They are
    one, since an unverified image has no box of the class to match.

    everywhere: `[E]` classes that all images verify. image, label: `[P]` each, pairs of an image row and another
    class that it verifies.
    """

    everywhere: Ints
    image: Ints
    label: Ints

    def __call__(self, image: Ints, label: Ints) -> Bools:
        """`[N]` whether the images (rows) verify the classes."""
        width = 1 + max(int(labels.max(initial=0)) for labels in (self.label, label))
        # -1, of no class in particular, is in no pair; it must not look like the last class of the image before
        known = np.isin(image * width + label, self.image * width + self.label) & (label >= 0)
        found: Bools = known | np.isin(label, self.everywhere)
        return found

    def take(self, rows: Ints, images: int) -> Verified:
        """For some of the `images` images, each at most once, in the order of `rows`."""
        place = np.full(images, -1, np.int64)
        place[rows] = np.arange(len(rows))
        kept = place[self.image] >= 0
        return Verified(self.everywhere, place[self.image[kept]], self.label[kept])

    def pairs(self, images: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All pairs of one of `images` images and a class that it verifies."""
        image = np.repeat(np.arange(images), len(self.everywhere))
        label = np.tile(self.everywhere, images)
        return np.concatenate([image, self.image]), np.concatenate([label, self.label])


@dataclass(frozen=True)
class GroundTruth:
    """The annotations of a dataset: `I` images, `M` boxes.

    image_ids: `[I]` integers, all different. Their order decides between equal scores of different images.
    boxes: `[M, 4]` xyxy. labels: `[M]`, in the numbering of `class_ids`; others (-1) are not evaluated.
    crowd: `[M]` bool. area: `[M]`, the annotated area. image_of_box: `[M]` rows of `image_ids`. verified: where a
    detection without an object is wrong; None = everywhere.
    """

    image_ids: Ints
    boxes: Floats
    labels: Ints
    crowd: Bools
    area: Floats
    image_of_box: Ints
    verified: Verified | None = None

    def __post_init__(self) -> None:
        check_columns("GroundTruth", self.boxes, labels=self.labels, crowd=self.crowd, area=self.area,
                       image_of_box=self.image_of_box)  # fmt: skip
        if len(np.unique(self.image_ids)) != len(self.image_ids):
            raise UserError("ground truth: two images have the same id")
        check_rows("GroundTruth", self.image_of_box, len(self.image_ids))
        if self.verified is not None:
            check_rows("Verified", self.verified.image, len(self.image_ids))

    def verifies(self, image: Ints, label: Ints) -> Bools:
        """`[N]` whether a detection of the class `label` without an object in the image (row) is wrong."""
        return np.ones(len(label), bool) if self.verified is None else self.verified(image, label)

    def images_verifying(self, label: int) -> int:
        if self.verified is None or label in self.verified.everywhere:
            return len(self.image_ids)
        return len(np.unique(self.verified.image[self.verified.label == label]))


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

    @classmethod
    def joined(cls, parts: Sequence[DetectionArrays]) -> DetectionArrays:
        """All detections, part by part."""
        if not parts:
            return cls(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
        columns = ((one.boxes, one.scores, one.labels, one.image_of_box) for one in parts)
        return cls(*map(np.concatenate, zip(*columns, strict=True)))

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


@dataclass(frozen=True)
class VocTruth:
    """The objects of `images` images. boxes: `[M, 4]` xmin, ymin, xmax, ymax, the corner pixels inside the box.

    labels: `[M]`. difficult: `[M]`, not counted. image_of_box: `[M]` rows in 0..images - 1.
    """

    images: int
    boxes: Floats
    labels: Ints
    difficult: Bools
    image_of_box: Ints

    def __post_init__(self) -> None:
        check_columns("VocTruth", self.boxes, labels=self.labels, difficult=self.difficult,
                      image_of_box=self.image_of_box)  # fmt: skip
        check_rows("VocTruth", self.image_of_box, self.images)


@dataclass(frozen=True)
class WiderFaceTruth:
    """The faces of `images` images. boxes: `[M, 4]` x, y, w, h in pixels, as annotated, none left out.

    image_of_box: `[M]` rows in 0..images - 1. kept: setting -> `[M]`, the faces that it counts.
    """

    images: int
    boxes: Floats
    image_of_box: Ints
    kept: dict[str, Bools] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_columns("WiderFaceTruth", self.boxes, image_of_box=self.image_of_box, **self.kept)
        check_rows("WiderFaceTruth", self.image_of_box, self.images)


@dataclass(frozen=True)
class PedestrianTruth:
    """The boxes and ignore regions of `images` images, `[M, 4]` and `[R, 4]` x, y, w, h in pixels.

    image_of_box: `[M]`, image_of_region: `[R]`, rows in 0..images - 1.
    """

    images: int
    boxes: Floats
    image_of_box: Ints
    regions: Floats
    image_of_region: Ints

    def __post_init__(self) -> None:
        for name, boxes, rows in (
            ("PedestrianTruth", self.boxes, self.image_of_box),
            ("PedestrianTruth (regions)", self.regions, self.image_of_region),
        ):
            check_columns(name, boxes, image_of_box=rows)
            check_rows(name, rows, self.images)


def to_xywh(corners: Floats) -> NDArray[np.float64]:
    """`[N, 4]` boxes x, y, width, height of such by two corners."""
    boxes = corners.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def to_corners(xywh: Floats) -> NDArray[np.float64]:
    boxes = xywh.astype(np.float64)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


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
