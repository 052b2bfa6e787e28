"""Files of pictures, found and read without torch."""

from __future__ import annotations

import io
import math
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from crossdet.data.annotation_files import (
    OF_MACOS,
    PICTURE_SUFFIXES,
    exif_of_header,
    no_pixel_limit,
    picture_formats,
)
from crossdet.data.index import CANNOT_BE_READ, Index
from crossdet.data.rotation_geometry import canvas
from crossdet.errors import UserError

Size = tuple[int, int]
"""(height, width) in pixels."""
Pixels = NDArray[np.uint8]
"""`[H, W, 3]` RGB."""
T = TypeVar("T")

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv")
_SOUGHT = frozenset((*PICTURE_SUFFIXES, *VIDEO_SUFFIXES))

ROTATION_FILL = (124, 116, 104)
"""RGB of the corners that a rotation uncovers: ImageNet's mean, near zero after normalisation, as padding is."""


class UnreadableImage(Exception):
    """The file is missing, broken, or not the picture that was annotated. The message names it."""


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Image files of files, folders (searched through) and glob patterns, sorted, each once, as it is spelt first.

    Raises:
        UserError: lists every argument that names no image.
    """
    found: list[Path] = []
    empty = []
    for given in paths:
        files = [file for file in files_of(given) if not _is_video(file) or file == Path(given)]
        if not files:
            videos = videos_in([given])
            empty.append(f"{given} (a video has to be named: {videos[0]})" if videos else str(given))
        found += files
    if empty:
        raise UserError(f"no image found for {', '.join(empty)}")
    return each_once(found)


def each_once(files: Iterable[Path]) -> list[Path]:
    """Without other spellings of an earlier one (`a.png`, `b/../a.png`). Links of other names are other files."""
    folders: dict[Path, Path] = {}  # asking the disk once for each
    found: dict[Path, Path] = {}
    for file in files:
        if file.parent not in folders:
            folders[file.parent] = file.parent.resolve()
        found.setdefault(folders[file.parent] / file.name, file)
    return list(found.values())


def videos_in(paths: Iterable[str | Path], without: Path | None = None) -> list[Path]:
    """Video files in folders (searched through) and among what glob patterns name, sorted; without those in a
    folder, and without `.ts`, which may be a program."""
    found = {f for given in paths for f in files_of(given) if _is_video(f) and f != Path(given)}
    outside = {f for f in found if without is None or without.resolve() not in f.resolve().parents}
    return sorted(f for f in outside if f.suffix.lower() != ".ts")


def _is_video(file: Path) -> bool:
    return file.name.lower().endswith(VIDEO_SUFFIXES)


def files_of(given: str | Path) -> list[Path]:
    """Of a file, a folder (searched through for pictures and videos) or a glob pattern, sorted. What macOS leaves
    beside files (`._a.jpg`) is taken where it is named itself alone."""
    path = Path(given)
    if path.is_dir():
        found = (p for p in path.rglob("*") if p.suffix.lower() in _SOUGHT and p.is_file())
        return sorted(p for p in found if not p.name.startswith(OF_MACOS))
    if path.is_file():
        return [path]
    root = Path(path.anchor) if path.is_absolute() else Path()
    pattern = str(path.relative_to(path.anchor)) if path.is_absolute() else str(path)
    try:
        return sorted(p for p in root.glob(pattern) if p.is_file() and not p.name.startswith(OF_MACOS))
    except (ValueError, NotImplementedError):  # such as a**.jpg
        return []


def read_bytes(path: Path) -> bytes:
    """Raises `UnreadableImage`, also for what is no file: a pipe would be waited for."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadableImage(f"{path}: no file")
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"{path}: {error.strerror or error}") from None


def as_annotated(
    decode: Callable[[bool], T],
    size: Callable[[T], Size],
    path: Path,
    annotated: Size | None,
    upright: bool = False,
) -> T:
    """The picture of a file in the size that its boxes refer to.

    decode: the picture, turned as EXIF says if its argument is true. annotated: None or (0, 0) = unknown. upright:
    EXIF's orientation is applied always, and not only if the stored size is not the annotated one and the turned
    size is. Raises `UnreadableImage` for a size that is neither way the annotated one.
    """
    image = decode(upright)
    have = size(image)
    if annotated is None or annotated in ((0, 0), have):
        return image
    if have == annotated[::-1]:
        rotated = decode(True)
        if size(rotated) == annotated:
            return rotated
    shown, wanted = ("x".join(map(str, one[::-1])) for one in (have, annotated))
    raise UnreadableImage(f"{path}: the picture is {shown}, its annotation says {wanted}")


