"""What a training is judged by: AP of folded classes, per roll, and how right the directions are.

Also what needs no directions in training: a detector of upright objects that looks at every roll of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdet.config import Config
from crossdet.config.sources import open_sources
from crossdet.data.index import Index
from crossdet.data.rotation import rows_per_picture
from crossdet.data.rotation_geometry import canvas, rotate_boxes
from crossdet.evaluation.arrays import DetectionArrays, Floats, Ints
from crossdet.evaluation.folding import finders, orientation_scores, rows_after_nms
from crossdet.evaluation.operating import CONFIDENT
from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.evaluation.protocols.entry import score_split
from crossdet.evaluation.run import EvalSettings, score_dataset
from crossdet.evaluation.splits import Split, ground_truth
from crossdet.evaluation.union import of_images
from crossdet.inference import load_detector
from crossdet.runs.evaluate import splits_for_detector


def measure(run_dir: Path, config: Config, looks: bool = False) -> dict[str, Any]:
    """`datasets`: dataset -> COCO numbers of folded classes over all its validation pictures, the same of every
    roll (`rolls`: degrees -> AP, AP50), how many objects are `found`, and how right the directions are
    (`orientation`, where the detector knows any).

    looks: also `looks`, the same numbers of a detector that looks at every roll of a picture, where the roll at
    which it finds an object says the object's direction (`looked_all_around`); of the datasets where it can.
    """
    detector = load_detector(run_dir, last=True)
    sources = open_sources(config, ["val"], detector=detector.space)
    limits = config.eval
    its_own = {"score_threshold": None, "max_detections": None}  # the protocol's
    settings = EvalSettings.of(detector.settings, limits, config.train.workers, **its_own)
    found: dict[str, Any] = {"datasets": {}, **({"looks": {}} if looks else {})}
    for name, split in splits_for_detector(sources, sources.val, detector, fold=True).items():
        scores = score_dataset(detector.model, split, settings, (PROTOCOLS["coco"],), detector.space.folding)
        detections, record = scores.found.detections, scores.record
        found["datasets"][name] = {
            **_numbers(split, record, detections),
            "orientation": record.get("orientation"),
            "unreadable": len(record["unreadable"]),
        }
        centred = config.datasets[name].direction_box == "centred"
        if looks and (row := looked_all_around(split, detections, centred, limits.nms_iou)) is not None:
            found["looks"][name] = row
    return found


def looked_all_around(
    split: Split, detections: DetectionArrays, centred: bool, nms_iou: float
) -> dict[str, Any] | None:
    """The numbers of `measure`, and how many `looks` a picture takes, of a detector without directions that looks
    at all rolls of a picture (`all_looks`); None where the directions do not allow it. detections: in all pictures
    of the split, the looks among them. NMS over all looks, then as any other detector."""
    seen = all_looks(split.index, detections, centred, nms_iou)
    if seen is None:
        return None
    found, degrees = seen
    record = score_split(PROTOCOLS["coco"], split, found).record
    return {
        **_numbers(split, record, found),
        "orientation": orientation_scores(split, found, degrees),
        "looks": rows_per_picture(split.index),
    }


def _numbers(split: Split, record: Mapping[str, Any], detections: DetectionArrays) -> dict[str, Any]:
    return {
        "images": len(split.index),
        **{key: record[key] for key in ("AP", "AP50", "AP75", "per_class")},
        "rolls": per_roll(split, detections),
        "found": found_objects(split, detections),
    }


def per_roll(split: Split, detections: DetectionArrays) -> dict[int, dict[str, float]]:
    """Degrees -> AP and AP50 on the pictures that are turned so; nothing of an index that is not turned."""
    found: dict[int, dict[str, float]] = {}
    if split.index.rotation is None:
        return found
    for degrees in np.unique(split.index.rotation.degrees).tolist():
        rows = np.flatnonzero(split.index.rotation.degrees == degrees)
        _, mine = of_images(ground_truth(split), detections, rows)
        record = score_split(PROTOCOLS["coco"], split.take(rows), mine).record
        found[degrees] = {"AP": record["AP"], "AP50": record["AP50"]}
    return found


def all_looks(
    index: Index, detections: DetectionArrays, centred: bool, nms_iou: float
) -> tuple[DetectionArrays, NDArray[np.int64]] | None:
    """What a detector finds in a picture that it looks at in all D directions, for every row of a turned index, and
    the `[N]` degrees of each.

    The looks at a row are all rows of its picture, so the detections are those in all rows. One in the row at a
    degrees is turned by b - a onto the row at b degrees. The detector takes what it finds for upright, so in that
    row it is an object turned by b - a. NMS in each image and class.

    centred: the boxes are turned as `direction_box: centred` does, see `rotate_boxes`. At multiples of 90
    degrees they are exact. None where the index is not turned, or a look is missing: b - a must be one of the
    directions for all a and b, as in 4, 8 or 12.
    """
    count = rows_per_picture(index)
    if index.rotation is None or count < 2:
        return None
    degrees = index.rotation.degrees.astype(np.int64)
    directions = set(degrees[:count].tolist())
    if any((b - a) % 360 not in directions for a in directions for b in directions):
        return None
    seen = np.asarray(detections.image_of_box, np.int64)
    boxes, images, angles = [], [], []
    for place in range(count):
        image = seen // count * count + place
        angle = (degrees[image] - degrees[seen]) % 360
        boxes.append(_onto(detections.boxes, index.sizes[seen], index.sizes[image], angle, centred))
        images.append(image)
        angles.append(angle)
    everything = DetectionArrays(
        np.concatenate(boxes),
        np.tile(detections.scores, count),
        np.tile(detections.labels, count),
        np.concatenate(images),
    )
    kept = rows_after_nms(everything, np.asarray(everything.labels, np.int64), nms_iou)
    return everything.take(kept), np.concatenate(angles)[kept]


def _onto(
    boxes: Floats, before: Ints, after: Ints, degrees: NDArray[np.int64], centred: bool
) -> NDArray[np.float32]:
    """Boxes on canvases of sizes `before [N, 2]`, turned onto canvases of sizes `after [N, 2]`, centre on centre. A
    turned canvas that is turned once more is larger than the picture turned by both at once."""
    moved = rotate_boxes(boxes, before, degrees, np.full(len(boxes), centred))
    shift = (after - canvas(before, degrees))[:, ::-1] / 2
    return (moved + np.tile(shift, 2)).astype(np.float32)


def found_objects(split: Split, detections: DetectionArrays) -> dict[str, Any]:
    """How many objects (no crowds) are found, whatever their direction: found as in `orientation_scores`, whose
    numbers are of these alone. `share`: of the `objects`, by a detection of any score; `confident`: with a score of
    at least 0.3. nan without objects."""
    truth = ground_truth(split)
    objects = np.flatnonzero(~truth.crowd & (truth.labels >= 0))
    hits, _ = finders(truth, objects, detections, np.ones(len(detections.scores), bool))
    sure = int((detections.scores[hits] >= CONFIDENT).sum())
    of = len(objects) or float("nan")
    return {"objects": len(objects), "share": len(hits) / of, "confident": sure / of}
