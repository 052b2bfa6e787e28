"""Drawing: boxes, texts and regions are where they should be, and the strip says what the batch holds."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from crossdet import LabelSpace
from crossdet.data.drawing import (
    NO_CLASS,
    _box_text,
    _strip_lines,
    _wrap,
    avoided_text,
    class_colour,
    draw_boxes,
    write_batch_pictures,
)
from crossdet.types import Annotations, Batch, Flag

RED, BLUE = (255, 0, 0), (0, 0, 255)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def coloured(image: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """`[H, W]` bool."""
    return (pixels(image) == colour).all(-1)


def test_a_box_is_drawn_on_its_outermost_pixels():
    image = Image.new("RGB", (100, 80))
    drawn = draw_boxes(image, [(10, 20, 50, 60)], [""], [RED])
    expected = np.zeros((80, 100), bool)
    expected[20:60, 10:50] = True
    expected[21:59, 11:49] = False
    np.testing.assert_array_equal(coloured(drawn, RED), expected)
    assert not pixels(image).any()  # the given picture is left alone


def test_lines_and_text_grow_with_the_picture():
    small, large = (
        coloured(draw_boxes(Image.new("RGB", (n, n)), [(0.2 * n, 0.4 * n, 0.9 * n, 0.9 * n)], ["x"], [RED]), RED)
        for n in (300, 1500)
    )
    assert large.sum() > 15 * small.sum()


@pytest.mark.parametrize("box", [(0, 0, 20, 20), (180, 130, 200, 150), (-30, -9, 400, 300), (50, 60, 50.2, 60.1)])
def test_text_stays_inside_the_picture(box):
    """The ground of the text is complete wherever the box lies, and the box itself is visible."""
    drawn = draw_boxes(Image.new("RGB", (200, 150)), [box], ["pedestrian 0.97"], [BLUE])
    mask = coloured(drawn, BLUE) | (pixels(drawn).min(-1) > 60)  # the ground and its white ink
    rows, columns = mask.any(1).sum(), mask.any(0).sum()
    font = ImageFont.load_default(10)
    assert columns >= font.getlength("pedestrian 0.97")
    assert rows >= 8


def test_texts_do_not_hide_each_other():
    """Boxes at the same place: five texts find a place, the others none."""
    many = draw_boxes(Image.new("RGB", (400, 400)), [(100, 100, 300, 300)] * 12, ["face"] * 12, [RED] * 12)
    one = draw_boxes(Image.new("RGB", (400, 400)), [(100, 100, 300, 300)], ["face"], [RED])
    ratio = (pixels(many)[..., 1] > 100).sum() / (pixels(one)[..., 1] > 100).sum()
    assert ratio == pytest.approx(5, abs=0.5)  # white ink on red


def test_regions_are_hatched_and_dashed():
    grey = Image.new("RGB", (200, 200), (90, 90, 90))
    drawn = draw_boxes(grey, [(20, 20, 180, 180)], [""], [RED], regions=[True])
    border, inside = coloured(drawn, RED)[20, 20:180], pixels(drawn)[40:160, 40:160, 0]
    assert 0.4 < border.mean() < 0.6
    assert 0.1 < (inside > 90).mean() < 0.6
    assert not (pixels(drawn)[:20] != 90).any()


def test_other_modes_of_pictures():
    assert draw_boxes(Image.new("L", (50, 40)), [], [], []).mode == "RGB"
    assert draw_boxes(Image.new("RGBA", (50, 40)), [(1, 1, 9, 9)], ["cat"], [RED]).size == (50, 40)


def test_class_colours_are_stable_and_differ():
    assert class_colour(-1) == NO_CLASS
    colours = [class_colour(label) for label in range(80)]
    assert len(set(colours)) == 80
    first = np.array(colours[:12], int)
    assert min(np.abs(a - b).sum() for a, b in itertools.combinations(first, 2)) > 90
    neighbours = np.abs(np.diff(np.array(colours, int), axis=0)).sum(1)
    assert neighbours.min() > 90


# ------------------------------------------------------------------------------------------ training batches


@pytest.fixture
def space() -> LabelSpace:
    return LabelSpace.build({"street scenes": ["person", "car"], "faces": ["face"]})


def annotations(*rows) -> Annotations:
    boxes, labels, flags = zip(*rows, strict=True) if rows else ((), (), ())
    return Annotations(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        flags=torch.tensor(flags, dtype=torch.uint8),
    )


@pytest.fixture
def batch(space) -> Batch:
    images = torch.full((2, 3, 64, 96), 200, dtype=torch.uint8)
    images[0, :, 50:], images[0, :, :, 90:] = 7, 7  # padding
    return Batch(
        images=images,
        sizes=torch.tensor([[50, 90], [64, 96]]),
        original_sizes=torch.tensor([[500, 900], [64, 96]]),
        targets=[annotations(((10, 10, 30, 40), 0, 0), ((50, 10, 80, 40), 1, int(Flag.CROWD))), annotations()],
        trusted=torch.stack([space.trusted("street scenes"), torch.ones(3, dtype=torch.bool)]),
        image_ids=torch.tensor([0, 1]),
        dataset_ids=torch.tensor([0, 1]),
    )


def test_pictures_of_batches(batch, space, tmp_path):
    files = write_batch_pictures([batch, batch], space, space.datasets, tmp_path / "pictures")
    assert [f.name for f in files] == [
        "000_street_scenes.jpg", "001_faces.jpg", "002_street_scenes.jpg", "003_faces.jpg"
    ]  # fmt: skip
    with Image.open(files[0]) as image:
        factor = image.width // 90
        assert image.width == 90 * factor >= 400
        picture = pixels(image)[: 50 * factor].astype(int)
        assert image.height > 50 * factor + 20  # the strip
        assert pixels(image)[50 * factor :].max() > 200  # with text in it
    corners = picture[[3, -3, 3, -3], [3, 3, -3, -3]]
    assert np.abs(corners - 200).max() < 30  # no padding
    person = np.abs(picture - class_colour(0)).sum(-1) < 90
    rows, columns = np.nonzero(person[:, : 40 * factor])
    assert abs(columns.min() - 10 * factor) < 4
    assert abs(rows.max() - 40 * factor) < 4


def test_what_the_strip_says(batch, space):
    assert _strip_lines("street scenes", batch.targets[0], batch.trusted[0], space.classes) == [
        "street scenes: 1 person, 1 car (crowd)",
        "background not used for: face",
    ]
    assert _strip_lines("faces", batch.targets[1], batch.trusted[1], space.classes) == [
        "faces: no boxes",
        "background used for all classes",
    ]


def test_box_texts_name_the_flags():
    assert _box_text(0, 0, ("face",)) == "face"
    assert _box_text(0, int(Flag.INVALID | Flag.IGNORE_REGION), ("face",)) == "face (invalid, ignored)"
    assert _box_text(-1, int(Flag.IGNORE_REGION), ("face",)) == "any class (ignored)"
    assert _box_text(0, int(Flag.DIFFICULT | Flag.AVOID), ("face",)) == "face (avoided, difficult)"


def test_long_lists_of_avoided_classes_are_shortened():
    names = [f"c{i}" for i in range(14)]
    assert avoided_text(names[:12]).endswith("c10, c11")
    assert avoided_text(names).endswith("c10, c11 and 2 more")


def test_wrapped_lines_fit():
    font = ImageFont.load_default(12)
    lines = _wrap("background not used for: face, dog, traffic light, averylongclassname", font, 120)
    assert " ".join(lines) == "background not used for: face, dog, traffic light, averylongclassname"
    assert all(font.getlength(line) <= 120 for line in lines)
