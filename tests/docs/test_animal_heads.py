"""benchmarks/animal_heads.py: which pictures are upright, and the boxes it makes of five points."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from crossdet.data.formats.coco import read_coco

SCRIPT = Path(__file__).parents[2] / "benchmarks/animal_heads.py"


@pytest.fixture(scope="module")
def heads():
    spec = importlib.util.spec_from_file_location("animal_heads", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


UPRIGHT = [[60, 50, 1], [40, 50, 1], [50, 80, 1], [70, 30, 1], [30, 30, 1], *[[0, 0, 0]] * 15]
"""Eyes at (60, 50) and (40, 50), nose (50, 80), ears (70, 30) and (30, 30)."""


def turned(points):
    """By a quarter, anticlockwise as seen: (x, y) -> (y, 100 - x)."""
    return [[y, 100 - x, visible] for x, y, visible in points]


def test_roll(heads):
    assert heads.roll(UPRIGHT) == 0
    assert abs(heads.roll(turned(UPRIGHT))) == pytest.approx(90)
    assert heads.roll([[60, 50, 0], *UPRIGHT[1:]]) is None


def test_box_is_widened_and_cut_at_the_edge(heads):
    # points span 40 x 50 pixels: a margin of 15
    assert heads.head_box(UPRIGHT, 200, 200) == (15, 15, 85, 95)
    assert heads.head_box(UPRIGHT, 80, 90) == (15, 15, 80, 90)


def test_square_window(heads):
    """Every place of a 100-pixel square in a 300x100 picture that holds all boxes comes, and no other."""
    boxes = [(120.5, 10.0, 160.0, 50.0), (150.0, 20.0, 190.25, 90.0)]
    places = {heads.square_window(boxes, 300, 100, f"{number}.jpg") for number in range(500)}
    assert places == {(left, 0, 100) for left in range(91, 121)}
    assert {heads.square_window(boxes, 300, 100, "a.jpg") for _ in range(3)} <= places
    assert len({heads.square_window(boxes, 300, 100, "a.jpg") for _ in range(3)}) == 1
    edges = {heads.square_window([(5.0, 30.0, 60.0, 70.0)], 80, 240, f"{n}") for n in range(500)}
    assert edges == {(0, top, 80) for top in range(31)}  # not above the picture
    assert heads.square_window([(10.0, 0.0, 109.9, 9.0)], 300, 100, "a") in {(10, 0, 100)}
    assert heads.square_window([(10.5, 0.0, 110.6, 9.0)], 300, 100, "a") is None


def test_writes_the_upright_pictures_as_squares(tmp_path):
    """Red marks the heads' box of a picture 300 wide; in the square that is written the box lies on the mark."""
    (tmp_path / "raw").mkdir()
    for name in "abcd":
        picture = Image.new("RGB", (300, 100))
        picture.paste((255, 0, 0), (115, 15, 185, 95))
        picture.save(tmp_path / f"raw/{name}.jpg", quality=95)
    shifted = [[x + 100, y, visible] for x, y, visible in UPRIGHT]
    far = [[x + 200, y, visible] for x, y, visible in UPRIGHT]
    # one of 2 lies on its side; no square holds both of 4
    animals = [(1, shifted), (2, shifted), (2, turned(UPRIGHT)), (3, shifted), (4, shifted), (4, far)]
    content = {
        "images": {"1": "a.jpg", "2": "b.jpg", "3": "c.jpg", "4": "d.jpg"},
        "annotations": [{"image_id": i, "keypoints": p, "category_id": 1} for i, p in animals],
    }
    (tmp_path / "keypoints.json").write_text(json.dumps(content))
    words = [sys.executable, str(SCRIPT), "keypoints.json", "raw", "--side", "50", "--train", "1", "--val"]
    said = subprocess.run([*words, "1"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "3 upright pictures; 1 left out" in said
    out = tmp_path / "animal_heads"
    found = [read_coco(out / f"{split}.json", out / "images") for split in ("train", "val")]
    assert {index.names[0] for index in found} == {"a.jpg", "c.jpg"}
    for index in found:
        assert index.classes == ("head",)
        assert index.sizes.tolist() == [[50, 50]]
        x1, y1, x2, y2 = index.boxes[0].tolist()
        assert (y1, y2, x2 - x1) == (7.5, 47.5, 35)
        assert 0 <= x1 <= x2 <= 50
        red, green, _ = Image.open(index.path(0)).split()
        marked = Image.merge("RGB", (red, green, green)).convert("L").point(lambda v: 255 * (v > 38))
        assert marked.getbbox() == pytest.approx((x1, y1, x2, y2), abs=1.5)
    assert found[0].boxes.tolist() != found[1].boxes.tolist()  # other names, other places
    too_many = subprocess.run([*words, "2"], cwd=tmp_path, capture_output=True, text=True)
    assert too_many.returncode == 1
    assert "2 pictures can be used, fewer than 1 + 2" in too_many.stderr
