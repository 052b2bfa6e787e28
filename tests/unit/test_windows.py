"""Large pictures in windows: nothing between them, every object across seams once, with its exact box."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import find_objects, label

from crossdet import LabelSpace, UserError
from crossdet.inference import Detector, predict_files
from crossdet.models.building import build_detector
from crossdet.models.card import InputSettings
from crossdet.models.contract import Limits
from crossdet.models.retinanet.settings import RetinaNetSettings
from crossdet.types import Detections
from crossdet.windows import Tiling, Window, join

SIDE = 64


class Seeing(torch.nn.Module):
    """Finds every patch of red (class 0) and green (class 1), exactly; its score is the brightness."""

    fill_colour = (0, 0, 0)
    stretched_to, antialias, suppresses = None, True, True
    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.batches: list[int] = []

    def find(self, images, sizes, classes, limits):
        self.batches.append(len(images))
        found = []
        for image in images.numpy():
            rows = [
                ([place[1].start, place[0].start, place[1].stop, place[0].stop], image[c][place].max() / 255, c)
                for c in ([0, 1] if classes is None else classes)
                for place in find_objects(label(image[c])[0])
            ]
            rows = sorted(rows, key=lambda row: -row[1])[: limits.max_detections]
            boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4)
            scores = torch.tensor([row[1] for row in rows], dtype=torch.float32)
            found.append(Detections(boxes, scores, torch.tensor([row[2] for row in rows], dtype=torch.int64)))
        return found


@pytest.fixture
def seeing():
    """Its pictures of 64x64 are not resized."""
    return Detector(Seeing(), LabelSpace.build({"a": ["red", "green"]}), InputSettings(SIDE, SIDE))


def scene(seed: int, height: int, width: int, largest: int):
    """`[3, H, W]` with rectangles of both colours, two pixels apart in their colour: (picture, {(box, class)})."""
    rng = np.random.default_rng(seed)
    picture, truth = np.zeros((3, height, width), np.uint8), set()
    for brightness in range(255, 100, -1):
        w, h = rng.integers(3, largest + 1, 2)
        x, y, c = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1), rng.integers(0, 2)
        if not picture[c, max(0, y - 2) : y + h + 2, max(0, x - 2) : x + w + 2].any():
            picture[c, y : y + h, x : x + w] = brightness
            truth.add(((int(x), int(y), int(x + w), int(y + h)), int(c)))
    return torch.from_numpy(picture), truth


def rows_of(found: Detections) -> list:
    return [(tuple(map(int, box)), c) for box, c in zip(found.boxes.tolist(), found.labels.tolist(), strict=True)]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(32, 200), st.floats(0, 0.9))
def test_windows_cover_the_picture_and_overlap(height, width, side, overlap):
    windows = Tiling(side, overlap).windows(height, width)
    for low, high, length in ((0, 2, width), (1, 3, height)):
        spans = sorted({(window[low], window[high]) for window in windows})
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        assert {end - start for start, end in spans} == {min(side, length)}
        for (_, end), (start, _) in pairwise(spans):
            assert end - start >= overlap * side
    assert len(set(windows)) == len(windows)


def test_windows_by_hand():
    assert Tiling(100, 0.2).windows(100, 260) == [(0, 0, 100, 100), (80, 0, 180, 100), (160, 0, 260, 100)]
    assert Tiling(100, 0.2).windows(40, 101) == [(0, 0, 100, 40), (1, 0, 101, 40)]
    assert Tiling(640).windows(480, 640) == [(0, 0, 640, 480)]


@pytest.mark.parametrize("largest", [16, 30])
@pytest.mark.parametrize("seed", range(4))
def test_every_object_across_seams_is_found_once(seeing, seed, largest):
    """Up to the size of the overlap (16 pixels) some window sees all of it; what is larger is put together."""
    picture, truth = scene(seed, 150, 230, largest)
    found = seeing(picture, tile=SIDE, overlap=0.25, score_threshold=0.1, max_detections=1000)
    assert len(found) == len(truth)
    assert set(rows_of(found)) == truth
    assert found.names == tuple(("red", "green")[c] for c in found.labels.tolist())
    assert bool((found.scores.diff() <= 0).all())
    windows = Tiling(SIDE, 0.25).windows(150, 230)
    pieces = seeing.batch([window.of(picture) for window in windows], score_threshold=0.1, max_detections=1000)
    assert sum(map(len, pieces)) > len(truth) + 5  # some were seen in parts or twice


def test_an_object_larger_than_the_windows_is_put_together(seeing):
    picture = torch.zeros(3, 200, 300, dtype=torch.uint8)
    picture[0, 20:190, 10:280] = 200
    picture[1, 90:100, 5:295] = 150
    found = seeing(picture, tile=SIDE, score_threshold=0.1)
    assert rows_of(found) == [((10, 20, 280, 190), 0), ((5, 90, 295, 100), 1)]


@pytest.mark.parametrize("tile", [300, 3000])
def test_a_tile_as_large_as_the_picture_is_none(seeing, tile):
    picture, _ = scene(5, 300, 200, 40)
    plain = seeing(picture, score_threshold=0.1)
    tiled = seeing(picture, tile=tile, score_threshold=0.1)
    assert len(plain)
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(tiled, name), getattr(plain, name))
    assert tiled.names == plain.names


def test_a_real_network_gives_the_same_without_division(tmp_path):
    torch.manual_seed(0)
    network = RetinaNetSettings(backbone="test_efficientnet", channels=8, head_depth=1, prior=0.3)
    detector = Detector(build_detector(network, 2), LabelSpace.build({"a": ["x", "y"]}), InputSettings(64, 128))
    pictures = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((80, 120), (120, 80), (90, 90))]
    for plain, tiled in zip(
        detector.batch(pictures, score_threshold=0.0),
        detector.batch(pictures, score_threshold=0.0, tile=128, overlap=0.5),
        strict=True,
    ):
        assert len(plain)
        assert torch.equal(plain.boxes, tiled.boxes)
        assert torch.equal(plain.scores, tiled.scores)
    parts = detector(pictures[0], score_threshold=0.0, tile=64, max_detections=7)
    assert len(parts) == 7
    assert bool((parts.boxes >= 0).all())
    assert bool((parts.boxes <= torch.tensor([120, 80, 120, 80])).all())


def test_limits_hold_for_the_picture(seeing):
    picture, _ = scene(2, 150, 230, 16)
    everything = seeing(picture, tile=SIDE, overlap=0.25, score_threshold=0.1, max_detections=1000)
    best = seeing(picture, tile=SIDE, overlap=0.25, score_threshold=0.1, max_detections=5)
    assert rows_of(best) == rows_of(everything)[:5]
    assert len(best) == 5
    seeing.decoding["max_detections"] = 4  # of a window, where nobody says how many the picture has
    assert 5 < len(seeing(picture, tile=SIDE, overlap=0.25, score_threshold=0.1)) <= len(everything)
    del seeing.decoding["max_detections"]
    green = seeing(picture, "green", tile=SIDE, overlap=0.25, score_threshold=0.1, max_detections=1000)
    assert rows_of(green) == [row for row in rows_of(everything) if row[1] == 1]
    assert len(seeing(picture * 0, tile=SIDE)) == 0


def test_windows_come_in_batches(seeing):
    picture, _ = scene(2, 150, 230, 16)
    seeing(picture, tile=SIDE, overlap=0.25)
    windows = len(Tiling(SIDE, 0.25).windows(150, 230))
    assert windows > 8
    assert seeing.model.batches == [8] * (windows // 8) + [windows % 8] * (windows % 8 > 0)


def test_windows_are_resized_as_pictures_are():
    """At half the size, boxes are those of the picture to the pixels of the network."""
    half = Detector(Seeing(), LabelSpace.build({"a": ["red", "green"]}), InputSettings(SIDE, SIDE))
    picture = torch.zeros(3, 300, 300, dtype=torch.uint8)
    picture[0, 100:140, 112:152] = 255
    (box,) = half(picture, tile=128, overlap=0.4, score_threshold=0.5).boxes.tolist()
    assert box == pytest.approx([112, 100, 152, 140], abs=4)


def test_files_one_by_one(seeing, tmp_path):
    from PIL import Image

    scenes = [scene(seed, 150, 130, 16) for seed in range(3)]
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file, (picture, _) in zip(files, scenes, strict=True):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file)
    files[1].write_bytes(b"no picture")
    rows = list(predict_files(seeing, files, None, 0.1, 1000, tile=SIDE, overlap=0.25))
    assert [file for file, _, _ in rows] == files
    assert set(rows_of(rows[0][2])) == scenes[0][1]
    assert rows[1][1] is None
    assert set(rows_of(rows[2][2])) == scenes[2][1]


# ------------------------------------------------------------------------------------- joining, by hand

LEFT, RIGHT = Window(0, 0, 100, 100), Window(80, 0, 180, 100)


def found(*rows, angles=None) -> Detections:
    """Of (x1, y1, x2, y2, score, class)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(
        table[:, :4],
        table[:, 4].contiguous(),
        table[:, 5].long(),
        tuple("ab"[int(c)] for c in table[:, 5]),
        None if angles is None else torch.tensor(angles),
    )


