"""What a training of the ablation is judged by: numbers from detections on the union test, and from a run's logs.

All ratios in 0..1, nan where there is nothing to measure. A hit is a true positive at IoU 0.5.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdet.errors import UserError
from crossdet.evaluation.arrays import Bools, DetectionArrays, Floats
from crossdet.evaluation.audit import where_detections_lie
from crossdet.evaluation.hits import by_score
from crossdet.evaluation.operating import CONFIDENT, best_f1, best_scores, judge
from crossdet.evaluation.protocols.coco import RECALLS, coco_scores
from crossdet.evaluation.protocols.entry import best_per_image
from crossdet.evaluation.union import UnionTest, of_images, open_union_test
from crossdet.labels.space import DROPPED

PRECISION = 0.9
"""At which recall is compared."""
LOWEST_SCORE = 0.05
"""Detections must score more, as the COCO protocol has it here."""
MOST_FOUND, MOST_COUNTED = 300, 100
"""Detections per image, of all classes together: as `crossdet audit`."""
BINS = 10
"""Of the calibration error, equally wide."""
SPIKE, BEFORE = 3.0, 20
"""A logged loss is a spike above so many times the median of so many logged losses before it."""


def recall_at_precision(scores: Floats, hits: Bools, objects: int, precision: float = PRECISION) -> float:
    """The largest recall of any threshold at which the precision is at least `precision`; 0 if there is none."""
    if not objects:
        return float("nan")
    order = by_score(scores)
    right, reported = np.cumsum(hits[order]), np.arange(1, len(order) + 1)
    reached = right / np.maximum(reported, 1) >= precision
    reached[:-1] &= scores[order][:-1] != scores[order][1:]  # a threshold cannot separate equal scores
    return float(right[reached].max(initial=0) / objects)


def calibration_error(scores: Floats, hits: Bools, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, eq. 5) with the precision as accuracy: the
    mean over the detections of |mean score - precision| of their bin. nan without detections."""
    if not len(scores):
        return float("nan")
    bin_of = np.minimum((scores.astype(np.float64) * bins).astype(np.int64), bins - 1)
    score_sums = np.bincount(bin_of, scores, bins)
    hit_sums = np.bincount(bin_of, hits, bins)
    return float(np.abs(score_sums - hit_sums).sum() / len(scores))


def pooled_ap50(scores: Floats, hits: Bools, objects: int) -> float:
    """AP at IoU 0.5 of the detections of all classes in one ranking (hits are within the class), at COCO's 101
    recalls. Below the mean of the classes' AP50 where their scores do not mean the same (Dave et al. 2021,
    arXiv 2102.01066, sec. 4), or where frequent classes are the harder ones."""
    if not objects:
        return float("nan")
    right = np.cumsum(hits[by_score(scores)])
    precision = right / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(right / objects, RECALLS, side="left")
    return float(np.append(precision, 0.0)[at].mean())


def loss_spikes(losses: Floats) -> int:
    """How many are above `SPIKE` times the median of the `BEFORE` before; the first `BEFORE` are not judged."""
    return sum(
        bool(losses[row] > SPIKE * np.median(losses[row - BEFORE : row])) for row in range(BEFORE, len(losses))
    )


def open_test(split_dir: Path, parts: Mapping[str, Mapping[str, Any]]) -> UnionTest:
    """The test pictures of a split, each look a domain. parts: of `split.json`."""
    looks = dict.fromkeys(part["look"] for part in parts.values())
    labelled = {
        look: frozenset(c for part in parts.values() if part["look"] == look for c in part["classes"])
        for look in looks
    }
    folder = split_dir / "test/all.json"
    return open_union_test(folder, split_dir / "images", lambda name: PurePosixPath(name).parts[0], labelled)


def union_ids(detector: Sequence[str], union: Sequence[str], parts: Collection[str]) -> NDArray[np.int64]:
    """`[C]` union id of every class of a detector, DROPPED if none; `part/name` of an unmerged model is `name`."""

    def id_of(name: str) -> int:
        part, _, own = name.partition("/")
        known = name if name in union else own if part in parts else ""
        return union.index(known) if known in union else DROPPED

    return np.array([id_of(name) for name in detector], np.int64)


def folded(detections: DetectionArrays, ids: NDArray[np.int64], nms_iou: float) -> DetectionArrays:
    """The detections of known classes, in the detector's labels. Where several of its classes are one in the union,
    class-wise NMS once more, so that an object found as `red/WBC` and as `white/WBC` counts once."""
    kept = detections.take(np.flatnonzero(ids[detections.labels] >= 0))
    known = ids[ids >= 0]
    if len(np.unique(known)) == len(known):
        return kept
    from crossdet.evaluation.folding import rows_after_nms  # imports torch

    return kept.take(rows_after_nms(kept, ids[kept.labels], nms_iou))


