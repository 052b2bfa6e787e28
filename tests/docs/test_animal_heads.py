"""benchmarks/animal_heads.py: which pictures are upright, and the boxes it makes of five points."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from crossdet.data.coco import read_coco

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


def test_writes_the_upright_pictures_scaled(tmp_path):
    (tmp_path / "raw").mkdir()
    for name in "abc":
        Image.new("RGB", (200, 100)).save(tmp_path / f"raw/{name}.jpg")
    animals = [(1, UPRIGHT), (2, UPRIGHT), (2, turned(UPRIGHT)), (3, UPRIGHT)]  # one of 2 lies on its side
    content = {
        "images": {"1": "a.jpg", "2": "b.jpg", "3": "c.jpg"},
        "annotations": [{"image_id": i, "keypoints": p, "category_id": 1} for i, p in animals],
    }
    (tmp_path / "keypoints.json").write_text(json.dumps(content))
    words = [
        sys.executable,
        str(SCRIPT),
        "keypoints.json",
        "raw",
        "--train",
        "1",
        "--val",
        "1",
        "--shorter",
        "50",
    ]
    subprocess.run(words, cwd=tmp_path, check=True)
    out = tmp_path / "animal_heads"
    found = [read_coco(out / f"{split}.json", out / "images") for split in ("train", "val")]
    assert {index.names[0] for index in found} == {"a.jpg", "c.jpg"}
    for index in found:
        assert index.classes == ("head",)
        assert index.sizes.tolist() == [[50, 100]]
        assert index.boxes.tolist() == [[7.5, 7.5, 42.5, 47.5]]
    too_many = subprocess.run([*words[:-4], "--val", "2"], cwd=tmp_path, capture_output=True, text=True)
    assert too_many.returncode == 1
    assert "2 upright pictures, fewer than" in too_many.stderr
