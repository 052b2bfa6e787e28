"""Confusions, calibration, curves and pictures of a small world, every number by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crossdet.evaluation.arrays import Verified
from crossdet.evaluation.audit import audit
from crossdet.evaluation.insight import (
    PictureScore,
    class_curves,
    confusions,
    picture_scores,
    reliability,
    worst_and_best,
)
from tests.unit.evaluation.test_audit import CAR, CLASSES, DOG, FACE, NO_OVERLAP, split


@pytest.fixture
def world(tmp_path):
    street = split(
        tmp_path,
        "street",
        [CAR, DOG],
        truth=[(0, CAR, 0), (0, DOG, 40), (0, DOG, 80), (1, CAR, 0), (1, DOG, 40), (2, CAR, 100, True)],
        found=[
            (0, CAR, 0, 0.9),  # right
            (0, DOG, 42, 0.8),  # right, and a better face on the same dog: still a dog
            (0, FACE, 42, 0.95),
            (0, FACE, 82, 0.95),  # the second dog is taken for a face,
            (0, CAR, 82, 0.85),  # less surely for a car
            (1, CAR, 1, 0.7),  # right
            (2, CAR, 101, 0.99),  # in the crowd: not judged
        ],
        images=3,
    )
    faces = split(
        tmp_path,
        "faces",
        [FACE],
        truth=[(0, FACE, 0), (1, FACE, 0)],
        found=[(0, FACE, 0, 0.9), (1, FACE, 1, 0.7), (1, FACE, 150, 0.65)],
        images=3,
    )
    return [street, faces]


def test_every_object_counts_once(world):
    found = audit(world, CLASSES, NO_OVERLAP)
    car, dog, face = confusions(world, found, NO_OVERLAP)
    assert (car.dataset, car.class_id, car.objects, car.found, car.missed) == ("street", CAR, 2, 2, 0)
    assert (dog.objects, dog.found, dog.missed, dog.taken_for) == (3, 1, 1, {FACE: 1})
    assert (face.dataset, face.objects, face.found, face.taken_for) == ("faces", 2, 2, {})


def test_classes_that_may_share_a_box_are_no_confusion(world):
    overlap = NO_OVERLAP.copy()
    overlap[DOG, FACE] = overlap[FACE, DOG] = True
    _, dog, _ = confusions(world, audit(world, CLASSES, overlap), overlap)
    assert (dog.found, dog.missed, dog.taken_for) == (1, 1, {CAR: 1})


def test_reliability(world):
    """At home: cars 0.9 right, 0.85 wrong, 0.7 right; dog 0.8 right; faces 0.9 right, 0.7 right, 0.65 wrong."""
    found = reliability(audit(world, CLASSES, NO_OVERLAP).judged)
    assert found.count.tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 2, 2]
    assert found.precision[6:] == pytest.approx([0.0, 1.0, 0.5, 1.0])
    assert found.score[6:] == pytest.approx([0.65, 0.7, 0.825, 0.9])
    assert found.error == pytest.approx((0.65 + 2 * 0.3 + 2 * 0.325 + 2 * 0.1) / 7)
    assert np.isnan(found.score[0])
    assert np.isnan(reliability([]).error)


def test_curves_are_over_all_datasets_with_the_class(world):
    judged = audit(world, CLASSES, NO_OVERLAP).judged
    curves = class_curves(judged, [CAR, DOG, FACE])
    assert curves[CAR].recall.tolist() == pytest.approx([0.5, 0.5, 1.0])
    assert curves[CAR].precision.tolist() == pytest.approx([1.0, 0.5, 2 / 3])
    assert curves[CAR].ap == pytest.approx(0.5 * 1.0 + 0.5 * 2 / 3)
    assert curves[DOG].ap == pytest.approx(1 / 3)
    assert class_curves(judged[:1], [FACE]) == {}


def test_what_is_found_in_images_that_verify_nothing_is_found(world):
    """There a detection without an object is not wrong, and an object that is found is not missed."""
    none = np.zeros(0, np.int64)
    faces = replace(world[1], truth=replace(world[1].truth, verified=Verified(none, none, none)))
    scores = picture_scores([faces], audit([faces], CLASSES, NO_OVERLAP, [0.5] * 3))
    assert scores == [PictureScore("faces", 0, 1, 0, 0), PictureScore("faces", 1, 1, 0, 0),
                      PictureScore("faces", 2, 0, 0, 0)]  # fmt: skip


def test_pictures(world):
    found = audit(world, CLASSES, NO_OVERLAP)
    # thresholds of best F1: below 0.7 for cars (two right, one wrong), below 0.8 for dogs, 0.65 to 0.7 for faces
    scores = picture_scores(world, found)
    assert scores[:3] == [
        PictureScore("street", 0, 2, 1, 1),
        PictureScore("street", 1, 1, 1, 0),
        PictureScore("street", 2, 0, 0, 0),
    ]
    assert scores[3:] == [PictureScore("faces", 0, 1, 0, 0), PictureScore("faces", 1, 1, 0, 0),
                          PictureScore("faces", 2, 0, 0, 0)]  # fmt: skip
    worst, best = worst_and_best(scores, 2)
    assert worst == scores[:2]
    assert best == scores[3:5]
