"""Pictures turned in the plane: pixels and boxes agree, and an index of turned pictures trains and evaluates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from crossdet.data.augment import Augment, Resize
from crossdet.data.cache import load_index, save_index
from crossdet.data.decoding import UnreadableImage, read_row, rotate
from crossdet.data.hybrid import Draw, HybridDataset, Part
from crossdet.data.index import Index, IndexBuilder
from crossdet.data.picture_files import read_pixels
from crossdet.data.rotation import pictures, rotated, rows_per_picture, without_direction_classes
from crossdet.data.rotation_geometry import canvas, equal_directions, rotate_boxes
from crossdet.labels.members import with_members
from crossdet.labels.space import LabelSpace
from crossdet.types import Flag

RED = np.array([250, 10, 10], np.uint8)


def one(degrees: int, box, size, centred: bool = False) -> list[float]:
    return rotate_boxes(np.array([box], np.float32), np.array([size]), np.array([degrees]), np.array([centred]))[
        0
    ].tolist()


def extent(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """Half-open box of the pixels that are mostly red."""
    red = (pixels[0].astype(int) - pixels[1]) > 120
    ys, xs = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def test_rotation_geometry_by_hand():
    """A box at the upper left of a 40x30 picture goes to the lower left, lower right, upper right."""
    box, size = (2, 3, 12, 8), (30, 40)
    assert one(0, box, size) == [2, 3, 12, 8]
    assert one(90, box, size) == [3, 28, 8, 38]
    assert one(180, box, size) == [28, 22, 38, 27]
    assert one(270, box, size) == [22, 2, 27, 12]
    for degrees in (0, 90, 180, 270):
        assert one(degrees, box, size, centred=True) == one(degrees, box, size)
    sizes = canvas(np.array([[30, 40]] * 4), np.array([0, 90, 180, 270]))
    assert sizes.tolist() == [[30, 40], [40, 30], [30, 40], [40, 30]]


def test_45_degrees_by_hand():
    """The middle 20x10 of a 40x40 picture: enclosing 30/sqrt2 wide, centred sqrt((400 + 100)/2)."""
    side = canvas(np.array([[40, 40]]), np.array([45]))[0, 0]
    assert side == 57  # 40 sqrt2 = 56.57
    for centred, width in ((False, 30 / 2**0.5), (True, 250**0.5)):
        x1, y1, x2, y2 = one(45, (10, 15, 30, 25), (40, 40), centred)
        assert (x2 - x1, y2 - y1) == pytest.approx((width, width), abs=1e-4)
        assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx((side / 2, side / 2), abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([0, 90, 180, 270]), st.data())
def test_rotation_geometry_move_pixels_exactly(degrees, data):
    height, width = (data.draw(st.integers(4, 30)) for _ in range(2))
    x1, y1 = data.draw(st.integers(0, width - 2)), data.draw(st.integers(0, height - 2))
    x2, y2 = data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))
    picture = np.zeros((3, height, width), np.uint8)
    picture[:, y1:y2, x1:x2] = RED[:, None, None]
    turned = rotate(torch.from_numpy(picture), degrees).numpy()
    assert list(turned.shape[1:]) == canvas(np.array([[height, width]]), np.array([degrees]))[0].tolist()
    assert list(extent(turned)) == one(degrees, (x1, y1, x2, y2), (height, width))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 359), st.booleans(), st.data())
def test_the_box_lies_on_the_colour(degrees, ellipse, data):
    """A red rectangle fills its enclosing box, a red ellipse its centred one, at every angle to a pixel or two."""
    height, width = (data.draw(st.integers(60, 120)) for _ in range(2))
    w, h = data.draw(st.integers(12, 50)), data.draw(st.integers(12, 50))
    x, y = data.draw(st.integers(0, width - w)), data.draw(st.integers(0, height - h))
    ys, xs = np.mgrid[:height, :width] + 0.5
    inside = (np.abs(xs - x - w / 2) < w / 2) & (np.abs(ys - y - h / 2) < h / 2)
    if ellipse:
        inside = ((xs - x - w / 2) / (w / 2)) ** 2 + ((ys - y - h / 2) / (h / 2)) ** 2 < 1
    picture = np.where(inside[..., None], RED, np.uint8(90)).astype(np.uint8)
    turned = rotate(torch.from_numpy(picture).permute(2, 0, 1), degrees).numpy()
    box = one(degrees, (x, y, x + w, y + h), (height, width), centred=ellipse)
    assert np.abs(np.array(extent(turned)) - box).max() <= 2.5
    tall, wide = turned.shape[1:]
    assert -1e-3 <= box[0] < box[2] <= wide + 1e-3
    assert -1e-3 <= box[1] < box[3] <= tall + 1e-3


def test_turning_the_other_way_would_be_seen():
    picture = np.full((41, 41, 3), 90, np.uint8)
    picture[18:23, 30:40] = RED  # to the right of the centre; 30 degrees counter-clockwise is further up
    turned = rotate(torch.from_numpy(picture).permute(2, 0, 1), 30).numpy()
    x1, y1, x2, y2 = extent(turned)
    assert (y1 + y2) / 2 < turned.shape[1] / 2 - 5
    assert np.allclose(one(30, (30, 18, 40, 23), (41, 41)), (x1, y1, x2, y2), atol=2.5)


# ------------------------------------------------------------------------------------------- index


def make_index(folder: Path, count: int = 3) -> Index:
    """Picture i has a face of 8x6, a crowd, and a region of no class."""
    builder = IndexBuilder(folder)
    for number in range(count):
        builder.image(f"{number}.png", 30, 40, image_id=10 + number)
        pixels = np.full((30, 40, 3), 90, np.uint8)
        pixels[4:10, 5 + number : 13 + number] = RED
        Image.fromarray(pixels).save(folder / f"{number}.png")
        builder.box((5 + number, 4, 13 + number, 10), 1, area=20.0, blur=number)
        builder.box((20, 4, 36, 10), 1, Flag.CROWD, blur=7)
        builder.box((20, 12, 36, 20), -1, Flag.IGNORE_REGION, blur=7)
    return builder.build(["car", "face"], [3, 5])


def test_rotated_index(tmp_path):
    index = make_index(tmp_path)
    many = rotated(index, (0, 90), "centred", (0, 90, 270))
    assert (len(many), rows_per_picture(many), pictures(many).tolist()) == (6, 2, [0, 2, 4])
    assert [many.names[row] for row in range(4)] == ["0.png", "0.png", "1.png", "1.png"]
    assert many.rotation.degrees.tolist() == [0, 90] * 3
    assert many.sizes[:2].tolist() == [[30, 40], [40, 30]]
    assert many.image_ids[:3].tolist() == [3600, 3690, 3960]
    assert many.classes == ("car@0", "car@90", "car@270", "face@0", "face@90", "face@270")
    assert many.category_ids.tolist() == [1080, 1170, 1350, 1800, 1890, 2070]
    assert many.labels[:6].tolist() == [3, 3, -1, 4, 4, -1]
    assert many.flags[:6].tolist() == [0, 1, 2] * 2
    assert many.columns["blur"][:6].tolist() == [0, 7, 7] * 2
    assert many.boxes[3].tolist() == [4, 27, 10, 35]
    assert many.area[:6].tolist() == [20, 96, 128] * 2  # the annotated one stays
    for row in range(6):
        face = many.boxes[many.rows(row)][0]
        assert list(extent(read_row(many, row).numpy())) == face.tolist()
        assert np.array_equal(read_pixels(many, row).transpose(2, 0, 1), read_row(many, row).numpy())  # no torch
    folded = without_direction_classes(many)
    assert folded.classes == ("car",) * 3 + ("face",) * 3
    assert folded.category_ids.tolist() == [3, 3, 3, 5, 5, 5]
    assert rotated(index, (0,)).image_ids.tolist() == [10, 11, 12]
    plain = rotated(index, (45,))
    assert plain.classes == index.classes
    assert plain.area[0] == 20
    assert plain.area[1] == pytest.approx(((16 + 6) / 2**0.5) ** 2, rel=1e-5)  # the box's own follows it


def test_regions_stay_enclosing(tmp_path):
    """A region that is too small would make negatives of what it hides."""
    centred, enclosing = (rotated(make_index(tmp_path), (30,), box) for box in ("centred", "enclosing"))
    assert np.array_equal(centred.boxes[1:3], enclosing.boxes[1:3])
    assert (centred.boxes[0, :2] > enclosing.boxes[0, :2]).all()
    # difficult boxes only where they are regions, too
    index = make_index(tmp_path)
    hard = replace(index, flags=np.full_like(index.flags, Flag.DIFFICULT))
    as_object, as_region = (rotated(hard, (30,), "centred", difficult_as_region=some) for some in (False, True))
    assert np.array_equal(as_region.boxes, enclosing.boxes)
    assert (as_object.boxes[:, :2] > enclosing.boxes[:, :2]).all()


def test_take_keeps_the_turn_and_unknown_sizes_are_unreadable(tmp_path):
    many = rotated(make_index(tmp_path), (0, 90))
    part = many.take(np.array([1, 3]))
    assert part.rotation.degrees.tolist() == [90, 90]
    assert torch.equal(read_row(part, 1), read_row(many, 3))
    index = make_index(tmp_path)
    index.sizes[0] = 0
    for read in (read_row, read_pixels):
        with pytest.raises(UnreadableImage, match=r"0\.png: its size was unknown"):
            read(rotated(index, (0, 90)), 1)
    save_index(index, tmp_path / "saved")
    assert load_index(tmp_path / "saved").rotation is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 360),), "degrees from 0 to 359"),
        (((90, 90),), "different whole degrees"),
        (((0, 90), "tight"), "expected one of enclosing, centred, got 'tight'"),
        (((0, 90), "centred", (0,)), "lack some of the directions"),
    ],
)
def test_nonsense_is_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        rotated(make_index(tmp_path), *arguments)
    with pytest.raises(ValueError, match="rotated already"):
        rotated(rotated(make_index(tmp_path), (0,)), (0,))


def test_a_federated_picture_verifies_the_other_directions(tmp_path):
    builder = IndexBuilder(tmp_path)
    builder.image("a.png", 30, 40, negatives=[2], not_exhaustive=[1])
    builder.box((5, 4, 13, 10), 0)
    many = rotated(builder.build(["face", "car", "dog"], federated=True), (0, 90), classes=(0, 90))
    assert [many.negatives[row].tolist() for row in (0, 1)] == [[4, 5, 1], [4, 5, 0]]
    assert [many.not_exhaustive[row].tolist() for row in (0, 1)] == [[2, 3]] * 2


# ------------------------------------------------------------------------------------------- drawing


def hybrid(folder: Path, transform, directions=(0, 90, 180, 270), weight=1.0) -> HybridDataset:
    index = rotated(make_index(folder), directions, classes=directions)
    base = LabelSpace.build({"a": ["car", "face"]})
    space = with_members(base, directions={"a": directions})
    part = Part(index, 0, space.ids("a", index.classes), weight=weight, one_direction=True)
    return HybridDataset([part], space, transform)


def test_an_epoch_stays_as_long(tmp_path):
    dataset = hybrid(tmp_path, Resize(30, 40))
    assert (len(dataset), dataset.sizes().tolist()) == (3, [[30, 40]] * 3)
    assert dataset.draw_weights().tolist() == [1, 1, 1]
    assert dataset.locate(2) == (0, 8)
    seen: dict[int, int] = {}
    for seed in range(200):
        sample = dataset[Draw(1, seed)]
        assert sample.image_id == 1
        assert torch.equal(sample.image, dataset[Draw(1, seed)].image)
        label = int(sample.target.labels[0])
        seen[label] = seen.get(label, 0) + 1
        assert sample.trusted.all()
    faces = [dataset.space.classes.index(f"face@{d}") for d in (0, 90, 180, 270)]
    assert set(seen) == set(faces)
    assert min(seen.values()) > 25  # 50 expected


@pytest.mark.parametrize("directions", [(0, 90, 180, 270), equal_directions(12)])
def test_a_mirrored_picture_has_the_mirrored_direction(tmp_path, directions):
    """90 degrees counter-clockwise is 90 clockwise in the mirror; the crowd's label goes along, -1 stays."""
    never, always = (hybrid(tmp_path, Augment(30, 40, flip=flip), directions) for flip in (0.0, 1.0))
    for seed in range(20):
        plain, flipped = never[Draw(0, seed)], always[Draw(0, seed)]
        angles = [
            [int(s.rpartition("@")[2]) for s in (never.space.classes[c] for c in x.target.labels[:2].tolist())]
            for x in (plain, flipped)
        ]
        assert angles[1] == [-a % 360 for a in angles[0]]
        assert int(flipped.target.labels[2]) == -1
        assert np.abs(np.array(extent(flipped.image.numpy())) - flipped.target.boxes[0].numpy()).max() < 4