def union_measures(
    test: UnionTest,
    detections: DetectionArrays,
    ids: NDArray[np.int64],
    thresholds: NDArray[np.float64],
    overlap: Bools,
    nms_iou: float = 0.5,
) -> dict[str, Any]:
    """All numbers on the union test, of detections of all classes at once, the best 100 per image.

    ids: `[C]` of `union_ids`. thresholds: `[C]` best-F1 thresholds of the detector's own validation data.
    overlap: `[C, C]` pairs of its classes that may share a box. A detector that knows some classes only (an
    expert) is measured on these; `complete` says so.

    Of false positives: per image, those above the threshold, on objects of other classes and elsewhere
    (background, a box too far off, or an object found twice).
    """
    best = best_per_image(folded(detections, ids, nms_iou), MOST_COUNTED)
    own_threshold = thresholds[best.labels]
    best = replace(best, labels=ids[best.labels])
    known = sorted({int(c) for c in ids if c != DROPPED})
    shared = np.zeros((len(test.classes), len(test.classes)), bool)
    for a, b in np.argwhere(overlap).tolist():
        if ids[a] >= 0 and ids[b] >= 0:
            shared[ids[a], ids[b]] = True
    scores = coco_scores(test.truth, best, known)
    rows = _per_class(test, best, known, own_threshold, shared)
    for class_id in known:
        rows[test.classes[class_id]] |= scores.per_class[class_id]
    looks = _per_look(test, best, known)
    judged = judge(test.truth, best, known)
    cells = [row for look in looks.values() for row in look["per_class"].values() if row["boxes"]]
    found = [row["threshold"] for row in rows.values() if row["threshold"] is not None]
    return {
        "images": len(test.truth.image_ids),
        "classes": list(test.classes),
        "complete": len(known) == len(test.classes),
        "AP": scores.scores["AP"],
        "AP50": scores.scores["AP50"],
        "pooled_AP50": pooled_ap50(
            judged.scores[judged.counted], judged.hits[judged.counted], sum(judged.objects.values())
        ),
        **{
            f"{where}_{key}": _mean(row[key] for row in cells if row["home"] == home)
            for where, home in (("home", True), ("foreign", False))
            for key in ("AP", "AP50", "found_confidently")
        },
        **{key: _mean(row[key] for row in rows.values()) for key in _CLASS_MEANS},
        "threshold_range": max(found) - min(found) if found else float("nan"),
        "false_positives": {
            when: {
                where: float(sum(row["false_positives"][when][where] for row in rows.values()))
                for where in ("on_other_objects", "elsewhere")
            }
            for when in ("own_threshold", "confident")
        },
        "per_class": rows,
        "per_look": looks,
    }


_CLASS_MEANS = ("recall_at_precision", "found_confidently", "best_score", "calibration_error")


def _per_class(
    test: UnionTest, best: DetectionArrays, known: Sequence[int], own_threshold: Floats, overlap: Bools
) -> dict[str, dict[str, Any]]:
    """Class name -> its numbers over all looks, without its AP."""
    truth, images = test.truth, max(1, len(test.truth.image_ids))
    judged = judge(truth, best, known, LOWEST_SCORE)
    _, on_object, _ = where_detections_lie(truth, best, overlap)
    best_of_object = best_scores(truth, best)
    rows = {}
    for class_id in known:
        mine = (judged.labels == class_id) & judged.counted
        hits, scores = judged.hits[mine], judged.scores[mine]
        point = best_f1([judged], class_id)
        wrong = mine & ~judged.hits
        above = {
            "own_threshold": wrong & (judged.scores > own_threshold),
            "confident": wrong & (judged.scores > CONFIDENT),
        }
        rows[test.classes[class_id]] = {
            "recall_at_precision": recall_at_precision(scores, hits, judged.objects[class_id]),
            **_confidence(best_of_object, (truth.labels == class_id) & ~truth.crowd),
            "calibration_error": calibration_error(scores, hits),
            "threshold": None if point is None else point.threshold,
            "false_positives": {
                when: {
                    "on_other_objects": float((rows_above & on_object).sum() / images),
                    "elsewhere": float((rows_above & ~on_object).sum() / images),
                }
                for when, rows_above in above.items()
            },
        }
    return rows


