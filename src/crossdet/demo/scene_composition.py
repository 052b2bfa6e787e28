"""One generated street picture: where things stand, what is drawn in which order, what is seen of each.

Three looks (scene, light, camera) differ as real datasets do; persons with faces, cars, dogs and signs are in
every one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from crossdet.demo.scene_backdrops import CLUTTER, draw_clutter, draw_far_crowd, plaza, street, suburb
from crossdet.demo.scene_drawing import FACTOR, Extent, Painter
from crossdet.demo.scene_figures import draw_car, draw_dog, draw_person, draw_sign, random_outfit

LOOKS: tuple[str, ...] = ("faces", "peds", "objects")
CLASSES: tuple[str, ...] = ("face", "person", "car", "dog", "sign")
WIDTH, HEIGHT = 208, 160
MIN_VISIBLE = 0.3
"""An object of which less than this can be seen is labelled in no dataset."""
MIN_SIDE = 5
"""Neither is a box with a side shorter than this, in pixels."""
MAX_COVERED = 0.55
"""A place where nearer things cover more than this is not used: few objects are too hidden to be labelled."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """A picture and all it shows. Boxes are xyxy and enclose the visible part.

    crowds: regions of far people too small to be labelled one by one; no detector is wrong or right there.
    """

    image: Image.Image
    objects: list[tuple[str, Box]]
    crowds: list[Box] = field(default_factory=list)


@dataclass(frozen=True)
class Look:
    """What one dataset's pictures have in common. Pairs are (lowest, highest).

    unit: height of the persons in pixels. slope: that height divided by the distance of feet and horizon in
    the picture; small for a high camera. persons, cars, dogs, signs: weights of the numbers 0, 1, 2, ...
    """

    backdrop: Callable[[Painter, Random, float], None]
    horizon: tuple[float, float]
    slope: tuple[float, float]
    unit: tuple[float, float]
    persons: tuple[float, ...]
    facing: float
    cars: tuple[float, ...]
    dogs: tuple[float, ...]
    signs: tuple[float, ...]
    clutter: tuple[int, int]
    crowd: float
    shadow: int
    tint: tuple[float, float, float]
    contrast: tuple[float, float]
    saturation: float
    noise: tuple[float, float]
    blur: tuple[float, float]
    vignette: float


LOOK_SETTINGS: dict[str, Look] = {
    "faces": Look(
        backdrop=plaza, horizon=(58, 72), slope=(1.08, 1.25), unit=(62, 160),
        persons=(0.03, 0.27, 0.35, 0.25, 0.10), facing=0.85,
        cars=(0.55, 0.45), dogs=(0.55, 0.40, 0.05), signs=(0.52, 0.40, 0.08), clutter=(2, 5), crowd=0.0,
        shadow=60, tint=(1.05, 1.0, 0.92), contrast=(0.95, 1.1), saturation=1.05, noise=(1, 4),
        blur=(0.0, 0.5), vignette=0.3,
    ),
    "peds": Look(
        backdrop=street, horizon=(12, 26), slope=(0.62, 0.74), unit=(54, 98),
        persons=(0.04, 0.18, 0.30, 0.28, 0.20), facing=0.6,
        cars=(0.40, 0.45, 0.15), dogs=(0.60, 0.35, 0.05), signs=(0.50, 0.40, 0.10), clutter=(2, 5), crowd=0.3,
        shadow=34, tint=(0.94, 0.98, 1.04), contrast=(0.78, 0.92), saturation=0.72, noise=(3, 7),
        blur=(0.2, 0.7), vignette=0.0,
    ),
    "objects": Look(
        backdrop=suburb, horizon=(46, 64), slope=(0.85, 1.0), unit=(54, 112),
        persons=(0.08, 0.42, 0.32, 0.18), facing=0.65,
        cars=(0.25, 0.48, 0.27), dogs=(0.30, 0.50, 0.20), signs=(0.35, 0.45, 0.20), clutter=(2, 5), crowd=0.0,
        shadow=90, tint=(1.03, 1.02, 0.98), contrast=(1.05, 1.2), saturation=1.25, noise=(1, 4),
        blur=(0.0, 0.4), vignette=0.0,
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------------- one scene


@dataclass(frozen=True)
class _Item:
    """Something to draw: `kind` is a class, "clutter:NAME" or "crowd"."""

    kind: str
    x: float
    foot: float
    unit: float


@dataclass
class _Drawn:
    """A labelled object in the owner mask: which numbers are its own, and how large it is when unhidden."""

    name: str
    owners: tuple[int, ...]
    extent: Extent
    pixels: float


SHAPES: dict[str, tuple[float, float]] = {
    "person": (0.19, 1.0), "car": (0.74, 0.66), "dog": (0.38, 0.48), "sign": (0.17, 1.3),
    "clutter": (0.25, 0.8),
}  # fmt: skip
"""Half width and height of what stands around, in units: only for laying out."""


def make_scene(look: str, seed: int | tuple[int, ...], width: int = WIDTH, height: int = HEIGHT) -> Scene:
    """The picture of a look that belongs to a seed; the same on every machine and in every order."""
    settings = LOOK_SETTINGS[look]
    rng = Random(f"{look} {seed}")
    painter = Painter(width, height)
    horizon = rng.uniform(*settings.horizon) * height / HEIGHT
    settings.backdrop(painter, rng, horizon)
    drawn: list[_Drawn] = []
    for item in sorted(_layout(settings, rng, horizon, width, height), key=lambda i: i.foot):
        _draw(painter, rng, item, settings, drawn)
    image = _photograph(painter, rng, settings)
    objects, crowds = _labels(painter, drawn)
    return Scene(image, objects, crowds)


def _count(rng: Random, weights: Sequence[float]) -> int:
    return rng.choices(range(len(weights)), weights)[0]


def _layout(look: Look, rng: Random, horizon: float, width: int, height: int) -> list[_Item]:
    """Where everything stands: nearer is larger and lower, and little is hidden altogether."""
    slope = rng.uniform(*look.slope)
    scale = height / HEIGHT
    nearest = slope * (height - horizon)
    wanted: list[tuple[str, float]] = []
    for kind, weights, low, high in (
        ("car", look.cars, 0.5, 0.85),
        ("dog", look.dogs, 0.62, 1.0),
        ("sign", look.signs, 0.55, 1.05),
    ):
        wanted += [(kind, nearest * rng.uniform(low, high)) for _ in range(_count(rng, weights))]
    low, high = look.unit
    for _ in range(_count(rng, look.persons)):
        wanted.append(("person", scale * low * (high / low) ** rng.random()))
    for _ in range(rng.randint(*look.clutter)):
        kind = rng.choice((*CLUTTER, "statue"))
        wanted.append((f"clutter:{kind}", nearest * rng.uniform(0.3, 0.9)))
    items: list[_Item] = []
    taken: list[Extent] = []
    for kind, unit in sorted(wanted, key=lambda pair: -pair[1]):  # the nearest first: it hides the others
        half, tall = SHAPES[kind.partition(":")[0]]
        foot = horizon + unit / slope
        spots = []
        for _ in range(8):
            x = rng.uniform(0.03, 0.97) * width
            box = (max(0.0, x - half * unit), max(0.0, foot - tall * unit), min(x + half * unit, width), foot)
            spots.append((sum(_covered(box, other) for other in taken), x, box))
        free = [spot for spot in spots if spot[0] < MAX_COVERED]
        if free:
            _, x, box = min(free) if rng.random() < 0.6 else free[0]
            items.append(_Item(kind, x, foot, unit))
            taken.append(box)
    if rng.random() < look.crowd:
        unit = rng.uniform(10, 14) * scale
        items.append(_Item("crowd", rng.uniform(0.15, 0.85) * width, horizon + unit / slope + 4 * scale, unit))
    return items


def _covered(box: Extent, other: Extent) -> float:
    """The fraction of `box` that `other` covers."""
    wide = min(box[2], other[2]) - max(box[0], other[0])
    high = min(box[3], other[3]) - max(box[1], other[1])
    return max(wide, 0.0) * max(high, 0.0) / ((box[2] - box[0]) * (box[3] - box[1]))


def _draw(p: Painter, rng: Random, item: _Item, look: Look, drawn: list[_Drawn]) -> None:
    """Draws one thing over what is there and notes how much of it there is before others hide it."""
    x, foot, unit = item.x, item.foot, item.unit
    kind = item.kind.partition(":")[0]
    p.pixels()
    wide = SHAPES.get(kind, (0.0, 0.0))[0] * unit
    p.wash(x + 0.1 * wide, foot - 0.02 * unit, wide * 1.15, 0.07 * unit, (0, 0, 0, look.shadow))
    owner = 1 + max((d.owners[-1] for d in drawn), default=0)
    p.owner = owner if kind != "clutter" else 0
    if kind == "clutter":
        draw_clutter(p, rng, item.kind.partition(":")[2], x, foot, unit)
        return
    if kind == "person":
        face = owner + 1 if rng.random() < look.facing else None
        draw_person(p, rng, x, foot, unit, random_outfit(rng), owner, face)
        drawn += _drawn(p, "person", (owner,) if face is None else (owner, face))
        return
    if kind == "car":
        draw_car(p, rng, x, foot, unit)
    elif kind == "dog":
        draw_dog(p, rng, x, foot, unit)
    elif kind == "sign":
        draw_sign(p, rng, x, foot, unit, owner)
    elif kind == "crowd":
        draw_far_crowd(p, rng, x, foot, unit, rng.uniform(28, 70) * p.width / WIDTH, owner)
    drawn += _drawn(p, kind, (owner,))


def _drawn(p: Painter, name: str, owners: tuple[int, ...]) -> list[_Drawn]:
    """A record per labelled object: the figure with all its owners, and a person's face."""
    records = [(name, owners)] + ([("face", owners[1:])] if len(owners) > 1 else [])
    found = []
    for label, numbers in records:
        boxes = [p.extents[number] for number in numbers if number in p.extents]
        xs1, ys1, xs2, ys2 = zip(*boxes, strict=True)
        extent = (min(xs1), min(ys1), max(xs2), max(ys2))
        _, mask = _cut(np.asarray(p.owners), extent, numbers)
        inside = (min(extent[2], p.width) - max(extent[0], 0)) * (min(extent[3], p.height) - max(extent[1], 0))
        whole = (extent[2] - extent[0]) * (extent[3] - extent[1])
        pixels = int(mask.sum()) * whole / inside if mask.size and inside > 0 else math.inf
        found.append(_Drawn(label, numbers, extent, pixels))
    return found


