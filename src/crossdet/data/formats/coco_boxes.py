"""Boxes of COCO's annotations: as they are written, and where they say nothing, around polygons and masks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdet.data.formats.coco_values import Items, is_number, missing_or, show

Floats = NDArray[np.float64]
MAX_SIDE = 2**31
"""Of a mask, as of a picture."""
WORD_BITS = 5
"""Of a count in each letter of a compressed mask."""


@dataclass
class ReadBoxes:
    """xywh: `[N, 4]` in the order of the file. turned: rows whose width or height was negative. masks: row ->
    (height, width) of the mask that its box is around. refused: rows whose mask is a mistake, told already."""

    xywh: Floats
    turned: list[int] = field(default_factory=list)
    masks: dict[int, tuple[int, int]] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)


def read_boxes(items: Items, problems: list[str]) -> ReadBoxes:
    read = ReadBoxes(np.zeros((len(items), 4)))
    boxes = [item.get("bbox") for item in items]
    if not all(boxes):
        boxes = [box or _around(i, items[i], read, problems) or box for i, box in enumerate(boxes)]
        for i in read.refused:
            boxes[i] = [0, 0, 0, 0]
    if set(map(type, boxes)) <= {list} and set(map(len, boxes)) <= {4}:  # type: ignore[arg-type]
        flat = list(chain.from_iterable(boxes))  # type: ignore[arg-type]
        if set(map(type, flat)) <= {int, float}:
            with suppress(OverflowError):
                read.xywh = np.array(flat, np.float64).reshape(-1, 4)
                _without_loss(read, items, problems)
                return read
    for i, box in enumerate(boxes):
        if type(box) is not list or len(box) != 4 or not all(map(is_number, box)):
            given = missing_or(items[i], "bbox")
            problems.append(f"annotations[{i}].bbox: {given}, expected four numbers [x, y, width, height]")
    return read


def _without_loss(read: ReadBoxes, items: Items, problems: list[str]) -> None:
    """The boxes as the annotations mean them: around the polygons or the mask of one without area; turned round
    where one was drawn from another corner than the upper left; and around the turned one where there is a
    `rotation` in degrees (as CVAT writes it, about the middle)."""
    boxes = read.xywh
    with np.errstate(invalid="ignore"):
        empty = np.flatnonzero(~(boxes[:, 2:] > 0).all(axis=1))
    for i in empty.tolist():
        around = None if i in read.refused else _around(i, items[i], read, problems)
        (x, y, w, h) = around or boxes[i].tolist()
        if min(w, h) < 0 and w and h:
            x, y, w, h = min(x, x + w), min(y, y + h), abs(w), abs(h)
            read.turned.append(i)
        boxes[i] = x, y, w, h
    for i, item in enumerate(items):
        said = item.get("attributes")
        degrees: Any = said.get("rotation") if isinstance(said, dict) else None
        if is_number(degrees) and math.isfinite(degrees) and degrees % 180:
            angle, (x, y, w, h) = math.radians(degrees), boxes[i].tolist()
            cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
            wide, tall = w * cos + h * sin, w * sin + h * cos
            boxes[i] = x + (w - wide) / 2, y + (h - tall) / 2, wide, tall


def _around(i: int, item: Mapping[str, Any], read: ReadBoxes, problems: list[str]) -> list[float] | None:
    """x, y, width and height around the polygons or the mask of an annotation; None where they show nothing."""
    segmentation = item.get("segmentation")
    if not isinstance(segmentation, dict) or not segmentation:
        return _around_polygons(segmentation)
    try:
        around, size = around_mask(segmentation)
    except ValueError as error:
        if item.get("bbox"):  # then there is a box to be told of, without area
            return None
        problems.append(f"annotations[{i}].segmentation: {error}; correct it, or write a `bbox` with an area")
        read.refused.add(i)
        return None
    if around is not None:
        read.masks[i] = size
    return around


def _around_polygons(polygons: Any) -> list[float] | None:
    if not isinstance(polygons, list) or not all(isinstance(polygon, list) for polygon in polygons):
        return None
    numbers = list(chain.from_iterable(polygons))
    if not numbers or len(numbers) % 2 or not all(map(is_number, numbers)):
        return None
    x, y = numbers[::2], numbers[1::2]
    return [min(x), min(y), max(x) - min(x), max(y) - min(y)]


# ------------------------------------------------------------------------------------------- masks


def around_mask(mask: Mapping[str, Any]) -> tuple[list[float] | None, tuple[int, int]]:
    """x, y, width and height around a mask, None for an empty one, and its height and width.

    mask: COCO's run lengths, `size` [height, width] and `counts`: of pixels column by column, those outside first;
    a list, or compressed to a text. No pixel is painted: a file may say any size.

    Raises `ValueError`, in a few words, for what is none.
    """
    size, counts = mask.get("size"), mask.get("counts")
    sides = size if isinstance(size, list) and len(size) == 2 else []
    if not sides or any(type(side) is not int or not 0 <= side < MAX_SIDE for side in sides):
        raise ValueError(f"`size` is {show(size)}, expected [height, width] of a mask")
    height, width = sides
    if isinstance(counts, str):
        counts = _uncompressed(counts)
    if not isinstance(counts, list) or any(type(count) is not int for count in counts):
        raise ValueError(f"`counts` is {show(counts)}, expected the run lengths of a mask (or their text)")
    if min(counts, default=0) < 0:
        raise ValueError(f"a run length of {min(counts)} in `counts`")
    if sum(counts) != height * width:
        raise ValueError(f"`counts` are of {sum(counts)} pixels, and `size` {show(size)} has {height * width}")
    return _around_runs(counts, height), (height, width)


def _around_runs(counts: Iterable[int], height: int) -> list[float] | None:
    left = right = top = bottom = None
    end = 0
    for at, count in enumerate(counts):
        begin, end = end, end + count
        if not count or not at % 2:
            continue
        (first, high), (last, low) = divmod(begin, height), divmod(end - 1, height)
        if first != last:  # over the end of a column, and the beginning of the next
            high, low = 0, height - 1
        left, right = first if left is None else left, last
        top, bottom = high if top is None else min(top, high), low if bottom is None else max(bottom, low)
    if left is None or right is None or top is None or bottom is None:
        return None
    return [left, top, right + 1 - left, bottom + 1 - top]


def _uncompressed(text: str) -> list[int]:
    """Run lengths of a text as pycocotools writes it: five bits a letter, the lowest first, a sixth that says that
    more follow; from the fourth on a number is what it is more than that two before it."""
    counts: list[int] = []
    number = bits = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or bits > 60:
            raise ValueError(f"`counts` is {show(text)}, expected a mask as pycocotools writes it")
        number |= (code & 31) << bits
        bits += WORD_BITS
        if code & 32:
            continue
        if code & 16:
            number -= 1 << bits
        counts.append(number + counts[-2] if len(counts) > 2 else number)
        number = bits = 0
    if bits:
        raise ValueError(f"`counts` is {show(text)}, which ends within a number")
    return counts