def _per_look(test: UnionTest, best: DetectionArrays, known: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Look -> AP, AP50 and per class the numbers in this look; home: a part with this look labels the class."""
    looks = {}
    for look in dict.fromkeys(test.domain_of.tolist()):
        truth, found = of_images(test.truth, best, np.flatnonzero(test.domain_of == look))
        scores = coco_scores(truth, found, known)
        best_of_object = best_scores(truth, found)
        looks[look] = {
            "AP": scores.scores["AP"],
            "AP50": scores.scores["AP50"],
            "per_class": {
                test.classes[c]: {
                    **scores.per_class[c],
                    **_confidence(best_of_object, (truth.labels == c) & ~truth.crowd),
                    "home": test.classes[c] in test.labelled_in[look],
                }
                for c in known
            },
        }
    return looks


def _confidence(best_of_object: Floats, objects: Bools) -> dict[str, float]:
    """Share of the objects found with a score of at least 0.3, and the mean best score on an object, 0 if none."""
    scores = best_of_object[objects]
    if not len(scores):
        return {"found_confidently": float("nan"), "best_score": float("nan")}
    return {"found_confidently": float((scores >= CONFIDENT).mean()), "best_score": float(scores.mean())}


def _mean(values: Any) -> float:
    known = [float(v) for v in values if v is not None and v == v]
    return float(np.mean(known)) if known else float("nan")


def learning_curve(
    epochs: Sequence[Mapping[str, Any]], parts: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Of the records of `metrics.json`: per evaluated epoch the steps so far and every part's number."""
    return [
        {"epoch": record["epoch"], "step": record["step"], "datasets": own_numbers(record["metrics"], parts)}
        for record in epochs
        if "metrics" in record
    ]


def own_numbers(metrics: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Part -> mean over the classes that it labels of COCO AP, or of VOC's AP by area. The references are scored on
    all classes of a part; so that all methods are judged by the same, only its own count. For the others this is
    the number of the protocol itself."""
    numbers = {}
    for name, record in metrics.get("datasets", {}).items():
        rows = record["per_class"]
        own = [rows.get(c) or rows.get(f"{name}/{c}") or {} for c in parts[name]["classes"]]
        value = _mean(row.get("AP", row.get("area")) for row in own)
        numbers[name] = value if value == value else None
    return numbers


def read_steps(run_dir: Path) -> list[dict[str, str]]:
    """The rows of `steps.csv`; none where there is no such file."""
    file = run_dir / "steps.csv"
    return list(csv.DictReader(file.read_text().splitlines())) if file.exists() else []


def stability(rows: Sequence[Mapping[str, str]], warmup_epochs: float, clip_norm: float | None) -> dict[str, Any]:
    """Gradient norms (before clipping; logged only where they are clipped) and loss spikes, of the logged steps.
    Spikes are looked for in epochs that begin after the warm-up; see `loss_spikes`."""
    norms = np.array([float(row["gradient_norm"]) for row in rows if row["gradient_norm"]])
    after = np.array([float(row["loss"]) for row in rows if int(row["epoch"]) - 1 >= warmup_epochs])
    known = len(norms) > 0
    return {
        "logged": len(rows),
        "gradient_norm_median": float(np.median(norms)) if known else None,
        "gradient_norm_p99": float(np.percentile(norms, 99)) if known else None,
        "gradient_norm_max": float(norms.max()) if known else None,
        "clipped": float((norms > clip_norm).mean()) if known and clip_norm is not None else None,
        "losses_judged": max(0, len(after) - BEFORE),
        "loss_spikes": loss_spikes(after),
        "loss_max_after_warmup": float(after.max()) if len(after) else None,
    }


def training_seconds(rows: Sequence[Mapping[str, str]], epochs: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of training without evaluation: images of every epoch / its logged rate."""
    rate = {int(row["epoch"]): float(row["images_per_second"]) for row in rows}  # the last row of each epoch
    return sum(
        sum(part["images"] for part in record["datasets"].values()) / rate[record["epoch"]]
        for record in epochs
        if rate.get(record["epoch"])
    )


def measure_union(run_dir: Path, test: UnionTest, parts: Collection[str], eval_limits: Any) -> dict[str, Any]:
    """Runs the newest weights of a run over the union test. eval_limits: the config's `eval`. Raises `UserError`
    for weights that know no class of the test."""
    from crossdet.evaluation.run import detect
    from crossdet.inference import load_detector

    detector = load_detector(run_dir, last=True)
    ids = union_ids(detector.classes, test.classes, parts)
    if not (ids >= 0).any():
        raise UserError(
            f"{run_dir}: none of its classes ({', '.join(detector.classes)}) is in the union test "
            f"({', '.join(test.classes)})"
        )
    found = detect(detector.model, test.index, None, eval_settings(detector, eval_limits))
    thresholds = np.array(detector.class_thresholds())
    overlap = detector.space.overlap_array
    measures = union_measures(test, found.detections, ids, thresholds, overlap, eval_limits.nms_iou)
    return measures | {"unreadable": list(found.unreadable)}


def eval_settings(detector: Any, limits: Any) -> Any:
    """How the union test is looked at, the same for all runs; limits: the config's `eval`."""
    from crossdet.evaluation.run import EvalSettings

    return EvalSettings.of(detector.settings, limits, score_threshold=LOWEST_SCORE, max_detections=MOST_FOUND)
