"""Lines of YOLO's label texts that reach over the picture, and lines of another kind than they look."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import yaml

from crossdet.data.formats.yolo import read_yolo
from crossdet.data.index import FAR_OVER, OUTSIDE, POSE_LIKE, TRACK_LIKE, Index
from crossdet.errors import AnnotationError

from .helpers import mistakes, save_image

WIDTH, HEIGHT = 100, 80
Points = list[tuple[float, float]]


def read(root: Path, *lines: str, **content: object) -> Index:
    save_image(root / "images/a.png", WIDTH, HEIGHT)
    (root / "labels").mkdir(exist_ok=True)
    (root / "labels/a.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text(yaml.safe_dump({"train": "images", "names": ["one"]} | content))
    return read_yolo(root / "data.yaml", "train")


def line(values: list[float]) -> str:
    return " ".join(["0", *(f"{v:.6f}" for v in values)])


# ------------------------------------------------------------------------------------------- at the border


def test_a_polygon_that_reaches_over_the_border_is_cut_there(tmp_path: Path) -> None:
    """As turned boxes at a border do."""
    place = f"{tmp_path}/labels/a.txt"
    turned, far, outside = "-.05 .1 .3 .1 .3 .3 .1 .3", ".8 .5 1.2 .5 1.2 .7 .8 .7", "1.1 .5 1.3 .5 1.2 .6"
    index = read(tmp_path, f"0 {turned}", f"0 {far}", f"0 {outside}")
    np.testing.assert_allclose(index.boxes, [[0, 8, 30, 24], [80, 40, 100, 56]], rtol=1e-6)
    assert index.skipped == {
        FAR_OVER: [f"{place}:2: xyxy [80, 40, 120, 56] in an image of 100x80"],
        OUTSIDE: [f"{place}:3: xyxy [110, 40, 130, 48] in an image of 100x80"],
    }


REFUSED = [
    ("320 100 40 40", "reaches outside 0..1; divide x and w by the image's width, y and h by its height"),
    ("10 10 40 10 40 30 10 30",
     "reaches outside 0..1; divide x and w by the image's width, y and h by its height"),
    ("-40 .1 .3 .1 .3 .3", "reaches outside 0..1; divide x and w by the image's width, y and h by its height"),
    (".5 .5 -.1 .2", "has a negative width or height (a line is class cx cy w h); write them without sign"),
    (".5 .5 1.3 .2", "reaches outside 0..1, which is the whole picture; cut the box at its border"),
    ("-.6 .1 .3 .1 .3 .3", "reaches over the picture by more than half of it; cut the polygon at its border"),
    (".5 .5 .2 nan", "holds nan, which is no place in a picture; write the line anew, or remove it"),
    (".5 .5 .2 .2 -inf .1", "holds -inf, which is no place in a picture; write the line anew, or remove it"),
    (".5 .5 .2 .2 .1 nan", "holds nan, which is no place in a picture; write the line anew, or remove it"),
]  # fmt: skip


@pytest.mark.parametrize(("numbers", "message"), REFUSED)
def test_numbers_that_are_no_shares(numbers: str, message: str, tmp_path: Path) -> None:
    """To divide is advised where a number is one of pixels, and not else."""
    with pytest.raises(AnnotationError) as error:
        read(tmp_path, f"0 {numbers}")
    assert mistakes(error) == [f"{tmp_path}/labels/a.txt:1: {numbers} {message}"]


# ------------------------------------------------------------------------------------------- poses and tracks


def test_marks_of_keypoints_in_a_polygon_are_told(tmp_path: Path) -> None:
    index = read(tmp_path, "0 .5 .5 .2 .2 .9 .9 1 .1 .1 1", "0 .4 .5 .2 .2 0 0 0 .1 .1 1")
    place = f"{tmp_path}/labels/a.txt"
    assert index.skipped == {POSE_LIKE: [f"{place}:{n}: 10 numbers after the class" for n in (1, 2)]}
    assert not read(tmp_path, "0 .5 .5 .2 .2 .9 .9 1 .1 .1 1", kpt_shape=[2, 3]).skipped
    assert not read(tmp_path, "0 .5 .5 .2 .2 .9 .9 1 .1 .1 1", "0 .9 .5 .9 .6 .8 .6").skipped
    assert not read(tmp_path, "0 .5 .5 .2 .2 .9 .9 .7 .1 .1 1").skipped  # one polygon of five points


def test_keypoints_and_tracks_that_cannot_be_polygons(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError) as error:
        read(tmp_path, "0 .5 .5 .2 .2 .9 .9 2 .1 .1 1", "0 .5 .5 .2 .2 .9 .9 2", "0 .5 .5 .2 .2 .9 17")
    assert [text.split(":1: ")[-1].split("; ")[-1] for text in mistakes(error)] == [
        "a box and 2 keypoints? Then data.yaml lacks `kpt_shape: [2, 3]`",
        "a box and 1 keypoint? Then data.yaml lacks `kpt_shape: [1, 3]`",
        "a box with confidence and track id? Leave these two out",
    ]


def test_a_box_with_confidence_and_track_is_told(tmp_path: Path) -> None:
    index = read(tmp_path, "0 .5 .5 .2 .2 .9 1", "0 .4 .5 .2 .2 .8 1")
    place = f"{tmp_path}/labels/a.txt"
    assert index.skipped == {TRACK_LIKE: [f"{place}:{n}: 6 numbers after the class" for n in (1, 2)]}
    assert not read(tmp_path, "0 .5 .5 .2 .2 .9 1", "0 .4 .5 .2 .2 .8 .9").skipped


def test_lines_that_do_not_fit_the_keypoints(tmp_path: Path) -> None:
    """They were read as polygons, their first numbers alone looked at."""
    with pytest.raises(AnnotationError) as error:
        read(tmp_path, "0 .5 .5 .2 .2", "0 .5 .5 .2 .2 .9 .9 1 .1 .1 1", kpt_shape=[3, 3])
    assert mistakes(error) == [
        f"{tmp_path}/labels/a.txt:2: 11 numbers, and by `kpt_shape` lines have 5 or 14; correct it, or take it out "
        "if these are polygons"
    ]
    assert len(read(tmp_path, "0 .5 .5 .2 .2", kpt_shape=[-1, 3]).boxes) == 1
    with pytest.raises(AnnotationError, match="2 numbers, expected 5"):
        read(tmp_path, "0 .5", kpt_shape=[-1, 3])


def pose(chance: random.Random, points: int) -> list[float]:
    """A person as trackers and annotation tools write one, without marks: a box, and points in it."""
    w, h = chance.uniform(0.05, 0.3), chance.uniform(0.1, 0.4)
    cx, cy = chance.uniform(w / 2, 1 - w / 2), chance.uniform(h / 2, 1 - h / 2)
    spots = [(cx + w * chance.uniform(-0.5, 0.5), cy + h * chance.uniform(-0.5, 0.5)) for _ in range(points)]
    return [cx, cy, w, h, *(v for spot in spots for v in spot)]


@pytest.mark.parametrize("points", [2, 5, 17])
def test_poses_without_marks_are_told_by_a_split(points: int, tmp_path: Path) -> None:
    chance = random.Random(points)
    index = read(tmp_path, *(line(pose(chance, points)) for _ in range(20)))
    assert len(index.skipped[POSE_LIKE]) == 20
    few = read(tmp_path, *(line(pose(chance, points)) for _ in range(3)))
    assert POSE_LIKE not in few.skipped


def outline(kind: str, points: int, chance: random.Random) -> Points:
    """About the middle, of sides up to 1."""
    turns = [2 * math.pi * k / points for k in range(points)]
    if kind == "turned box":
        turn, slim = chance.uniform(0, math.pi), chance.uniform(0.05, 1)
        corners = [(x / 2, y * slim / 2) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        cos, sin = math.cos(turn), math.sin(turn)
        return [(x * cos - y * sin, x * sin + y * cos) for x, y in corners]
    far = [chance.uniform(0.3, 0.5) if kind == "by hand" else 0.5 for _ in turns]
    found = [(r * math.cos(turn), r * math.sin(turn) * 0.7) for r, turn in zip(far, turns, strict=True)]
    top = min(range(points), key=lambda k: found[k][1])  # where tools begin
    return found[top:] + found[:top]


@pytest.mark.parametrize(
    ("kind", "points"), [("turned box", 4), ("by hand", 6), ("by hand", 8), ("resampled", 32), ("resampled", 64)]
)
@pytest.mark.parametrize("size", [0.03, 0.2, 0.7])
def test_polygons_with_one_count_of_points_are_no_poses(
    kind: str, points: int, size: float, tmp_path: Path
) -> None:
    """The worst case, in a wide picture: of every one the first two points would be a box inside the picture."""
    chance = random.Random(f"{kind} {points} {size}")
    lines: list[str] = []
    while len(lines) < 200:
        cx, cy = (chance.uniform(size / 2, 1 - size / 2) for _ in range(2))
        shape = [(cx + x * size * 9 / 16, cy + y * size) for x, y in outline(kind, points, chance)]
        firsts, sides = shape[:2]
        if all(side / 2 <= first <= 1 - side / 2 for first, side in zip(firsts, sides, strict=True)):
            lines.append(line([min(max(v, 0), 1) for point in shape for v in point]))
    for split in (lines[:4], lines):
        assert POSE_LIKE not in read(tmp_path, *split).skipped
