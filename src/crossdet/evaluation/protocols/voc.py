"""The PASCAL VOC protocol on arrays: AP per class by 11 points (VOC 2007) and by area (2010 and later).

Source: Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", sec. 4.2, and the development kit
(VOCevaldet.m). Per class all detections are ranked by score; equal scores stay in the given order. Each takes
the object of its class in its image with the largest IoU, of boxes whose corner pixels belong to them. Where
that IoU reaches the threshold: on a difficult object the detection does not count, any number of times; on an
object not yet found it is right; else it is wrong. There is no second-best object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crossdet.errors import UserError
from crossdet.evaluation.arrays import Bools, DetectionArrays, Ints, VocTruth, check_rows
from crossdet.evaluation.files.voc import write_voc_results
from crossdet.evaluation.hits import best_overlaps, by_score, first_of_each, iou_with_offset
from crossdet.evaluation.operating import in_regions
from crossdet.evaluation.precision_recall import Curve, area_ap, eleven_point_ap, exact_curve
from crossdet.evaluation.protocols.entry import Protocol, ProtocolLimits, Scores, columns, never_wrong, of_class
from crossdet.evaluation.splits import Split, ground_truth
from crossdet.types import REGION_FLAGS, Flag


@dataclass(frozen=True)
class VocClass:
    """area, eleven_point: AP of one class in 0..1, nan without objects. objects: how many are not difficult."""

    area: float
    eleven_point: float
    objects: int
    curve: Curve


@dataclass(frozen=True)
class VocScores:
    """The means over the classes that have objects (nan if none has), and each class."""

    map_area: float
    map_11pt: float
    per_class: dict[int, VocClass]


def voc_scores(
    truth: VocTruth,
    detections: DetectionArrays,
    class_ids: Sequence[int] | Ints,
    iou_threshold: float = 0.5,
    inclusive: bool = True,
    verified: Bools | None = None,
) -> VocScores:
    """Scores for the classes `class_ids`; boxes of other classes are left out.

    detections: boxes as those of `truth`, 1-based or 0-based alike. inclusive: an IoU equal to the threshold is
    enough, as in the development kit; False: it must be larger, as in py-faster-rcnn and detectron2. verified:
    `[N]` False for detections that do not count where they are not right (`GroundTruth.verifies`); None: all True.

    Raises `UserError` for detections in images that the truth does not have and for a threshold not in (0, 1].
    """
    if not 0 < iou_threshold <= 1:
        raise UserError(f"IoU threshold: expected a number in (0, 1], got {iou_threshold}")
    check_rows("detections", detections.image_of_box, truth.images)
    judged = np.ones(len(detections.labels), bool) if verified is None else verified
    per_class = {
        int(c): _score_class(truth, detections, judged, int(c), iou_threshold, inclusive)
        for c in np.unique(class_ids)
    }
    known = [scores for scores in per_class.values() if scores.objects]
    return VocScores(
        map_area=float(np.mean([s.area for s in known])) if known else float("nan"),
        map_11pt=float(np.mean([s.eleven_point for s in known])) if known else float("nan"),
        per_class=per_class,
    )


def _score_class(
    truth: VocTruth,
    detections: DetectionArrays,
    verified: Bools,
    class_id: int,
    iou_threshold: float,
    inclusive: bool,
) -> VocClass:
    mine, found = truth.labels == class_id, detections.labels == class_id
    difficult = truth.difficult[mine]
    objects = int((~difficult).sum())
    best, iou = best_overlaps(
        detections.boxes[found].astype(np.float64),
        detections.image_of_box[found],
        truth.boxes[mine].astype(np.float64),
        truth.image_of_box[mine],
        iou_with_offset(1.0),
    )
    passed = (best >= 0) & (iou >= iou_threshold if inclusive else iou > iou_threshold)
    excused = passed.copy()
    excused[passed] = difficult[best[passed]]
    order = by_score(detections.scores[found])
    hits = first_of_each(best, passed & ~excused, order)
    counted = ~excused & (hits | verified[found])
    recall, precision = exact_curve(hits[order], counted[order], objects)
    if not objects:
        nan = float("nan")
        return VocClass(nan, nan, 0, Curve(recall, precision, nan))
    area = area_ap(recall, precision)
    return VocClass(area, eleven_point_ap(recall, precision), objects, Curve(recall, precision, area))


def _score(split: Split, detections: DetectionArrays, _most: int) -> Scores:
    """Zero-based half-open boxes become 1-based with the corner pixels inside. Regions count as difficult, and what
    lies in one by half or more is not wrong, however small."""
    places = ground_truth(split, int(REGION_FLAGS | Flag.INVALID))
    truth, inclusive = ground_truth(split), np.array([1.0, 1.0, 0.0, 0.0])
    found = voc_scores(
        VocTruth(len(split.index), truth.boxes + inclusive, truth.labels, truth.crowd, truth.image_of_box),
        detections.with_boxes(detections.boxes + inclusive),
        split.classes,
        verified=truth.verifies(detections.image_of_box, detections.labels) & ~in_regions(places, detections),
    )
    by_name = {split.names[c]: scores for c, scores in found.per_class.items()}
    record = {"mAP_area": found.map_area, "mAP_11pt": found.map_11pt, "iou": 0.5, "per_class": numbers_of(by_name)}
    return Scores(record, {name: v.curve for name, v in by_name.items()}, never_wrong(split))


def numbers_of(by_name: Mapping[str, VocClass]) -> dict[str, dict[str, float | int]]:
    """The numbers of every class as they go into a record."""
    return {name: {"area": v.area, "11pt": v.eleven_point, "objects": v.objects} for name, v in by_name.items()}


PROTOCOL = Protocol(
    name="voc",
    limits=ProtocolLimits(100, 0.05),
    score=_score,
    headline=lambda record: record["mAP_area"],
    columns=columns("mAP_area", "mAP_11pt"),
    class_number=of_class("area"),
    write=write_voc_results,
    number="AP area",
)
