"""The COCO protocol on arrays, computed by faster-coco-eval.

IoU thresholds 0.50:0.05:0.95, 101 recall points, the mean over the classes; per class and image the best
`max_detections` count. A crowd box may take any number of detections, which then count neither as right nor
as wrong. Small, medium and large are bounded by areas of 32^2 and 96^2 (the annotated area; of detections the
box area). The numbers are those of pycocotools (cocodataset/cocoapi, PythonAPI/pycocotools/cocoeval.py); a
test compares them. Where the truth says which images verify which class, they are those of the LVIS API
(lvis-dataset/lvis-api, lvis/eval.py), compared likewise.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossdet.errors import UserError
from crossdet.evaluation.arrays import Bools, DetectionArrays, Floats, GroundTruth, Ints, check_rows, to_xywh
from crossdet.evaluation.files.coco import write_coco_results
from crossdet.evaluation.precision_recall import Curve
from crossdet.evaluation.protocols.entry import Protocol, ProtocolLimits, Scores, columns, never_wrong, of_class
from crossdet.evaluation.splits import Split, ground_truth

PAIRS_AT_ONCE = 1_000_000
"""Image-class pairs per call of the evaluator, which keeps an object per pair: bounds the memory (LVIS)."""

RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = {"": 0, "s": 1, "m": 2, "l": 3}
"""Suffix of a score's name -> position on the evaluator's area axis."""


@dataclass(frozen=True)
class CocoScores:
    """All numbers in 0..1; nan where there is no ground truth.

    scores: AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl. All but AR1 and AR10 are for `max_detections`
        per class and image (AR100 too, whatever that limit is).
    per_class: class id -> AP, AP50 and `boxes`, the number of its boxes that are no crowds.
    curves: precision at 101 recalls, mean over the classes: "AP" (mean over the IoU thresholds), "AP50", "AP75".
    """

    scores: dict[str, float]
    per_class: dict[int, dict[str, float | int]]
    curves: dict[str, Curve]


def coco_scores(
    truth: GroundTruth,
    detections: DetectionArrays,
    class_ids: Sequence[int] | Ints,
    max_detections: int = 100,
    per_class: bool = True,
    sized: bool = False,
) -> CocoScores:
    """Scores of the detections for the classes `class_ids`; boxes of other classes are left out.

    sized: the boxes of both are x, y, width, height, as in COCO's files. Corners and back would move a size by
    its last bit, and with it an IoU that lies exactly on a threshold.

    Raises `UserError` for detections in images that the truth does not have, `ValueError` for wrong shapes.
    """
    if max_detections < 1:
        raise UserError(f"max_detections: expected a number >= 1, got {max_detections}")
    check_rows("detections", detections.image_of_box, len(truth.image_ids))
    classes = np.unique(np.asarray(class_ids, np.int64))
    limits = [min(limit, max_detections) for limit in (1, 10, max_detections)]
    with _collector_paused():
        precision, recall = _curves(truth, detections, classes, limits, sized)
    scores = {"AP": _mean(precision[..., 0, 2])}
    scores |= {"AP50": _mean(precision[0, ..., 0, 2]), "AP75": _mean(precision[5, ..., 0, 2])}
    scores |= {f"AP{name}": _mean(precision[..., row, 2]) for name, row in AREAS.items() if name}
    scores |= {f"AR{limit}": _mean(recall[..., 0, row]) for row, limit in enumerate((1, 10, 100))}
    scores |= {f"AR{name}": _mean(recall[..., row, 2]) for name, row in AREAS.items() if name}
    by_class: dict[int, dict[str, float | int]] = {}
    for row, class_id in enumerate(classes.tolist() if per_class else []):
        by_class[class_id] = {
            "AP": _mean(precision[:, :, row, 0, 2]),
            "AP50": _mean(precision[0, :, row, 0, 2]),
            "boxes": int(np.count_nonzero((truth.labels == class_id) & ~truth.crowd)),
        }
    curves = {
        "AP": _curve(precision[..., 0, 2]),
        "AP50": _curve(precision[:1, ..., 0, 2]),
        "AP75": _curve(precision[5:6, ..., 0, 2]),
    }
    return CocoScores(scores, by_class, curves)


def _curve(precision: Floats) -> Curve:
    """Mean over IoU thresholds and classes of `[T, 101, K]`; classes without ground truth are marked with -1."""
    known = precision[:, :, (precision > -1).all((0, 1))]
    mean = known.mean((0, 2)) if known.size else np.full(len(RECALLS), np.nan)
    return Curve(RECALLS, mean, float(mean.mean()))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """The evaluator wants a dictionary per box: a sixth of the time went into looking for cycles among them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _mean(values: Floats) -> float:
    """The evaluator marks what has no ground truth with -1."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else float("nan")


def _curves(
    truth: GroundTruth, detections: DetectionArrays, classes: Ints, limits: list[int], sized: bool
) -> tuple[Floats, Floats]:
    """Precision `[10, 101, K, 4, 3]` and recall `[10, K, 4, 3]` (IoU, recall, class, area, limit)."""
    images = len(truth.image_ids)
    if not images or not len(classes):
        return np.full((10, 101, len(classes), 4, 3), -1.0), np.full((10, len(classes), 4, 3), -1.0)
    # ranks instead of ids: the evaluator keeps ids as floats
    rank = np.empty(images, np.int64)
    rank[np.argsort(truth.image_ids)] = np.arange(1, images + 1)
    chunk = max(1, PAIRS_AT_ONCE // images)
    parts = [
        _evaluate(truth, detections, classes[start : start + chunk], limits, rank, sized)
        for start in range(0, len(classes), chunk)
    ]
    return np.concatenate([p for p, _ in parts], axis=2), np.concatenate([r for _, r in parts], axis=1)


def _evaluate(
    truth: GroundTruth, detections: DetectionArrays, classes: Ints, limits: list[int], rank: Ints, sized: bool
) -> tuple[Floats, Floats]:
    from faster_coco_eval import COCO, COCOeval_faster

    frame: dict[str, Any] = {
        "images": [{"id": image} for image in range(1, len(rank) + 1)],
        "categories": [{"id": class_id} for class_id in classes.tolist()],
    }
    kept = np.isin(truth.labels, classes)
    boxes = _records(truth.boxes[kept], truth.labels[kept], rank[truth.image_of_box[kept]], sized)
    for record, crowd, area in zip(boxes, truth.crowd[kept].tolist(), truth.area[kept].tolist(), strict=True):
        record["iscrowd"], record["area"] = int(crowd), area
    kept = np.isin(detections.labels, classes)
    found = _records(detections.boxes[kept], detections.labels[kept], rank[detections.image_of_box[kept]], sized)
    for record, score in zip(found, detections.scores[kept].tolist(), strict=True):
        record["score"] = score
    if truth.verified is not None:
        _as_in_lvis(frame, found, truth.verifies(detections.image_of_box[kept], detections.labels[kept]))
    evaluator = COCOeval_faster(
        COCO({**frame, "annotations": boxes}), COCO({**frame, "annotations": found}), "bbox",
        print_function=_silent, lvis_style=truth.verified is not None,
    )  # fmt: skip
    evaluator.params.maxDets = limits
    evaluator.evaluate()
    evaluator.accumulate()
    return np.asarray(evaluator.eval["precision"]), np.asarray(evaluator.eval["recall"])


def _records(boxes: Floats, labels: Ints, images: Ints, sized: bool) -> list[dict[str, Any]]:
    """The evaluator's annotations; ids start at 1, since it reads a match with 0 as none."""
    xywh = boxes.astype(np.float64) if sized else to_xywh(boxes)
    areas = xywh[:, 2] * xywh[:, 3]
    columns = zip(xywh.tolist(), labels.tolist(), images.tolist(), areas.tolist(), strict=True)
    return [
        {"id": row, "image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": 0}
        for row, (box, label, image, area) in enumerate(columns, 1)
    ]


