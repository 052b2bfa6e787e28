"""Upright animal heads from the Animal-Pose dataset (Cao et al. 2019): real pictures for the orientation test.

    python benchmarks/animal_heads.py keypoints.json IMAGES -o animal_heads

keypoints.json and the images are the dataset's download. A picture is taken if every animal in it shows all of
eyes, ear bases and nose, and if every head is upright: the line from eyes and ears down to the nose is within
`--roll` degrees of the vertical. The head's box is that of the five points, widened by `WIDEN` of its longer
side all around and cut at the picture's edge.

Every picture is cropped to a square: its shape then says nothing of how it is turned, and all directions have the
same canvas. The side is the picture's shorter one; the place is drawn, by a generator seeded with the picture's
name, among those that hold all heads. Pictures without such a place are left out. Crops are scaled to `--side`
pixels.

Writes `train.json`, `val.json` (COCO, one class `head`) and `images/`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image

from crossdet.data.formats.coco import write_coco
from crossdet.data.index import IndexBuilder

HEAD = 5
"""The first five points: left and right eye, nose, left and right ear base; (x, y, visible)."""
WIDEN = 0.3

Box = tuple[float, float, float, float]


def roll(points: list[list[float]]) -> float | None:
    """Degrees between the line (middle of eyes and ears -> nose) and straight down; None if a point is missing."""
    if any(not visible for _, _, visible in points[:HEAD]):
        return None
    (lx, ly, _), (rx, ry, _), (nx, ny, _), (ax, ay, _), (bx, by, _) = points[:HEAD]
    return math.degrees(math.atan2(nx - (lx + rx + ax + bx) / 4, ny - (ly + ry + ay + by) / 4))


def head_box(points: list[list[float]], width: int, height: int) -> Box:
    """xyxy in pixels."""
    xs, ys = [p[0] for p in points[:HEAD]], [p[1] for p in points[:HEAD]]
    margin = WIDEN * max(max(xs) - min(xs), max(ys) - min(ys))
    return (
        max(0.0, min(xs) - margin),
        max(0.0, min(ys) - margin),
        min(float(width), max(xs) + margin),
        min(float(height), max(ys) + margin),
    )


def square_window(boxes: list[Box], width: int, height: int, name: str) -> tuple[int, int, int] | None:
    """(left, top, side) in whole pixels, each place that holds all boxes as likely; None where none does."""
    side, random_of_picture = min(width, height), random.Random(name)
    corner = []
    for axis, length in enumerate((width, height)):
        first = max(0, math.ceil(max(box[axis + 2] for box in boxes)) - side)
        last = min(length - side, math.floor(min(box[axis] for box in boxes)))
        if first > last:
            return None
        corner.append(random_of_picture.randint(first, last))
    return corner[0], corner[1], side


def upright(content: dict[str, Any], most: float) -> list[tuple[str, list[list[list[float]]]]]:
    """(file name, points of every animal) of the pictures that can be used, in the order of their ids."""
    animals: dict[str, list[Any]] = defaultdict(list)
    for animal in content["annotations"]:
        animals[str(animal["image_id"])].append(animal["keypoints"])
    rolls = {image: [roll(points) for points in many] for image, many in animals.items()}
    good = {image for image, many in rolls.items() if all(r is not None and abs(r) <= most for r in many)}
    return [(name, animals[image]) for image, name in content["images"].items() if image in good]


def usable(
    found: list[tuple[str, list[list[list[float]]]]], images: Path
) -> list[tuple[str, list[list[list[float]]], tuple[int, int, int]]]:
    """(file name, points of every animal, window) of the pictures with a square that holds all heads."""
    kept = []
    for name, heads in found:
        with Image.open(images / name) as image:
            width, height = image.size
        window = square_window([head_box(points, width, height) for points in heads], width, height, name)
        if window is not None:
            kept.append((name, heads, window))
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("keypoints", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("animal_heads"))
    parser.add_argument("--train", type=int, default=1400, help="pictures to train on")
    parser.add_argument("--val", type=int, default=400, help="pictures to judge on")
    parser.add_argument("--side", type=int, default=160, help="pixels of the square pictures")
    parser.add_argument("--roll", type=float, default=30.0)
    args = parser.parse_args()
    found = upright(json.loads(args.keypoints.read_text()), args.roll)
    kept = usable(found, args.images)
    print(f"{len(found)} upright pictures; {len(found) - len(kept)} left out, no square holds all their heads")
    random.Random(0).shuffle(kept)
    if len(kept) < args.train + args.val:
        raise SystemExit(f"{len(kept)} pictures can be used, fewer than {args.train} + {args.val}")
    folder = args.output / "images"
    folder.mkdir(parents=True, exist_ok=True)
    splits = {"train": kept[: args.train], "val": kept[args.train : args.train + args.val]}
    for split, pictures in splits.items():
        builder = IndexBuilder(folder)
        for number, (name, heads, (left, top, side)) in enumerate(pictures, 1):
            with Image.open(args.images / name) as image:
                crop = image.convert("RGB").crop((left, top, left + side, top + side))
            scaled = crop.resize((args.side, args.side), Image.Resampling.BICUBIC)
            scaled.save(folder / f"{Path(name).stem}.jpg", quality=92)
            builder.image(f"{Path(name).stem}.jpg", args.side, args.side, image_id=number)
            factor = args.side / side
            for points in heads:
                moved = [[(x - left) * factor, (y - top) * factor, visible] for x, y, visible in points]
                builder.box(head_box(moved, args.side, args.side), 0)
        write_coco(builder.build(["head"], [1]), args.output / f"{split}.json")
        print(f"{split}: {len(pictures)} pictures")


if __name__ == "__main__":
    main()