def _cut(owners: NDArray[np.uint8], extent: Extent, numbers: tuple[int, ...]) -> tuple[Box, NDArray[np.bool_]]:
    """Where the owner mask within `extent` belongs to one of `numbers`, and that window in mask pixels."""
    height, width = owners.shape
    x1, y1 = (max(0, math.floor(v * FACTOR) - 1) for v in extent[:2])
    x2, y2 = min(width, math.ceil(extent[2] * FACTOR) + 2), min(height, math.ceil(extent[3] * FACTOR) + 2)
    window = owners[y1 : max(y1, y2), x1 : max(x1, x2)]
    return (x1, y1, x2, y2), (window >= numbers[0]) & (window <= numbers[-1])


def _labels(p: Painter, drawn: list[_Drawn]) -> tuple[list[tuple[str, Box]], list[Box]]:
    """The visible boxes of all that can be seen well enough, and the regions of far crowds."""
    owners = np.asarray(p.owners)
    objects: list[tuple[str, Box]] = []
    crowds: list[Box] = []
    faces = {d.owners[0] for d in drawn if d.name == "face" and _visible(owners, d) is not None}
    for record in drawn:
        # A person whose face is labelled stays labelled, however little else is seen.
        keep = 0.0 if len(record.owners) > 1 and record.owners[1] in faces else MIN_VISIBLE
        box = _visible(owners, record, keep)
        if box is None:
            continue
        if record.name == "crowd":
            crowds.append(box)
        else:
            objects.append((record.name, box))
    return objects, crowds


