"""Matching of all images at once against a double loop, and operating points by hand and by trying them all."""

from __future__ import annotations

import numpy as np
import pytest

from crossdet.evaluation import hits as matching
from crossdet.evaluation.arrays import DetectionArrays, GroundTruth
from crossdet.evaluation.hits import best_overlaps, first_of_each, iou_with_offset, pairs
from crossdet.evaluation.operating import best_f1, best_f_beta, f_beta, judge, operating_point


def random_boxes(rng, count):
    low = rng.integers(0, 30, (count, 2))
    return np.concatenate([low, low + rng.integers(-1, 12, (count, 2))], 1).astype(float)


def one_iou(a, b, offset):
    w = min(a[2], b[2]) - max(a[0], b[0]) + offset
    h = min(a[3], b[3]) - max(a[1], b[1]) + offset
    if w <= 0 or h <= 0:
        return 0.0
    areas = [(c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b)]
    union = sum(areas) - w * h
    return w * h / union if union else 0.0


@pytest.mark.parametrize("at_once", [1, 7, 1 << 18])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_best_overlaps_equal_a_double_loop_however_they_are_cut(monkeypatch, offset, at_once):
    """Whole numbers make many ties: the first ground truth wins."""
    monkeypatch.setattr(matching, "PAIRS_AT_ONCE", at_once)
    rng = np.random.default_rng(3)
    boxes, truth = random_boxes(rng, 60), random_boxes(rng, 40)
    groups, truth_groups = rng.integers(0, 6, 60), rng.integers(1, 7, 40)
    best, value = best_overlaps(boxes, groups, truth, truth_groups, iou_with_offset(offset))
    for row in range(60):
        wanted, wanted_value = -1, 0.0
        for other in np.flatnonzero(truth_groups == groups[row]):
            overlap = one_iou(boxes[row], truth[other], offset)
            if wanted < 0 or overlap > wanted_value:
                wanted, wanted_value = int(other), overlap
        assert (best[row], value[row]) == (wanted, pytest.approx(wanted_value, abs=1e-15))


def test_pairs_are_all_of_each_group_in_order():
    first, second = np.array([5, 2, 5, 9]), np.array([2, 5, 7, 5])
    got = [(int(a), int(b)) for x, y in pairs(first, second) for a, b in zip(x, y, strict=True)]
    assert got == [(0, 1), (0, 3), (1, 0), (2, 1), (2, 3)]


def test_nothing_to_match():
    none, one = np.zeros((0, 4)), np.zeros((1, 4))
    for boxes, truth in ((none, one), (one, none), (none, none)):
        rows = np.zeros(len(boxes), int), np.zeros(len(truth), int)
        best, value = best_overlaps(boxes, rows[0], truth, rows[1], iou_with_offset(0.0))
        assert best.tolist() == [-1] * len(boxes)
        assert value.tolist() == [0.0] * len(boxes)


def test_the_first_that_passed_takes_its_target():
    best = np.array([0, 0, 1, 0, -1])
    passed = np.array([True, True, True, False, False])
    order = np.array([4, 3, 1, 0, 2])
    assert first_of_each(best, passed, order).tolist() == [False, True, True, False, False]


# ------------------------------------------------------------------------------------------ operating points


def judged_case(seed=0, count=40, ties=False):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 300, (count, 2))
    boxes = np.concatenate([low, low + 20], 1)
    truth = GroundTruth(
        image_ids=np.arange(3),
        boxes=boxes,
        labels=rng.integers(0, 2, count),
        crowd=np.zeros(count, bool),
        area=np.full(count, 400.0),
        image_of_box=rng.integers(0, 3, count),
    )
    rows = rng.integers(0, count, 2 * count)
    scores = rng.random(2 * count)
    found = DetectionArrays(
        boxes[rows] + rng.normal(0, 4, (2 * count, 4)),
        np.round(scores, 1) if ties else scores,
        truth.labels[rows],
        truth.image_of_box[rows],
    )
    return truth, found


