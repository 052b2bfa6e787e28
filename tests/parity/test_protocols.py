"""VOC, WIDER FACE and WIDER Pedestrian against slow references on random worlds, by hand, and by properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import slow_references as slow

from crossdet.errors import UserError
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.protocols.voc import VocTruth, voc_scores
from crossdet.evaluation.protocols.wider_face import WiderFaceTruth, wider_face_scores
from crossdet.evaluation.protocols.wider_pedestrian import PedestrianTruth, challenge_scores

IMAGES = 9
NOTHING = DetectionArrays(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), np.zeros(0, int))


class World:
    """Boxes x, y, w, h in some of 9 images; detections: copies, jittered copies, noise; odd scores and sizes."""

    def __init__(self, seed, whole=False, ties=False):
        rng = np.random.default_rng(seed)
        count = int(rng.integers(1, 30))
        self.boxes = np.concatenate([rng.uniform(0, 120, (count, 2)), rng.uniform(4, 60, (count, 2))], 1)
        self.boxes[rng.random(count) < 0.08, 2] = 0
        self.boxes[rng.random(count) < 0.08, 3] = -2
        self.boxes = np.round(self.boxes)
        self.image = rng.integers(0, IMAGES - 2, count)  # the last images have no box
        picks = rng.integers(0, count, 5 * count)
        jitter = rng.normal(0, 0.12, (len(picks), 4)) * np.abs(self.boxes[picks][:, [2, 3, 2, 3]])
        jitter[rng.random(len(picks)) < 0.2] = 0
        self.found = self.boxes[picks] + jitter
        if whole:
            self.found = np.round(self.found)
        self.found_image = np.where(
            rng.random(len(picks)) < 0.9, self.image[picks], rng.integers(0, IMAGES, len(picks))
        )
        scores = rng.normal(0.3, 1.0, len(picks))  # also below 0 and above 1
        self.scores = np.round(scores, 1) if ties else scores
        self.label = rng.integers(0, 2, count)
        self.found_label = np.where(rng.random(len(picks)) < 0.8, self.label[picks], rng.integers(0, 3, len(picks)))
        self.hard = rng.random(count) < 0.2
        self.kept = {"easy": rng.random(count) < 0.3, "hard": rng.random(count) < 0.8}
        self.kept["none"] = np.zeros(count, bool)
        regions = int(rng.integers(0, 12))
        self.regions = np.round(
            np.concatenate([rng.uniform(0, 120, (regions, 2)), rng.uniform(5, 70, (regions, 2))], 1)
        )
        self.region_image = rng.integers(0, IMAGES, regions)

    def detections(self, boxes=None):
        boxes = self.found if boxes is None else boxes
        return DetectionArrays(boxes, self.scores, self.found_label, self.found_image)

    def face_truth(self):
        return WiderFaceTruth(IMAGES, self.boxes, self.image, self.kept)

    def pedestrian_truth(self):
        return PedestrianTruth(IMAGES, self.boxes, self.image, self.regions, self.region_image)


def in_corners(boxes):
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


# ------------------------------------------------------------------------------------------ against loops


@pytest.mark.parametrize("arithmetic", ["double", "matlab_int32"])
@pytest.mark.parametrize("seed", range(20))
def test_wider_face_equals_the_loops(seed, arithmetic):
    world = World(seed, whole=seed % 3 == 0, ties=seed % 2 == 0)
    result = wider_face_scores(world.face_truth(), world.detections(), arithmetic)
    for setting, kept in world.kept.items():
        images, rows = [], []
        for image in range(IMAGES):
            mine = np.flatnonzero(world.image == image)
            found = np.flatnonzero(world.found_image == image)
            images.append(
                (
                    [tuple(world.boxes[row]) for row in mine],
                    [(*world.found[row], world.scores[row]) for row in found],
                )
            )
            rows.append({at for at, row in enumerate(mine) if kept[row]})
        wanted = slow.wider_face(images, rows, single=arithmetic == "matlab_int32")
        assert result.scores[setting] == pytest.approx(wanted, abs=1e-12, nan_ok=True)
        assert result.faces[setting] == kept.sum()


def voc_world(world):
    boxes = in_corners(np.abs(world.boxes))
    return VocTruth(IMAGES, boxes, world.label, world.hard, world.image), world.detections(in_corners(world.found))


@pytest.mark.parametrize("inclusive", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_voc_equals_the_loops(seed, inclusive):
    world = World(seed, whole=seed % 3 == 0, ties=seed % 2 == 0)
    truth, detections = voc_world(world)
    threshold = (0.5, 0.35)[seed % 2]
    result = voc_scores(truth, detections, [0, 1, 2], threshold, inclusive)
    areas, points = [], []
    for class_id in (0, 1, 2):
        objects = {
            image: [
                (tuple(truth.boxes[row]), bool(world.hard[row]))
                for row in np.flatnonzero((world.image == image) & (world.label == class_id))
            ]
            for image in range(IMAGES)
        }
        found = [
            (int(world.found_image[row]), world.scores[row], tuple(detections.boxes[row]))
            for row in np.flatnonzero(world.found_label == class_id)
        ]
        area, eleven = slow.voc_class(objects, found, threshold, inclusive)
        mine = result.per_class[class_id]
        assert mine.area == pytest.approx(area, abs=1e-12, nan_ok=True)
        assert mine.eleven_point == pytest.approx(eleven, abs=1e-12, nan_ok=True)
        assert mine.curve.ap is mine.area
        if area == area:
            areas.append(area)
            points.append(eleven)
    assert result.map_area == pytest.approx(np.mean(areas), abs=1e-12)
    assert result.map_11pt == pytest.approx(np.mean(points), abs=1e-12)


@pytest.mark.parametrize("edition", [2018, 2019])
@pytest.mark.parametrize("seed", range(20))
def test_the_pedestrian_challenge_equals_the_loops(seed, edition):
    world = World(seed, whole=seed % 3 == 0, ties=seed % 2 == 0)
    result = challenge_scores(world.pedestrian_truth(), world.detections(), edition)
    wanted = slow.challenge(
        {i: [tuple(b) for b in world.boxes[world.image == i]] for i in range(IMAGES)},
        {i: [tuple(b) for b in world.regions[world.region_image == i]] for i in range(IMAGES)},
        [(int(i), s, tuple(b)) for i, s, b in zip(world.found_image, world.scores, world.found, strict=True)],
        edition,
    )
    assert result.per_iou == pytest.approx(wanted, abs=1e-12, nan_ok=True)
    assert pytest.approx(np.mean(wanted), abs=1e-12, nan_ok=True) == result.AP


# ------------------------------------------------------------------------------------------ by hand


def detections(*rows, label=0):
    """rows: (image, score, box)."""
    return DetectionArrays(
        np.array([box for *_, box in rows], np.float64).reshape(-1, 4),
        np.array([score for _, score, _ in rows], np.float64),
        np.full(len(rows), label),
        np.array([image for image, *_ in rows], np.int64),
    )


def voc_truth(*objects):
    """objects: (image, box, difficult), all of class 0, in 4 images."""
    return VocTruth(
        4,
        np.array([box for _, box, _ in objects], np.float64).reshape(-1, 4),
        np.zeros(len(objects), int),
        np.array([hard for *_, hard in objects], bool),
        np.array([image for image, *_ in objects], int),
    )


def test_voc_an_iou_of_one_half_counts_unless_strict():
    """1..10 x 1..10 are 100 pixels; 1..10 x 1..5 are 50 of them: IoU 50 / 100 exactly."""
    truth = voc_truth((0, (1, 1, 10, 10), False))
    half = detections((0, 0.9, (1, 1, 10, 5)))
    assert voc_scores(truth, half, [0]).map_area == 1.0
    assert voc_scores(truth, half, [0], inclusive=False).map_area == 0.0
    assert voc_scores(truth, half, [0], iou_threshold=0.51).map_area == 0.0


def test_voc_difficult_objects_cost_nothing_and_give_nothing():
    """Twice on the difficult one, then the easy one: precision 0/0 = 0, 0, 1."""
    truth = voc_truth((0, (1, 1, 10, 10), True), (0, (50, 50, 60, 60), False))
    on_it = (0, 0.9, (1, 1, 10, 10)), (0, 0.8, (1, 1, 10, 10))
    scores = voc_scores(truth, detections(*on_it, (0, 0.7, (50, 50, 60, 60))), [0])
    assert (scores.map_area, scores.map_11pt) == (1.0, 1.0)
    assert scores.per_class[0].objects == 1
    assert scores.per_class[0].curve.precision.tolist() == [0, 0, 1]


def test_voc_a_second_detection_is_wrong_and_takes_no_second_best_object():
    """Both boxes overlap both detections; the second detection's best is taken, its second best is not tried."""
    truth = voc_truth((0, (1, 1, 20, 20), False), (0, (1, 3, 20, 22), False))
    found = detections((0, 0.9, (1, 1, 20, 20)), (0, 0.8, (1, 1, 20, 20)))
    scores = voc_scores(truth, found, [0])
    # recall 1/2 at precision 1, then precision 1/2: area 1/2; 11 points: 0 to 0.5 -> 6 of 11
    assert scores.map_area == pytest.approx(0.5)
    assert scores.map_11pt == pytest.approx(6 / 11)


