"""The lines of YOLO's label texts: boxes as shares of their picture, and signs that lines are of another kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crossdet.data.annotation_files import read_lines
from crossdet.data.formats.yolo_files import YoloSplit
from crossdet.data.index import POSE_LIKE, TRACK_LIKE
from crossdet.errors import AnnotationError

OVERSHOOT = 0.01
"""How far outside 0..1 a coordinate may lie (rounding by annotation tools); the box is clipped then."""
BEYOND = 0.5
"""The same of a polygon's points: turned boxes at a border reach over it. Less than 1, so that a track's number or
the mark 2 of a keypoint that is visible is no point."""
PIXELS = 2
"""A number above that is no share of a picture; it is likely one of pixels."""
FEW, APART = 4, 0.1
"""From so many lines on, and such a share of them, `_size_lies_apart` says something about a split."""

Box = tuple[float, float, float, float]


@dataclass
class PoseDoubt:
    """What the lines of a split that were read as polygons have in common if they are no polygons; lives for one
    split, and keeps their places as long as it may be so.

    A line alone can mean both. Boxes with something behind them all have the same count of numbers and begin with a
    box inside the picture; but so do polygons of a tool that gives each the same count of points, where all objects
    lie at the upper left, or are large and begin at their top. So marks of keypoints, or the whole numbers of
    tracks, are asked for as well, or a width and height that lie far from all points in a part of the lines: the
    second point of a polygon seldom does. (Poses without marks whose objects are all large are not told.)
    """

    places: list[str] = field(default_factory=list)
    numbers: int = 0
    apart: int = 0
    marked: bool = True
    refuted: bool = False

    def add(self, place: str, values: Sequence[float]) -> None:
        """values: the numbers after the class, of a line read as a polygon."""
        if self.refuted:
            return
        self.numbers = self.numbers or len(values)
        if len(values) != self.numbers or not _begins_with_a_box(values):
            self.refuted, self.places = True, []
            return
        self.places.append(f"{place}: {len(values)} numbers after the class")
        self.apart += _size_lies_apart(values)
        self.marked = self.marked and bool(_another_kind(values))

    @property
    def reason(self) -> str | None:
        """The reason of `Index.skipped` under which `places` are told; None where they are polygons."""
        if not self.places:
            return None
        if self.numbers == 6:  # the second point of an upright triangle lies apart time and again
            return TRACK_LIKE if self.marked else None
        apart = len(self.places) >= FEW and self.apart >= APART * len(self.places)
        return POSE_LIKE if self.marked or apart else None


def label_rows(file: Path, split: YoloSplit, doubt: PoseDoubt, problems: list[str]) -> list[tuple[str, int, Box]]:
    """(place, class id, xyxy relative to the image) of every line."""
    rows = []
    try:
        lines = read_lines(file)
    except AnnotationError as error:
        problems.append(str(error))
        return []
    counts = (5, 5 + max(0, split.keypoint_numbers))  # of a box, and of one with keypoints
    for number, line in enumerate(lines, start=1):
        words, place = line.split(), f"{file}:{number}"
        if not words:
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            problems.append(f"{place}: {line!r}, expected numbers: class cx cy w h")
            continue
        is_box = len(values) in counts
        if mistake := _mistake(words, values, split, is_box):
            problems.append(f"{place}: {mistake}")
            continue
        if not is_box:
            doubt.add(place, values[1:])
        rows.append((place, int(values[0]), _enclosing_box(values[1:], is_box)))
    return rows


def _enclosing_box(values: list[float], is_box: bool) -> Box:
    if is_box:
        cx, cy, w, h = values[:4]
        return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


# ------------------------------------------------------------------------------------------- mistakes


def _mistake(words: list[str], values: list[float], split: YoloSplit, is_box: bool) -> str:
    """What is wrong with a line, "" for nothing. is_box: it has as many numbers as a box, or one with keypoints."""
    count = len(values)
    if not is_box and split.keypoint_numbers > 0:
        wanted = f"by `kpt_shape` lines have 5 or {5 + split.keypoint_numbers}"
        return f"{count} numbers, and {wanted}; correct it, or take it out if these are polygons"
    if not is_box and (count < 7 or not count % 2):
        kind = _another_kind(values[1:])
        wanted = "5 (class cx cy w h) or a class and 3 or more points"
        return f"{count} numbers, expected {wanted}{kind and f'; {kind}'}"
    if values[0] not in split.classes:
        gaps = list(split.classes) != list(range(len(split.classes)))
        ids = ", ".join(map(str, split.classes)) if gaps else f"0..{len(split.classes) - 1}"
        return f"class {words[0]} is not in `names`; its ids are {ids}"
    # a keypoint's visibility may be 2
    over, end = (OVERSHOOT, 5) if is_box else (BEYOND, count)
    used = values[1:end]
    if -over <= min(used) and max(used) <= 1 + over and not any(map(math.isnan, used)):
        return ""
    return f"{' '.join(words[1:])} {_outside(words[1:end], used, is_box)}"


def _outside(words: list[str], values: list[float], is_box: bool) -> str:
    """What is said of numbers of a line that are no shares of the picture."""
    strange = [word for word, value in zip(words, values, strict=True) if not math.isfinite(value)]
    if strange:
        return f"holds {strange[0]}, which is no place in a picture; write the line anew, or remove it"
    if kind := _another_kind(values):
        return f"is no polygon within the picture; {kind}"
    if max(map(abs, values)) > PIXELS:
        return "reaches outside 0..1; divide x and w by the image's width, y and h by its height"
    if is_box and min(values[2:]) < 0:
        return "has a negative width or height (a line is class cx cy w h); write them without sign"
    if is_box:
        return "reaches outside 0..1, which is the whole picture; cut the box at its border"
    return "reaches over the picture by more than half of it; cut the polygon at its border"


def _another_kind(values: Sequence[float]) -> str:
    """What a line that is no box may be, by the numbers after its class; "" where nothing speaks for it."""
    count = len(values)
    if count < 6 or not _begins_with_a_box(values):
        return ""
    if count == 6 and values[5].is_integer():
        return "a box with confidence and track id? Leave these two out"
    if count > 6 and (count - 4) % 3 == 0 and all(v in (0, 1, 2) for v in values[6::3]):
        points = (count - 4) // 3
        return f"a box and {points} keypoint{'s' * (points > 1)}? Then data.yaml lacks `kpt_shape: [{points}, 3]`"
    return ""


def _begins_with_a_box(values: Sequence[float]) -> bool:
    """Whether the first four numbers are a box with an area and inside the picture."""
    cx, cy, w, h = values[:4]
    low, high = -OVERSHOOT, 1 + OVERSHOOT
    inside = low <= cx - w / 2 and cx + w / 2 <= high and low <= cy - h / 2 and cy + h / 2 <= high
    return inside and w > 0 and h > 0


def _size_lies_apart(values: Sequence[float]) -> bool:
    """Whether the second point, taken as one, lies further from the box around all others than that is long.

    So do the width and height of an object that is small for its distance from the upper left corner. Of a
    parallelogram, such as a turned box, no point does.
    """
    w, h = values[2:4]
    x, y = [values[0], *values[4::2]], [values[1], *values[5::2]]
    left, top, right, bottom = min(x), min(y), max(x), max(y)
    return max(left - w, w - right, top - h, h - bottom) > max(right - left, bottom - top)