def test_mirroring_needs_the_mirrored_direction(tmp_path):
    never, always = (hybrid(tmp_path, Augment(30, 40, flip=flip), (0, 90)) for flip in (0.0, 1.0))
    seeds = [seed for seed in range(20) if int(never[Draw(0, seed)].target.labels[0]) == 3]  # face@90
    assert 0 < len(seeds) < 20
    with pytest.raises(ValueError, match="a mirrored picture shows a direction that is no class"):
        always[Draw(0, seeds[0])]


def test_repeat_factors_are_those_of_the_upright_pictures(tmp_path):
    """A class in one of four pictures: sqrt(0.5 / 0.25) there, whatever the number of directions."""
    builder = IndexBuilder(tmp_path)
    for number in range(4):
        builder.image(f"{number}.png", 30, 40)
        builder.box((5, 4, 13, 10), 0 if number == 2 else 1)
    index = rotated(builder.build(["car", "face"]), (0, 90, 270), classes=(0, 90, 270))
    space = with_members(LabelSpace.build({"a": ["car", "face"]}), directions={"a": (0, 90, 270)})
    part = Part(index, 0, space.ids("a", index.classes), 3.0, 0.5, one_direction=True)
    weights = HybridDataset([part], space, Resize(30, 40)).draw_weights()
    assert weights.tolist() == pytest.approx([3, 3, 3 * 2**0.5, 3])
