"""COCO scores against pycocotools on random cases, and one case by hand."""

import contextlib
import io
import math

import numpy as np
import pytest

from crossdet.errors import UserError
from crossdet.evaluation.arrays import DetectionArrays, GroundTruth
from crossdet.evaluation.protocols import coco
from crossdet.evaluation.protocols.coco import coco_scores

AREA_NAMES = ("", "s", "m", "l")


def random_case(seed, images=12, classes=4):
    """Truth with crowds, odd areas and empty images; detections near it, with ties, in any order."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 60))
    corners = rng.uniform(0, 300, (count, 2))
    boxes = np.concatenate(
        [corners, corners + rng.choice([12, 40, 130], (count, 1)) * rng.uniform(0.5, 2, (count, 2))], 1
    )
    sides = boxes[:, 2:] - boxes[:, :2]
    truth = GroundTruth(
        image_ids=rng.permutation(1000)[:images] + 2**33,
        boxes=boxes,
        labels=rng.integers(-1, classes, count) * 7,
        crowd=rng.random(count) < 0.15,
        area=sides.prod(1) * rng.uniform(0.4, 1.0, count),
        image_of_box=rng.integers(0, images - 2, count),
    )
    picks = rng.integers(0, count, 6 * count)
    jitter = rng.normal(0, 0.08, (len(picks), 4)) * np.tile(sides[picks], 2) * rng.integers(0, 2, (len(picks), 1))
    labels = np.where(
        rng.random(len(picks)) < 0.8, truth.labels[picks], rng.integers(0, classes + 1, len(picks)) * 7
    )
    detections = DetectionArrays(
        boxes=boxes[picks] + jitter,
        scores=np.round(rng.random(len(picks)), int(rng.integers(1, 9))).astype(np.float32),
        labels=labels,
        image_of_box=np.where(
            rng.random(len(picks)) < 0.9, truth.image_of_box[picks], rng.integers(0, images, len(picks))
        ),
    )
    return truth, detections, [7 * c for c in range(classes)]


def pycocotools_arrays(truth, detections, class_ids, limits):
    """pycocotools' precision and recall arrays."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def annotations(data, **columns):
        rows = []
        for row, (x1, y1, x2, y2) in enumerate(np.asarray(data.boxes, np.float64)):
            rows.append(
                {
                    "id": row + 1,
                    "image_id": int(truth.image_ids[data.image_of_box[row]]),
                    "category_id": int(data.labels[row]),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    **{name: values[row].item() for name, values in columns.items()},
                }
            )
        return rows

    def api(rows):
        made = COCO()
        made.dataset = {
            "images": [{"id": int(i)} for i in truth.image_ids],
            "categories": [{"id": c} for c in class_ids],
            "annotations": rows,
        }
        made.createIndex()
        return made

    with contextlib.redirect_stdout(io.StringIO()):
        expected = api(annotations(truth, iscrowd=truth.crowd.astype(int), area=truth.area))
        found = api(annotations(detections, score=detections.scores))
        evaluator = COCOeval(expected, found, "bbox")
        evaluator.params.maxDets = limits
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"], evaluator.eval["recall"]


def mean(values):
    return values[values > -1].mean() if (values > -1).any() else math.nan


