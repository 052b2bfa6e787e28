"""A look at the image files: are they there, are they the annotated pictures, does one occur twice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from crossdet.check.report import FIRST, DuplicateReport, FileReport, Places
from crossdet.data.annotation_files import header_sizes, no_pixel_limit, opened
from crossdet.data.index import Index
from crossdet.data.rotation import pictures

Split = tuple[str, str]
"""(dataset, "train", "val" or "test")."""

_ORIENTATION_TAG = 0x0112
_SAMPLE_BYTES = 4096


def image_paths(index: Index, max_images: int | None = None) -> dict[int, Path]:
    """Image row -> file; with `max_images` so many rows, evenly spread."""
    rows = pictures(index)
    if max_images is not None and max_images < len(rows):
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, max_images).astype(np.int64))]
    return {row: index.path(row) for row in rows.tolist()}


def look_at_files(
    index: Index, paths: Mapping[int, Path], own_sizes: bool = False, decode: bool = False
) -> FileReport:
    """Compares the headers of the files with the annotated sizes.

    own_sizes: the index has the sizes from these headers, so that they say nothing of an EXIF orientation. decode:
    read every picture to its end.
    """
    missing: list[str] = []
    unreadable: list[str] = []
    contradicting: list[str] = []
    as_stored: dict[Path, bool] = {}  # -> a quarter turn would be seen in the size
    sizes = index.sizes if index.rotation is None else index.rotation.sizes
    for (row, path), have in zip(paths.items(), header_sizes(list(paths.values()), index.upright), strict=True):
        height, width = (int(side) for side in sizes[row])
        if have is None:
            (unreadable if path.exists() else missing).append(str(path))
        elif index.upright and have == (height, width):
            pass  # turned as EXIF says, as `predict` turns it
        elif 0 in (height, width) or have == (height, width):
            as_stored[path] = have == (height, width) and height != width and not own_sizes
        elif have != (width, height) or not _stored_sideways(path):
            told = f"{path}: the picture is {have[1]}x{have[0]}, its annotation says {width}x{height}"
            contradicting.append(told)
    marked = [
        f"{path} (orientation {mark})"
        for (path, seen), mark in zip(as_stored.items(), _orientations(list(as_stored)), strict=True)
        if 2 <= mark <= (4 if seen else 8)
    ]
    damaged = _damaged(paths.values(), {*missing, *unreadable}) if decode else None
    first = [Places.of(found) for found in (missing, unreadable, contradicting, marked)]
    return FileReport(len(paths), first[0], first[1], first[2], first[3], damaged)


def _damaged(paths: Iterable[Path], known: Collection[str]) -> tuple[str, ...]:
    """The files that cannot be decoded to their end. known: files that are no images anyway."""

    def damage(path: Path) -> str | None:
        try:
            with opened(path) as image:
                image.load()
        except Exception as error:  # on a damaged file Pillow's plugins raise almost anything
            return f"{path}: {error}"
        return None

    with no_pixel_limit(), ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return tuple(filter(None, pool.map(damage, (path for path in paths if str(path) not in known))))


def _orientations(paths: Sequence[Path]) -> list[int]:
    """The EXIF orientation of readable files, 1 (as stored) to 8; 1 for TIFF, which is always turned."""
    from PIL import Image

    def orientation(path: Path) -> int:
        try:
            with opened(path) as image:
                # not the plugin's own, which for PNG decodes the picture to look behind it
                mark = 1 if image.format == "TIFF" else Image.Image.getexif(image).get(_ORIENTATION_TAG)
        except Exception:  # on a damaged file Pillow's plugins raise almost anything
            return 1
        return mark if isinstance(mark, int) and 1 <= mark <= 8 else 1

    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(orientation, paths))


def _stored_sideways(path: Path) -> bool:
    """EXIF says that the picture is to be turned by a quarter, so that width and height change places."""
    try:
        with opened(path) as image:
            return image.getexif().get(_ORIENTATION_TAG, 1) >= 5
    except (OSError, ValueError, SyntaxError):
        return False


# ---------------------------------------------------------------------------------------------- duplicates


def find_duplicates(files: Mapping[Split, Iterable[Path]]) -> tuple[list[DuplicateReport], set[str]]:
    """Pairs of splits that share pictures, leaks first: files of equal content and one file used twice; and all
    these files."""
    users: dict[str, list[Split]] = {}
    for split, paths in files.items():
        for name in map(str, paths):
            users.setdefault(name, []).append(split)
    groups = same_content(list(users))
    alone = set(users).difference(*groups)
    groups += [[path] for path in alone if len(users[path]) > 1]
    found: dict[tuple[Split, Split], dict[str, tuple[str, str]]] = {}
    for group in groups:
        uses: dict[Split, list[str]] = {split: [] for split in files}
        for path in group:
            for split in users[path]:
                uses[split].append(path)
        firsts = [(split, path) for split, own in uses.items() for path in own[:2]]
        for (one, path), (other, other_path) in combinations(firsts, 2):
            found.setdefault((one, other), {}).setdefault(group[0], (path, other_path))
    order = list(files)
    reports = [
        DuplicateReport(
            one=one,
            other=other,
            leak=(one[1] == "train") != (other[1] == "train"),
            pictures=len(pictures),
            files=tuple(sorted(pictures.values())[:FIRST]),
        )
        for (one, other), pictures in found.items()
    ]
    reports.sort(key=lambda r: (not r.leak, order.index(r.one), order.index(r.other)))
    return reports, {path for group in groups for path in group}


def same_content(paths: Sequence[str]) -> list[list[str]]:
    """Groups of at least two files with the same bytes. Unreadable files are in none.

    Most files are told apart without reading them: only those of the same size are sampled in the middle, and
    only those that agree there are read as a whole.
    """
    groups = [list(paths)]
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        for key in (_size, _sample, _digest):
            groups = _split(groups, key, pool)
    return groups


def _split(
    groups: list[list[str]], key: Callable[[Path], Hashable | None], pool: ThreadPoolExecutor
) -> list[list[str]]:
    def key_of(path: str) -> Hashable | None:
        try:
            return key(Path(path))
        except OSError:
            return None

    flat = [(number, path) for number, group in enumerate(groups) for path in group]
    keys = pool.map(key_of, [path for _, path in flat])
    parts: dict[Any, list[str]] = {}
    for (number, path), value in zip(flat, keys, strict=True):
        if value is not None:
            parts.setdefault((number, value), []).append(path)
    return [part for part in parts.values() if len(part) > 1]


def _size(path: Path) -> int | None:
    return path.stat().st_size or None  # empty files are broken, not equal


def _sample(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(os.fstat(file.fileno()).st_size // 2)
        return file.read(_SAMPLE_BYTES)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=20)).digest()
