"""Scoring one split in a run: its index in unified class ids, judged by the protocols that the config names.

The protocols themselves are functions on arrays (`coco`, `lvis`, `voc`, `wider_face`, `wider_pedestrian`); here are
the limits that belong to each, the ground truth that each reads from an `Index`, and the record of its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdet.data.index import Index
from crossdet.errors import UserError
from crossdet.evaluation.arrays import DetectionArrays, GroundTruth, Verified
from crossdet.evaluation.precision_recall import Curve
from crossdet.evaluation.protocols.coco import CocoScores, coco_scores
from crossdet.evaluation.protocols.lvis import MAX_DETECTIONS, lvis_scores
from crossdet.evaluation.protocols.voc import VocTruth, voc_scores
from crossdet.evaluation.protocols.wider_face import WiderFaceTruth, wider_face_scores
from crossdet.evaluation.protocols.wider_face_lists import WiderFaceLists
from crossdet.evaluation.protocols.wider_pedestrian import PedestrianTruth, challenge_scores
from crossdet.labels.space import DROPPED
from crossdet.types import REGION_FLAGS, Flag


@dataclass(frozen=True)
class Limits:
    """What a detector may report per image: so many detections, each scoring more than the threshold."""

    max_detections: int
    score_threshold: float


LIMITS = {
    "coco": Limits(100, 0.05),
    "lvis": Limits(MAX_DETECTIONS, 0.0001),
    "voc": Limits(100, 0.05),
    "wider_face": Limits(750, 0.01),
    "wider_pedestrian": Limits(300, 0.01),
}
"""Part of how each number is measured in its field, so they belong to the protocol; a config may override them."""


@dataclass(frozen=True)
class Protocol:
    """How a dataset is judged. name: a key of `LIMITS`. edition: WIDER Pedestrian's; None = by its classes.

    lists: WIDER FACE's easy, medium and hard faces; None = one setting "all" of all valid faces of the index.
    """

    name: str
    edition: int | None = None
    lists: WiderFaceLists | None = None


@dataclass(frozen=True)
class Split:
    """A split as the protocols see it. class_ids: `[K]` unified id of each class of the index, DROPPED = -1.

    classes: the unified ids that it labels. names: unified names by id. Where classes are folded all ids are folded
    ones, and angles `[K]` says which direction each class of the index has (`folds.NO_ANGLE` = none). verified: the
    images in which a detection of a class without an object is wrong; None = all of them, for every class.
    members: the detector's classes that may be looked for; None = all that `classes` stand for.
    """

    index: Index
    class_ids: NDArray[np.int64]
    names: Sequence[str]
    angles: NDArray[np.int64] | None = None
    verified: Verified | None = None
    members: tuple[int, ...] | None = None

    @property
    def classes(self) -> list[int]:
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


@dataclass(frozen=True)
class Scores:
    """record: JSON-able, ratios in 0..1, not rounded. headline: the one number for tables and means.

    curves: name -> curve. notes: what a reader of the numbers must know.
    """

    record: dict[str, Any]
    headline: float
    curves: dict[str, Curve]
    notes: tuple[str, ...] = ()


def score_split(protocol: Protocol, split: Split, detections: DetectionArrays, most: int) -> Scores:
    """Scores of the detections of a split's classes. most: detections per image that count, best first.

    Raises `UserError` where the split does not fit the protocol.
    """
    kept = best_per_image(detections, most)
    match protocol.name:
        case "coco":
            return _coco(split, kept, most)
        case "lvis":
            return _lvis(split, kept)
        case "voc":
            return _voc(split, kept)
        case "wider_face":
            return _wider_face(split, kept, protocol.lists)
        case "wider_pedestrian":
            return _wider_pedestrian(split, kept, protocol.edition)
    raise ValueError(f"protocol: expected one of {', '.join(LIMITS)}, got {protocol.name!r}")


def best_per_image(detections: DetectionArrays, most: int) -> DetectionArrays:
    """The `most` best-scored detections of every image, in the given order."""
    order = np.lexsort((-detections.scores, detections.image_of_box))
    images = detections.image_of_box[order]
    within = np.arange(len(order)) - np.searchsorted(images, images)
    return detections.take(np.sort(order[within < most]))


# ------------------------------------------------------------------------------------------ COCO, VOC


def ground_truth(split: Split) -> GroundTruth:
    """Objects of the split in unified ids; other detections lie on crowd boxes or are false.

    Crowds, ignore regions, invalid and difficult boxes become crowd boxes: a detection on them is neither right
    nor wrong. A region of no class counts for all classes of the split.
    """
    index, classes, unified = split.index, split.classes, split.labels()
    labels = np.asarray(index.labels)
    ignored = split.flagged(int(REGION_FLAGS | Flag.INVALID | Flag.DIFFICULT))
    sides = index.boxes[:, 2:] - index.boxes[:, :2]
    usable = (sides > 0).all(1) & ((labels < 0) | (unified != DROPPED))
    regions = np.flatnonzero(usable & (labels < 0))
    objects = np.flatnonzero(usable & (labels >= 0))
    rows = np.concatenate([objects, np.repeat(regions, len(classes))])
    return GroundTruth(
        image_ids=np.arange(len(index), dtype=np.int64),
        boxes=np.asarray(index.boxes)[rows].astype(np.float64),
        labels=np.concatenate([unified[objects], np.tile(np.asarray(classes, np.int64), len(regions))]),
        crowd=np.concatenate([ignored[objects], np.ones(len(regions) * len(classes), bool)]),
        area=np.asarray(index.area)[rows].astype(np.float64),
        image_of_box=index.image_of_box()[rows],
        verified=split.verified,
    )


def _coco(split: Split, detections: DetectionArrays, most: int) -> Scores:
    return _as_record("coco", split, coco_scores(ground_truth(split), detections, split.classes, most))


def _lvis(split: Split, detections: DetectionArrays) -> Scores:
    return _as_record("lvis", split, lvis_scores(ground_truth(split), detections, split.classes))


def _as_record(protocol: str, split: Split, result: CocoScores) -> Scores:
    per_class = {split.names[c]: dict(values) for c, values in result.per_class.items()}
    record = {"protocol": protocol, **result.scores, "per_class": per_class}
    return Scores(record, result.scores["AP"], result.curves, _never_wrong(split))


def _never_wrong(split: Split) -> tuple[str, ...]:
    """A note on the classes that have boxes, but no image in which a detection without one would be wrong."""
    truth = ground_truth(split)
    seen = np.unique(truth.labels[~truth.crowd])
    names = [split.names[c] for c in seen.tolist() if not truth.images_verifying(c)]
    if not names:
        return ()
    return (
        f"no image is labelled in full for {', '.join(names)}: their AP says how much is found, not how much is "
        "wrong, and no operating threshold comes from here",
    )


def _voc(split: Split, detections: DetectionArrays) -> Scores:
    """Zero-based half-open boxes become 1-based with the corner pixels inside. Regions count as difficult."""
    truth, inclusive = ground_truth(split), np.array([1.0, 1.0, 0.0, 0.0])
    result = voc_scores(
        VocTruth(len(split.index), truth.boxes + inclusive, truth.labels, truth.crowd, truth.image_of_box),
        detections.with_boxes(detections.boxes + inclusive),
        split.classes,
        verified=truth.verifies(detections.image_of_box, detections.labels),
    )
    per_class = {
        split.names[c]: {"area": v.area, "11pt": v.eleven_point, "objects": v.objects}
        for c, v in result.per_class.items()
    }
    record = {"protocol": "voc", "mAP_area": result.map_area, "mAP_11pt": result.map_11pt, "iou": 0.5}
    curves = {split.names[c]: v.curve for c, v in result.per_class.items()}
    return Scores({**record, "per_class": per_class}, result.map_area, curves, _never_wrong(split))


# ------------------------------------------------------------------------------------------ WIDER


def _wider_face(split: Split, detections: DetectionArrays, lists: WiderFaceLists | None) -> Scores:
    if len(split.classes) != 1:
        names = ", ".join(split.names[c] for c in split.classes) or "none"
        raise UserError(f"protocol wider_face judges one class, the dataset labels {names}")
    sized = detections.with_boxes(_xywh(detections.boxes))
    notes = _counts_everything("wider_face", split)
    if lists is None:
        usable = ~split.flagged(int(REGION_FLAGS | Flag.INVALID)) & (split.labels() != DROPPED)
        truth = WiderFaceTruth(
            len(split.index), _xywh(split.index.boxes), split.index.image_of_box(), {"all": usable}
        )
        notes.append("no `val.lists`, so all valid faces are one setting, not easy, medium and hard")
    else:
        truth = lists.truth
        sized, lines = _by_name(sized, split.index, lists.names)
        notes += lines
    result = wider_face_scores(truth, sized)
    record = {"protocol": "wider_face", **result.scores, "faces": result.faces}
    known = [ap for ap in result.scores.values() if ap == ap]
    return Scores(record, float(np.mean(known)) if known else float("nan"), result.curves, tuple(notes))


def _by_name(detections: DetectionArrays, index: Index, names: Sequence[str]) -> tuple[DetectionArrays, list[str]]:
    """The detections with image rows of the lists, found by `event/name`, and what did not fit."""
    row_of = {name: row for row, name in enumerate(names)}
    keys = [PurePosixPath(index.names[row]) for row in range(len(index))]
    rows = np.array([row_of.get(f"{key.parent.name}/{key.stem}", -1) for key in keys], np.int64)
    notes = []
    if (rows < 0).any():
        first = keys[int(np.flatnonzero(rows < 0)[0])]
        notes.append(f"{int((rows < 0).sum())} images are not in the lists and left out, such as {first}")
    missing = len(names) - len(np.unique(rows[rows >= 0]))
    if missing:
        notes.append(f"{missing} of {len(names)} images of the lists are not in the split; their faces count")
    image = rows[detections.image_of_box]
    return detections.take(np.flatnonzero(image >= 0), image), notes


def _wider_pedestrian(split: Split, detections: DetectionArrays, edition: int | None) -> Scores:
    """The challenge joins all classes, also those that the label rules drop; COCO-style is per class."""
    index, labels = split.index, np.asarray(split.index.labels)
    regions = split.flagged(int(REGION_FLAGS | Flag.INVALID))
    objects, image = (labels >= 0) & ~regions, index.image_of_box()
    sized = _xywh(index.boxes)
    year = edition or (2018 if len(index.classes) > 1 else 2019)
    challenge = challenge_scores(
        PedestrianTruth(len(index), sized[objects], image[objects], sized[regions], image[regions]),
        detections.with_boxes(_xywh(detections.boxes)),
        year,
    )
    coco = coco_scores(ground_truth(split), best_per_image(detections, 100), split.classes)
    record = {
        "protocol": "wider_pedestrian",
        "challenge": {"AP": challenge.AP, "per_iou": challenge.per_iou, "edition": year},
        "coco_style": {key: coco.scores[key] for key in ("AP", "AP50", "AP75")},
        "per_class": {split.names[c]: dict(values) for c, values in coco.per_class.items()},
    }
    curves = {"challenge IoU .50": challenge.curves[0], "challenge IoU .75": challenge.curves[5]}
    curves |= {f"COCO-style {key}": coco.curves[key] for key in ("AP50", "AP75")}
    return Scores(record, coco.scores["AP"], curves, tuple(_counts_everything("the challenge", split)))


def _counts_everything(protocol: str, split: Split) -> list[str]:
    """WIDER's two protocols of their own read their own annotations, which know no classes labelled in part."""
    if split.verified is None:
        return []
    return [f"{protocol} counts every detection that finds nothing, also where the images do not verify its class"]


def _xywh(boxes: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    sized = np.array(boxes, np.float64)
    sized[:, 2:] -= sized[:, :2]
    return sized
