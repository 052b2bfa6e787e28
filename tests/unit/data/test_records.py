"""An index from Python records: what it holds, and every mistake at once."""

import numpy as np
import pytest
import torch

from crossdet import Index, UserError
from crossdet.types import Flag

from .formats.helpers import assert_same, sample_index, save_image


@pytest.fixture
def root(tmp_path):
    """Three pictures of 100x80."""
    for name in ("a.png", "b.png", "c.png"):
        save_image(tmp_path / name)
    return tmp_path


def record(image="a.png", boxes=([10, 20, 30, 60],), labels=("cat",), **more):
    return {"image": image, "boxes": list(boxes), "labels": list(labels), **more}


def told(root, *records, **options) -> list[str]:
    with pytest.raises(UserError) as error:
        Index.from_records(records, root=root, **options)
    heading, *lines = str(error.value).splitlines()
    assert heading == f"Index.from_records: {len(lines)} mistake(s)"
    return [line.removeprefix("  - ") for line in lines]


def test_it_is_what_a_reader_makes(root):
    records = [
        record(boxes=[(10, 20, 30, 60), (0, 0, 5, 5)], labels=["cat", "dog"]),
        record("b.png", [], []),
        record("c.png", [[0, 0, 100, 80]]),
    ]
    assert_same(Index.from_records(records, root=root), sample_index(root))
    arrays = [{**one, "boxes": np.array(one["boxes"]).reshape(-1, 4)} for one in records]
    tensors = [{**one, "boxes": torch.tensor(one["boxes"]).reshape(-1, 4)} for one in records]
    for same in (arrays, tensors, iter(records)):
        assert_same(Index.from_records(same, root=str(root)), sample_index(root))


def test_classes_are_those_that_occur_or_that_are_given(root):
    assert Index.from_records([record(labels=["zebra"]), record("b.png", labels=["ant"])], root=root).classes == (
        "ant",
        "zebra",
    )
    index = Index.from_records([record()], ["dog", "cat"], root)
    assert index.classes == ("dog", "cat")
    assert index.labels.tolist() == [1]


def test_paths_may_be_absolute_or_relative_to_the_working_directory(root, monkeypatch):
    assert Index.from_records([record(root / "a.png")]).path(0) == root / "a.png"
    monkeypatch.chdir(root)
    index = Index.from_records([record()])
    monkeypatch.chdir("/")
    assert index.path(0).exists()
    assert index.sizes.tolist() == [[80, 100]]


def test_regions_may_have_no_class(root):
    flags = [Flag.IGNORE_REGION, 0, int(Flag.CROWD)]
    boxes = [[0, 0, 9, 9], [1, 1, 5, 5], [2, 2, 8, 8]]
    index = Index.from_records([record(boxes=boxes, labels=[None, "cat", "cat"], flags=flags)], root=root)
    assert index.labels.tolist() == [-1, 0, 0]
    assert index.flags.tolist() == [2, 0, 1]


def test_boxes_are_clipped_and_what_is_left_out_is_told(root):
    boxes = [[-5, 10, 50, 90], [30, 30, 30, 40], [200, 10, 220, 20]]
    index = Index.from_records([record(boxes=boxes, labels=["cat"] * 3)], root=root)
    assert index.boxes.tolist() == [[0, 10, 50, 80]]
    assert index.area.tolist() == [50 * 70]
    assert index.skipped["box without area"] == ["records[0].boxes[1]: xyxy [30, 30, 30, 40]"]
    assert [place.split(": ")[1] for place in index.skipped["box outside its image"]] == ["xyxy [200, 10, 220, 20]"]
    (root / "b.png").write_bytes(b"no picture")
    assert Index.from_records([record("b.png")], root=root).skipped["image cannot be read"] == [str(root / "b.png")]


def test_all_mistakes_at_once(root):
    lines = told(
        root,
        {"image": "a.png", "bboxes": []},
        record("gone.png"),
        record("b.png", [[1, 2, 3], "abcd"], ["cat", 3]),
        record("c.png", labels=[]),
        "a.png",
        record("a.png", labels=[None]),
        record("c.png", flags=[64]),
        {"boxes": [], "labels": []},
        record(7, [], []),
    )
    assert lines == [
        "records[0]: unknown key 'bboxes'; did you mean 'boxes'?",
        "records[0]: no boxes, labels; an image without objects has boxes [] and labels []",
        f"records[1].image: {root / 'gone.png'} does not exist",
        "records[2].boxes[0]: expected x1, y1, x2, y2 in pixels, got [1, 2, 3]",
        'records[2].boxes[1]: expected x1, y1, x2, y2 in pixels, got "abcd"',
        "records[2].boxes[1]: its label is the name of a class, got 3",
        "records[3]: as many labels (and flags) as boxes are needed, got 1 boxes, 0 labels, 1 flags",
        'records[4]: expected image, boxes and labels as a dict, got "a.png"',
        "records[5].boxes[0]: its label is the name of a class, got null",
        "records[6].image: c.png is that of records[3] already; one record has all its boxes",
        "records[6].boxes[0]: its flags are bits of crossdet.types.Flag, got 64",
        "records[7]: no image",
        "records[8].image: expected a path, got 7",
    ]


def test_a_record_per_box_is_refused(root):
    """Each object would be background in the other record."""
    (line,) = told(root, record(), record("./a.png", labels=["dog"]))
    assert line == "records[1].image: ./a.png is that of records[0] already; one record has all its boxes"
    (line,) = told(root, record(), record("x/../a.png"))
    assert line.startswith("records[1].image: x/../a.png is that of records[0] already")


def test_width_and_height_in_the_place_of_a_corner(root):
    """Without area a box may be left out; this one has lost a real object."""
    (line,) = told(root, record("a.png", [[20, 30, 10, 40]]))
    expected = "expected two corners, and no width and height"
    assert line == f"records[0].boxes[0]: x2 < x1 or y2 < y1 in [20.0, 30.0, 10.0, 40.0]; {expected}"


def test_a_class_that_was_not_given(root):
    (line,) = told(root, record(labels=["cta"]), classes=["cat", "dog"])
    assert line == "records[0].boxes[0]: unknown class 'cta'; did you mean 'cat'?"


def test_boxes_and_labels_have_to_be_lists(root):
    text, numbers = {**record(), "labels": "c"}, {"image": "b.png", "boxes": None, "labels": 3}
    assert told(root, text, numbers) == [
        'records[0].labels: expected a list, got "c"',
        "records[1].boxes: expected a list, got null",
        "records[1].labels: expected a list, got 3",
    ]


def test_classes_have_to_be_a_list(root):
    line, *_ = told(root, record(), classes="person")
    assert line == "classes: expected a list of names, got \"person\"; write ['person']"


def test_many_mistakes_are_counted(root):
    with pytest.raises(UserError, match="30 mistake") as error:
        Index.from_records([record(f"{number}.png") for number in range(30)], root=root)
    assert str(error.value).endswith("... and 10 more")
