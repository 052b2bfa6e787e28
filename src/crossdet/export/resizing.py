"""Pictures at the size of a network's input without torch, bit for bit as torchvision resizes them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Picture = NDArray[np.uint8]
"""`[H, W, 3]` RGB."""

_LARGEST, _MOST_BITS = 1 << 15, 22


def resize(picture: Picture, size: tuple[int, int], antialias: bool = True) -> Picture:
    """To (height, width), bilinear.

    As torch does it with uint8 on processors with AVX2 (UpSampleKernel.cpp, `_compute_index_ranges_int16_weights`,
    which follows Pillow): columns, then rows, each rounded to whole numbers, with weights of 16 bits. Elsewhere
    torch computes in floats, and some pixels differ by 1.
    """
    height, width = picture.shape[:2]
    if width != size[1]:
        across = np.ascontiguousarray(picture.transpose(1, 0, 2)).reshape(width, -1)
        picture = _pass(across, size[1], antialias).reshape(size[1], height, 3).transpose(1, 0, 2)
    if height != size[0]:
        down = np.ascontiguousarray(picture).reshape(height, -1)
        picture = _pass(down, size[0], antialias).reshape(size[0], -1, 3)
    return np.ascontiguousarray(picture)


def _pass(lines: NDArray[np.uint8], count: int, antialias: bool) -> NDArray[np.uint8]:
    """`[count, n]` of `lines [N, n]`."""
    weights, bits = _weights(len(lines), count, antialias)
    sums = (weights @ lines.astype(np.int32)) + (1 << (bits - 1))
    return np.clip(sums >> bits, 0, 255).astype(np.uint8)


def _weights(old: int, new: int, antialias: bool) -> tuple[csr_array, int]:
    """`[new, old]` int32, and how many bits they are multiplied by."""
    scale = old / new
    support = max(scale, 1.0) if antialias else 1.0
    centre = scale * (np.arange(new) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), old)
    taps = np.arange(2 * math.ceil(support) + 1)
    columns = first[:, None] + taps
    inside = columns < last[:, None]
    shares = np.maximum(1 - np.abs((columns - centre[:, None] + 0.5) / support), 0) * inside
    shares /= shares.sum(1, keepdims=True)
    bits = next((b for b in range(_MOST_BITS) if int(0.5 + shares.max() * (1 << (b + 1))) >= _LARGEST), _MOST_BITS)
    rows = np.broadcast_to(np.arange(new)[:, None], columns.shape)
    whole = (shares * (1 << bits) + 0.5).astype(np.int32)
    return csr_array((whole[inside], (rows[inside], columns[inside])), shape=(new, old)), bits