def test_voc_three_of_ten_misses_the_fourth_point():
    """3 * 0.1 is 0.30000000000000004, so recall 3/10 reaches the points 0, 0.1 and 0.2 only."""
    truth = voc_truth(*((image % 4, (100 * image, 1, 100 * image + 9, 10), False) for image in range(10)))
    found = detections(*((i % 4, 0.9 - i / 10, (100 * i, 1, 100 * i + 9, 10)) for i in range(3)))
    assert voc_scores(truth, found, [0]).map_11pt == pytest.approx(3 / 11)


def face_truth(*faces, images=2):
    """faces: (image, box x y w h, kept in easy)."""
    return WiderFaceTruth(
        images,
        np.array([box for _, box, _ in faces], np.float64).reshape(-1, 4),
        np.array([image for image, *_ in faces], int),
        {"easy": np.array([kept for *_, kept in faces], bool)},
    )


def test_faces_outside_the_setting_cost_nothing_but_a_duplicate_does():
    truth = face_truth((0, (0, 0, 20, 20), False), (0, (50, 0, 20, 20), True))
    on_other = (0, 0.9, (0, 0, 20, 20)), (0, 0.8, (0, 0, 20, 20))
    assert wider_face_scores(truth, detections(*on_other, (0, 0.5, (50, 0, 20, 20)))).scores["easy"] == 1
    twice = detections((0, 0.9, (50, 0, 20, 20)), (0, 0.8, (50, 0, 20, 20)), (0, 0.1, (90, 90, 5, 5)))
    assert wider_face_scores(truth, twice).scores["easy"] == 1  # wrong only after all faces are found
    first_wrong = detections((0, 0.9, (90, 90, 5, 5)), (0, 0.8, (50, 0, 20, 20)))
    assert wider_face_scores(truth, first_wrong).scores["easy"] == pytest.approx(0.5)