def assert_same(ours, precision, recall, class_ids):
    wanted = {"AP": mean(precision[..., 0, 2]), "AP50": mean(precision[0, ..., 0, 2])}
    wanted["AP75"] = mean(precision[5, ..., 0, 2])
    for area, name in enumerate(AREA_NAMES[1:], 1):
        wanted[f"AP{name}"] = mean(precision[..., area, 2])
        wanted[f"AR{name}"] = mean(recall[..., area, 2])
    for row, limit in enumerate((1, 10, 100)):
        wanted[f"AR{limit}"] = mean(recall[..., 0, row])
    assert ours.scores.keys() == wanted.keys()
    for name, value in wanted.items():
        assert ours.scores[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name
    for row, class_id in enumerate(class_ids):
        have = ours.per_class[class_id]
        assert have["AP"] == pytest.approx(mean(precision[:, :, row, 0, 2]), abs=1e-9, nan_ok=True)
        assert have["AP50"] == pytest.approx(mean(precision[0, :, row, 0, 2]), abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("seed", range(25))
def test_equals_pycocotools(seed):
    truth, detections, class_ids = random_case(seed)
    limit = (100, 100, 3, 1)[seed % 4]
    ours = coco_scores(truth, detections, class_ids[::-1], max_detections=limit)
    limits = sorted([min(1, limit), min(10, limit), limit])
    assert_same(ours, *pycocotools_arrays(truth, detections, class_ids, limits), class_ids)


def test_classes_in_portions_give_the_same(monkeypatch):
    case = random_case(99)
    whole = coco_scores(*case)
    monkeypatch.setattr(coco, "PAIRS_AT_ONCE", 20)
    parts = coco_scores(*case)
    np.testing.assert_equal(parts.scores, whole.scores)
    np.testing.assert_equal(parts.per_class, whole.per_class)


def arrays(boxes, scores, labels, images):
    return DetectionArrays(
        np.array(boxes, float).reshape(-1, 4), np.array(scores), np.array(labels, int), np.array(images, int)
    )


def truth_of(boxes, labels, images, count=2, crowd=None):
    xyxy = np.array(boxes, float).reshape(-1, 4)
    return GroundTruth(
        image_ids=np.arange(count),
        boxes=xyxy,
        labels=np.array(labels, int),
        crowd=np.zeros(len(xyxy), bool) if crowd is None else np.array(crowd),
        area=(xyxy[:, 2:] - xyxy[:, :2]).prod(1),
        image_of_box=np.array(images, int),
    )


def test_by_hand():
    """Right (IoU 1), wrong, right (IoU 0.62: good for the thresholds .50, .55 and .60 only)."""
    truth = truth_of([[0, 0, 10, 10], [0, 0, 10, 10]], [3, 3], [0, 1])
    detections = arrays([[0, 0, 10, 6.2], [50, 50, 60, 60], [0, 0, 10, 10]], [0.7, 0.8, 0.9], [3, 3, 3], [1, 0, 0])
    result = coco_scores(truth, detections, [3, 4])
    # recall points 0..0.50 (51 of 101) have precision 1, those above 2/3, or 0 where the third is wrong
    loose, tight = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert result.scores["AP50"] == pytest.approx(loose, abs=1e-12)
    assert result.scores["AP75"] == pytest.approx(tight, abs=1e-12)
    assert result.scores["AP"] == pytest.approx((3 * loose + 7 * tight) / 10, abs=1e-12)
    assert result.scores["AR100"] == pytest.approx((3 * 1 + 7 * 0.5) / 10, abs=1e-12)
    assert math.isnan(result.scores["APl"])
    assert result.per_class[3]["boxes"] == 2
    assert math.isnan(result.per_class[4]["AP"])
    assert result.per_class[4]["boxes"] == 0


def test_a_crowd_is_neither_found_nor_missed():
    truth = truth_of([[0, 0, 10, 10], [20, 0, 60, 40]], [0, 0], [0, 0], crowd=[False, True])
    detections = arrays([[21, 1, 30, 9], [31, 1, 40, 9], [0, 0, 10, 10]], [0.9, 0.8, 0.7], [0, 0, 0], [0, 0, 0])
    result = coco_scores(truth, detections, [0])
    assert result.scores["AP"] == pytest.approx(1.0)
    assert result.per_class[0]["boxes"] == 1


def test_nothing_to_score(capfd):
    nothing = arrays([], [], [], [])
    found = coco_scores(truth_of([[0, 0, 10, 10]], [0], [0]), nothing, [0, 1])
    assert found.scores["AP"] == 0.0
    assert found.per_class[0] == {"AP": 0.0, "AP50": 0.0, "boxes": 1}
    for truth, classes in (
        (truth_of([], [], []), [0]),
        (truth_of([], [], [], count=0), [0]),
        (truth_of([], [], []), []),
    ):
        assert all(math.isnan(value) for value in coco_scores(truth, nothing, classes).scores.values())
    assert coco_scores(truth_of([], [], []), nothing, [0], per_class=False).per_class == {}
    assert capfd.readouterr() == ("", "")


def test_mistakes():
    truth = truth_of([[0, 0, 10, 10]], [0], [0])
    with pytest.raises(UserError, match=r"1 of 2 scores are no finite numbers .*, the first in row 1 \(nan\)"):
        arrays([[0, 0, 1, 1]] * 2, [0.5, math.nan], [0, 0], [0, 0])
    with pytest.raises(UserError, match=r"expected image rows in 0\.\.1, got 2\.\.2"):
        coco_scores(truth, arrays([[0, 0, 1, 1]], [0.5], [0], [2]), [0])
    with pytest.raises(ValueError, match=r"DetectionArrays.labels: expected shape \[1\], got \[2\]"):
        arrays([[0, 0, 1, 1]], [0.5], [0, 1], [0])
    with pytest.raises(UserError, match="same id"):
        GroundTruth(np.array([1, 1]), truth.boxes, truth.labels, truth.crowd, truth.area, truth.image_of_box)
