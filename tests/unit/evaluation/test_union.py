"""The union test: some of its images, other class ids, and pictures side by side."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from crossdet.data.formats.coco import write_coco
from crossdet.data.index import IndexBuilder
from crossdet.errors import UserError
from crossdet.evaluation.arrays import DetectionArrays, GroundTruth, Verified
from crossdet.evaluation.union import compare, in_classes, joined, of_images, open_union_test


@pytest.fixture
def test_set(tmp_path):
    """A dark and a bright picture with a cat and a dog each, of which the first labels cats only."""
    builder = IndexBuilder(tmp_path)
    for number, name in enumerate(("dark/a.png", "bright/a.png")):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (40, 30), (20, 20, 20)).save(tmp_path / name)
        builder.image(name, 30, 40, image_id=number + 1)
        builder.box((2, 2, 12, 12), 0)
        builder.box((20, 2, 36, 20), 1)
    write_coco(builder.build(["cat", "dog"]), tmp_path / "all.json")
    labelled = {"dark": frozenset(["cat"]), "bright": frozenset(["cat", "dog"])}
    return open_union_test(
        tmp_path / "all.json", tmp_path, lambda name: name.split("/")[0], labelled, ["dog", "bird", "cat"]
    )


def test_it_is_read_in_the_ids_of_a_detector(test_set, tmp_path):
    assert test_set.domain_of.tolist() == ["dark", "bright"]
    assert test_set.truth.labels.tolist() == [2, 0, 2, 0]
    assert in_classes(test_set.index, ["dog"], {"cat": 0, "dog": 5}).class_ids.tolist() == [0, 0]
    assert in_classes(test_set.index, ["bird"]).classes == []
    with pytest.raises(UserError):
        open_union_test(tmp_path / "nothing.json", tmp_path, str, {})


def test_some_images_keep_what_they_verify():
    verified = Verified(np.array([1]), np.array([0, 2]), np.array([0, 0]))  # the images 0 and 2 verify class 0
    boxes = np.arange(12.0).reshape(3, 4)
    truth = GroundTruth(
        np.array([7, 8, 9]), boxes, np.arange(3), np.zeros(3, bool), np.ones(3), np.array([2, 0, 1]), verified
    )
    found = DetectionArrays(boxes, np.ones(3), np.array([4, 5, 6]), np.array([1, 2, 2]))
    part, mine = of_images(truth, found, np.array([2, 1]))
    assert part.image_ids.tolist() == [9, 8]
    assert (part.labels.tolist(), part.image_of_box.tolist()) == ([0, 2], [0, 1])
    assert part.verifies(np.arange(2), np.zeros(2, np.int64)).tolist() == [True, False]
    assert (mine.labels.tolist(), mine.image_of_box.tolist()) == ([4, 5, 6], [1, 0, 0])


def test_pictures_side_by_side(test_set):
    found = DetectionArrays(np.full((2, 4), 5.0), np.array([0.9, 0.1]), np.zeros(2, int), np.array([0, 0]))
    sheet = compare(test_set, 0, "all objects", [("ours", found), ("ours", found)], 0.3, factor=2)
    assert sheet.size == (3 * 80 + 2 * 8, 60 + 22)
    assert joined([sheet, sheet], upright=True).size == (sheet.width, 2 * sheet.height + 8)


def test_boxes_lie_on_their_objects(test_set):
    """Also of a picture that is large enough as it is."""
    nothing: list[tuple[str, DetectionArrays]] = []
    plain, small, twice = (compare(test_set, 0, "", nothing, 0.3, factor) for factor in (1, 0.5, 2))
    assert np.array_equal(small, plain)
    line = plain.height - 30
    for sheet, factor in ((plain, 1), (twice, 2)):
        edge = sheet.getpixel((20 * factor, line + 15 * factor))  # left edge of the dog
        assert edge != (20, 20, 20)
        assert sheet.getpixel((17 * factor, line + 15 * factor)) == (20, 20, 20)