def test_faces_are_one_pixel_larger_than_they_are():
    """10x10 and 4.5 of its columns: 11 * 5.5 / 121 = 0.5 with + 1, where 0.45 without would fail; 4 columns are
    11 * 5 / 121 = 0.4545."""
    truth = face_truth((0, (0, 0, 10, 10), True))
    assert wider_face_scores(truth, detections((0, 1.0, (0, 0, 4.5, 10)))).scores["easy"] == 1
    assert wider_face_scores(truth, detections((0, 1.0, (0, 0, 4, 10)))).scores["easy"] == 0


def test_the_curve_of_faces_is_sampled():
    """Two of three scores lie between 0.0003 and 0.0007 of the range: the 1,000 thresholds cannot part them."""
    truth = face_truth((0, (0, 0, 20, 20), True))
    right, wrong = (0, 0.0007, (0, 0, 20, 20)), (0, 0.0003, (50, 50, 9, 9))
    between = detections((0, 1.0, (90, 0, 9, 9)), right, wrong, (0, 0.0, (70, 70, 9, 9)))
    assert wider_face_scores(truth, between).scores["easy"] == pytest.approx(1 / 4)  # exact AP: 1 / 2


def test_images_without_any_face_are_left_out():
    truth = face_truth((0, (0, 0, 20, 20), True))
    found = detections((0, 0.5, (0, 0, 20, 20)), (1, 0.9, (0, 0, 20, 20)), (0, 0.0, (60, 60, 4, 4)))
    assert wider_face_scores(truth, found).scores["easy"] == 1


def test_ignore_regions_take_away_boxes_and_detections():
    """The region covers 6 of 10 columns of the first box (gone) and 5 of 10 of the second (0.5 - 0.0001: stays)."""
    truth = PedestrianTruth(
        1,
        np.array([[0, 0, 10, 10], [0, 50, 10, 10]], float),
        np.array([0, 0]),
        np.array([[0, 0, 6, 10], [0, 50, 5, 10]], float),
        np.array([0, 0]),
    )
    found = detections((0, 0.9, (0, 0, 10, 10)), (0, 0.8, (0, 50, 10, 10)))
    scores = challenge_scores(truth, found, 2018)
    assert (scores.boxes, scores.detections, scores.AP) == (1, 1, 1.0)
    # 2019 counts 6 * 11 = 66 of 100 pixels for the second one: gone as well
    assert math.isnan(challenge_scores(truth, found, 2019).AP)


def test_the_challenge_wants_more_than_the_threshold():
    """0..9 and 0..4 with + 1: IoU 10 * 5 / (10 * 10) = 0.5, not more than 0.5."""
    truth = PedestrianTruth(1, np.array([[0, 0, 9, 9]], float), np.array([0]), np.zeros((0, 4)), np.zeros(0, int))
    assert challenge_scores(truth, detections((0, 0.9, (0, 0, 9, 4))), 2018).per_iou[0] == 0
    assert challenge_scores(truth, detections((0, 0.9, (0, 0, 9, 4.1))), 2018).per_iou[0] == 1


