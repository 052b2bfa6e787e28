"""Ids of a COCO file for the pictures of a folder, by file names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossdet.errors import UserError
from crossdet.runs.predict import CocoIds, _coco_ids

PARADE, CARS = Path("/data/faces/val_0.png"), Path("/data/cars/val_0.png")


@pytest.mark.parametrize(
    ("named", "files", "wanted"),
    [
        ({7: "val_0.png"}, [CARS], {CARS: 7}),
        ({7: "cars/val_0.png"}, [CARS, PARADE], {CARS: 7}),
        ({7: "cars/val_0.png", 3: "faces/val_0.png"}, [CARS, PARADE], {CARS: 7, PARADE: 3}),
        ({7: "val_0.png"}, [CARS, PARADE], {}),  # either may be meant
        ({7: "a/val_0.png", 3: "b/val_0.png"}, [CARS], {}),
        ({7: "a/val_0.png", 3: "cars/val_0.png"}, [CARS], {CARS: 3}),
        ({7: "somewhere/else/val_0.png"}, [CARS], {CARS: 7}),  # the folder has moved
        ({7: "other.png"}, [CARS], {}),
    ],
)
def test_a_picture_has_the_id_of_the_name_that_fits_it_alone(
    named: dict[int, str], files: list[Path], wanted: dict[Path, int]
) -> None:
    images = [(Path(name).parts, number) for number, name in named.items()]
    assert CocoIds(images, {}).of_files(files) == wanted


def test_categories_of_a_coco_file_are_named_as_the_weights_name_them(tmp_path):
    """Those are composed and stripped; an accent that is a sign of its own lost all boxes of the class."""
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 4, "name": " cafe\u0301\n"}]}
    (tmp_path / "c.json").write_text(json.dumps(content))
    assert _coco_ids(tmp_path / "c.json").categories == {"caf\u00e9": 4}


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"categories": [{"id": 1, "name": "car"}, {"id": 2, "name": None}]}, "categories[1].name: {}, got null"),
        ({"categories": [{"id": 1, "name": 7}]}, "categories[0].name: {}, got 7"),
        ({"images": [{"id": 1, "file_name": 5}]}, "images[0].file_name: {}, got 5"),
    ],
)
def test_a_name_that_is_no_text_is_told_with_its_place(tmp_path, part, told):
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"images": [], "categories": []} | part))
    with pytest.raises(UserError) as refused:
        _coco_ids(file)
    assert str(refused.value) == f"--coco {file}: {told.format('expected a text')}"
