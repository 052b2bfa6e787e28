"""COCO and LVIS annotations: round trips, crowds, id gaps, federated lists, every malformed case."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdet.data import spellings
from crossdet.data.formats.coco import read_coco, write_coco
from crossdet.data.index import OTHER_SPELLING, Index, IndexBuilder, clip_to_images
from crossdet.errors import AnnotationError
from crossdet.types import Flag

from .helpers import assert_same, mistakes, save_image


def coco_dict() -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "seven.jpg", "height": 80, "width": 100},
            {"id": 3, "file_name": "sub/three.jpg", "height": 80, "width": 100},
            {"id": 5, "file_name": "five.jpg", "height": 80, "width": 100},
        ],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 90, "bbox": [1, 2, 30, 40], "area": 600.5, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 55, "iscrowd": 1},
            {"id": 3, "image_id": 5, "category_id": 1, "bbox": [5.5, 5, 10, 10.25], "ignore": 1},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}],
    }


def read(content: Any, tmp_path: Path) -> Index:
    file = tmp_path / "instances.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_coco(file, tmp_path / "images")


def test_fields(tmp_path: Path) -> None:
    index = read(coco_dict(), tmp_path)
    assert index.classes == ("toothbrush", "person")  # the order of `categories`
    assert index.category_ids.tolist() == [90, 1]
    assert [index.names[i] for i in range(3)] == ["seven.jpg", "sub/three.jpg", "five.jpg"]
    assert index.image_ids.tolist() == [7, 3, 5]
    assert index.path(1) == tmp_path / "images" / "sub" / "three.jpg"
    assert np.diff(index.box_offsets).tolist() == [1, 0, 2]  # the image without annotations is kept
    assert index.boxes.tolist() == [[0, 0, 10, 10], [1, 2, 31, 42], [5.5, 5, 15.5, 15.25]]
    assert index.labels.tolist() == [1, 0, 1]
    assert index.flags.tolist() == [Flag.CROWD, 0, Flag.IGNORE_REGION]
    assert index.area.tolist() == [55, 600.5, 102.5]  # without `area`: the box's own
    assert not index.federated
    assert index.skipped == {}


def test_round_trip(tmp_path: Path) -> None:
    index = read(coco_dict(), tmp_path)
    write_coco(index, tmp_path / "written.json")
    assert_same(read_coco(tmp_path / "written.json", tmp_path / "images"), index)


corners = st.tuples(*[st.integers(0, 90)] * 2, *[st.floats(0.125, 10, width=16)] * 2)
rows = st.tuples(corners, st.integers(0, 2), st.sampled_from([0, 1, 2]))


@settings(max_examples=40, deadline=None)
@given(images=st.lists(st.lists(rows, max_size=4), max_size=4))
def test_round_trip_of_any_index(images: list[list[Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("coco")
    builder = IndexBuilder(folder)
    for number, image in enumerate(images):
        builder.image(f"ü {number}.jpg", 100, 100, image_id=1000 - number)
        for (x, y, w, h), label, flags in image:
            builder.box((x, y, x + w, y + h), label, flags)
    index = builder.build(["a", "b", "c"], category_ids=[4, 2, 9])
    write_coco(index, folder / "x.json")
    assert_same(read_coco(folder / "x.json", folder), index)


def test_region_of_no_class_is_written_once_per_class(tmp_path: Path) -> None:
    builder = IndexBuilder(tmp_path)
    builder.image("a.jpg", 80, 100)
    builder.box((1, 2, 3, 4), -1, Flag.IGNORE_REGION)
    builder.box((5, 6, 7, 8), 1)
    write_coco(builder.build(["a", "b"]), tmp_path / "x.json")
    index = read_coco(tmp_path / "x.json", tmp_path)
    assert index.boxes.tolist() == [[1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert index.labels.tolist() == [0, 1, 1]
    assert index.flags.tolist() == [Flag.IGNORE_REGION, Flag.IGNORE_REGION, 0]


def test_lvis(tmp_path: Path) -> None:
    content = coco_dict()
    content["images"][0] |= {"neg_category_ids": [90], "not_exhaustive_category_ids": [1, 90]}
    del content["images"][1]["file_name"]
    content["images"][1]["coco_url"] = "http://images.example.org/train2017/000000391895.jpg"
    index = read(content, tmp_path)
    assert index.federated
    assert index.negatives is not None
    assert index.not_exhaustive is not None
    assert index.names[1] == "train2017/000000391895.jpg"
    assert [index.negatives[i].tolist() for i in range(3)] == [[0], [], []]  # positions, not ids
    assert [index.not_exhaustive[i].tolist() for i in range(3)] == [[1, 0], [], []]
    write_coco(index, tmp_path / "written.json")
    assert_same(read_coco(tmp_path / "written.json", tmp_path / "images"), index)


def test_skipped_and_clipped(tmp_path: Path) -> None:
    content = coco_dict()
    boxes = [[90, 70, 50, 50], [3, 4, 0, 5], [200, 10, 5, 5], [float("nan"), 1, 2, 3], [-5, -5, 10, 10]]
    content["annotations"] = [{"image_id": 7, "category_id": 1, "bbox": box} for box in boxes]
    index = read(content, tmp_path)
    assert index.boxes.tolist() == [[90, 70, 100, 80], [0, 0, 5, 5]]
    assert index.area.tolist() == [100, 25]
    file = tmp_path / "instances.json"
    assert index.skipped == {
        "box far over its image's border, cut": [f"{file}: annotations[0].bbox [90, 70, 50, 50]"],
        "box without area": [f"{file}: annotations[1].bbox [3, 4, 0, 5]"],
        "box outside its image": [f"{file}: annotations[2].bbox [200, 10, 5, 5]"],
        "box with a coordinate that is no number": [f"{file}: annotations[3].bbox [NaN, 1, 2, 3]"],
    }


numbers = st.sampled_from([-7.0, 0.0, 1.0, 2.5, 50.0, 79.0, 100.0, 120.0, float("nan"), float("inf")])


@settings(max_examples=200, deadline=None)
@given(box=st.tuples(numbers, numbers, numbers, numbers), size=st.sampled_from([(80, 100), (0, 0)]))
def test_clipping_follows_the_builder(box: tuple[float, ...], size: tuple[int, int]) -> None:
    builder = IndexBuilder("")
    builder.image("a", *size)
    builder.box(box, 0)  # type: ignore[arg-type]
    clipped, reason = clip_to_images(np.array([box]), np.array([size], np.int32))
    assert list(builder.skipped) == [str(r) for r in reason if r]
    if not builder.skipped:
        assert builder.build(["x"]).boxes.tolist() == clipped.tolist()


def test_without_sizes(tmp_path: Path) -> None:
    content = coco_dict()
    for image in content["images"]:
        del image["height"]
    content["annotations"][0]["bbox"] = [500, 500, 10, 10]
    index = read(content, tmp_path)
    assert index.sizes.tolist() == [[0, 0]] * 3
    assert [500, 500, 510, 510] in index.boxes.tolist()


def test_not_json(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError) as error:
        read('{"images": [],\n "annotations": [1,, 2]}', tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'instances.json'}: 1 mistake(s)")
    assert mistakes(error) == [
        "line 2 column 20: not valid JSON (Expecting value); is the file complete, and is it the annotation file?"
    ]


def test_a_file_of_yolo(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("names: [a]\n")
    with pytest.raises(AnnotationError, match="it looks like a file of YOLO: `format: yolo`"):
        read_coco(tmp_path / "data.yaml", tmp_path)


def test_not_text(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'{"a": "\xff\xff"}')
    with pytest.raises(AnnotationError, match="not text in UTF-8; is it the annotation file"):
        read_coco(tmp_path / "x.json", tmp_path)


def test_results_file_in_place_of_annotations(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError) as error:
        read([{"image_id": 1}], tmp_path)
    assert mistakes(error) == [
        "the file holds a list, expected an object with the keys `images`, `annotations` and `categories`"
    ]


def test_missing_and_wrong_sections(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError) as error:
        read({"images": {}, "categories": [1]}, tmp_path)
    assert mistakes(error) == [
        "images: is an object, expected a list of objects",
        "missing key `annotations`; expected a list of objects (COCO instances file)",
        "categories[0]: 1 is a number, expected an object",
    ]


MALFORMED = [
    ("annotations", 1, {"bbox": [1, 2, 3]},
     "annotations[1].bbox: [1, 2, 3], expected four numbers [x, y, width, height]"),
    ("annotations", 1, {"bbox": [1, 2, 3, "4"]},
     'annotations[1].bbox: [1, 2, 3, "4"], expected four numbers [x, y, width, height]'),
    ("annotations", 0, {"bbox": None},
     "annotations[0].bbox: null, expected four numbers [x, y, width, height]"),
    ("annotations", 2, {"image_id": 4},
     "annotations[2].image_id: 4 is not the id of any of `images`; "
     "add it to `images` or remove the annotation"),
    ("annotations", 2, {"category_id": 2},
     "annotations[2].category_id: 2 is not the id of any of `categories`; "
     "add it to `categories` or remove the annotation"),
    ("annotations", 2, {"image_id": "five"}, 'annotations[2].image_id: "five", expected a whole number'),
    ("annotations", 2, {"image_id": 5.5}, "annotations[2].image_id: 5.5, expected a whole number"),
    ("annotations", 2, {"image_id": True}, "annotations[2].image_id: true, expected a whole number"),
    ("annotations", 2, {"iscrowd": "2"}, 'annotations[2].iscrowd: "2", expected 0 or 1'),
    ("annotations", 2, {"area": "big"},
     "annotations[2].area: \"big\", expected a number (leave the key out for the box's area)"),
    ("annotations", 2, {"iscrowd": 2}, "annotations[2].iscrowd: 2, expected 0 or 1"),
    ("annotations", 2, {"iscrowd": []}, "annotations[2].iscrowd: [], expected 0 or 1"),
    ("images", 2, {"id": 7}, "images[2].id: 7 is already the id of images[0]; every one needs its own"),
    ("images", 2, {"id": 2**70},
     f"images[].id: {2**70} does not fit in 64 bits; number them anew"),
    ("images", 1, {"file_name": 5},
     "images[1].file_name: 5, expected the image's path below the images folder (or a `coco_url`)"),
    ("images", 2, {"file_name": "seven.jpg"},
     "images[2].file_name: 'seven.jpg' is that of images[0] already; give the picture one entry, and its "
     "annotations that entry's id"),
    ("images", 1, {"not_exhaustive_category_ids": [1]},
     "images[1].not_exhaustive_category_ids: without `neg_category_ids` in any image; LVIS has both: add it (`[]` "
     "where there are none)"),
    ("images", 1, {"height": "8o"},
     'images[1].height: "8o", expected the height in pixels '
     '(leave the key out and it is read from the image)'),
    ("images", 1, {"neg_category_ids": [1, 8]},
     "images[1].neg_category_ids: [8] not among the ids of `categories`; add them there or remove them here"),
    ("images", 1, {"neg_category_ids": 1},
     "images[1].neg_category_ids: 1, expected a list of category ids"),
    ("categories", 1, {"id": 90},
     "categories[1].id: 90 is already the id of categories[0]; every one needs its own"),
    ("categories", 1, {"name": "toothbrush"},
     "categories[1].name: 'toothbrush' is already the name of categories[0]; "
     "rename one of the two or give their boxes one category_id"),
    ("categories", 1, {"name": None}, "categories[1].name: null, expected a text"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "row", "change", "message"), MALFORMED)
def test_malformed(section: str, row: int, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    content = coco_dict()
    content[section][row] |= change
    with pytest.raises(AnnotationError) as error:
        read(content, tmp_path)
    assert message in mistakes(error)


def test_one_picture_under_two_spellings(tmp_path: Path) -> None:
    content = coco_dict()
    content["images"][2]["file_name"] = "./sub/../seven.jpg"
    with pytest.raises(AnnotationError) as error:
        read(content, tmp_path)
    (mistake,) = mistakes(error)
    assert mistake.startswith("images[2].file_name: './sub/../seven.jpg' is that of images[0] already")


@pytest.mark.parametrize("bbox", [None, [], [0, 0, 0, 0], [5, 5, 10, 0]])
def test_without_a_box_it_is_around_the_polygons(bbox: Any, tmp_path: Path) -> None:
    content = coco_dict()
    content["annotations"][1] |= {"bbox": bbox, "segmentation": [[1, 2, 31.5, 2, 31.5, 42], [0.5, 9, 3, 9, 3, 12]]}
    content["annotations"][2] |= {"ignore": None, "iscrowd": None}
    index = read(content, tmp_path)
    assert index.boxes[0].tolist() == [0.5, 2, 31.5, 42]
    assert index.skipped == {}
    assert index.flags.tolist()[-1] == 0


@pytest.mark.parametrize("segmentation", [[], [[]], [[1, 2, "3", 4]], {"counts": [4], "size": [2, 2]}, None, 3])
def test_what_gives_no_box_leaves_it_without_area(segmentation: Any, tmp_path: Path) -> None:
    content = coco_dict()
    content["annotations"][1] |= {"bbox": [0, 0, 0, 0], "segmentation": segmentation}
    assert list(read(content, tmp_path).skipped) == ["box without area"]


def test_a_turned_box_is_around_its_corners(tmp_path: Path) -> None:
    """As CVAT writes one that was turned: the box before, and degrees about its middle."""
    content = coco_dict()
    for annotation, degrees in zip(content["annotations"], (90, 30, 180.0), strict=True):
        annotation["attributes"] = {"occluded": False, "rotation": degrees}
    content["annotations"][1]["bbox"] = [40, 30, 20, 10]
    index = read(content, tmp_path)
    wide, tall = 20 * np.sqrt(3) / 2 + 5, 10 + 10 * np.sqrt(3) / 2
    around = [50 - wide / 2, 35 - tall / 2, 50 + wide / 2, 35 + tall / 2]
    np.testing.assert_allclose(index.boxes, [around, [0, 7, 36, 37], [5.5, 5, 15.5, 15.25]], rtol=1e-6)


def test_a_turn_that_is_no_angle_turns_nothing(tmp_path: Path) -> None:
    content = coco_dict()
    before = read(content, tmp_path).boxes.tolist()
    content["annotations"][0]["attributes"] = {"rotation": math.inf}
    content["annotations"][1]["attributes"] = {"rotation": math.nan}
    assert read(content, tmp_path).boxes.tolist() == before


def test_an_unknown_id_is_named_once(tmp_path: Path) -> None:
    content = coco_dict()  # a category that was left out has thousands of boxes, and one cure
    for annotation, category in zip(content["annotations"], (99, 98, 99), strict=True):
        annotation["category_id"] = category
    with pytest.raises(AnnotationError) as error:
        read(content, tmp_path)
    assert mistakes(error) == [
        "annotations[0].category_id: 99 is not the id of any of `categories`; "
        "add it to `categories` or remove the 2 annotations that name it",
        "annotations[1].category_id: 98 is not the id of any of `categories`; "
        "add it to `categories` or remove the annotation",
    ]


def test_all_mistakes_at_once_and_capped(tmp_path: Path) -> None:
    content = coco_dict()
    content["annotations"] = [{"image_id": 7, "category_id": 1, "bbox": [i]} for i in range(30)]
    content["images"][0]["file_name"] = ""
    with pytest.raises(AnnotationError) as error:
        read(content, tmp_path)
    lines = mistakes(error)
    assert str(error.value).startswith(f"{tmp_path / 'instances.json'}: 31 mistake(s)")
    assert lines[0].startswith('images[0].file_name: ""')
    assert lines[1].startswith("annotations[0].bbox: [0]")
    assert lines[-1] == "... and 11 more"


def test_empty_sections(tmp_path: Path) -> None:
    index = read({"images": [], "annotations": [], "categories": []}, tmp_path)
    assert len(index) == 0
    assert index.boxes.shape == (0, 4)


def test_names_are_composed(tmp_path: Path) -> None:
    """An accent that is a sign of its own makes no other class."""
    content = coco_dict()
    content["categories"][0]["name"] = "cafe\u0301"
    assert read(content, tmp_path).classes == ("caf\u00e9", "person")
    content["categories"][1]["name"] = "caf\u00e9"
    with pytest.raises(AnnotationError, match="is already the name of"):
        read(content, tmp_path)


def test_numbers_as_texts_and_floats(tmp_path: Path) -> None:
    """Where they can mean one thing only."""
    content = coco_dict()
    content["images"][0]["neg_category_ids"] = [90]
    wanted = read(content, tmp_path)
    for made in (str, float):
        for section, keys in (
            ("images", ("id", "height", "width")),
            ("annotations", ("image_id", "category_id", "iscrowd")),
            ("categories", ("id",)),
        ):
            for item in content[section]:
                item |= {key: made(int(item[key])) for key in keys if key in item}
        content["images"][0]["neg_category_ids"] = [made(90)]
        assert_same(read(content, tmp_path), wanted)


def test_white_space_around_names_means_nothing(tmp_path: Path) -> None:
    """They look the same, and would be another class in the union."""
    content = coco_dict()
    content["categories"][0]["name"] = " Cat\r\n"
    assert read(content, tmp_path).classes == ("Cat", "person")
    content["categories"][1]["name"] = "Cat "
    with pytest.raises(
        AnnotationError, match=r"categories\[1\].name: 'Cat' is already the name of categories\[0\]"
    ):
        read(content, tmp_path)


def test_a_name_that_stands_twice_and_has_boxes_once(tmp_path: Path) -> None:
    """Roboflow writes a supercategory as a category of its own, which may have the name of a class."""
    content = coco_dict()
    content["categories"].insert(0, {"id": 0, "name": "person", "supercategory": "none"})
    index = read(content, tmp_path)
    assert index.classes == ("toothbrush", "person")
    assert index.category_ids.tolist() == [90, 1]
    assert index.labels.tolist() == [1, 0, 1]
    content["categories"].append({"id": 5, "name": "dog"})
    content["categories"].append({"id": 4, "name": "dog"})
    assert read(content, tmp_path).category_ids.tolist() == [90, 1, 4]  # without any box the last
    content["images"][0]["neg_category_ids"] = [0]
    with pytest.raises(
        AnnotationError, match=r"categories\[2\].name: 'person' is already the name of categories\[0\]"
    ):
        read(content, tmp_path)


def test_paths_of_windows(tmp_path: Path) -> None:
    content = coco_dict()
    content["images"][1]["file_name"] = "sub\\three.jpg"
    assert read(content, tmp_path).names[1] == "sub/three.jpg"
    (tmp_path / "images").mkdir()
    (tmp_path / "images/sub\\three.jpg").touch()  # elsewhere it is a letter like any other
    assert read(content, tmp_path).names[1] == "sub\\three.jpg"
    content["images"][0]["file_name"] = "sub\\..\\five.jpg"
    with pytest.raises(AnnotationError, match=r"five.jpg' is that of images\[0\] already"):
        read(content, tmp_path)


@pytest.mark.parametrize("few", [0, 1000])
def test_pictures_that_are_spelt_otherwise(few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By zips from a Mac, by cameras, and by tools that leave the ending out. few: whether folders are listed."""
    monkeypatch.setattr(spellings, "FEW", few)
    names = {
        "F0.PNG": "f0.png",
        "cafe\u0301/e\u0301.jpg": "caf\u00e9/\u00e9.jpg",
        "seven": "seven.jpg",
        "there.jpg": "there.jpg",
        # what follows stays as it is
        "two.JPG": None,
        "eight": None,
        "THERE.jpg": None,
        "x.PNG": None,
        "X.png": None,
        "five.png": None,
        "../y.jpg": None,
        "nowhere/y.jpg": None,
    }
    more = (
        "two.jpg",
        "two.Jpg",
        "eight.jpg",
        "eight.png",
        "eight.txt",
        "seven.txt",
        "x.png/z",
        "X.PNg",
        "five.jpg",
    )
    for name in (*filter(None, names.values()), *more):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        save_image(tmp_path / "any.jpg").rename(tmp_path / "images" / name)
    items = [{"id": row, "file_name": name, "height": 80, "width": 100} for row, name in enumerate(names)]
    index = read(coco_dict() | {"images": items, "annotations": []}, tmp_path)
    assert list(index.names) == [real or name for name, real in names.items()]
    places = index.skipped.pop(OTHER_SPELLING)
    assert len(places) == 3
    file = tmp_path / "instances.json"
    assert places[0] == f'{file}: images[0].file_name "F0.PNG" is {tmp_path}/images/f0.png'
    assert index.skipped == {}
