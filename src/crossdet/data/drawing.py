"""Drawing boxes into pictures: predictions, and what a training batch really holds."""

from __future__ import annotations

import colorsys
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from crossdet.files import safe_name, writing
from crossdet.labels.folds import NO_ANGLE
from crossdet.types import REGION_FLAGS, Flag

if TYPE_CHECKING:
    from torch import Tensor

    from crossdet.labels.space import LabelSpace
    from crossdet.types import Annotations, Batch, Detections

Colour = tuple[int, int, int]
Box = Sequence[float]

NO_CLASS: Colour = (160, 160, 160)
"""Colour of label -1: a region of no class in particular."""

LISTED = 12
"""How many avoided classes the strip below a picture names; beyond, it only counts."""

_PALETTE: tuple[Colour, ...] = (
    (230, 25, 75), (60, 180, 75), (0, 130, 200), (255, 140, 0), (170, 70, 220), (70, 240, 240),
    (240, 50, 230), (190, 255, 100), (250, 150, 150), (0, 128, 100), (170, 110, 40), (255, 225, 25),
)  # fmt: skip
_GOLDEN = 0.6180339887  # steps of the golden ratio stay far apart on the colour circle for any number of classes
_STRIP_COLOUR: Colour = (32, 32, 32)
_READABLE_SIDE = 400  # smaller pictures are enlarged by a whole factor, so that text has room
_FLAG_WORDS = {
    Flag.INVALID: "invalid",
    Flag.CROWD: "crowd",
    Flag.IGNORE_REGION: "ignored",
    Flag.AVOID: "avoided",
    Flag.DIFFICULT: "difficult",
}


def class_colour(label: int) -> Colour:
    """The colour of a class, the same in every picture; neighbouring ids differ clearly."""
    if label < 0:
        return NO_CLASS
    if label < len(_PALETTE):
        return _PALETTE[label]
    step = label - len(_PALETTE)
    red, green, blue = colorsys.hsv_to_rgb(step * _GOLDEN % 1, (0.9, 0.55)[step % 2], (1.0, 0.75)[step // 2 % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(image: Image.Image, found: Detections) -> Image.Image:
    """A copy of the picture with boxes, class names and scores."""
    names = found.names or [str(label) for label in found.labels.tolist()]
    if found.angles is not None:
        pairs = zip(names, found.angles.tolist(), strict=True)
        names = [name if angle == NO_ANGLE else f"{name} {angle}°" for name, angle in pairs]
    return draw_boxes(
        image,
        [(x1, y1, x2, y2) for x1, y1, x2, y2 in found.boxes.tolist()],
        [f"{name} {score:.2f}" for name, score in zip(names, found.scores.tolist(), strict=True)],
        [class_colour(label) for label in found.labels.tolist()],
    )


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[Box],
    texts: Sequence[str],
    colours: Sequence[Colour],
    regions: Sequence[bool] | None = None,
) -> Image.Image:
    """A copy of the picture with boxes in it; line width and text grow with the picture.

    A text stands on a ground of its box's colour, inside the picture, where it hides no other text; where there
    is no such place it is left out (the colour tells the class).

    boxes: xyxy pixels, one text and one colour each; "" = no text. regions: these are hatched and dashed.
    """
    drawn = image.convert("RGB")
    line = max(1, round(min(drawn.size) / 250))
    font = ImageFont.load_default(max(10, round(min(drawn.size) / 38)))
    is_region = [False] * len(boxes) if regions is None else list(regions)
    corners = [_inside(box, drawn.size) for box in boxes]
    for box, colour, region in zip(corners, colours, is_region, strict=True):
        if region:
            _hatch(drawn, box, colour, 6 * line)
    draw = ImageDraw.Draw(drawn)
    for box, colour, region in zip(corners, colours, is_region, strict=True):
        if region:
            _dashed(draw, box, colour, line)
        else:
            draw.rectangle(box, outline=colour, width=line)
    taken: list[Box] = []
    # large boxes last: their text finds a place more easily
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in corners]
    for row in sorted(range(len(boxes)), key=areas.__getitem__):
        if texts[row]:
            _write(draw, corners[row], texts[row], colours[row], font, taken, drawn.size)
    return drawn


