"""A split of a dataset as the protocols see it: its index in unified class ids, and the ground truth in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdet.data.index import Index
from crossdet.evaluation.arrays import GroundTruth, Verified
from crossdet.labels.space import DROPPED
from crossdet.types import REGION_FLAGS, Flag


@dataclass(frozen=True)
class Split:
    """class_ids: `[K]` unified id of each class of the index, DROPPED = -1. names: unified names by id.

    Where classes are folded all ids are folded ones, and angles `[K]` says which direction each class of the index
    has (`folds.NO_ANGLE` = none). verified: the images in which a detection of a class without an object is wrong;
    None = all of them, for every class. members: the detector's classes that may be looked for; None = all that
    `classes` stand for. lists: what `Protocol.lists` read for it. edition: the dataset's, where it has several.
    """

    index: Index
    class_ids: NDArray[np.int64]
    names: Sequence[str]
    angles: NDArray[np.int64] | None = None
    verified: Verified | None = None
    members: tuple[int, ...] | None = None
    lists: Any = None
    edition: int | None = None

    @property
    def classes(self) -> list[int]:
        """The unified ids that it labels."""
        return sorted({int(c) for c in self.class_ids if c != DROPPED})

    def labels(self) -> NDArray[np.int64]:
        """`[M]` unified label of every box; DROPPED for regions of no class and for dropped classes."""
        labels = np.asarray(self.index.labels, np.int64)
        return np.where(labels >= 0, self.class_ids[np.maximum(labels, 0)], DROPPED)

    def take(self, images: NDArray[np.int64]) -> Split:
        """The split of some images (rows, each at most once)."""
        verified = None if self.verified is None else self.verified.take(images, len(self.index))
        return replace(self, index=self.index.take(images), verified=verified)

    def flagged(self, flags: int) -> NDArray[np.bool_]:
        return (np.asarray(self.index.flags) & flags) != 0


NO_OBJECTS = int(REGION_FLAGS | Flag.INVALID | Flag.DIFFICULT)


def ground_truth(split: Split, ignored: int = NO_OBJECTS) -> GroundTruth:
    """Objects of the split in unified ids; other detections lie on crowd boxes or are false. ignored: flags of what
    becomes crowd boxes.

    Crowds, ignore regions, invalid and difficult boxes become crowd boxes: a detection on them is neither right
    nor wrong. A region of no class counts for all classes of the split.
    """
    index, classes, unified = split.index, split.classes, split.labels()
    labels = np.asarray(index.labels)
    crowd = split.flagged(ignored)
    sides = index.boxes[:, 2:] - index.boxes[:, :2]
    usable = (sides > 0).all(1) & ((labels < 0) | (unified != DROPPED))
    regions = np.flatnonzero(usable & (labels < 0))
    objects = np.flatnonzero(usable & (labels >= 0))
    rows = np.concatenate([objects, np.repeat(regions, len(classes))])
    return GroundTruth(
        image_ids=np.arange(len(index), dtype=np.int64),
        boxes=np.asarray(index.boxes)[rows].astype(np.float64),
        labels=np.concatenate([unified[objects], np.tile(np.asarray(classes, np.int64), len(regions))]),
        crowd=np.concatenate([crowd[objects], np.ones(len(regions) * len(classes), bool)]),
        area=np.asarray(index.area)[rows].astype(np.float64),
        image_of_box=index.image_of_box()[rows],
        verified=split.verified,
    )
