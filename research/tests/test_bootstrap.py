"""Paired bootstrap: its AP is that of the COCO protocol, draw by draw, and its intervals behave."""

from __future__ import annotations

import time

import numpy as np
import pytest

from crossdet.data.index import IndexBuilder
from crossdet.errors import UserError
from crossdet.evaluation.arrays import DetectionArrays, GroundTruth, Verified
from crossdet.evaluation.bootstrap import average_precision, class_matches, drawn, paired_bootstrap
from crossdet.evaluation.protocols.coco import coco_scores
from crossdet.evaluation.splits import Split
from crossdet_research.lifelong.measure import place_of

CLASSES = 3


def world(
    seed: int, images: int = 12, objects: int = 60, crowds: int = 6
) -> tuple[GroundTruth, DetectionArrays, DetectionArrays]:
    """Boxes, a good and a bad detector; all scores differ. Class 2 has no crowd."""
    rng = np.random.default_rng(seed)

    def boxes(count: int) -> np.ndarray:
        low = rng.uniform(0, 60, (count, 2))
        return np.concatenate([low, low + rng.uniform(8, 40, (count, 2))], axis=1)

    crowd = np.arange(objects) < crowds
    labels = np.where(crowd, rng.integers(0, CLASSES - 1, objects), rng.integers(0, CLASSES, objects))
    truth = GroundTruth(
        image_ids=rng.permutation(images) + 5,
        boxes=boxes(objects),
        labels=labels,
        crowd=crowd,
        area=np.ones(objects),
        image_of_box=rng.integers(0, images, objects),
    )

    def detector(noise: float, share: float) -> DetectionArrays:
        seen = np.flatnonzero(rng.random(objects) < share)
        near = truth.boxes[seen] + rng.normal(0, noise, (len(seen), 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        count = len(seen) + objects
        return DetectionArrays(
            boxes=np.concatenate([near, boxes(objects)]),
            scores=rng.permutation(count) / count,
            labels=np.concatenate([truth.labels[seen], rng.integers(0, CLASSES, objects)]),
            image_of_box=np.concatenate([truth.image_of_box[seen], rng.integers(0, images, objects)]),
        )

    return truth, detector(1.5, 0.9), detector(4.0, 0.6)


def repeated(truth: GroundTruth, found: DetectionArrays, draw: np.ndarray) -> tuple[GroundTruth, DetectionArrays]:
    """The images as often as they are drawn, each copy an image of its own: brute force."""
    rows = np.repeat(np.arange(len(draw)), draw)
    t = [(box, copy) for copy, row in enumerate(rows) for box in np.flatnonzero(truth.image_of_box == row)]
    d = [(box, copy) for copy, row in enumerate(rows) for box in np.flatnonzero(found.image_of_box == row)]
    (t_rows, t_images), (d_rows, d_images) = (np.array(p, np.int64).reshape(-1, 2).T for p in (t, d))
    copies = GroundTruth(
        np.arange(len(rows)),
        truth.boxes[t_rows],
        truth.labels[t_rows],
        truth.crowd[t_rows],
        truth.area[t_rows],
        t_images,
    )
    found = DetectionArrays(found.boxes[d_rows], found.scores[d_rows], found.labels[d_rows], d_images)
    return copies, found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("limit", [100, 3])
def test_every_image_once_is_the_coco_protocol(seed, limit):
    truth, good, bad = world(seed)
    result = paired_bootstrap(truth, good, bad, range(CLASSES), resamples=2, max_detections=limit)
    for column, found in (("before", good), ("after", bad)):
        scores = coco_scores(truth, found, range(CLASSES), limit)
        for c in range(CLASSES):
            for number in ("AP", "AP50"):
                mine = getattr(result.per_class[c][number], column)
                assert mine == pytest.approx(scores.per_class[c][number], abs=1e-12), (c, number)
        for number in ("AP", "AP50"):
            assert getattr(result.mean[number], column) == pytest.approx(scores.scores[number], abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_draws_agree_with_brute_force(seed):
    truth, good, _ = world(seed, images=7, objects=30)
    draws = drawn(np.zeros(7, np.int64), 8, seed)
    assert (draws.sum(1) == 7).all()
    assert (draws > 1).any()
    for c in range(CLASSES):
        found = average_precision(class_matches(truth, good, c), draws)
        for draw, aps in zip(draws, found, strict=True):
            scores = coco_scores(*repeated(truth, good, draw), [c]).per_class[c]
            expected = [scores["AP"], scores["AP50"]]
            assert [aps.mean(), aps[0]] == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_two_equal_images_drawn_alike_by_hand():
    """Image 0: found first; image 1: missed behind a false detection. AP50 is 1, 0, and what lies between."""
    truth = GroundTruth(
        np.array([1, 2]),
        np.array([[0.0, 0, 10, 10], [0, 0, 10, 10]]),
        np.array([0, 0]),
        np.zeros(2, bool),
        np.full(2, 100.0),
        np.array([0, 1]),
    )
    found = DetectionArrays(
        np.array([[0.0, 0, 10, 10], [50, 50, 60, 60]]), np.array([0.9, 0.8]), np.zeros(2, int), np.array([0, 1])
    )
    matches = class_matches(truth, found, 0)
    aps = average_precision(matches, np.array([[1, 1], [2, 0], [0, 2]]))[:, 0]
    assert aps == pytest.approx([51 / 101, 1.0, 0.0])  # recalls 0, 0.01, ... 0.50 are reached


def test_the_same_detections_differ_by_nothing():
    truth, good, _ = world(1)
    result = paired_bootstrap(truth, good, good, range(CLASSES), resamples=50)
    for paired in [*result.mean.values(), *(p for row in result.per_class.values() for p in row.values())]:
        assert (paired.difference, paired.low, paired.high) == (0, 0, 0)
        assert paired.high >= 0


def test_a_worse_detector_is_told_and_the_interval_is_seeded():
    truth, good, bad = world(4, images=60, objects=300)
    results = [paired_bootstrap(truth, good, bad, range(CLASSES), resamples=200, seed=s) for s in (0, 0, 1)]
    assert results[0] == results[1]
    assert results[0] != results[2]
    mean = results[0].mean["AP50"]
    assert mean.low < mean.difference < mean.high < 0
    assert mean.high < 0
    assert paired_bootstrap(truth, bad, good, range(CLASSES), resamples=200).mean["AP50"].high >= 0


def test_classes_without_objects_and_detectors_without_detections():
    truth, good, _ = world(2)
    nothing = good.take(np.zeros(0, np.int64))
    result = paired_bootstrap(truth, good, nothing, [0, 9], resamples=20)
    assert result.per_class[0]["AP50"].after == 0
    assert np.isnan(result.per_class[9]["AP50"].before)
    assert np.isnan(result.per_class[9]["AP50"].low)
    assert result.mean["AP50"] == result.per_class[0]["AP50"]
    assert np.isnan(paired_bootstrap(truth, good, good, [], resamples=2).mean["AP"].before)


def test_means_of_some_classes_are_of_the_same_draws():
    truth, good, bad = world(5)
    subsets = {"all": [2, 0, 1], "one": [1], "two": [0, 2], "none": []}
    result = paired_bootstrap(truth, good, bad, range(CLASSES), resamples=50, subsets=subsets)
    assert result.subsets["all"]["AP50"].low == pytest.approx(result.mean["AP50"].low)
    assert result.subsets["one"] == result.per_class[1]
    assert np.isnan(result.subsets["none"]["AP"].low)
    two, rows = result.subsets["two"]["AP"], [result.per_class[c]["AP"] for c in (0, 2)]
    assert two.difference == pytest.approx(np.mean([row.difference for row in rows]))
    again = paired_bootstrap(truth, good, bad, [0, 2], resamples=50)
    assert two == again.mean["AP"]


def test_strata_keep_their_sizes():
    groups = np.array([0, 1, 1, 0, 1, 2])
    draws = drawn(groups, 100, 0)
    for group in range(3):
        assert (draws[:, groups == group].sum(1) == (groups == group).sum()).all()
    assert (draws[:, 5] == 1).all()


def test_mistakes():
    truth, good, bad = world(0)
    with pytest.raises(ValueError, match=r"strata: expected shape \[12\], got \[2\]"):
        paired_bootstrap(truth, good, bad, [0], strata=np.zeros(2, np.int64))
    outside = DetectionArrays(np.zeros((1, 4)), np.ones(1), np.zeros(1, int), np.array([12]))
    with pytest.raises(UserError, match=r"expected image rows in 0\.\.11"):
        paired_bootstrap(truth, good, outside, [0])


def test_a_thousand_draws_take_seconds():
    truth, good, bad = world(0, images=200, objects=1500)
    started = time.process_time()
    paired_bootstrap(truth, good, bad, [0], resamples=1000)
    assert time.process_time() - started < 10


def federated_truth(seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 200, (40, 2))
    boxes = np.concatenate([low, low + 30], 1)
    labels, images = rng.integers(0, 3, 40), rng.integers(0, 12, 40)
    pairs = np.argwhere(rng.random((12, 3)) < 0.5)
    truth = GroundTruth(
        np.arange(12), boxes, labels, rng.random(40) < 0.1, np.full(40, 900.0), images,
        Verified(np.array([2]), pairs[:, 0], pairs[:, 1]),
    )  # fmt: skip
    rows = rng.integers(0, 40, 160)
    image = np.where(rng.random(160) < 0.3, rng.integers(0, 12, 160), images[rows])
    found = DetectionArrays(
        boxes[rows] + rng.normal(0, 2, (160, 4)), rng.permutation(160) / 160, labels[rows], image
    )
    return truth, found


@pytest.mark.parametrize("seed", range(4))
def test_images_that_do_not_verify_a_class_count_as_the_protocol_has_it(seed):
    truth, found = federated_truth(seed)
    result, wanted = paired_bootstrap(truth, found, found, range(3), 2), coco_scores(truth, found, range(3))
    for c in range(3):
        for key in ("AP", "AP50"):
            assert result.per_class[c][key].before == pytest.approx(wanted.per_class[c][key], abs=1e-9), (c, key)
    everything = GroundTruth(*(getattr(truth, name) for name in list(vars(truth))[:-1]))
    assert coco_scores(everything, found, range(3)).scores["AP"] < wanted.scores["AP"]


def test_splits_judged_together_keep_what_their_images_verify():
    def split(verified):
        builder = IndexBuilder("nowhere")
        for number in range(2 if verified else 1):
            builder.image(f"{number}.png", 50, 500)
        return Split(builder.build(["cat"]), np.zeros(1, np.int64), ["cat"], verified=verified)

    first = Verified(np.zeros(0, np.int64), np.array([0]), np.array([0]))  # of two images the first verifies cats
    together = place_of({"a": split(first), "b": split(None)}).truth
    assert together.verifies(np.arange(3), np.zeros(3, np.int64)).tolist() == [True, False, True]
    assert place_of({"b": split(None)}).truth.verified is None
