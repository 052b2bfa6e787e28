"""The labelled figures in the generated street pictures: persons with faces, cars, dogs and traffic signs.

Every figure stands at (`x`, `foot`) in pixels of the finished picture and is drawn in its own coordinates:
x to the right, y upwards from the ground, 1 = `unit` pixels = the height that a person has at that distance
from the camera.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from crossdet.demo.scene_drawing import CLOTH, COAT, HAIR, PAINT, SKIN, TROUSERS, Colour, Painter, shade, vary

# -------------------------------------------------------------------------------------------- persons


@dataclass(frozen=True)
class Outfit:
    """How one person looks."""

    skin: Colour
    hair: Colour
    top: Colour
    bottom: Colour
    shoes: Colour
    head: float  # height of the head, as a fraction of the person
    build: float  # breadth, about 1
    hair_style: str
    hat: str
    skirt: bool
    sleeves: bool
    glasses: str
    beard: bool
    extras: bool = True  # bags and patterns


def random_outfit(rng: Random) -> Outfit:
    hair_style = rng.choice(("short", "short", "long", "long", "bald", "bun"))
    return Outfit(
        skin=vary(rng, rng.choice(SKIN), 8),
        hair=vary(rng, rng.choice(HAIR)),
        top=vary(rng, rng.choice(CLOTH)),
        bottom=vary(rng, rng.choice(TROUSERS)),
        shoes=vary(rng, rng.choice(((36, 32, 34), (96, 60, 40), (220, 216, 210)))),
        head=rng.uniform(0.26, 0.295),
        build=rng.uniform(0.88, 1.2),
        hair_style=hair_style,
        hat=rng.choice(("", "", "", "", "cap", "brim", "wool")),
        skirt=hair_style in ("long", "bun") and rng.random() < 0.45,
        sleeves=rng.random() < 0.7,
        glasses=rng.choice(("", "", "", "", "", "clear", "dark")),
        beard=hair_style in ("short", "bald") and rng.random() < 0.25,
    )


def stone_outfit(rng: Random) -> Outfit:
    """A statue: one grey from head to foot."""
    grey = rng.randint(130, 175)
    stone = (grey, grey, grey - 6)
    dark = shade(stone, 0.84)
    plain = replace(random_outfit(rng), hair_style="short", hat="", glasses="", beard=False, sleeves=True)
    return replace(plain, extras=False, skin=stone, hair=dark, top=dark, bottom=shade(stone, 0.92), shoes=stone)


def draw_person(
    p: Painter, rng: Random, x: float, foot: float, unit: float, outfit: Outfit, body: int, face: int | None
) -> None:
    """A standing or walking person; pixels of the body belong to `body`, those of the face to `face`.

    `face` None shows the person from behind.
    """
    p.owner = body
    p.stand(x, foot, unit)
    _draw_legs(p, rng, outfit)
    shoulder, half = 0.965 - outfit.head, 0.13 * outfit.build
    p.stroke(shade(outfit.skin, 0.86), 0.085, (0, shoulder + 0.05), (0, shoulder - 0.02))
    p.box(-half, 0.38, half, shoulder, outfit.top, 0.055)
    _draw_arms(p, rng, shoulder, half, outfit)
    if outfit.extras:
        _draw_print(p, rng, shoulder, half, front=face is not None)
    ry = outfit.head * 0.48
    lean = rng.uniform(-0.015, 0.015)
    p.stand(x + lean * unit, foot - (1 - outfit.head + ry) * unit, ry * unit)
    _draw_head(p, rng, outfit, body, face)


def _draw_legs(p: Painter, rng: Random, outfit: Outfit) -> None:
    step = rng.choice((0.0, 0.0, rng.uniform(0.03, 0.10)))
    limb, width = (outfit.skin, 0.065) if outfit.skirt else (outfit.bottom, 0.10)
    for side in (-1, 1):
        ankle = (side * (0.062 + step), 0.04 + (step * 0.25 if side > 0 else 0))
        knee = (side * (0.062 + step * 0.6), 0.2)
        p.stroke(shade(limb, 1.0 if side < 0 else 0.88), width, (side * 0.055, 0.4), knee, ankle)
        p.ellipse(ankle[0] + side * 0.015, ankle[1] - 0.012, 0.06, 0.03, outfit.shoes)
    if outfit.skirt:
        wide, hem = 0.19 * outfit.build, rng.uniform(0.18, 0.28)
        p.polygon(outfit.bottom, (-0.1, 0.43), (0.1, 0.43), (wide, hem), (-wide, hem))


def _draw_arms(p: Painter, rng: Random, shoulder: float, half: float, outfit: Outfit) -> None:
    hang = half + rng.uniform(0.02, 0.10)
    hands = [(-hang, 0.38), (hang, 0.38)]
    if rng.random() < 0.22:  # one arm raised
        side = rng.randint(0, 1)
        hands[side] = ((2 * side - 1) * (half + 0.14), shoulder + rng.uniform(-0.16, 0.1))
    if outfit.extras and rng.random() < 0.25:
        x, y = hands[rng.randint(0, 1)]
        p.box(x - 0.06, y - 0.13, x + 0.06, y, rng.choice(CLOTH), 0.01)
    sleeve = shade(outfit.top, 0.82)
    for side, hand in zip((-1, 1), hands, strict=True):
        top = (side * (half - 0.03), shoulder - 0.045)
        elbow = ((top[0] + hand[0]) / 2 + side * 0.03, (top[1] + hand[1]) / 2)
        p.stroke(sleeve if outfit.sleeves else outfit.skin, 0.062, top, elbow, hand)
        if not outfit.sleeves:
            p.stroke(sleeve, 0.07, top, ((top[0] + elbow[0]) / 2, (top[1] + elbow[1]) / 2))
        p.ellipse(*hand, 0.036, 0.036, outfit.skin)


def _draw_print(p: Painter, rng: Random, shoulder: float, half: float, front: bool) -> None:
    """Stripes, an open jacket, a rucksack: what makes the upper bodies differ."""
    kind = rng.choice(("plain", "stripes", "jacket", "badge")) if front else rng.choice(("plain", "rucksack"))
    colour = vary(rng, rng.choice(CLOTH))
    if kind == "stripes":
        for i in range(1, 4):
            y = shoulder - (shoulder - 0.4) * i / 4.2
            p.box(-half * 0.82, y, half * 0.82, y - 0.028, colour)
    elif kind == "jacket":
        top, low = shoulder - 0.005, 0.4
        p.polygon(colour, (-half * 0.35, top), (half * 0.35, top), (half * 0.22, low), (-half * 0.22, low))
    elif kind == "badge":
        p.ellipse(0, (shoulder + 0.4) / 2, half * 0.42, half * 0.42, colour)
    elif kind == "rucksack":
        p.box(-half * 0.75, 0.45, half * 0.75, shoulder - 0.03, colour, 0.04)


def _draw_head(p: Painter, rng: Random, outfit: Outfit, body: int, face: int | None) -> None:
    """In head coordinates (centre 0, half height 1): hair behind, ears, face or nape, hair and hat."""
    rx = rng.uniform(0.76, 0.86)
    hair, style = outfit.hair, outfit.hair_style
    if style == "long":
        p.box(-rx * 1.14, -1.25, rx * 1.14, 0.3, shade(hair, 0.85), rx * 0.5)
    if style == "bun":
        p.ellipse(0, 1.02, rx * 0.42, 0.32, shade(hair, 0.9))
    for side in (-1, 1):
        p.ellipse(side * rx, -0.08, rx * 0.17, 0.17, shade(outfit.skin, 0.84))
    if face is None:
        p.ellipse(0, 0, rx * 1.02, 1, outfit.skin)
        if style == "long":
            p.box(-rx * 1.14, -1.25, rx * 1.14, 0.3, hair, rx * 0.5)
        if style != "bald":
            p.ellipse(0, 0.12, rx * 1.08, 0.98, hair)
            p.ellipse(0, 0.3, rx * 0.6, 0.4, shade(hair, 1.18))
    else:
        p.owner = face
        p.ellipse(0, 0, rx, 1, outfit.skin)
        _draw_features(p, rng, rng.uniform(-0.24, 0.24) * rx, rx, outfit)
        p.owner = body
        if style != "bald":
            low = rng.uniform(18, 32)
            p.cap(0, 0.06, rx * 1.09, 1.02, 180 + low, 360 - low, hair)
            for side in (-1, 1):
                p.ellipse(side * rx * 0.98, 0.34, rx * 0.18, 0.34, hair)
    _draw_hat(p, rx, outfit, front=face is not None)


def _draw_features(p: Painter, rng: Random, x: float, rx: float, outfit: Outfit) -> None:
    """Eyes, nose and mouth around the middle line `x` of the face."""
    dark = (34, 24, 24)
    if outfit.beard:
        p.cap(x, -0.03, rx * 0.86, 0.92, 20, 160, outfit.hair)
    for side in (-1, 1):
        eye = x + side * rx * 0.4
        if outfit.glasses == "dark":
            p.ellipse(eye, 0.02, rx * 0.33, 0.21, dark)
            continue
        if outfit.glasses == "clear":
            p.ellipse(eye, 0.02, rx * 0.35, 0.26, (60, 56, 60))
            p.ellipse(eye, 0.02, rx * 0.28, 0.2, shade(outfit.skin, 1.06))
        p.ellipse(eye, 0.02, rx * 0.22, 0.15, (248, 246, 242))
        p.ellipse(eye + rng.uniform(-0.03, 0.03) * rx, 0.02, rx * 0.13, 0.13, dark)
        p.stroke(shade(outfit.hair, 0.8), 0.07, (eye - rx * 0.2, 0.27), (eye + rx * 0.2, 0.29))
    if outfit.glasses:
        p.stroke(dark, 0.05, (x - rx * 0.3, 0.02), (x + rx * 0.3, 0.02))
    p.stroke(shade(outfit.skin, 0.74), 0.09, (x, -0.08), (x + rx * 0.05, -0.27))
    if rng.random() < 0.35:
        p.ellipse(x, -0.54, rx * 0.3, 0.13, (126, 30, 34))
        p.box(x - rx * 0.2, -0.51, x + rx * 0.2, -0.44, (246, 240, 236))
    else:
        p.stroke((158, 48, 50), 0.1, (x - rx * 0.28, -0.54), (x, -0.59), (x + rx * 0.28, -0.54))


def _draw_hat(p: Painter, rx: float, outfit: Outfit, front: bool) -> None:
    colour = shade(outfit.bottom, 1.1)
    if outfit.hat == "brim":
        p.cap(0, 0.3, rx * 0.95, 0.95, 180, 360, colour)
        p.ellipse(0, 0.42, rx * 1.5, 0.16, shade(colour, 0.8))
    elif outfit.hat == "cap":
        p.cap(0, 0.14, rx * 1.1, 1.0, 195, 345, colour)
        if front:
            p.ellipse(0, 0.42, rx * 0.8, 0.13, shade(colour, 0.7))
    elif outfit.hat == "wool":
        p.cap(0, 0.12, rx * 1.12, 1.06, 198, 342, outfit.top)
        p.ellipse(0, 1.16, rx * 0.28, 0.2, shade(outfit.top, 1.25))


# -------------------------------------------------------------------------------- cars, dogs and signs


def draw_car(p: Painter, rng: Random, x: float, foot: float, unit: float) -> None:
    """A car from the side, or (three in ten) from the front or back."""
    paint = vary(rng, rng.choice(PAINT))
    glass = vary(rng, (92, 124, 146))
    p.stand(x, foot, unit, rng.choice((-1, 1)))
    if rng.random() < 0.3:
        _draw_car_end_on(p, rng, paint, glass)
        return
    roof, slope = rng.choice(((0.62, 0.22), (0.66, 0.2), (0.8, 0.1)))
    belt, pane, middle = 0.39, roof - 0.05, -0.1 - slope * 0.15
    rear = -0.58 + slope * 0.6
    p.polygon(shade(paint, 0.92), (-0.58, belt), (rear, roof), (0.34 - slope, roof), (0.4, belt))
    p.polygon(glass, (-0.5, belt), (rear + 0.04, pane), (middle - 0.02, pane), (middle - 0.02, belt))
    p.polygon(shade(glass, 1.12), (middle + 0.02, belt), (middle + 0.02, pane), (0.33 - slope, pane), (0.32, belt))
    p.box(-0.74, 0.1, 0.74, belt, paint, 0.08)
    p.box(-0.72, 0.1, 0.72, 0.16, shade(paint, 0.62), 0.02)
    p.stroke(shade(paint, 0.7), 0.012, (middle, belt - 0.02), (middle, 0.18))
    p.ellipse(0.69, 0.3, 0.045, 0.045, (252, 240, 190))
    p.ellipse(-0.7, 0.3, 0.04, 0.05, (200, 30, 30))
    for wheel in (-0.44, 0.44):
        p.ellipse(wheel, 0.125, 0.135, 0.125, (28, 28, 30))
        p.ellipse(wheel, 0.125, 0.065, 0.06, (176, 178, 182))


def _draw_car_end_on(p: Painter, rng: Random, paint: Colour, glass: Colour) -> None:
    for side in (-1, 1):
        p.box(side * 0.31 - 0.07, 0, side * 0.31 + 0.07, 0.2, (28, 28, 30), 0.02)
        p.ellipse(side * 0.45, 0.4, 0.05, 0.035, paint)
    p.polygon(paint, (-0.39, 0.38), (-0.3, 0.68), (0.3, 0.68), (0.39, 0.38))
    p.polygon(glass, (-0.34, 0.38), (-0.26, 0.64), (0.26, 0.64), (0.34, 0.38))
    p.box(-0.42, 0.09, 0.42, 0.4, shade(paint, 0.95), 0.07)
    lamp = (252, 240, 190) if rng.random() < 0.6 else (204, 30, 32)
    for side in (-1, 1):
        p.ellipse(side * 0.31, 0.29, 0.065, 0.05, lamp)
    p.box(-0.17, 0.26, 0.17, 0.32, shade(paint, 0.5), 0.01)
    p.box(-0.11, 0.12, 0.11, 0.19, (240, 240, 232))


def draw_dog(p: Painter, rng: Random, x: float, foot: float, unit: float) -> None:
    """A dog from the side, or (one in four) sitting and looking at the camera."""
    coat = vary(rng, rng.choice(COAT))
    patch = vary(rng, rng.choice(COAT))
    p.stand(x, foot, unit, rng.choice((-1, 1)))
    if rng.random() < 0.25:
        _draw_dog_from_front(p, coat, patch)
        return
    stride = rng.uniform(0, 0.05)
    p.stroke(coat, 0.04, (-0.2, 0.29), (-0.29, 0.3), (-0.33, rng.uniform(0.32, 0.44)))
    for leg, tone, lean in ((-0.17, 0.75, -stride), (0.13, 0.75, -stride), (-0.21, 1, stride), (0.17, 1, stride)):
        p.stroke(shade(coat, tone), 0.055, (leg, 0.23), (leg + lean, 0.028))
    p.stroke(coat, 0.17, (-0.16, 0.27), (0.14, 0.27))
    p.ellipse(-0.08, 0.28, 0.085, 0.06, patch)
    p.stroke(coat, 0.11, (0.17, 0.3), (0.27, 0.4))
    p.ellipse(0.27, 0.4, 0.09, 0.08, coat)
    p.stroke(shade(coat, 1.08), 0.065, (0.32, 0.38), (0.4, 0.375))
    p.ellipse(0.425, 0.39, 0.022, 0.02, (24, 20, 20))
    p.ellipse(0.3, 0.42, 0.016, 0.016, (24, 20, 20))
    p.ellipse(0.22, 0.39, 0.035, 0.075, shade(patch, 0.7))
    p.stroke((196, 30, 40), 0.03, (0.17, 0.35), (0.25, 0.3))


def _draw_dog_from_front(p: Painter, coat: Colour, patch: Colour) -> None:
    p.ellipse(0, 0.16, 0.14, 0.16, shade(coat, 0.85))
    for side in (-1, 1):
        p.stroke(coat, 0.065, (side * 0.07, 0.2), (side * 0.075, 0.033))
    p.ellipse(0, 0.38, 0.125, 0.12, coat)
    for side in (-1, 1):
        p.ellipse(side * 0.125, 0.38, 0.045, 0.1, shade(patch, 0.65))
        p.ellipse(side * 0.05, 0.41, 0.02, 0.02, (24, 20, 20))
    p.ellipse(0, 0.325, 0.07, 0.06, shade(coat, 1.25))
    p.ellipse(0, 0.35, 0.035, 0.026, (24, 20, 20))
    p.box(-0.09, 0.245, 0.09, 0.275, (40, 80, 190), 0.01)


def draw_sign(p: Painter, rng: Random, x: float, foot: float, unit: float, plate: int) -> None:
    """A traffic sign; only the plate belongs to `plate`, the pole is clutter."""
    radius, height = 0.165, rng.uniform(1.0, 1.3)
    p.owner = 0
    p.stand(x, foot, unit)
    p.stroke((130, 134, 138), 0.035, (0, height), (0, 0))
    p.owner = plate
    p.stand(x, foot - height * unit, radius * unit)
    red, blue, white, black = (vary(rng, (206, 28, 34)), vary(rng, (28, 84, 178)), (246, 246, 242), (30, 30, 30))
    kind = rng.choice(("stop", "warning", "limit", "arrow", "parking", "priority"))
    if kind == "stop":
        for r, colour in ((1.0, white), (0.9, red)):
            a = r * 0.414
            p.polygon(colour, (a, r), (r, a), (r, -a), (a, -r), (-a, -r), (-r, -a), (-r, a), (-a, r))
        p.box(-0.62, -0.16, 0.62, 0.16, white)
    elif kind == "warning":
        for r, colour in ((1.0, red), (0.62, white)):
            p.polygon(colour, (0, r), (r * 1.06, -r * 0.85), (-r * 1.06, -r * 0.85))
        p.stroke(black, 0.14, (0, 0.2), (0, -0.35))
    elif kind == "limit":
        p.ellipse(0, 0, 1, 1, red)
        p.ellipse(0, 0, 0.7, 0.7, white)
        for digit in (-0.25, 0.25):
            p.box(digit - 0.14, -0.32, digit + 0.14, 0.32, black, 0.1)
    elif kind == "arrow":
        p.ellipse(0, 0, 1, 1, blue)
        p.stroke(white, 0.24, (0, -0.55), (0, 0.2))
        p.polygon(white, (0, 0.65), (0.45, 0.1), (-0.45, 0.1))
    elif kind == "parking":
        p.box(-1, -1, 1, 1, blue, 0.15)
        p.stroke(white, 0.26, (-0.25, -0.6), (-0.25, 0.55), (0.3, 0.3), (-0.2, 0))
    else:
        for r, colour in ((1.1, white), (0.95, black), (0.88, (246, 196, 24))):
            p.polygon(colour, (0, r), (r, 0), (0, -r), (-r, 0))
