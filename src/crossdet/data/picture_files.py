"""Files of pictures, found and read without torch."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from crossdet.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


class UnreadableImage(Exception):
    """The file is missing, broken, or not the picture that was annotated. The message names it."""


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Image files of files, folders (searched through) and glob patterns, sorted, each once.

    Raises:
        UserError: lists every argument that names no image.
    """
    found: dict[Path, None] = {}
    empty = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        elif path.is_file():
            files = [path]
        else:
            root = Path(path.anchor) if path.is_absolute() else Path()
            pattern = str(path.relative_to(path.anchor)) if path.is_absolute() else str(path)
            try:
                files = sorted(p for p in root.glob(pattern) if p.is_file())
            except (ValueError, NotImplementedError):  # such as a**.jpg
                files = []
        if not files:
            empty.append(str(given))
        found.update(dict.fromkeys(files))
    if empty:
        raise UserError(f"no image found for {', '.join(empty)}")
    return list(found)


def decode_with_pillow(data: bytes, path: Path | str, rotate: bool) -> NDArray[np.uint8]:
    """`[H, W, 3]` RGB of the bytes of a file. rotate: as EXIF says. Raises `UnreadableImage`."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image: Image.Image = opened
            if rotate:
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16-bit greyscale: convert("RGB") would clip instead of scale
                grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
                image = Image.fromarray(grey)
            array = np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:  # its message holds the address of `data`
        raise UnreadableImage(f"{path}: this is no image of a known format") from None
    except Exception as error:  # on damaged files Pillow's decoders raise almost anything
        raise UnreadableImage(f"{path}: {error}") from None
    return array.copy()
