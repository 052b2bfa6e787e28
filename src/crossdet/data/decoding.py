"""Image files -> uint8 RGB tensors, with every oddity of real files handled in one place."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from crossdet.data.index import Index
from crossdet.data.picture_files import Size, annotated_size, as_annotated, decode_with_pillow, read_bytes, rotated
from crossdet.data.picture_files import UnreadableImage as UnreadableImage

try:
    from torchvision.io import ImageReadMode, decode_image
except ImportError:  # announced by torchvision 0.29: then Pillow reads everything
    decode_image = None

_PNG = b"\x89PNG\r\n\x1a\n"
_RIFF, _WEBP = b"RIFF", b"WEBP"


def read_image(path: Path | str, annotated: Size | None = None, upright: bool = False) -> Tensor:
    """`[3, H, W]` uint8 RGB; in memory the channels lie side by side, which resizing is fastest on.

    torchvision decodes, while it can; Pillow reads what it cannot (BMP, TIFF, ...) and every PNG: torchvision's PNG
    decoder ends the process (a segmentation fault) at a damaged byte. 16-bit samples are scaled to 8.
    The EXIF orientation is applied only if the stored size is not the annotated one and the rotated size is;
    `upright=True` (pictures without annotations, or `Index.upright`) applies it always.

    annotated: (height, width) that the boxes refer to; None or (0, 0) = unknown.

    Raises:
        UnreadableImage: missing or broken file, or a size that is neither way the annotated one.
    """
    path = Path(path)
    data = read_bytes(path)
    return as_annotated(lambda turn: decode_bytes(data, path, turn), _size, path, annotated, upright)


def read_row(index: Index, row: int) -> Tensor:
    """The picture of a row of an index, as `read_image` gives it, turned where the index says so.

    Raises `UnreadableImage`.
    """
    image = read_image(index.path(row), annotated_size(index, row), index.upright)
    return image if index.rotation is None else rotate(image, int(index.rotation.degrees[row]))


def rotate(image: Tensor, degrees: int) -> Tensor:
    """`[3, H, W]` uint8; see `picture_files.rotated`."""
    return torch.from_numpy(rotated(image.permute(1, 2, 0).numpy(), degrees)).permute(2, 0, 1)


def _size(image: Tensor) -> Size:
    return image.shape[1], image.shape[2]


def decode_bytes(data: bytes, path: Path | str, upright: bool) -> Tensor:
    """As `read_image`, of the content of a file; path: names it in errors."""
    if not data:
        raise UnreadableImage(f"{path}: the file is empty")
    webp = data.startswith(_RIFF) and data[8:12] == _WEBP  # whose orientation torchvision does not know
    if decode_image is None or data.startswith(_PNG) or (webp and upright):
        return torch.from_numpy(decode_with_pillow(data, path, upright)).permute(2, 0, 1)
    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        image = decode_image(buffer, ImageReadMode.RGB, apply_exif_orientation=upright)
    except (RuntimeError, ValueError):
        return torch.from_numpy(decode_with_pillow(data, path, upright)).permute(2, 0, 1)
    if image.dim() == 4:  # an animation: its first frame
        image = image[0]
    return image
