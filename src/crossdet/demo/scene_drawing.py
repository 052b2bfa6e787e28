"""What the generated street pictures are drawn with: colours, and a painter that knows who owns each pixel.

The painter works at `FACTOR` times the size of the finished picture, which gives smooth edges when the
picture is reduced at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]
Extent = tuple[float, float, float, float]

FACTOR = 2
NOTHING: Extent = (float("inf"), float("inf"), float("-inf"), float("-inf"))

SKIN: tuple[Colour, ...] = (
    (246, 214, 188), (235, 190, 158), (224, 172, 132), (198, 140, 100), (150, 98, 66), (112, 72, 50),
)  # fmt: skip
HAIR: tuple[Colour, ...] = (
    (32, 26, 24), (62, 40, 28), (104, 66, 36), (150, 96, 48), (206, 170, 98), (120, 116, 114), (128, 44, 28),
)  # fmt: skip
CLOTH: tuple[Colour, ...] = (
    (186, 40, 44), (40, 78, 160), (44, 120, 70), (232, 188, 52), (118, 62, 138), (236, 232, 224),
    (40, 42, 50), (222, 112, 40), (92, 160, 196), (208, 110, 150), (110, 112, 118), (86, 66, 50),
)  # fmt: skip
TROUSERS: tuple[Colour, ...] = (
    (38, 52, 92), (44, 44, 50), (96, 84, 66), (74, 96, 130), (128, 122, 112), (66, 50, 44),
)  # fmt: skip
PAINT: tuple[Colour, ...] = (
    (190, 30, 36), (36, 84, 170), (232, 232, 232), (52, 54, 60), (236, 184, 30), (60, 130, 96),
    (150, 156, 164),
)  # fmt: skip
COAT: tuple[Colour, ...] = ((120, 80, 44), (50, 42, 38), (226, 218, 204), (190, 140, 80), (150, 146, 144))
LEAVES: tuple[Colour, ...] = ((60, 112, 52), (82, 128, 58), (48, 92, 56), (118, 132, 60))


def shade(colour: Colour, factor: float) -> Colour:
    r, g, b = (max(0, min(255, int(c * factor))) for c in colour)
    return r, g, b


def vary(rng: Random, colour: Colour, amount: float = 14) -> Colour:
    r, g, b = (max(0, min(255, int(c + rng.uniform(-amount, amount)))) for c in colour)
    return r, g, b


class Painter:
    """Draws the same shapes into the picture and into a mask of owners.

    owner: number that drawn pixels belong to; 0 is clutter that hides what is behind it, None leaves the mask
    alone (backdrop).
    extents: x1, y1, x2, y2 of what each owner drew, in pixels, also where it reaches over the border.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        size = (width * FACTOR, height * FACTOR)
        self.image = Image.new("RGB", size)
        self.owners = Image.new("L", size)
        self._colour = ImageDraw.Draw(self.image)
        self._blend = ImageDraw.Draw(self.image, "RGBA")
        self._mask = ImageDraw.Draw(self.owners)
        self.owner: int | None = None
        self.extents: dict[int, Extent] = {}
        self.pixels()

    def pixels(self) -> None:
        """Coordinates are pixels of the finished picture from here on, y downwards."""
        self._place = (0.0, 0.0, float(FACTOR), float(FACTOR))

    def stand(self, x: float, foot: float, unit: float, mirror: int = 1) -> None:
        """Coordinates are those of a figure at (`x`, `foot`) from here on, y upwards."""
        self._place = (x * FACTOR, foot * FACTOR, mirror * unit * FACTOR, -unit * FACTOR)

    def _points(self, points: Sequence[Point]) -> list[Point]:
        x, y, sx, sy = self._place
        return [(x + px * sx, y + py * sy) for px, py in points]

    def _corners(self, x1: float, y1: float, x2: float, y2: float) -> list[Point]:
        (ax, ay), (bx, by) = self._points(((x1, y1), (x2, y2)))
        return [(min(ax, bx), min(ay, by)), (max(ax, bx), max(ay, by))]

    def _draw(self, shape: str, points: list[Point], colour: Colour, **more: float) -> None:
        """A shape of `ImageDraw` by its name; points: in pixels of the painter."""
        getattr(self._colour, shape)(points, fill=colour, **more)
        if self.owner is not None:
            getattr(self._mask, shape)(points, fill=self.owner, **more)
            if shape != "line":  # its round ends and joints reach further
                (a, b, c, d), (xs, ys) = self.extents.get(self.owner, NOTHING), zip(*points, strict=True)
                x1, y1, x2, y2 = (v / FACTOR for v in (min(xs), min(ys), max(xs), max(ys)))
                self.extents[self.owner] = (min(a, x1), min(b, y1), max(c, x2), max(d, y2))

    def polygon(self, colour: Colour, *points: Point) -> None:
        self._draw("polygon", self._points(points), colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        self._draw("ellipse", self._corners(x - rx, y - ry, x + rx, y + ry), colour)

    def cap(self, x: float, y: float, rx: float, ry: float, start: float, end: float, colour: Colour) -> None:
        """What a chord cuts off an ellipse, between two angles in degrees (180 left, 270 top, 360 right)."""
        self._draw("chord", self._corners(x - rx, y - ry, x + rx, y + ry), colour, start=start, end=end)

    def box(self, x1: float, y1: float, x2: float, y2: float, colour: Colour, radius: float = 0) -> None:
        corners = self._corners(x1, y1, x2, y2)
        if radius:
            self._draw("rounded_rectangle", corners, colour, radius=radius * abs(self._place[3]))
        else:  # several times faster than a rounded one of radius 0
            self._draw("rectangle", corners, colour)

    def stroke(self, colour: Colour, width: float, *points: Point) -> None:
        """A line with round ends and joints."""
        self._draw("line", self._points(points), colour, width=max(1, round(width * abs(self._place[3]))))
        for x, y in points:
            self.ellipse(x, y, width / 2, width / 2, colour)

    def wash(self, x: float, y: float, rx: float, ry: float, colour: tuple[int, int, int, int]) -> None:
        """A translucent ellipse that belongs to nobody: shadows and shine."""
        self._blend.ellipse(self._corners(x - rx, y - ry, x + rx, y + ry), colour)
