"""Pictures of two splits that look alike: copies of one photograph, frames of one scene. No torch.

A picture is compared by 128 bits: in a thumbnail of 9 x 9 grey values, whether each is brighter than its left and
its upper neighbour (the difference hash of N. Krawetz, "Kind of Like That", 2013, both ways). Brightness, contrast,
compression and size change few of them. Copies that are mirrored or turned by quarters are found by the bits of the
thumbnail mirrored and turned, and looked at again in a larger thumbnail; those that are cropped, or turned by other
angles, are not found.
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
from crossdet.data.annotation_files import opened

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
MOST_TURNED, MOST_SEEN = 128, 4
"""The same for each way of turning, and with how many of these the larger thumbnail is compared."""
AT_ONCE = 4096
"""Pairs whose larger thumbnails are in memory together."""
WAYS = {
    **{f"turned by {90 * turns} degrees": (False, turns) for turns in (1, 2, 3)},
    "mirrored": (True, 0),
    **{f"mirrored and turned by {90 * turns} degrees": (True, turns) for turns in (1, 2, 3)},
}
"""What may have been done to a copy: mirrored at the vertical axis, then turned by quarters, counter-clockwise."""
LEAST_ALIKE = 0.4
"""Least correlation of the fine structure of two thumbnails that look alike when one is turned. Of 173 such copies
with few other bits, in two of the sets above, 3 have less; 3 of 50 pictures of different dice do without it."""

_SIDE, _FINER = 9, 4
_BLOCKS, _BLOCK_BITS = 8, 16
_COUNTS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)

Thumbnails = NDArray[np.uint8]
"""`[N, 36, 36]` grey values."""
Looks = NDArray[np.uint64]
Pairs = NDArray[np.int64]


def thumbnails_of(paths: Sequence[Path]) -> Thumbnails:
    """A black one for a picture that cannot be read."""
    side = _FINER * _SIDE

    def thumbnail(path: Path) -> Thumbnails:
        try:
            with opened(path) as image:
                image.draft("L", (side, side))  # of a JPEG an eighth of its size is decoded, if that will do
                return np.asarray(image.convert("L").resize((side, side), Image.Resampling.BOX))
        except Exception:  # on a damaged file Pillow's plugins raise almost anything
            return np.zeros((side, side), np.uint8)

    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        return np.stack(list(pool.map(thumbnail, paths)))


def looks_of(thumbnails: Thumbnails) -> tuple[Looks, NDArray[np.bool_]]:
    """`[N, 2]` 128 bits of every picture, and `[N]` which of them say anything."""
    count, area = len(thumbnails), _FINER**2
    sums = thumbnails.reshape(count, _SIDE, _FINER, _SIDE, _FINER).sum(axis=(2, 4), dtype=np.int16)
    values = (sums + area // 2) // area
    corner = values[:, :-1, :-1]
    bits = np.stack([values[:, :-1, 1:] > corner, values[:, 1:, :-1] > corner], axis=1)
    # of every block each bit is from another row of the picture
    bits = bits.reshape(count, _BLOCK_BITS, _BLOCKS).swapaxes(1, 2).reshape(count, _BLOCKS * _BLOCK_BITS)
    ones = bits.sum(axis=1)
    looks = np.packbits(bits, axis=1).view(np.uint64)
    return looks, (ones >= LEAST_BITS) & (ones <= bits.shape[1] - LEAST_BITS)


def turned(thumbnails: Thumbnails, way: str) -> Thumbnails:
    mirrored, turns = WAYS[way]
    return np.ascontiguousarray(np.rot90(thumbnails[..., ::-1] if mirrored else thumbnails, turns, axes=(1, 2)))


def alike(looks: Looks, others: Looks | None = None, most: int = MOST_COMPARED) -> Pairs:
    """`[P, 2]` rows of `looks` and of `others`, at most `BITS_APART` bits apart, each pair once; None: pairs of
    different rows of `looks`. looks: `[N, 2]`, no two equal.

    Compared are those that share one of eight blocks of 16 bits: all with up to 7 other bits, nine of ten with 12.
    """
    theirs = looks if others is None else others
    blocks, their_blocks = looks.view(np.uint16), theirs.view(np.uint16)
    found = [np.zeros((0, 2), np.int64)]
    for block in range(_BLOCKS):
        order = np.argsort(blocks[:, block], kind="stable")
        keys = blocks[order, block]
        rows = order if others is None else np.arange(len(theirs))
        wanted = their_blocks[rows, block]
        first = np.arange(1, len(rows) + 1) if others is None else np.searchsorted(keys, wanted, "left")
        end = np.minimum(np.searchsorted(keys, wanted, "right"), first + most)
        while len(rows := rows[kept := first < end]):
            first, end = first[kept], end[kept]
            pairs = np.stack([order[first], rows], axis=1)
            found.append(pairs[_apart(looks[pairs[:, 0]], theirs[pairs[:, 1]]) <= BITS_APART])
            first = first + 1
    pairs = np.concatenate(found)
    pairs = np.sort(pairs, axis=1) if others is None else pairs
    return np.stack(np.divmod(np.unique(pairs[:, 0] * len(theirs) + pairs[:, 1]), max(1, len(theirs))), axis=1)


def alike_turned(thumbnails: Thumbnails, looks: Looks, home: NDArray[np.int64], way: str) -> Pairs:
    """`[P, 2]` rows of which the first looks like the second turned in this way. home: `[N]` a split; its pictures
    are not compared with each other. -1: of several."""
    theirs = looks_of(turned(thumbnails, way))[0]
    pairs = alike(looks, theirs, MOST_TURNED)
    pairs = pairs[(home[pairs[:, 0]] != home[pairs[:, 1]]) | (home[pairs[:, 0]] < 0)]
    order = np.lexsort((_apart(looks[pairs[:, 0]], theirs[pairs[:, 1]]), pairs[:, 0]))
    pairs = pairs[order]
    pairs = pairs[np.arange(len(pairs)) - np.searchsorted(pairs[:, 0], pairs[:, 0]) < MOST_SEEN]
    parts = [pairs[start : start + AT_ONCE] for start in range(0, len(pairs), AT_ONCE)]
    same = [_correlation(thumbnails[part[:, 0]], turned(thumbnails[part[:, 1]], way)) for part in parts]
    return pairs[np.concatenate([*same, np.zeros(0, np.float32)]) >= LEAST_ALIKE]


def _apart(ones: Looks, others: Looks) -> NDArray[np.int64]:
    """`[P]` bits that differ."""
    return np.asarray(_COUNTS[(ones ^ others).view(np.uint8)].sum(axis=1))


def _correlation(ones: Thumbnails, others: Thumbnails) -> NDArray[np.float32]:
    """`[N]` of each with the other, without what the eight neighbours say of a value."""
    one, other = _structure(ones), _structure(others)
    length = np.einsum("nyx,nyx->n", one, one) * np.einsum("nyx,nyx->n", other, other)
    return np.asarray(np.einsum("nyx,nyx->n", one, other) / np.sqrt(np.maximum(length, 1e-6)))


def _structure(thumbnails: Thumbnails) -> NDArray[np.float32]:
    """Each value less the mean of the 3 x 3 around it."""
    side = thumbnails.shape[1]
    padded = np.pad(thumbnails.astype(np.float32), [(0, 0), (1, 1), (1, 1)], mode="edge")
    columns = padded[:, :, :side] + padded[:, :, 1:-1] + padded[:, :, 2:]
    return padded[:, 1:-1, 1:-1] - (columns[:, :side] + columns[:, 1:-1] + columns[:, 2:]) / 9


def find_alike(files: Mapping[Split, Iterable[Path]], equal: Collection[str]) -> list[DuplicateReport]:
    """Pairs of splits with pictures that look alike, leaks first; `pictures` of `other` look like some of `one`, or
    in a report of its own like some of it `turned`, and not as they are.

    equal: files with the bytes of another one, which are told as such and not counted here.
    """
    splits, used = list(files), [(n, path) for n, own in enumerate(files.values()) for path in own]
    if len(splits) < 2 or not used:
        return []
    thumbnails = thumbnails_of([path for _, path in used])
    looks, telling = looks_of(thumbnails)
    used = [one for one, tells in zip(used, telling.tolist(), strict=True) if tells]
    unique, first, look_of = np.unique(looks[telling], axis=0, return_index=True, return_inverse=True)
    look_of, split_of = look_of.ravel(), np.array([n for n, _ in used], np.int64)
    thumbnails = thumbnails[telling][first]
    has = np.zeros((len(unique), len(splits)), bool)
    has[look_of, split_of] = True
    itself = np.repeat(np.arange(len(unique))[:, None], 2, axis=1)
    pairs = alike(unique)
    plain = {"": np.concatenate([itself, pairs, pairs[:, ::-1]])}
    home = np.where(has.sum(axis=1) == 1, has.argmax(axis=1), -1)
    ways = {way: alike_turned(thumbnails, unique, home, way) for way in WAYS}
    near = _near(has, plain)
    near_turned = _near(has, ways) & ~near
    counted = np.array([str(path) not in equal for _, path in used], bool)
    reports = []
    for one, other in combinations(range(len(splits)), 2):
        if splits[one][1] != "train" and splits[other][1] == "train":
            one, other = other, one
        leak = (splits[one][1] == "train") != (splits[other][1] == "train")
        for found, how in ((near, plain), (near_turned, ways)):
            rows = np.flatnonzero(counted & (split_of == other) & found[look_of, one])
            if len(rows):
                examples = [_example(row, used, look_of, split_of == one, how) for row in rows[:FIRST].tolist()]
                done = tuple(way for *_, way in examples if way)
                pictures = tuple((a, b) for a, b, _ in examples)
                reports.append(DuplicateReport(splits[one], splits[other], leak, len(rows), pictures, done))
    return sorted(reports, key=lambda report: not report.leak)


def _near(has: NDArray[np.bool_], ways: Mapping[str, Pairs]) -> NDArray[np.bool_]:
    """`[U, S]` which looks are like some of which split. has: `[U, S]` which are there."""
    near = np.zeros_like(has)
    for pairs in ways.values():
        np.logical_or.at(near, pairs[:, 0], has[pairs[:, 1]])
    return near


def _example(
    row: int,
    used: Sequence[tuple[int, Path]],
    look_of: NDArray[np.int64],
    there: NDArray[np.bool_],
    ways: Mapping[str, Pairs],
) -> tuple[str, str, str]:
    """A picture that looks like that of a row, that, and in which way. there: `[N]` which rows it may be."""
    for way, pairs in ways.items():
        like = np.flatnonzero(there & np.isin(look_of, pairs[pairs[:, 0] == look_of[row], 1]))
        if len(like):
            return str(used[int(like[0])][1]), str(used[row][1]), way
    raise AssertionError(row)
