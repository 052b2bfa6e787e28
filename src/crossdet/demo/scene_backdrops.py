"""The surroundings in the generated street pictures: sky, houses, ground, and clutter nobody annotates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from PIL import Image

from crossdet.demo.scene_drawing import (
    CLOTH,
    FACTOR,
    HAIR,
    LEAVES,
    PAINT,
    SKIN,
    TROUSERS,
    Colour,
    Painter,
    shade,
    vary,
)
from crossdet.demo.scene_figures import draw_person, stone_outfit

WARM_WALLS: tuple[Colour, ...] = ((226, 190, 140), (214, 158, 112), (236, 212, 172), (198, 132, 98))
GREY_WALLS: tuple[Colour, ...] = ((124, 132, 142), (104, 112, 124), (146, 150, 154), (92, 102, 116))
GAY_WALLS: tuple[Colour, ...] = ((232, 220, 196), (214, 120, 96), (150, 190, 214), (240, 214, 120), (196, 210, 180))


# ------------------------------------------------------------------------------------------- backdrops


def _gradient(p: Painter, y1: float, y2: float, top: Colour, bottom: Colour) -> None:
    """Fills a band over the whole width with a vertical gradient."""
    first, last = round(y1 * FACTOR), max(round(y1 * FACTOR) + 2, round(y2 * FACTOR))
    strip = Image.new("RGB", (1, 2))
    strip.putdata([top, bottom])
    band = strip.resize((p.image.width, last - first), Image.Resampling.BILINEAR, box=(0, 0.5, 1, 1.5))
    p.image.paste(band, (0, first))


def _houses(
    p: Painter, rng: Random, base: float, walls: Sequence[Colour], height: tuple[float, float], glass: Colour
) -> None:
    """A row of houses whose feet are at `base`, with windows, doors and shop awnings."""
    x = rng.uniform(-30, 0)
    while x < p.width:
        wide = rng.uniform(34, 74)
        top = base - rng.uniform(*height)
        wall = vary(rng, rng.choice(walls))
        if rng.random() < 0.85:
            p.box(x, top, x + wide, base, wall)
            p.box(x, top, x + wide, top + 3, shade(wall, 0.75))
            step, pane = rng.uniform(11, 17), rng.uniform(0.4, 0.6)
            rows, columns = int((base - top - 8) // (step * 1.15)), int(wide // step)
            for row in range(rows):
                for column in range(columns):
                    wx, wy = x + (column + 0.25) * step, top + 7 + row * step * 1.15
                    tone = shade(glass, rng.uniform(0.75, 1.2))
                    p.box(wx, wy, wx + step * pane, wy + step * 0.62, tone)
            if rng.random() < 0.4:
                awning = vary(rng, rng.choice(CLOTH))
                p.polygon(
                    awning, (x + 4, base - 16), (x + wide - 4, base - 16), (x + wide, base - 10), (x, base - 10)
                )
        x += wide


def plaza(p: Painter, rng: Random, horizon: float) -> None:
    """A warm square with paving and strings of lamps; out of focus, as behind portraits."""
    _gradient(p, 0, horizon + 8, vary(rng, (250, 214, 160)), vary(rng, (246, 226, 196)))
    _houses(p, rng, horizon + 6, WARM_WALLS, (40, 95), (120, 84, 60))
    _gradient(p, horizon + 6, p.height, vary(rng, (188, 150, 112)), vary(rng, (214, 176, 130)))
    joint = (166, 128, 92)
    for i in range(7):
        y = horizon + 6 + (p.height - horizon) * (i / 6.5) ** 2
        p.stroke(joint, 0.8, (0, y), (p.width, y))
    middle = rng.uniform(0.3, 0.7) * p.width
    for i in range(-7, 8):
        p.stroke(joint, 0.8, (middle + i * 7, horizon + 6), (middle + i * 52, p.height))
    sag, height = rng.uniform(8, 24), rng.uniform(4, 22)
    for i in range(14):
        x = (i + 0.5) * p.width / 14
        y = height + sag * (1 - (2 * x / p.width - 1) ** 2)
        p.ellipse(x, y, 2.2, 2.2, rng.choice(((255, 246, 200), (255, 214, 120), (250, 170, 110))))
    # Half size and back: cheaper than a blur filter and the same to the eye.
    small = p.image.reduce(4)
    p.image.paste(small.resize(p.image.size, Image.Resampling.BILINEAR))


def street(p: Painter, rng: Random, horizon: float) -> None:
    """A grey road under an overcast sky, from a high camera."""
    base = horizon + 14
    _gradient(p, 0, base, vary(rng, (176, 186, 198), 8), vary(rng, (196, 202, 208), 8))
    _houses(p, rng, base, GREY_WALLS, (24, 60), (70, 82, 98))
    _gradient(p, base, p.height, vary(rng, (128, 134, 142), 8), vary(rng, (104, 110, 120), 8))
    middle, lean = rng.uniform(0.25, 0.75) * p.width, rng.uniform(-60, 60)
    near = middle + lean
    road = vary(rng, (82, 88, 98), 8)
    p.polygon(road, (middle - 24, base), (middle + 24, base), (near + 110, p.height), (near - 110, p.height))
    for side in (-1, 1):
        p.stroke((164, 170, 176), 1.6, (middle + side * 24, base), (near + side * 110, p.height))
    for i in range(6):
        a, b = ((i + t) / 6 for t in (0.1, 0.55))
        ya, yb = (base + (p.height - base) * t * t for t in (a, b))
        xa, xb = (middle + lean * t * t for t in (a, b))
        p.polygon((196, 202, 206), (xa - 0.6 - a, ya), (xa + 0.6 + a, ya), (xb + 0.8 + b, yb), (xb - 0.8 - b, yb))
    if rng.random() < 0.5:
        y = rng.uniform(0.45, 0.8) * p.height
        for i in range(12):
            x = middle - 90 + i * 16
            p.polygon((190, 196, 200), (x, y), (x + 8, y), (x + 9, y + 12), (x, y + 12))


def suburb(p: Painter, rng: Random, horizon: float) -> None:
    """Lawns, bright houses and a road in the sun."""
    _gradient(p, 0, horizon + 4, vary(rng, (74, 150, 232)), vary(rng, (176, 214, 246)))
    for _ in range(rng.randint(1, 4)):
        x, y = rng.uniform(0, p.width), rng.uniform(0, horizon * 0.5)
        for dx in (-9, 0, 10):
            p.ellipse(x + dx, y + abs(dx) * 0.2, 10, 4, (248, 250, 252))
    if rng.random() < 0.7:
        _houses(p, rng, horizon + 3, GAY_WALLS, (14, 44), (96, 130, 160))
    _gradient(p, horizon + 3, p.height, vary(rng, (96, 164, 62)), vary(rng, (122, 190, 74)))
    top = rng.uniform(horizon + 10, p.height - 30)
    deep = rng.uniform(22, 48)
    right = top + rng.uniform(-8, 8)
    asphalt = vary(rng, (150, 150, 154))
    p.polygon(asphalt, (0, top), (p.width, right), (p.width, right + deep), (0, top + deep))
    p.stroke((236, 226, 190), 1.5, (0, top), (p.width, right))
    for _ in range(24):
        x, y = rng.uniform(0, p.width), rng.uniform(horizon + 6, p.height)
        if not top - 3 < y < top + deep:
            p.stroke(rng.choice(((70, 134, 46), (150, 208, 90), (250, 230, 90))), 1.2, (x, y), (x + 1, y - 3))


# --------------------------------------------------------------------------------------------- clutter


def _tree(p: Painter, rng: Random) -> None:
    leaf = vary(rng, rng.choice(LEAVES))
    p.stroke((94, 70, 50), 0.11, (0, 0), (0, 0.9))
    for _ in range(9):
        x, y, r = rng.uniform(-0.32, 0.32), rng.uniform(0.85, 1.5), rng.uniform(0.16, 0.3)
        p.ellipse(x, y, r, r, shade(leaf, rng.uniform(0.8, 1.2)))


def _lamp_post(p: Painter, rng: Random) -> None:
    p.stroke((70, 74, 80), 0.045, (0, 0), (0, 1.7), (rng.choice((-0.2, 0.2)), 1.75))
    p.box(-0.05, 0, 0.05, 0.25, (60, 64, 70))


def _bin(p: Painter, rng: Random) -> None:
    colour = vary(rng, rng.choice(((58, 96, 66), (66, 70, 78), (168, 96, 40))))
    p.box(-0.12, 0, 0.12, 0.36, colour, 0.02)
    p.box(-0.14, 0.34, 0.14, 0.41, shade(colour, 0.7), 0.02)


def _bush(p: Painter, rng: Random) -> None:
    leaf = vary(rng, rng.choice(LEAVES))
    for _ in range(7):
        r = rng.uniform(0.1, 0.17)
        p.ellipse(rng.uniform(-0.28, 0.28), rng.uniform(r, 0.26), r, r, shade(leaf, rng.uniform(0.8, 1.2)))
    for _ in range(rng.choice((0, 5))):
        p.ellipse(rng.uniform(-0.28, 0.28), rng.uniform(0.1, 0.3), 0.03, 0.03, (232, 90, 120))


def _poster(p: Painter, rng: Random) -> None:
    """A board with a silhouette: head-shaped, in the colours of heads, but no eyes and no mouth."""
    paper = vary(rng, rng.choice(((240, 236, 220), (200, 60, 60), (60, 110, 160), (240, 200, 90))))
    p.stroke((80, 80, 84), 0.04, (0, 0), (0, 0.5))
    p.box(-0.22, 0.42, 0.22, 1.02, (70, 70, 76))
    p.box(-0.2, 0.44, 0.2, 1.0, paper)
    ink = rng.choice((*HAIR, *SKIN[2:4]))
    if rng.random() < 0.6:
        p.cap(0, 0.46, 0.15, 0.18, 180, 360, shade(ink, 0.8))
        p.ellipse(0, 0.74, 0.085, 0.115, ink)
    else:
        for i in range(4):
            p.box(-0.14, 0.52 + i * 0.11, rng.uniform(0, 0.14), 0.57 + i * 0.11, ink)


def _balloons(p: Painter, rng: Random) -> None:
    for _ in range(rng.randint(1, 3)):
        x, y = rng.uniform(-0.2, 0.2), rng.uniform(0.8, 1.2)
        colour = vary(rng, rng.choice((*CLOTH, *SKIN[:4])))
        p.stroke((210, 210, 210), 0.012, (0, 0.2), (x, y))
        p.ellipse(x, y, 0.1, 0.12, colour)
        p.ellipse(x - 0.04, y + 0.05, 0.02, 0.03, shade(colour, 1.35))
    p.box(-0.08, 0, 0.08, 0.2, (120, 90, 70))


def _statue(p: Painter, rng: Random, x: float, foot: float, unit: float) -> None:
    p.box(-0.26, 0, 0.26, 0.3, (150, 148, 142))
    p.box(-0.3, 0.26, 0.3, 0.32, (128, 126, 122))
    draw_person(p, rng, x, foot - 0.3 * unit, unit * 0.8, stone_outfit(rng), body=0, face=None)


def _clothes_stand(p: Painter, rng: Random) -> None:
    """Shirts on a rail: the colours and the shape of an upper body, but nobody in it."""
    p.stroke((90, 90, 94), 0.03, (-0.34, 0), (-0.34, 0.72), (0.34, 0.72), (0.34, 0))
    for x in (-0.2, 0.0, 0.2):
        shirt = vary(rng, rng.choice(CLOTH))
        p.polygon(shirt, (x - 0.13, 0.66), (x + 0.13, 0.66), (x + 0.09, 0.5), (x - 0.09, 0.5))
        p.box(x - 0.08, 0.24, x + 0.08, 0.52, shirt)


def _bench(p: Painter, rng: Random) -> None:
    wood = vary(rng, (134, 88, 52))
    for x in (-0.3, 0.3):
        p.stroke((60, 60, 64), 0.04, (x, 0), (x, 0.24))
    for y in (0.2, 0.3, 0.37):
        p.box(-0.38, y, 0.38, y + 0.05, wood)


def _bollard(p: Painter, rng: Random) -> None:
    p.box(-0.045, 0, 0.045, 0.4, (74, 76, 82))
    p.ellipse(0, 0.41, 0.06, 0.06, vary(rng, (196, 190, 170)))


def _kiosk(p: Painter, rng: Random) -> None:
    cloth = vary(rng, rng.choice(PAINT))
    p.stroke((200, 196, 190), 0.03, (0, 0), (0, 1.1))
    p.polygon(cloth, (-0.55, 1.0), (0, 1.3), (0.55, 1.0))
    p.polygon(shade(cloth, 1.3), (-0.18, 1.0), (0, 1.3), (0.18, 1.0))
    p.box(-0.36, 0, 0.36, 0.38, (168, 130, 92))
    for _ in range(6):
        fruit = rng.choice(((220, 120, 30), (190, 40, 40), (150, 190, 60)))
        p.ellipse(rng.uniform(-0.3, 0.3), 0.4, 0.055, 0.055, fruit)


CLUTTER: dict[str, Callable[[Painter, Random], None]] = {
    "tree": _tree,
    "lamp post": _lamp_post,
    "bin": _bin,
    "bush": _bush,
    "poster": _poster,
    "balloons": _balloons,
    "clothes": _clothes_stand,
    "bench": _bench,
    "bollard": _bollard,
    "kiosk": _kiosk,
}


def draw_clutter(p: Painter, rng: Random, kind: str, x: float, foot: float, unit: float) -> None:
    """One thing nobody annotates: a name in `CLUTTER`, or "statue"."""
    p.stand(x, foot, unit)
    if kind == "statue":
        _statue(p, rng, x, foot, unit)
    else:
        CLUTTER[kind](p, rng)


def draw_far_crowd(p: Painter, rng: Random, x: float, foot: float, unit: float, wide: float, owner: int) -> None:
    """Many people too small to be told apart, over a width of `wide` pixels."""
    p.owner = owner
    count = max(6, round(wide / unit * 3.2))
    for i in range(count):
        p.stand(x + ((i + rng.random()) / count - 0.5) * wide, foot + rng.uniform(-0.12, 0.12) * unit, unit)
        p.box(-0.13, 0.0, 0.13, 0.45, rng.choice(TROUSERS))
        p.box(-0.17, 0.4, 0.17, 0.78, vary(rng, rng.choice(CLOTH)))
        p.ellipse(0, 0.88, 0.12, 0.14, rng.choice(HAIR))