def joined(left, right, **limits) -> list:
    whole = join([left, right], [LEFT, RIGHT], Limits(**limits))
    assert len(whole.names or ()) == len(whole)
    return [[*box, score] for box, score in zip(whole.boxes.tolist(), whole.scores.tolist(), strict=True)]


def test_a_piece_gives_its_object_its_score_and_not_its_box():
    piece = found((0, 10, 11, 30, 0.75, 0))  # x 80 to 91 of the picture
    assert joined(found((60, 10, 91, 30, 0.5, 0)), piece) == [[60, 10, 91, 30, 0.75]]


def test_two_pieces_are_one_box_around_both():
    assert joined(found((40, 10, 99, 30, 0.5, 0)), found((1, 11, 70, 31, 0.75, 0))) == [[40, 10, 150, 31, 0.75]]


def test_both_whole_the_better_one_stays_as_it_is():
    assert joined(found((83, 10, 95, 30, 0.5, 0)), found((4, 10, 15, 31, 0.75, 0))) == [[84, 10, 95, 31, 0.75]]


def test_what_is_left_over_at_an_object_is_suppressed_at_the_end():
    """In the second window the third box has an IoU of 0.41 with the second; with the first, the best, 0.55."""
    windows = [Window(0, 0, 100, 100), Window(10, 0, 110, 100)]
    parts = [found((20, 10, 60, 50, 0.9, 0)), found((10, 14, 50, 54, 0.8, 0), (10, 10, 50, 32, 0.7, 0))]
    limits = Limits(nms_iou=0.5)
    assert join(parts, windows, limits).boxes.tolist() == [[20, 10, 60, 50]]
    kept = join(parts, windows, limits, suppresses=False)  # as of a network that finds no object twice
    assert kept.boxes.tolist() == [[20, 10, 60, 50], [20, 10, 60, 32]]
    assert len(join(parts, windows, limits, most=1, suppresses=False)) == 1


