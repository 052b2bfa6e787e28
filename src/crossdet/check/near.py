"""Pictures of two splits that look alike: copies of one photograph, frames of one scene. No torch.

A picture is compared by 128 bits: in a thumbnail of 9 x 9 grey values, whether each is brighter than its left and
its upper neighbour (the difference hash of N. Krawetz, "Kind of Like That", 2013, both ways). Brightness, contrast,
compression and size change few of them; turned, mirrored and cropped copies are not found.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crossdet.check.files import Split
from crossdet.check.report import FIRST, DuplicateReport

BITS_APART = 12
"""Pictures look alike where at most so many of the 128 bits differ. In six sets of photographs, brightened,
compressed and squeezed copies had 3 to 9 other bits in the median, different photographs at least 22, but for dice
on one table."""
MOST_PICTURES = 20_000
"""More are compared only where `check` reads every picture anyway: each costs some 2 ms, and large ones more."""
LEAST_BITS = 16
"""Fewer bits set (or unset) are those of a plain picture, which looks like every other one."""
MOST_COMPARED = 4096
"""With so many others that share a block a look is compared at most: a bound on the time where all look alike."""

_SIDE = 9
_BLOCKS, _BLOCK_BITS = 8, 16
_COUNTS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)

Looks = NDArray[np.uint64]
Pairs = NDArray[np.int64]


def look(path: Path) -> NDArray[np.bool_] | None:
    """The bits of a picture; None where it cannot be read."""
    try:
        with Image.open(path) as image:
            image.draft("L", (4 * _SIDE, 4 * _SIDE))  # of a JPEG an eighth of its size is decoded, if that will do
            grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    except Exception:  # on a damaged file Pillow's plugins raise almost anything
        return None
    values = np.asarray(grey, np.int16)
    across, down = values[:-1, 1:] > values[:-1, :-1], values[1:, :-1] > values[:-1, :-1]
    # of every block each bit is from another row of the picture
    return np.concatenate([across.ravel(), down.ravel()]).reshape(_BLOCK_BITS, _BLOCKS).T.ravel()


def looks_of(paths: Sequence[Path]) -> tuple[Looks, NDArray[np.bool_]]:
    """`[N, 2]` 128 bits of every picture, and `[N]` which of them say anything."""
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        found = list(pool.map(look, paths))
    bits = np.stack([np.zeros(_BLOCKS * _BLOCK_BITS, bool) if own is None else own for own in found])
    ones = bits.sum(axis=1)
    looks = np.packbits(bits, axis=1).view(np.uint64)
    return looks, (ones >= LEAST_BITS) & (ones <= bits.shape[1] - LEAST_BITS)


def alike(looks: Looks) -> Pairs:
    """`[P, 2]` pairs of different rows, each once, at most `BITS_APART` bits apart. looks: `[N, 2]`, no two equal.

    Compared are those that share one of eight blocks of 16 bits: all with up to 7 other bits, nine of ten with 12.
    """
    blocks = looks.view(np.uint16)
    found = [np.zeros((0, 2), np.int64)]
    for block in range(_BLOCKS):
        order = np.argsort(blocks[:, block], kind="stable")
        keys, first = blocks[order, block], np.arange(len(order))
        for lag in range(1, MOST_COMPARED):
            first = first[first + lag < len(order)]
            first = first[keys[first] == keys[first + lag]]
            if not len(first):
                break
            pairs = np.stack([order[first], order[first + lag]], axis=1)
            apart = _COUNTS[(looks[pairs[:, 0]] ^ looks[pairs[:, 1]]).view(np.uint8)].sum(axis=1)
            found.append(np.sort(pairs[apart <= BITS_APART], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def find_alike(files: Mapping[Split, Iterable[Path]], equal: Collection[str]) -> list[DuplicateReport]:
    """Pairs of splits with pictures that look alike, leaks first; `pictures` of `other` look like some of `one`.

    equal: files with the bytes of another one, which are told as such and not counted here.
    """
    splits, used = list(files), [(n, path) for n, own in enumerate(files.values()) for path in own]
    if len(splits) < 2 or not used:
        return []
    looks, telling = looks_of([path for _, path in used])
    used = [one for one, tells in zip(used, telling.tolist(), strict=True) if tells]
    unique, look_of = np.unique(looks[telling], axis=0, return_inverse=True)
    look_of, split_of = look_of.ravel(), np.array([n for n, _ in used], np.int64)
    has = np.zeros((len(unique), len(splits)), bool)
    has[look_of, split_of] = True
    pairs, near = alike(unique), has.copy()
    for one, other in ((0, 1), (1, 0)):
        np.logical_or.at(near, pairs[:, one], has[pairs[:, other]])
    counted = np.array([str(path) not in equal for _, path in used], bool)
    reports = []
    for one, other in combinations(range(len(splits)), 2):
        if splits[one][1] != "train" and splits[other][1] == "train":
            one, other = other, one
        rows = np.flatnonzero(counted & (split_of == other) & near[look_of, one])
        if len(rows):
            examples = [_example(row, used, look_of, split_of == one, pairs) for row in rows[:FIRST].tolist()]
            leak = (splits[one][1] == "train") != (splits[other][1] == "train")
            reports.append(DuplicateReport(splits[one], splits[other], leak, len(rows), tuple(examples)))
    return sorted(reports, key=lambda report: not report.leak)


def _example(
    row: int, used: Sequence[tuple[int, Path]], look_of: NDArray[np.int64], there: NDArray[np.bool_], pairs: Pairs
) -> tuple[str, str]:
    """A picture that looks like that of a row, and that. there: `[N]` which rows it may be."""
    mine = look_of[row]
    looks = [mine, *pairs[pairs[:, 0] == mine, 1], *pairs[pairs[:, 1] == mine, 0]]
    like = int(np.flatnonzero(there & np.isin(look_of, looks))[0])
    return str(used[like][1]), str(used[row][1])
