"""Pictures that look as if another camera had taken them, and objects painted over. Numpy and Pillow, no torch.

A look changes pixels, never places: boxes stay true. `[H, W, 3]` uint8 RGB in and out.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from crossdet.data.picture_files import UnreadableImage, as_annotated, decode_with_pillow, read_bytes, size_of

Pixels = NDArray[np.uint8]
Boxes = NDArray[np.float32]

ORIGINAL = "original"
"""The look of the pictures as they are; `none` is another word for it."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601."""
RING = 16
"""Fewest background pixels that a local colour is taken from."""
LEFT_OVER = 0.25
"""An object counts as painted over if at most this share of its box lies under boxes that stay."""
QUALITY = 95


def _grey_dark(pixels: Pixels, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
    """Grey-scale, 55% of the brightness: a monochrome camera in poor light."""
    grey = pixels.astype(np.float32) @ LUMA * 0.55
    return _bytes(np.repeat(grey[..., None], 3, axis=2))


def _white_balance(pixels: Pixels, _: np.random.Generator, red: float, green: float, blue: float) -> Pixels:
    return _bytes(pixels.astype(np.float32) * np.array([red, green, blue], np.float32))


def _faded(pixels: Pixels, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
    """Haze: half of the saturation, half of the contrast, brighter."""
    values = pixels.astype(np.float32)
    grey = (values @ LUMA)[..., None]
    return _bytes((grey + 0.5 * (values - grey)) * 0.5 + 110)


def _blur_noise(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Out of focus (sigma 0.4% of the shorter side, at least 0.8 px) with sensor noise (sigma 12)."""
    radius = max(0.8, 0.004 * min(pixels.shape[:2]))
    blurred = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * 12
    return _bytes(blurred.astype(np.float32) + noise)


def _bytes(values: NDArray[np.floating[Any]]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


LOOKS: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "grey_dark": _grey_dark,
    "warm": partial(_white_balance, red=1.12, green=0.97, blue=0.68),  # towards tungsten
    "cold": partial(_white_balance, red=0.72, green=0.95, blue=1.15),  # towards shade
    "faded": _faded,
    "blur_noise": _blur_noise,
}


def with_look(pixels: Pixels, look: str, seed: int, name: str) -> Pixels:
    """The picture in a look of `LOOKS`, or as it is (`ORIGINAL`). What is random depends on seed, look and name."""
    if look == ORIGINAL:
        return pixels
    digest = hashlib.sha256(f"{seed}/{look}/{name}".encode(errors="surrogateescape")).digest()
    return LOOKS[look](pixels, np.random.default_rng(int.from_bytes(digest[:8], "big")))


def mask_of(boxes: Boxes, height: int, width: int) -> NDArray[np.bool_]:
    """`[H, W]` pixels that a box touches. boxes: `[N, 4]` xyxy."""
    mask = np.zeros((height, width), bool)
    for x1, y1, x2, y2 in _whole(boxes):
        mask[y1:y2, x1:x2] = True
    return mask


def can_be_erased(foreign: Boxes, kept: Boxes, height: int, width: int) -> bool:
    """Whether each foreign box would lie at most with `LEFT_OVER` of its pixels under kept boxes."""
    mask = mask_of(kept, height, width)
    covered = (mask[y1:y2, x1:x2] for x1, y1, x2, y2 in _whole(foreign))
    return all(float(inside.mean()) <= LEFT_OVER for inside in covered if inside.size)


def erase(pixels: Pixels, foreign: Boxes, kept: Boxes) -> Pixels:
    """A copy in which the foreign boxes, but for pixels of kept boxes, have the colour of what lies around them.
    The colour is the median of a ring around the box, without the pixels of any box; the ring grows until it has
    `RING` such pixels, up to the whole picture. Boxes `[N, 4]` xyxy; pixels that a box touches count as its own."""
    height, width = pixels.shape[:2]
    keep = mask_of(kept, height, width)
    background = ~(keep | mask_of(foreign, height, width))
    out = pixels.copy()
    for x1, y1, x2, y2 in _whole(foreign):
        inside = ~keep[y1:y2, x1:x2]
        out[y1:y2, x1:x2][inside] = _colour_around(pixels, background, (x1, y1, x2, y2))
    return out


def _colour_around(
    pixels: Pixels, background: NDArray[np.bool_], box: tuple[int, int, int, int]
) -> NDArray[np.uint8]:
    height, width = background.shape
    x1, y1, x2, y2 = box
    margin = max(3, max(x2 - x1, y2 - y1) // 4)
    while True:
        rows, columns = slice(max(0, y1 - margin), y2 + margin), slice(max(0, x1 - margin), x2 + margin)
        found = pixels[rows, columns][background[rows, columns]]
        if len(found) >= RING or margin > max(height, width):
            break
        margin *= 2
    if not len(found):  # boxes everywhere
        found = pixels.reshape(-1, 3)
    return np.rint(np.median(found, axis=0)).astype(np.uint8)


def _whole(boxes: Boxes) -> list[tuple[int, int, int, int]]:
    """The boxes rounded outwards to whole pixels."""
    low = np.floor(boxes[:, :2]).astype(int).clip(min=0)
    high = np.ceil(boxes[:, 2:]).astype(int).clip(min=0)  # boxes marked invalid may lie anywhere
    return [(int(x1), int(y1), int(x2), int(y2)) for (x1, y1), (x2, y2) in zip(low, high, strict=True)]


class BadPicture(Exception):
    """The file is missing, broken, or not the picture that was annotated. The message names it."""


def read_picture(path: Path, annotated: tuple[int, int], upright: bool = False) -> Pixels:
    """The picture as training sees it (`crossdet.data.decoding`): turned by its EXIF tag only if the annotated
    (height, width) is that of the turned picture, or always (`upright`). Raises `BadPicture`."""
    try:
        data = read_bytes(path)
        return as_annotated(lambda turn: decode_with_pillow(data, path, turn), size_of, path, annotated, upright)
    except UnreadableImage as error:
        raise BadPicture(str(error)) from None


def write_picture(pixels: Pixels, path: Path) -> None:
    """JPEG of quality 95; the same pixels give the same file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY)
    path.write_bytes(buffer.getvalue())