@pytest.mark.parametrize("seed", range(6))
def test_best_f1_is_the_best_of_all_thresholds(seed):
    """Over two splits, with and without equal scores."""
    parts = [judge(*judged_case(seed + 10 * k, ties=seed % 2 == 0), [0, 1]) for k in range(2)]
    for class_id in (0, 1):
        point = best_f1(parts, class_id)
        scores = np.concatenate([p.scores[p.labels == class_id] for p in parts])
        hits = np.concatenate([p.hits[p.labels == class_id] for p in parts])
        objects = sum(p.objects[class_id] for p in parts)

        def f1(threshold, scores=scores, hits=hits, objects=objects):
            kept = scores > threshold
            return 2 * hits[kept].sum() / (kept.sum() + objects)

        assert point.f1 == pytest.approx(max(f1(t) for t in [0.0, *scores]))
        assert f1(point.threshold) == pytest.approx(point.f1)
        kept = scores > point.threshold
        assert point.precision == pytest.approx(hits[kept].mean())
        assert point.recall == pytest.approx(hits[kept].sum() / objects)
        assert point.objects == objects


def test_no_threshold_lies_where_no_detection_was_looked_at():
    """One right detection, and the evaluation began at 0.05: half-way to there, not to 0."""
    truth, found = judged_case(3, ties=False)
    right = judge(truth, found, [0, 1])
    best = int(np.flatnonzero(right.hits & (right.labels == 0))[0])
    alone = [judge(truth, found.take(np.array([best])), [0, 1], floor) for floor in (0.05, 0.01)]
    score = float(found.scores[best])
    assert best_f1(alone[:1], 0).threshold == pytest.approx((score + 0.05) / 2)
    assert best_f1(alone, 0).threshold == pytest.approx((score + 0.05) / 2)  # the stricter of two splits
    assert best_f1(alone[1:], 0).threshold == pytest.approx((score + 0.01) / 2)


def test_detections_on_crowds_are_not_counted():
    """One right, one in the crowd, one wrong: F1 is best with the first alone, half-way to the wrong one."""
    truth = GroundTruth(
        np.arange(1),
        np.array([[0, 0, 10, 10], [50, 50, 90, 90]], float),
        np.array([0, 0]),
        np.array([False, True]),
        np.array([100.0, 1600.0]),
        np.array([0, 0]),
    )
    found = DetectionArrays(
        np.array([[0, 0, 10, 10], [55, 55, 65, 65], [0, 50, 10, 60]], float),
        np.array([0.8, 0.9, 0.4]),
        np.array([0, 0, 0]),
        np.array([0, 0, 0]),
    )
    judged = judge(truth, found, [0, 3])
    assert judged.hits.tolist() == [True, False, False]
    assert judged.counted.tolist() == [True, False, True]
    assert judged.objects == {0: 1, 3: 0}
    point = best_f1([judged], 0)
    assert (point.threshold, point.f1, point.objects) == (pytest.approx(0.6), 1.0, 1)
    assert best_f1([judged], 3) is None
    assert best_f1([], 0) is None


def test_f_beta_moves_the_threshold_by_hand():
    """Of four objects the first detection is right, then one wrong and two right, in a row of falling scores."""
    boxes = np.array([[20.0 * i, 0, 20 * i + 10, 10] for i in range(4)])
    truth = GroundTruth(
        np.arange(1), boxes, np.zeros(4, int), np.zeros(4, bool), np.full(4, 100.0), np.zeros(4, int)
    )
    found = DetectionArrays(
        boxes[[0, 1, 1, 2]] + np.array([[0.0], [500.0], [0.0], [0.0]]),
        np.array([0.9, 0.7, 0.5, 0.3]),
        np.zeros(4, int),
        np.zeros(4, int),
    )
    judged = [judge(truth, found, [0], 0.1)]
    # precision, recall after each: (1, 1/4) (1/2, 1/4) (2/3, 1/2) (3/4, 3/4)
    careful, balanced, eager = (best_f_beta(judged, 0, beta) for beta in (0.25, 1.0, 4.0))
    assert balanced == best_f1(judged, 0)
    assert (balanced.precision, balanced.recall, balanced.threshold) == (0.75, 0.75, pytest.approx(0.2))
    assert (careful.precision, careful.recall, careful.threshold) == (1.0, 0.25, pytest.approx(0.8))
    assert careful.f1 == pytest.approx(0.4)
    assert eager == balanced
    assert f_beta(careful, 0.25) == pytest.approx(1.0625 * 0.25 / (0.0625 + 0.25))
    assert f_beta(careful, 1.0) == pytest.approx(careful.f1)


# ------------------------------------------------------------------------------------------ cross-fitting


