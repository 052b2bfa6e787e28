"""The evaluation protocols at full size, against a plain loop, faster-coco-eval by itself, and pycocotools.

    python benchmarks/evaluation.py [--quick] [--json FILE]

WIDER FACE: 3,226 images, 39,708 faces, 48,000 detections, three settings, against a Python loop over images,
detections and 1,000 thresholds as the public ports have it. COCO: 5,000 images, 80 classes, 36,000 boxes, 495,000
detections; the evaluators get the same data as lists of dictionaries, whose making is not counted for them, and
take turns with ours. All numbers must agree. Generated data; one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from crossdet.evaluation.arrays import DetectionArrays, GroundTruth
from crossdet.evaluation.precision_recall import area_ap
from crossdet.evaluation.protocols.coco import coco_scores
from crossdet.evaluation.protocols.voc import VocTruth, voc_scores
from crossdet.evaluation.protocols.wider_face import THRESHOLDS, WiderFaceTruth, wider_face_scores
from crossdet.evaluation.protocols.wider_pedestrian import PedestrianTruth, challenge_scores


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def near(rng: np.random.Generator, boxes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Copies of boxes x, y, w, h, moved and scaled by some percent of their size."""
    sides = boxes[rows][:, [2, 3, 2, 3]]
    moved = boxes[rows] + rng.normal(0, 0.1, (len(rows), 4)) * sides
    moved[:, 2:] = np.maximum(moved[:, 2:], 1)
    return moved


