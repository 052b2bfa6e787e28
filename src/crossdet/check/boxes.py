"""The boxes of a dataset as its training sees them: at the size of the network's input. No torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossdet.data.canvases import resized_sizes
from crossdet.data.index import Index
from crossdet.labels.space import DROPPED
from crossdet.types import REGION_FLAGS, Flag


def resized_boxes(
    boxes: NDArray[np.floating], sizes: NDArray[np.integer], new_sizes: NDArray[np.integer]
) -> NDArray[np.float64]:
    """`[M, 4]` xyxy boxes of images of `sizes`, in pixels of the same images at `new_sizes` (both `[M, 2]`)."""
    factor = new_sizes / np.asarray(sizes, np.float64)
    return np.asarray(boxes, np.float64) * factor[:, [1, 0, 1, 0]]


def learnt_boxes(
    index: Index,
    class_ids: NDArray[np.int64],
    shorter: int,
    longer: int,
    difficult_as_region: bool = False,
    square: int | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The boxes that are positives in training: `[M, 4]` xyxy at the network's input, and `[M, 2]` (height, width)
    of the image of each there.

    Without regions, invalid boxes, dropped classes, and images whose size is unknown.

    class_ids: `[K]` unified ids of the index's classes. difficult_as_region: without difficult boxes, too. square:
    side that pictures are stretched to, where they are.
    """
    out = REGION_FLAGS | Flag.INVALID | (Flag.DIFFICULT if difficult_as_region else Flag(0))
    labels, image = np.asarray(index.labels), index.image_of_box()
    sizes = np.asarray(index.sizes, np.int64)
    used = (labels >= 0) & ((np.asarray(index.flags) & int(out)) == 0) & (sizes[image] > 0).all(1)
    used[used] = np.asarray(class_ids)[labels[used]] != DROPPED
    image = image[used]
    at_input = resized_sizes(np.maximum(sizes, 1), shorter, longer)
    if square is not None:
        at_input = np.full_like(sizes, square)
    return resized_boxes(index.boxes[used], sizes[image], at_input[image]), at_input[image]
