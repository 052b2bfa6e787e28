"""The WIDER FACE protocol on arrays: AP on the easy, medium and hard faces.

Source: Yang et al., "WIDER FACE: A Face Detection Benchmark", and the released evaluation (wider_eval.m). The
scores of the whole set are scaled to 0..1 once. In each image the detections, by falling score, take the one face
with the largest IoU among all faces, also those outside the setting; an IoU of 0.5 is enough. On a face outside
the setting a detection does not count; on one not yet found it is right; else it is wrong. The curve is sampled
at 1,000 thresholds, 0.999 to 0; AP is the area under it.

Corners are x + w and y + h, and sides are again counted with + 1, so every box is one pixel larger than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crossdet.data.index import Index
from crossdet.errors import UserError
from crossdet.evaluation.arrays import (
    Bools,
    DetectionArrays,
    Floats,
    Ints,
    WiderFaceTruth,
    check_rows,
    to_corners,
    to_xywh,
)
from crossdet.evaluation.files.wider_face import write_wider_face_predictions
from crossdet.evaluation.files.wider_face_lists import SETTINGS, read_wider_face_truth
from crossdet.evaluation.hits import best_overlaps, by_score, first_of_each, iou_with_offset
from crossdet.evaluation.operating import judge
from crossdet.evaluation.precision_recall import Curve, area_ap
from crossdet.evaluation.protocols.entry import (
    Lists,
    Protocol,
    ProtocolLimits,
    Record,
    Scores,
    columns,
    counts_everything,
)
from crossdet.evaluation.splits import Split, ground_truth
from crossdet.labels.space import DROPPED
from crossdet.types import REGION_FLAGS, Flag

THRESHOLDS = 1.0 - np.arange(1, 1001) / 1000
IOU_THRESHOLD = 0.5
ALL_SETTINGS = (*SETTINGS, "all")
"""The last one without lists: all valid faces of the index."""

Arithmetic = Literal["double", "matlab_int32"]
"""double: as the Python ports. matlab_int32: the released MATLAB code, see `_int32_overlap` and `_scaled`."""


@dataclass(frozen=True)
class WiderFaceScores:
    """Per setting AP in 0..1 (nan where it counts no face), the number of faces, and the curve of 1,000 points."""

    scores: dict[str, float]
    faces: dict[str, int]
    curves: dict[str, Curve]


def wider_face_scores(
    truth: WiderFaceTruth, detections: DetectionArrays, arithmetic: Arithmetic = "double"
) -> WiderFaceScores:
    """Scores of face detections; their order does not matter, their labels are not looked at.

    detections: boxes `[N, 4]` x, y, w, h in pixels of the original images. Images without any face are left out
    with their detections, as in the released code (the official lists have none).

    Raises `UserError` for detections in images that the truth does not have.
    """
    check_rows("detections", detections.image_of_box, truth.images)
    has_faces = np.zeros(truth.images, bool)
    has_faces[truth.image_of_box] = True
    scaled = _scaled(detections.scores, arithmetic).astype(np.float64)
    order = by_score(scaled)
    order = order[has_faces[detections.image_of_box[order]]]
    boxes, scaled = to_corners(detections.boxes[order]), scaled[order]
    best, iou = best_overlaps(
        boxes,
        detections.image_of_box[order],
        to_corners(truth.boxes),
        truth.image_of_box,
        iou_with_offset(1.0) if arithmetic == "double" else _int32_overlap,
    )
    passed = iou >= IOU_THRESHOLD
    first = first_of_each(best, passed, np.arange(len(order)))
    # the detections from each threshold on are a prefix of `order`
    until = np.searchsorted(-scaled, -THRESHOLDS, "right")
    curves = {}
    for setting, kept in truth.kept.items():
        on_kept = kept[best] if len(kept) else np.zeros(len(best), bool)
        proposals = _sampled(~passed | on_kept, until)
        found = _sampled(first & on_kept, until)
        curves[setting] = _curve(found, proposals, int(kept.sum()))
    return WiderFaceScores(
        scores={setting: curve.ap for setting, curve in curves.items()},
        faces={setting: int(kept.sum()) for setting, kept in truth.kept.items()},
        curves=curves,
    )


def _scaled(scores: Floats, arithmetic: Arithmetic) -> Floats:
    """Scores scaled by the smallest and largest of the whole set; 0 where these are equal (0 / 0 in the released
    code, which then reports an AP of 0).

    The released code holds the two in single precision, starting from the smallest and largest positive single.
    """
    if not len(scores):
        return scores.astype(np.float64)
    if arithmetic == "double":
        scores = scores.astype(np.float64)
        low, high = scores.min(), scores.max()
    else:
        scores, limits = scores.astype(np.float32), np.finfo(np.float32)
        low, high = min(scores.min(), limits.max), max(scores.max(), limits.tiny)
    return (scores - low) / (high - low) if high > low else np.zeros_like(scores)


def _sampled(counted: Bools, until: Ints) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counted)])[until]


def _curve(found: Ints, proposals: Ints, faces: int) -> Curve:
    precision = np.divide(found, proposals, out=np.zeros(len(found)), where=proposals > 0)
    if not faces:
        return Curve(np.full(len(found), np.nan), precision, float("nan"))
    recall = found / faces
    return Curve(recall, precision, area_ap(recall, precision))


def _int32_overlap(boxes: Floats, truth: Floats) -> Floats:
    """IoU in MATLAB's int32 arithmetic, in which the released code computes since its boxes are int32.

    Int32 with double gives int32, rounded half away from zero: corners of detections become whole numbers and
    the quotient 0 or 1, so the first face with an IoU of 0.5 is taken, not the best one.
    """
    width = _rounded(np.minimum(boxes[:, 2], truth[:, 2])) - _rounded(np.maximum(boxes[:, 0], truth[:, 0])) + 1
    height = _rounded(np.minimum(boxes[:, 3], truth[:, 3])) - _rounded(np.maximum(boxes[:, 1], truth[:, 1])) + 1
    inside = width * height
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    truth_sides = truth[:, 2:] - truth[:, :2] + 1
    union = _rounded(truth_sides.prod(1) + sides.prod(1)) - inside
    meet = (width > 0) & (height > 0)
    # x / 0 is the largest int32 there: a match
    quotient = np.divide(inside, union, out=np.ones(len(boxes)), where=union != 0)
    return np.where(meet, _rounded(quotient), 0.0)


def _rounded(values: Floats) -> Floats:
    return np.trunc(values + np.copysign(0.5, values))


def _score(split: Split, detections: DetectionArrays, _most: int) -> Scores:
    if len(split.classes) != 1:
        names = ", ".join(split.names[c] for c in split.classes) or "none"
        raise UserError(f"protocol wider_face judges one class, the dataset labels {names}")
    notes = counts_everything("wider_face", split)
    if split.lists is None:  # the released code knows no regions
        own = replace(ground_truth(split), verified=None)  # and no pictures that verify nothing
        counted = judge(own, detections, split.classes).counted
        detections = detections.take(np.flatnonzero(counted), detections.image_of_box)
    sized = detections.with_boxes(to_xywh(detections.boxes))
    if split.lists is None:
        usable = ~split.flagged(int(REGION_FLAGS | Flag.INVALID)) & (split.labels() != DROPPED)
        boxes, image_of_box = to_xywh(np.asarray(split.index.boxes)), split.index.image_of_box()
        truth = WiderFaceTruth(len(split.index), boxes, image_of_box, {"all": usable})
        notes.append("no `val.lists`, so all valid faces are one setting, not easy, medium and hard")
    else:
        truth = split.lists.truth
        sized, lines = _by_name(sized, split.index, split.lists.names)
        notes += lines
    found = wider_face_scores(truth, sized)
    return Scores({**found.scores, "faces": found.faces}, found.curves, tuple(notes))


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


def _headline(record: Record) -> float | None:
    """The mean of the settings that the record has."""
    known = [record[key] for key in ALL_SETTINGS if record.get(key) is not None and record[key] == record[key]]
    return sum(known) / len(known) if known else None


PROTOCOL = Protocol(
    name="wider_face",
    limits=ProtocolLimits(750, 0.01),
    score=_score,
    headline=_headline,
    columns=columns(*ALL_SETTINGS),
    class_number=lambda record, _name: _headline(record),
    write=write_wider_face_predictions,
    lists=Lists(
        read_wider_face_truth,
        "protocol wider_face without `val.lists`: one AP over all valid faces, not easy, medium and hard",
    ),
)