def test_a_wrong_sliver_at_the_seam_goes():
    """Its IoU inside the overlap is small; all of it lies in the object."""
    assert joined(found((30, 10, 95, 90, 0.75, 0)), found((0, 40, 6, 60, 0.5, 0))) == [[30, 10, 95, 90, 0.75]]


def test_what_does_not_touch_stays_where_any_overlap_suppresses():
    assert len(joined(found((10, 10, 50, 50, 0.5, 0)), found((40, 10, 90, 30, 0.75, 0)), nms_iou=0.0)) == 2


def test_another_class_stays_unless_nms_is_agnostic():
    one, other = found((83, 10, 95, 30, 0.5, 0)), found((3, 10, 15, 30, 0.75, 1))
    assert len(joined(one, other)) == 2
    assert joined(one, other, agnostic_nms=True) == [[83, 10, 95, 30, 0.75]]


def test_neighbours_and_small_things_before_large_ones_stay():
    """A window has told them apart, and a small whole object inside a large piece is no piece of it."""
    small = (84, 40, 92, 50, 0.75, 0)
    assert (
        len(
            joined(
                found((20, 10, 100, 90, 0.5, 0), small), found((0, 10, 60, 90, 0.625, 0), (4, 40, 12, 50, 0.5, 0))
            )
        )
        == 2
    )
    assert len(joined(found(small), found((0, 10, 60, 90, 0.625, 0)))) == 2
    assert len(joined(found((60, 10, 90, 30, 0.5, 0)), found((15, 10, 40, 30, 0.5, 0)))) == 2


def test_the_angle_is_that_of_the_best():
    left, right = found((83, 10, 95, 30, 0.5, 0), angles=[90]), found((3, 10, 15, 30, 0.75, 0), angles=[180])
    assert join([left, right], [LEFT, RIGHT], Limits()).angles.tolist() == [180]
    nothing = Detections(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), (), torch.zeros(0).long()
    )
    assert join([left, nothing], [LEFT, RIGHT], Limits()).angles.tolist() == [90]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tile": 8}, r"tile: expected a whole number of pixels from 32 on, got 8"),
        ({"tile": 640.5}, "got 640.5"),
        ({"tile": True}, "got true"),
        ({"tile": 64, "overlap": 1.0}, "overlap: expected a share of the tile from 0 to 0.9, got 1.0"),
        ({"tile": 64, "overlap": float("nan")}, "overlap: expected"),
        ({"overlap": 0.2}, "overlap: it says by how much tiles overlap; give tile"),
        ({"tile": 1, "overlap": -1}, "got 1; overlap"),
    ],
)
def test_options_that_cannot_be(seeing, options, told):
    with pytest.raises(UserError, match=told):
        seeing(torch.zeros(3, 64, 64, dtype=torch.uint8), **options)