def _visible(owners: NDArray[np.uint8], record: _Drawn, at_least: float = MIN_VISIBLE) -> Box | None:
    """The box of the visible pixels in pixels of the finished picture; None if they are too few."""
    (x, y, _, _), mask = _cut(owners, record.extent, record.owners)
    if not mask.any() or mask.sum() < at_least * record.pixels:
        return None
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    x1, y1 = round((x + int(columns[0])) / FACTOR), round((y + int(rows[0])) / FACTOR)
    x2, y2 = round((x + int(columns[-1]) + 1) / FACTOR), round((y + int(rows[-1]) + 1) / FACTOR)
    return (x1, y1, x2, y2) if x2 - x1 >= MIN_SIDE and y2 - y1 >= MIN_SIDE else None


def _photograph(p: Painter, rng: Random, look: Look) -> Image.Image:
    """The camera: reduces, blurs, lights unevenly, sets contrast and colour, adds a vignette and noise."""
    image = p.image.reduce(FACTOR)
    blur = rng.uniform(*look.blur)
    if blur > 0.2:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    pixels = np.asarray(image, np.float32) / 255
    height, width = pixels.shape[:2]
    light = Image.new("L", (3, 2))
    light.putdata([round(255 * rng.uniform(0.58, 0.78)) for _ in range(6)])
    field_of_light = np.asarray(light.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 172
    if look.vignette:
        x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
        field_of_light = field_of_light * (1 - look.vignette * (0.5 * (x * x + y[:, None] ** 2)) ** 1.5)
    gain = np.array([t * rng.uniform(0.95, 1.05) for t in look.tint], np.float32) * rng.uniform(0.85, 1.12)
    pixels = pixels * (field_of_light[..., None] * gain)
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = grey + (pixels - grey) * np.float32(look.saturation * rng.uniform(0.85, 1.1))
    pixels = 0.5 + (pixels - 0.5) * np.float32(rng.uniform(*look.contrast))
    noise = np.random.default_rng(rng.getrandbits(63)).standard_normal(pixels.shape, np.float32)
    pixels += noise * np.float32(rng.uniform(*look.noise) / 255)
    return Image.fromarray((pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8))