def write_batch_pictures(
    batches: Iterable[Batch], space: LabelSpace, dataset_names: Sequence[str], folder: Path
) -> list[Path]:
    """Writes every image of the batches as training sees it, without its padding; returns the files.

    A strip below says what cannot be seen: the dataset, the boxes per class, and the classes for which the
    background of this picture is not used; of a mosaic for each of its tiles, whose borders are white. Regions
    (crowds, ignored, avoided) are hatched.

    dataset_names: by `Batch.dataset_ids`.
    """
    written: list[Path] = []
    for batch in batches:
        for row in range(len(batch)):
            height, width = (int(side) for side in batch.sizes[row])
            pixels = batch.images[row, :, :height, :width].permute(1, 2, 0).contiguous().cpu().numpy()
            dataset = dataset_names[int(batch.dataset_ids[row])]
            picture, tiles = Image.fromarray(pixels), _tiles_of(batch, row)
            _outline(picture, tiles)
            drawn = _annotated(picture, batch.targets[row], space.classes)
            lines = _strip_lines(dataset, batch.targets[row], batch.trusted[row], space.classes)
            if tiles:
                lines = [f"mosaic, {lines[0]}", *(_tile_line(tile, dataset_names, space.classes) for tile in tiles)]
            name = safe_name(f"{len(written):03d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', dataset)}")
            file = folder / f"{name}.jpg"
            with writing(file, "the pictures before it are kept"):
                folder.mkdir(parents=True, exist_ok=True)
                _with_strip(drawn, lines).save(file, quality=92, subsampling=0)
            written.append(file)
    return written


class _Tile(NamedTuple):
    """One tile of a mosaic. place: upper left to lower right."""

    place: str
    box: Box
    trusted: Tensor
    dataset_id: int


def _tiles_of(batch: Batch, row: int) -> list[_Tile]:
    """None where the image is no mosaic."""
    if batch.tiles is None or not batch.tiles.boxes[row].any():
        return []
    boxes, trusted, dataset_ids = (values[row] for values in batch.tiles)
    places = ("upper left", "upper right", "lower left", "lower right")
    return [_Tile(*tile) for tile in zip(places, boxes.tolist(), trusted, dataset_ids.tolist(), strict=True)]


def _outline(picture: Image.Image, tiles: Iterable[_Tile]) -> None:
    """Draws the borders of the tiles into the picture."""
    draw = ImageDraw.Draw(picture)
    for tile in tiles:
        draw.rectangle(_inside(tile.box, picture.size), outline="white")


def _tile_line(tile: _Tile, dataset_names: Sequence[str], classes: Sequence[str]) -> str:
    avoided = avoided_text([c for c, trusted in zip(classes, tile.trusted, strict=True) if not trusted])
    return f"{tile.place}, {dataset_names[tile.dataset_id]}: {avoided}"