def annotated_size(index: Index, row: int) -> Size:
    """Of the file of a row, before it is turned; (0, 0) where nobody knows. Raises `UnreadableImage` where it could
    not be read before, or is to be turned and its size was unknown."""
    sizes = index.sizes if index.rotation is None else index.rotation.sizes
    size = int(sizes[row, 0]), int(sizes[row, 1])
    if 0 in size and str(index.path(row)) in index.skipped.get(CANNOT_BE_READ, ()):
        # its boxes may be unknown (YOLO's are shares of the size): they would be background
        raise UnreadableImage(f"{index.path(row)}: it could not be read when its labels were")
    if index.rotation is not None and 0 in size:
        raise UnreadableImage(f"{index.path(row)}: its size was unknown, so its boxes could not be turned")
    return size


def read_pixels(index: Index, row: int) -> Pixels:
    """The picture of a row of an index as Pillow decodes it, turned where the index says so. Raises
    `UnreadableImage`."""
    path, size = index.path(row), annotated_size(index, row)
    data = read_bytes(path)
    pixels = as_annotated(lambda turn: decode_with_pillow(data, path, turn), size_of, path, size, index.upright)
    return pixels if index.rotation is None else rotated(pixels, int(index.rotation.degrees[row]))


def size_of(pixels: Pixels) -> Size:
    return pixels.shape[0], pixels.shape[1]


def rotated(pixels: Pixels, degrees: int) -> Pixels:
    """Counter-clockwise, on a canvas that holds all of it (`rotation_geometry.canvas`).

    Multiples of 90 move pixels, other angles interpolate bilinearly and fill the corners.
    """
    if degrees % 90 == 0:
        return np.ascontiguousarray(np.rot90(pixels, degrees // 90 % 4))
    height, width = size_of(pixels)
    tall, wide = canvas(np.array([[height, width]]), np.array([degrees]))[0].tolist()
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # where a point of the canvas comes from: turned back about the centres
    x0 = width / 2 - cos * wide / 2 + sin * tall / 2
    y0 = height / 2 - sin * wide / 2 - cos * tall / 2
    picture = Image.fromarray(pixels).transform(
        (wide, tall),
        Image.Transform.AFFINE,
        (cos, -sin, x0, sin, cos, y0),
        resample=Image.Resampling.BILINEAR,
        fillcolor=ROTATION_FILL,
    )
    return np.asarray(picture).copy()


def decode_with_pillow(data: bytes, path: Path | str, rotate: bool) -> Pixels:
    """`[H, W, 3]` RGB of the bytes of a file. rotate: as EXIF says. Raises `UnreadableImage`."""
    try:
        with no_pixel_limit():  # it counts when a file is opened, of TIFF also when it is decoded
            opened = Image.open(io.BytesIO(data), formats=picture_formats())
            if opened.format == "TIFF":
                opened.load()
        with opened:
            image: Image.Image = opened
            if rotate:
                exif_of_header(opened)
                image = ImageOps.exif_transpose(image)
            array = rgb_of(image)
    except UnidentifiedImageError:  # its message holds the address of `data`
        raise UnreadableImage(f"{path}: this is no image of a known format") from None
    except Exception as error:  # on damaged files Pillow's decoders raise almost anything
        raise UnreadableImage(f"{path}: {error}") from None
    return array.copy()


def upright(image: Image.Image) -> Image.Image:
    """A picture that was opened with Pillow, as EXIF says; as it is where EXIF cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # of damaged EXIF Pillow raises almost anything
        return image


def rgb_of(image: Image.Image) -> Pixels:
    """`[H, W, 3]` of a picture in any mode of Pillow. Raises `ValueError` for values that cannot be told."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_in_8_bits(np.asarray(image)))
    return np.asarray(image.convert("RGB"))


def _in_8_bits(grey: NDArray[Any]) -> NDArray[np.uint8]:
    """Of 16-bit values the upper half: Pillow's own conversion clips. Raises `ValueError` for values of another
    range, which would all be black or white."""
    if grey.dtype.kind == "f":
        raise ValueError("its values are fractions, and which of them is white is not said; store it with 8 bits")
    most = int(grey.max(initial=0))
    if 0 < most < 2**12 or most >= 2**16:
        raise ValueError(f"its values reach {most:,}, expected those of 16 bits (white: 65,535); store 8 bits")
    return np.clip(grey.astype(np.int64) >> 8, 0, 255).astype(np.uint8)
