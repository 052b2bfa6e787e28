"""What `predict --annotations` writes is read back as what was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from crossdet import UserError
from crossdet.data.formats.coco import read_coco
from crossdet.data.formats.yolo import read_yolo
from crossdet.runs.found_annotations import check_annotations, write_annotations

CLASSES = ("car", "yes: no", "ブ")
BOXES = {"car": [1.5, 2.0, 31.25, 18.0], "ブ": [0.0, 0.0, 40.0, 20.0]}


def found(file: Path, *names: str) -> dict[str, Any]:
    """An entry of `predictions.json` for a picture of 40x20 pixels, which it makes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20)).save(file)
    detections = [{"class": name, "score": 0.75, "box_xyxy": BOXES[name]} for name in names]
    return {"file": str(file), "width": 40, "height": 20, "detections": detections}


@pytest.fixture
def entries(tmp_path: Path) -> list[dict[str, Any]]:
    """One of them has nothing."""
    folder = tmp_path / "shots"
    return [found(folder / "b/1 é.png", "ブ", "car"), found(folder / "a/1 é.png"), found(folder / "c.png", "car")]


@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_it_is_read_back(tmp_path: Path, entries: list[dict[str, Any]], kind: str) -> None:
    files = [Path(entry["file"]) for entry in entries]
    out = tmp_path / "out"
    check_annotations(kind, out, files)
    write_annotations(kind, out, files, entries, CLASSES)
    if kind == "coco":
        index = read_coco(out / "annotations.json", tmp_path / "shots")
    else:
        (tmp_path / "shots").rename(out / "images")
        index = read_yolo(out / "data.yaml", "train")
    assert index.classes == CLASSES
    assert len(index) == 3
    assert Path(index.root) == (out / "images" if kind == "yolo" else tmp_path / "shots")
    got = {}
    for name, start, end in zip(index.names, index.box_offsets, index.box_offsets[1:], strict=False):
        names = [index.classes[label] for label in index.labels[start:end]]
        got[name] = dict(zip(names, index.boxes[start:end].tolist(), strict=True))
    assert got.keys() == {"b/1 é.png", "a/1 é.png", "c.png"}
    assert got["a/1 é.png"] == {}
    assert got["c.png"].keys() == {"car"}
    assert got["b/1 é.png"].keys() == {"car", "ブ"}
    for name, box in got["b/1 é.png"].items():
        np.testing.assert_allclose(box, BOXES[name], atol=1e-4)


def test_scores_are_in_the_file_of_coco(tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    write_annotations("coco", tmp_path, [Path(entry["file"]) for entry in entries], entries, CLASSES)
    content = json.loads((tmp_path / "annotations.json").read_text())
    assert [row["score"] for row in content["annotations"]] == [0.75] * 3
    assert content["annotations"][1]["area"] == 29.75 * 16


@pytest.mark.parametrize(
    ("kind", "name"), [("coco", "annotations.json"), ("yolo", "labels"), ("yolo", "data.yaml")]
)
def test_nothing_that_somebody_corrected_is_written_over(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"--annotations {kind}: .*{name} is there already; give another --output"):
        check_annotations(kind, tmp_path, [])


def test_two_pictures_share_no_file_of_labels(tmp_path: Path) -> None:
    files = [tmp_path / "a/x.jpg", tmp_path / "b/x.jpg", tmp_path / "a/x.png"]
    check_annotations("coco", tmp_path / "out", files)
    with pytest.raises(UserError, match=r"a/x\.jpg and .*a/x\.png would share labels/a/x\.txt"):
        check_annotations("yolo", tmp_path / "out", files)


def test_a_folder_images_below_others_is_refused(tmp_path: Path) -> None:
    """Labels of `images/site/images/b.jpg` are looked for in `images/site/labels`."""
    with pytest.raises(UserError, match=r"b\.jpg lies in a folder `images` below others.* or use `coco`"):
        check_annotations("yolo", tmp_path / "out", [tmp_path / "a.jpg", tmp_path / "site/images/b.jpg"])
    check_annotations("yolo", tmp_path / "out", [tmp_path / "images/b.jpg", tmp_path / "images/site/c.jpg"])


def test_nothing_is_written_outside_the_folder(tmp_path: Path) -> None:
    """`sub/../../other/c.png` is a way to write a path."""
    entries = [found(tmp_path / "in/sub/a.png", "car"), found(tmp_path / "other/c.png", "car")]
    entries[1]["file"] = f"{tmp_path}/in/sub/../../other/c.png"
    out = tmp_path / "deep/er/out"
    write_annotations("yolo", out, [Path(entry["file"]) for entry in entries], entries, CLASSES)
    assert {file.relative_to(out).as_posix() for file in tmp_path.rglob("*.txt")} == {
        "labels/in/sub/a.txt",
        "labels/other/c.txt",
    }
