"""Rotation of a picture in its plane: sizes and boxes. No torch in here; `decoding.rotate` does the pixels.

Angles are whole degrees, counter-clockwise as one looks at the picture. The picture turns about its centre on a
canvas that holds all of it, centre on centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BOX_RULES = ("enclosing", "centred")
EQUAL_STEPS = (4, 8, 12)
"""Numbers of directions that have a short form: 0, 360/n, ... degrees."""
SLACK = 1e-6
"""A canvas side may lie so far above a whole number of pixels before it counts as the next one."""


@dataclass(frozen=True)
class Rotation:
    """How the images of an index are rotated. degrees: `[I]` int16. sizes: `[I, 2]` int32 (height, width) of the
    pictures on disk, 0 where unknown."""

    degrees: NDArray[np.int16]
    sizes: NDArray[np.int32]

    def take(self, images: NDArray[np.int64]) -> Rotation:
        return Rotation(self.degrees[images], self.sizes[images])


def equal_directions(count: int) -> tuple[int, ...]:
    """`4` -> 0, 90, 180, 270."""
    return tuple(step * 360 // count for step in range(count))


def canvas(sizes: NDArray[np.integer[Any]], degrees: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
    """`[N, 2]` (height, width) of the turned pictures of `sizes [N, 2]`; exact for multiples of 90."""
    cos, sin = (np.abs(part)[:, None] for part in _cos_sin(degrees))
    given = sizes.astype(np.float64)
    grown: NDArray[np.int32] = np.ceil(given * cos + given[:, ::-1] * sin - SLACK).astype(np.int32)
    return grown


def rotate_boxes(
    boxes: NDArray[np.floating[Any]],
    sizes: NDArray[np.integer[Any]],
    degrees: NDArray[np.integer[Any]],
    centred: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """`[M, 4]` xyxy boxes on the turned canvas.

    sizes: `[M, 2]` (height, width) of the picture of each box. centred: `[M]` false: the box around the four
    turned corners. True: the box of the turned ellipse that fills the upright box, with sides
    sqrt((w cos)^2 + (h sin)^2) and sqrt((w sin)^2 + (h cos)^2): w and h at 0 and 180, swapped at 90 and 270, and
    between them as tight as a roundish object (a face, a cell) allows.
    """
    cos, sin = _cos_sin(degrees)
    given = boxes.astype(np.float64)
    middle = (given[:, :2] + given[:, 2:]) / 2 - sizes[:, ::-1] / 2
    half = (given[:, 2:] - given[:, :2]) / 2
    x, y = middle[:, 0] * cos + middle[:, 1] * sin, -middle[:, 0] * sin + middle[:, 1] * cos
    along, across = np.stack([cos, sin], 1), np.stack([sin, cos], 1)
    corners = [(half * np.abs(part)).sum(1) for part in (along, across)]
    ellipse = [np.sqrt(((half * part) ** 2).sum(1)) for part in (along, across)]
    sides = np.where(centred[:, None], np.stack(ellipse, 1), np.stack(corners, 1))
    centre = np.stack([x, y], 1) + canvas(sizes, degrees)[:, ::-1] / 2
    return np.concatenate([centre - sides, centre + sides], 1).astype(np.float32)


def _cos_sin(degrees: NDArray[np.integer[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact at multiples of 90 degrees."""
    angle = np.deg2rad(degrees.astype(np.float64))
    quarter = degrees % 90 == 0
    cos, sin = np.cos(angle), np.sin(angle)
    return np.where(quarter, np.rint(cos), cos), np.where(quarter, np.rint(sin), sin)


def direction_problem(directions: Sequence[int]) -> str | None:
    """What is wrong with a list of directions; None if nothing."""
    wrong = [d for d in directions if not 0 <= d < 360]
    if not directions or wrong or len(set(directions)) != len(directions):
        return f"expected 4, 8, 12 or a list of different whole degrees from 0 to 359, got {list(directions)}"
    return None