def random_set(
    seed: int, images: int, boxes: int, found: int, share_near: float, largest: float
) -> tuple[np.ndarray, ...]:
    """boxes, their images, detections x, y, w, h, their images, scores, and the box each was made from."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(np.log(8), np.log(largest), (boxes, 2)))
    truth = np.round(np.concatenate([rng.uniform(0, 600, (boxes, 2)), sizes], 1))
    image = rng.integers(0, images, boxes)
    rows = rng.integers(0, boxes, found)
    detections = near(rng, truth, rows)
    close = rng.random(found) < share_near
    detections[~close, :2] = rng.uniform(0, 600, (int((~close).sum()), 2))
    return truth, image, detections, image[rows], rng.random(found) * (0.5 + 0.5 * close), rows


# ------------------------------------------------------------------------------------------ WIDER FACE


def loop_overlaps(boxes: np.ndarray, faces: np.ndarray) -> np.ndarray:
    low = np.maximum(boxes[:, None, :2], faces[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], faces[None, :, 2:])
    sides = np.clip(high - low + 1, 0, None)
    inside = sides[..., 0] * sides[..., 1]
    area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    face_area = (faces[:, 2] - faces[:, 0] + 1) * (faces[:, 3] - faces[:, 1] + 1)
    return inside / (area[:, None] + face_area[None] - inside)


def loop_setting(images: list[tuple[np.ndarray, np.ndarray, np.ndarray]], kept: list[np.ndarray]) -> float:
    """One setting as the public ports compute it: per image a loop over detections and one over thresholds."""
    counts, faces = np.zeros((1000, 2)), sum(int(k.sum()) for k in kept)
    for (boxes, scores, truth), keep in zip(images, kept, strict=True):
        if not len(boxes) or not len(truth):
            continue
        overlaps = loop_overlaps(boxes, truth)
        recall, proposal = np.zeros(len(truth)), np.ones(len(boxes))
        recalled = np.zeros(len(boxes))
        for row in range(len(boxes)):
            best = int(overlaps[row].argmax())
            if overlaps[row, best] >= 0.5:
                if not keep[best]:
                    recall[best] = -1
                    proposal[row] = -1
                elif recall[best] == 0:
                    recall[best] = 1
            recalled[row] = (recall == 1).sum()
        for k in range(1000):
            reached = np.where(scores >= THRESHOLDS[k])[0]
            if len(reached):
                last = reached[-1]
                counts[k, 0] += (proposal[: last + 1] == 1).sum()
                counts[k, 1] += recalled[last]
    precision = np.divide(counts[:, 1], counts[:, 0], out=np.zeros(1000), where=counts[:, 0] > 0)
    return area_ap(counts[:, 1] / faces, precision)


def wider_face(scale: int) -> dict[str, float]:
    images = 3226 // scale
    truth, image, found, found_image, scores, _ = random_set(0, images, 39708 // scale, 48000 // scale, 0.7, 120)
    rng = np.random.default_rng(1)
    rank = rng.random(len(truth))
    kept = {"easy": rank < 0.18, "medium": rank < 0.34, "hard": rank < 0.8}
    detections = DetectionArrays(found, scores, np.zeros(len(found), int), found_image)
    ours = WiderFaceTruth(images, truth, image, kept)
    result = wider_face_scores(ours, detections)
    mine = statistics.median(seconds(lambda: wider_face_scores(ours, detections)) for _ in range(5))

    def corners(boxes: np.ndarray) -> np.ndarray:
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)

    start = time.perf_counter()
    scaled = (scores - scores.min()) / (scores.max() - scores.min())
    listed, rows = [], [np.flatnonzero(image == i) for i in range(images)]
    for i in range(images):
        order = np.flatnonzero(found_image == i)
        order = order[np.argsort(-scaled[order], kind="stable")]
        listed.append((corners(found[order]), scaled[order], corners(truth[rows[i]])))
    for setting, mask in kept.items():
        ap = loop_setting(listed, [mask[r] for r in rows])
        assert abs(ap - result.scores[setting]) < 1e-9, (setting, ap, result.scores[setting])
    loop = time.perf_counter() - start
    return {"ours_seconds": mine, "loop_seconds": loop, "times_faster": loop / mine}


# ------------------------------------------------------------------------------------------ COCO


def coco(scale: int, rounds: int) -> dict[str, float]:
    """Ours, faster-coco-eval and pycocotools in turns; medians of `rounds` (pycocotools once)."""
    import faster_coco_eval
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = 5000 // scale
    truth, image, found, found_image, scores, rows = random_set(
        2, images, 36000 // scale, 495000 // scale, 0.4, 400
    )
    rng = np.random.default_rng(3)
    labels = rng.integers(1, 81, len(truth))
    crowd = rng.random(len(truth)) < 0.012
    area = truth[:, 2] * truth[:, 3] * 0.7
    arrays = GroundTruth(np.arange(1, images + 1), truth, labels, crowd, area, image)
    detections = DetectionArrays(found, scores, labels[rows], found_image)
    columns = zip(truth.tolist(), labels.tolist(), image.tolist(), crowd.tolist(), area.tolist(), strict=True)
    content = {
        "images": [{"id": i} for i in range(1, images + 1)],
        "categories": [{"id": c, "name": str(c)} for c in range(1, 81)],
        "annotations": [
            {"id": n, "bbox": b, "category_id": c, "image_id": i + 1, "iscrowd": int(k), "area": a}
            for n, (b, c, i, k, a) in enumerate(columns, 1)
        ],
    }
    columns2 = zip(found.tolist(), labels[rows].tolist(), found_image.tolist(), scores.tolist(), strict=True)
    results = [{"bbox": b, "category_id": c, "image_id": i + 1, "score": s} for b, c, i, s in columns2]

    text = json.dumps(content)

    def evaluator(coco_class: Any, eval_class: Any) -> tuple[list[float], float]:
        """The twelve numbers and the seconds; both evaluators write into what they are given."""
        data, rows = json.loads(text), [dict(r) for r in results]
        with contextlib.redirect_stdout(io.StringIO()):
            start = time.perf_counter()
            if coco_class is COCO:
                api = COCO()
                api.dataset = data
                api.createIndex()
            else:
                api = coco_class(data)
            evaluation = eval_class(api, api.loadRes(rows), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            return list(evaluation.stats[:12]), time.perf_counter() - start

    mine, by_itself = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        own = coco_scores(arrays, detections, range(1, 81), sized=True)
        mine.append(time.perf_counter() - start)
        stats, took = evaluator(faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster)
        by_itself.append(took)
    reference, pycocotools = evaluator(COCO, COCOeval)
    for name, value, other, third in zip(own.scores, own.scores.values(), reference, stats, strict=True):
        assert abs(value - other) < 1e-9, (name, value, other)
        assert abs(value - third) < 1e-9, (name, value, third)
    ours = statistics.median(mine)
    alone = statistics.median(by_itself)
    return {
        "ours_seconds": ours,
        "faster_coco_eval_seconds": alone,
        "pycocotools_seconds": pycocotools,
        "ours_over_faster_coco_eval": ours / alone,
        "times_faster_than_pycocotools": pycocotools / ours,
    }


# ------------------------------------------------------------------------------------------ the others


def others(scale: int) -> dict[str, float]:
    images = 5000 // scale
    truth, image, found, found_image, scores, rows = random_set(
        4, images, 20000 // scale, 200000 // scale, 0.5, 300
    )
    labels = np.random.default_rng(5).integers(0, 20, len(truth))
    voc = VocTruth(images, truth + [0, 0, 1, 1] * truth[:, [0, 1, 0, 1]], labels, labels < 1, image)
    boxes = found + [0, 0, 1, 1] * found[:, [0, 1, 0, 1]]
    detections = DetectionArrays(boxes, scores, labels[rows], found_image)
    peds = PedestrianTruth(images, truth, image, truth[::9], image[::9])
    sized = detections.with_boxes(found)
    return {
        "voc_seconds": min(seconds(lambda: voc_scores(voc, detections, range(20))) for _ in range(3)),
        "challenge_seconds": min(seconds(lambda: challenge_scores(peds, sized, 2018)) for _ in range(3)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a twentieth of the size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    scale = 20 if args.quick else 1
    result: dict[str, Any] = {"wider_face": wider_face(scale)}
    face = result["wider_face"]
    print(
        f"WIDER FACE        ours {face['ours_seconds']:.3f} s, plain loop {face['loop_seconds']:.1f} s: "
        f"{face['times_faster']:.0f} times faster"
    )
    result["coco"] = coco(scale, args.rounds)
    numbers = result["coco"]
    print(
        f"COCO              ours {numbers['ours_seconds']:.2f} s, faster-coco-eval by itself "
        f"{numbers['faster_coco_eval_seconds']:.2f} s (ours takes {numbers['ours_over_faster_coco_eval']:.2f} "
        f"of it), pycocotools {numbers['pycocotools_seconds']:.1f} s: "
        f"{numbers['times_faster_than_pycocotools']:.1f} times faster"
    )
    result["others"] = others(scale)
    print(
        f"VOC               {result['others']['voc_seconds']:.2f} s (200,000 detections)\n"
        f"WIDER Pedestrian  {result['others']['challenge_seconds']:.2f} s (200,000 detections)"
    )
    result["machine"] = platform.processor() or platform.machine()
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
