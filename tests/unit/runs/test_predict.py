"""Ids of a COCO file for the pictures of a folder, by file names; pictures that cannot be drawn."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from crossdet.data.drawing import draw_detections
from crossdet.errors import RunError, UserError
from crossdet.runs import predict as predicting
from crossdet.runs.predict import CocoIds, _coco_ids, predict_to_folder
from crossdet.types import Detections

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


def test_a_coco_file_is_read_as_in_training(tmp_path):
    """Its twin without a box is left out, texts may be ids, and `\\` was written on Windows."""
    content = {
        "images": [{"id": "7", "file_name": "sub\\a.jpg"}],
        "annotations": [{"category_id": 1}, {"category_id": 2}],
        "categories": [{"id": "1", "name": "car"}, {"id": 2.0, "name": "bus"}, {"id": 3, "name": "car"}],
    }
    (tmp_path / "c.json").write_text(json.dumps(content))
    ids = _coco_ids(tmp_path / "c.json")
    assert ids.categories == {"car": 1, "bus": 2}
    assert ids.of_files([Path("x/sub/a.jpg"), Path("x/other/a.jpg")]) == {Path("x/sub/a.jpg"): 7}
    assert ids.of_files([Path("x/sub\\a.jpg")]) == {Path("x/sub\\a.jpg"): 7}
    content["images"] = [{"id": 8, "coco_url": "http://images.example.org/train2017/b.jpg"}]  # LVIS
    (tmp_path / "c.json").write_text(json.dumps(content))
    assert _coco_ids(tmp_path / "c.json").of_files([Path("train2017/b.jpg")]) == {Path("train2017/b.jpg"): 8}
    content |= {"annotations": None, "categories": [{"id": 1, "name": "car"}]}  # as in files of pictures alone
    (tmp_path / "c.json").write_text(json.dumps(content))
    assert _coco_ids(tmp_path / "c.json").categories == {"car": 1}
    content["categories"] *= 2
    (tmp_path / "c.json").write_text(json.dumps(content))
    assert _coco_ids(tmp_path / "c.json").categories == {"car": 1}
    content |= {"annotations": ["x"], "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "car"}]}
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="no COCO annotation file"):
        _coco_ids(tmp_path / "c.json")


def test_ctrl_c_while_a_drawing_is_waited_for_leaves_its_entry(tmp_path):
    """The file was written, and told to be of an earlier call."""
    entry: dict[str, str] = {}
    with predicting._Drawing(tmp_path) as drawing:
        done: Future[None] = Future()

        def interrupted() -> None:
            done.result = lambda: None
            raise KeyboardInterrupt

        done.result = interrupted
        drawing._open.append((entry, tmp_path / "a.jpg", done))
        with pytest.raises(KeyboardInterrupt):
            drawing._settle()
    assert entry == {"picture": "pictures/a.jpg"}


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"categories": [{"id": 1, "name": "car"}, {"id": 2, "name": None}]}, "categories[1].name: {}, got null"),
        ({"categories": [{"id": 1, "name": 7}]}, "categories[0].name: {}, got 7"),
        ({"images": [{"id": 1, "file_name": 5}]}, "images[0].file_name: {}, got 5"),
        ({"images": [{"id": 1}]}, "images[0].file_name: {}, got null"),
    ],
)
def test_a_name_that_is_no_text_is_told_with_its_place(tmp_path, part, told):
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"images": [], "categories": []} | part))
    with pytest.raises(UserError) as refused:
        _coco_ids(file)
    assert str(refused.value) == f"--coco {file}: {told.format('expected a text')}"


@pytest.fixture
def asked():
    """A detector that needs no network: of every picture all is a car."""

    def find(picture, *_):
        height, width = picture.shape[:2]
        return Detections(
            np.array([[0, 0, width, height]], np.float32), np.array([0.5], np.float32), np.array([0]), ("car",)
        )

    detector = SimpleNamespace(
        file=Path("w"), reported=("car",), usual_limit=100, asked=lambda *_: None, limit=lambda _: 100, find=find,
        thresholds_used=lambda _: {"car": 0.3},
    )  # fmt: skip
    return SimpleNamespace(
        tiling=None, classes=None, score_threshold=None, max_detections=None, without_torch=lambda: detector
    )


def pictures(folder: Path, count: int, size: tuple[int, int] = (8, 8)) -> list[str]:
    folder.mkdir()
    files = [folder / f"{number:02}.png" for number in range(count)]
    for file in files:
        Image.new("RGB", size).save(file)
    return list(map(str, files))


def test_a_copy_of_a_panorama_is_made_smaller(asked, tmp_path):
    """JPEG has at most 65,500 pixels a side; all that was found was lost."""
    summary = predict_to_folder(asked, pictures(tmp_path / "in", 1, (70_000, 8)), tmp_path / "out")
    (entry,) = json.loads((tmp_path / "out/predictions.json").read_text())["images"]
    assert (entry["width"], entry["detections"][0]["box_xyxy"], summary.undrawn) == (70_000, [0, 0, 70_000, 8], [])
    with Image.open(tmp_path / "out" / entry["picture"]) as drawn:
        assert drawn.size == (65_500, 8)


def test_a_picture_that_cannot_be_drawn_costs_no_detections(asked, tmp_path, monkeypatch):
    def draw(image, found):
        if image.size == (9, 9):
            raise ValueError("too odd")
        return draw_detections(image, found)

    monkeypatch.setattr(predicting, "draw_detections", draw)
    files = [*pictures(tmp_path / "odd", 1, (9, 9)), *pictures(tmp_path / "in", 2)]
    summary = predict_to_folder(asked, files, tmp_path / "out")
    assert summary.undrawn == [
        f"{tmp_path}/out/pictures/00.jpg: it could not be drawn (too odd); what was found is kept"
    ]
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [len(entry["detections"]) for entry in content["images"]] == [1, 1, 1]
    assert [entry.get("picture") for entry in content["images"]] == [None, "pictures/00_2.jpg", "pictures/01.jpg"]
    assert content["complete"] is True


def test_a_full_disk_ends_it_and_keeps_what_was_found(asked, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/pictures").write_text("a file")
    told = (
        r"pictures/00\.jpg could not be written \(.+\); what was found in 17 of 40 images is in .*predictions\.json"
    )
    with pytest.raises(RunError, match=told):
        predict_to_folder(asked, pictures(tmp_path / "in", 40), tmp_path / "out")
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert (len(content["images"]), content["complete"]) == (17, False)