def _as_in_lvis(frame: dict[str, Any], found: list[dict[str, Any]], verified: Bools) -> None:
    """The per-image lists as LVIS files have them, of the classes that are detected in the image: looked for in
    all of it, or not exhaustively. The evaluator also wants a frequency of every class, for means not read here."""
    for category in frame["categories"]:
        category["frequency"] = "f"
    for image in frame["images"]:
        image["neg_category_ids"], image["not_exhaustive_category_ids"] = set(), set()
    for record, known in zip(found, verified.tolist(), strict=True):
        image = frame["images"][record["image_id"] - 1]
        key = "neg_category_ids" if known else "not_exhaustive_category_ids"
        image[key].add(record["category_id"])


def _silent(*_: object) -> None:
    pass


def in_split(split: Split, found: CocoScores) -> Scores:
    """As the scores of a split, by its class names."""
    per_class = {split.names[c]: dict(values) for c, values in found.per_class.items()}
    return Scores({**found.scores, "per_class": per_class}, found.curves, never_wrong(split))


def _score(split: Split, detections: DetectionArrays, most: int) -> Scores:
    return in_split(split, coco_scores(ground_truth(split), detections, split.classes, most))


PROTOCOL = Protocol(
    name="coco",
    limits=ProtocolLimits(100, 0.05),
    score=_score,
    headline=lambda record: record["AP"],
    columns=columns("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"),
    class_number=of_class("AP"),
    write=write_coco_results,
)