def _annotated(picture: Image.Image, target: Annotations, classes: Sequence[str]) -> Image.Image:
    factor = max(1, -(-_READABLE_SIDE // min(picture.size)))
    if factor > 1:  # no smoothing: the pixels are those that training sees
        size = (picture.width * factor, picture.height * factor)
        picture = picture.resize(size, Image.Resampling.NEAREST)
    labels, flags = target.labels.tolist(), target.flags.tolist()
    return draw_boxes(
        picture,
        [[side * factor for side in box] for box in target.boxes.tolist()],
        [_box_text(label, flag, classes) for label, flag in zip(labels, flags, strict=True)],
        [class_colour(label) for label in labels],
        [bool(flag & REGION_FLAGS) for flag in flags],
    )


def _box_text(label: int, flags: int, classes: Sequence[str]) -> str:
    """`face (invalid, ignored)`; `any class (ignored)` for a region of no class in particular."""
    words = ", ".join(word for flag, word in _FLAG_WORDS.items() if flags & flag)
    name = classes[label] if label >= 0 else "any class"
    return f"{name} ({words})" if words else name


def _strip_lines(dataset: str, target: Annotations, trusted: Tensor, classes: Sequence[str]) -> list[str]:
    counts = Counter(
        _box_text(label, flags, classes) if flags & REGION_FLAGS else classes[label]
        for label, flags in zip(target.labels.tolist(), target.flags.tolist(), strict=True)
    )
    held = ", ".join(f"{count} {name}" for name, count in counts.items()) or "no boxes"
    return [f"{dataset}: {held}", avoided_text([c for c, t in zip(classes, trusted, strict=True) if not t])]


def avoided_text(avoided: Sequence[str]) -> str:
    """`background not used for: face, dog`; with many classes the first ones and a count."""
    if not avoided:
        return "background used for all classes"
    names = ", ".join(avoided[:LISTED])
    rest = f" and {len(avoided) - LISTED} more" if len(avoided) > LISTED else ""
    return f"background not used for: {names}{rest}"


def _with_strip(picture: Image.Image, lines: Sequence[str]) -> Image.Image:
    """The picture with text below it, wrapped to its width."""
    size = max(12, round(min(picture.size) / 32))
    font, margin = ImageFont.load_default(size), size // 2
    wrapped = [part for line in lines for part in _wrap(line, font, picture.width - 2 * margin)]
    step = round(1.35 * size)
    strip = Image.new("RGB", (picture.width, picture.height + step * len(wrapped) + 2 * margin), _STRIP_COLOUR)
    strip.paste(picture)
    draw = ImageDraw.Draw(strip)
    for number, text in enumerate(wrapped):
        draw.text((margin, picture.height + margin + number * step), text, "white", font)
    return strip


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _inside(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The outermost pixels that belong to the box and lie in the picture."""
    x1, y1 = (min(max(round(low), 0), side - 1) for low, side in zip(box[:2], size, strict=True))
    x2, y2 = (min(round(high) - 1, side - 1) for high, side in zip(box[2:], size, strict=True))
    return x1, y1, max(x1, x2), max(y1, y2)


def _hatch(image: Image.Image, box: tuple[int, int, int, int], colour: Colour, step: int) -> None:
    """Thin diagonal lines over the box, half transparent."""
    x1, y1, x2, y2 = box
    width, height = x2 - x1 + 1, y2 - y1 + 1
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    for start in range(-height, width, step):
        draw.line((start, height, start + height, 0), fill=150, width=max(1, step // 5))
    image.paste(colour, (x1, y1), mask)


def _dashed(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], colour: Colour, line: int) -> None:
    x1, y1, x2, y2 = box
    dash = 4 * line
    inner = line - 1
    for x in range(x1, x2 + 1, 2 * dash):
        end = min(x + dash - 1, x2)
        draw.rectangle((x, y1, end, min(y1 + inner, y2)), fill=colour)
        draw.rectangle((x, max(y2 - inner, y1), end, y2), fill=colour)
    for y in range(y1, y2 + 1, 2 * dash):
        end = min(y + dash - 1, y2)
        draw.rectangle((x1, y, min(x1 + inner, x2), end), fill=colour)
        draw.rectangle((max(x2 - inner, x1), y, x2, end), fill=colour)


def _write(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    text: str,
    colour: Colour,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    taken: list[Box],
    size: tuple[int, int],
) -> None:
    """Writes the text above, below or in the box, at the first place that is free; notes it in `taken`."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font)
    margin = 2
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    x1, y1, x2, y2 = box
    for x, y in ((x1, y1 - height), (x1, y1), (x1, y2 + 1), (x2 - width, y2 - height), (x2 - width, y1 - height)):
        # a text wider than the picture begins at its left border
        x, y = max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))
        if any(x < o[2] and o[0] < x + width and y < o[3] and o[1] < y + height for o in taken):
            continue
        taken.append((x, y, x + width, y + height))
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
        draw.text((x + margin - left, y + margin - top), text, _ink(colour), font)
        return


def _ink(ground: Colour) -> Colour:
    red, green, blue = ground
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