# ------------------------------------------------------------------------------------------ properties


def shuffled(given, seed=0):
    return given.take(np.random.default_rng(seed).permutation(len(given.scores)))


@pytest.mark.parametrize("arithmetic", ["double", "matlab_int32"])
@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_faces_never_matters_even_with_equal_scores(seed, arithmetic):
    world = World(seed, ties=True)
    one = wider_face_scores(world.face_truth(), world.detections(), arithmetic).scores
    other = wider_face_scores(world.face_truth(), shuffled(world.detections()), arithmetic).scores
    assert repr(one) == repr(other)


@pytest.mark.parametrize("seed", range(5))
def test_order_and_scale_of_different_scores_do_not_matter(seed):
    world = World(seed)
    truth, found = voc_world(world)
    scaled = DetectionArrays(found.boxes, np.exp(found.scores), found.labels, found.image_of_box)
    for other in (shuffled(found), scaled):
        assert voc_scores(truth, other, [0, 1]).map_area == voc_scores(truth, found, [0, 1]).map_area
    pedestrians, sized = world.pedestrian_truth(), world.detections()
    one = challenge_scores(pedestrians, sized, 2018).AP
    assert repr(challenge_scores(pedestrians, shuffled(sized), 2018).AP) == repr(one)


@pytest.mark.parametrize("seed", range(5))
def test_more_wrong_detections_below_all_others_never_help(seed):
    world = World(seed)
    truth, found = voc_world(world)
    more = DetectionArrays(
        np.concatenate([found.boxes, [[900, 900, 950, 950]]]),
        np.append(found.scores, found.scores.min() - 1),
        np.append(found.labels, 0),
        np.append(found.image_of_box, 0),
    )
    assert voc_scores(truth, more, [0]).map_area <= voc_scores(truth, found, [0]).map_area + 1e-15


def test_nothing_found_is_zero_and_nothing_to_find_is_not_a_number():
    world = World(1)
    assert wider_face_scores(world.face_truth(), NOTHING).scores["hard"] == 0
    assert math.isnan(wider_face_scores(world.face_truth(), world.detections()).scores["none"])
    assert challenge_scores(world.pedestrian_truth(), NOTHING, 2018).AP == 0
    empty = PedestrianTruth(2, np.zeros((0, 4)), np.zeros(0, int), np.zeros((0, 4)), np.zeros(0, int))
    assert math.isnan(challenge_scores(empty, NOTHING, 2019).AP)
    truth, _ = voc_world(world)
    assert voc_scores(truth, NOTHING, [0, 1]).map_area == 0
    assert math.isnan(voc_scores(truth, NOTHING, [5]).map_11pt)


def test_equal_scores_of_all_faces_are_scaled_to_zero():
    truth = face_truth((0, (0, 0, 20, 20), True), (1, (0, 0, 20, 20), True))
    found = detections((0, 0.7, (0, 0, 20, 20)), (1, 0.7, (0, 0, 20, 20)))
    assert wider_face_scores(truth, found).scores["easy"] == 1  # all at the last threshold, 0


def test_mistakes_in_the_arrays_are_told():
    world = World(2)
    with pytest.raises(UserError, match="no finite numbers"):
        DetectionArrays(np.zeros((1, 4)), np.array([np.nan]), np.zeros(1, int), np.zeros(1, int))
    with pytest.raises(UserError, match=r"1 of 2 scores are no finite .* row 1 \(1e\+308\)"):
        detections((0, -1e30, (0, 0, 1, 1)), (0, 1e308, (0, 0, 1, 1)))  # their distance is infinite
    with pytest.raises(UserError, match=r"1 of 1 have coordinates .* row 0 \(0, 0, 1e\+200, 1e\+200\)"):
        detections((0, 0.5, (0, 0, 1e200, 1e200)))  # its area is
    far = detections((0, 0.5, (0, 0, 1, 1)), (IMAGES, 0.5, (0, 0, 1, 1)))
    with pytest.raises(UserError, match=r"image rows in 0\.\.8, got 0\.\.9"):
        wider_face_scores(world.face_truth(), far)
    with pytest.raises(UserError, match="expected 2018 or 2019, got 2020"):
        challenge_scores(world.pedestrian_truth(), NOTHING, 2020)
    with pytest.raises(UserError, match=r"\(0, 1\], got 1.5"):
        voc_scores(voc_world(world)[0], NOTHING, [0], iou_threshold=1.5)