def in_a_row(pictures: list[list[tuple[float, bool]]], directions: int = 1):
    """Pictures with (score, right) of class 0; every right detection has an object, and picture 0 one more."""
    rows = [(image, score, right) for image, found in enumerate(pictures) for score, right in found]
    boxes = np.array([[20.0 * i, 0, 20 * i + 10, 10] for i in range(len(rows) + 1)])
    right = np.array([right for _, _, right in rows])
    image = np.array([image for image, _, _ in rows])
    objects = np.append(right, True)
    truth = GroundTruth(
        np.arange(len(pictures)), boxes[objects], np.zeros(objects.sum(), int), np.zeros(objects.sum(), bool),
        np.full(objects.sum(), 100.0), np.append(image, 0)[objects],
    )  # fmt: skip
    scores = np.array([score for _, score, _ in rows])
    return judge(truth, DetectionArrays(boxes[:-1], scores, np.zeros(len(rows), int), image), [0], 0.1, directions)


def test_cross_fitting_by_hand():
    """Even pictures: right 0.9, wrong 0.6, an object that nothing finds; odd: right 0.8 and 0.5, wrong 0.4."""
    judged = in_a_row([[(0.9, True)], [(0.8, True), (0.4, False)], [(0.6, False)], [(0.5, True)]])
    assert (judged.objects, judged.odd_objects) == ({0: 4}, {0: 2})
    point = best_f1([judged], 0)  # 3 right of 4 reported, or of 3 by leaving out 0.6 and 0.5: the former
    assert (point.precision, point.recall, point.f1, point.cross_fitted) == (0.75, 0.75, 0.75, False)
    # even: from (0.9 + 0.6) / 2 on, in odd pictures that reports 0.8, right.
    # odd: from (0.5 + 0.4) / 2 on, in even pictures that reports 0.9 and 0.6, one of them right
    fitted = operating_point([judged], 0)
    assert fitted.cross_fitted
    assert (fitted.precision, fitted.recall) == (pytest.approx(2 / 3), 0.5)
    assert fitted.f1 == pytest.approx(2 * 2 / (3 + 4))
    assert (fitted.threshold, fitted.objects) == (point.threshold, point.objects)
    assert operating_point([judged], 1) is None


def test_a_half_without_a_right_detection_cannot_be_fitted():
    judged = in_a_row([[(0.9, True)], [(0.7, False)]])
    assert operating_point([judged], 0) == best_f1([judged], 0)
    assert not operating_point([judged], 0).cross_fitted


def test_halves_are_of_whole_pictures():
    """In two directions rows 0 and 1 are one picture: the only right detections are of an even one."""
    pictures = [[(0.9, True)], [(0.8, True)], [(0.7, False)], []]
    assert operating_point([in_a_row(pictures)], 0).cross_fitted
    turned = in_a_row(pictures, directions=2)
    assert turned.odd.tolist() == [False, False, True]
    assert turned.odd_objects == {0: 0}
    assert not operating_point([turned], 0).cross_fitted


@pytest.mark.parametrize("seed", range(6))
def test_cross_fitting_leaves_the_threshold_and_does_not_see_the_order_of_datasets(seed):
    parts = [judge(*judged_case(seed + 10 * k, ties=seed % 2 == 0), [0, 1], 0.02) for k in range(3)]
    for class_id in (0, 1):
        point, fitted = best_f1(parts, class_id), operating_point(parts, class_id)
        assert fitted.cross_fitted
        assert (fitted.threshold, fitted.objects) == (point.threshold, point.objects)
        assert fitted != point
        assert operating_point(parts[::-1], class_id) == fitted


def test_on_random_labels_only_the_fitted_numbers_are_what_new_pictures_give():
    """Right and wrong are drawn without a look at the score, in 400 small worlds; new pictures are drawn alike."""
    rng = np.random.default_rng(5)

    def world():
        return in_a_row(
            [[(s, bool(r)) for s, r in zip(rng.random(2), rng.random(2) < 0.3, strict=True)] for _ in range(10)]
        )

    def f1(judged, threshold):
        above = judged.scores > threshold
        return 2 * judged.hits[above].sum() / (above.sum() + judged.objects[0])

    chosen, fitted, new = [], [], []
    for _ in range(400):
        judged = world()
        point = best_f1([judged], 0)
        if point is None or not operating_point([judged], 0).cross_fitted:
            continue
        chosen.append(point.f1)
        fitted.append(operating_point([judged], 0).f1)
        new.append(np.mean([f1(world(), point.threshold) for _ in range(5)]))
    spread = np.std(np.array(fitted) - new) / len(new) ** 0.5
    assert len(new) > 300
    assert np.mean(fitted) < np.mean(new) + 3 * spread
    assert np.mean(chosen) > np.mean(new) + 6 * spread
    print(np.mean(chosen), np.mean(fitted), np.mean(new), spread)
