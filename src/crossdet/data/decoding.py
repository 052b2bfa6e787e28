"""Image files -> uint8 RGB tensors, with every oddity of real files handled in one place."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from crossdet.data.index import Index
from crossdet.data.picture_files import UnreadableImage as UnreadableImage
from crossdet.data.picture_files import decode_with_pillow
from crossdet.data.rotation_geometry import canvas

Size = tuple[int, int]

ROTATION_FILL = (124, 116, 104)
"""RGB of the corners that a rotation uncovers: ImageNet's mean, near zero after normalisation, as padding is."""
_PNG = b"\x89PNG\r\n\x1a\n"


def read_image(path: Path | str, annotated: Size | None = None, upright: bool = False) -> Tensor:
    """`[3, H, W]` uint8 RGB; in memory the channels lie side by side, which resizing is fastest on.

    torchvision decodes; Pillow reads what it cannot (BMP, TIFF, ...) and every PNG: torchvision's PNG decoder
    ends the process (a segmentation fault) at a damaged byte. 16-bit samples are scaled to 8.
    The EXIF orientation is applied only if the stored size is not the annotated one and the rotated size is;
    `upright=True` (pictures without annotations) applies it always.

    annotated: (height, width) that the boxes refer to; None or (0, 0) = unknown.

    Raises:
        UnreadableImage: missing or broken file, or a size that is neither way the annotated one.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"{path}: {error.strerror or error}") from None
    image = decode_bytes(data, path, upright)
    if annotated is None or annotated == (0, 0) or _size(image) == annotated:
        return image
    if _size(image) == annotated[::-1]:
        rotated = decode_bytes(data, path, upright=True)
        if _size(rotated) == annotated:
            return rotated
    have = "x".join(map(str, _size(image)[::-1]))
    want = "x".join(map(str, annotated[::-1]))
    raise UnreadableImage(f"{path}: the picture is {have}, its annotation says {want}")


def read_row(index: Index, row: int) -> Tensor:
    """The picture of a row of an index, as `read_image` gives it, turned where the index says so.

    Raises `UnreadableImage`.
    """
    sizes = index.sizes if index.rotation is None else index.rotation.sizes
    annotated = int(sizes[row, 0]), int(sizes[row, 1])
    if index.rotation is None:
        return read_image(index.path(row), annotated)
    if 0 in annotated:
        raise UnreadableImage(f"{index.path(row)}: its size was unknown, so its boxes could not be turned")
    return rotate(read_image(index.path(row), annotated), int(index.rotation.degrees[row]))


def rotate(image: Tensor, degrees: int) -> Tensor:
    """`[3, H, W]` uint8 rotated counter-clockwise on a canvas that holds all of it (`rotation_geometry.canvas`).

    Multiples of 90 move pixels, other angles interpolate bilinearly and fill the corners.
    """
    if degrees % 90 == 0:
        return torch.rot90(image, degrees // 90 % 4, (1, 2))
    height, width = _size(image)
    tall, wide = canvas(np.array([[height, width]]), np.array([degrees]))[0].tolist()
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # where a point of the canvas comes from: turned back about the centres
    x0 = width / 2 - cos * wide / 2 + sin * tall / 2
    y0 = height / 2 - sin * wide / 2 - cos * tall / 2
    picture = Image.fromarray(image.permute(1, 2, 0).numpy()).transform(
        (wide, tall),
        Image.Transform.AFFINE,
        (cos, -sin, x0, sin, cos, y0),
        resample=Image.Resampling.BILINEAR,
        fillcolor=ROTATION_FILL,
    )
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)


def _size(image: Tensor) -> Size:
    return image.shape[1], image.shape[2]


def decode_bytes(data: bytes, path: Path | str, upright: bool) -> Tensor:
    """As `read_image`, of the content of a file; path: names it in errors."""
    if not data:
        raise UnreadableImage(f"{path}: the file is empty")
    if data.startswith(_PNG):
        return torch.from_numpy(decode_with_pillow(data, path, upright)).permute(2, 0, 1)
    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        image = decode_image(buffer, ImageReadMode.RGB, apply_exif_orientation=upright)
    except (RuntimeError, ValueError):
        return torch.from_numpy(decode_with_pillow(data, path, upright)).permute(2, 0, 1)
    if image.dim() == 4:  # an animation: its first frame
        image = image[0]
    return image
