"""From the files of a dataset split to its `Index`, through the cache: the entry point above the readers."""

from __future__ import annotations

import difflib
import os
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from crossdet.data.annotation_files import BOM, header_sizes, too_many
from crossdet.data.cache import cached, fingerprint, pictures_stamp
from crossdet.data.formats import FORMATS
from crossdet.data.formats.format import NONE, Format, SplitFiles
from crossdet.data.index import (
    CANNOT_BE_READ,
    IMAGE_REASONS,
    LEFT_OUT,
    OTHER_SPELLING,
    Index,
    clip_to_images,
    offsets,
    short,
)
from crossdet.errors import AnnotationError, UserError, problem_list

BEGINS = {b"{": "coco", b"<": "voc"}
"""First byte of an annotation file -> the format that it is likely of."""
SMALL = 16
"""Pixels; in smaller pictures the first pixel may well be an object."""


def read_split(format: str, files: SplitFiles) -> Index:
    """Reads a split, from the cache if its files are unchanged (`Format.depends`).

    Sizes come from the image headers where the annotations give none. Paths may be relative to the working
    directory.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}{_suggestion(format, list(FORMATS))}")
    kind = FORMATS[format]
    files = replace(
        files,
        annotations=_absolute(files.annotations),
        images=_absolute(files.images),
        ignore=_absolute(files.ignore),
    )
    _check(format, kind, files)
    stamps = [pictures_stamp(folder) for folder in files.images] if kind.depends_on_images else []
    key = fingerprint({"format": format, "extra": stamps, **asdict(files)}, kind.depends(files))
    try:
        if kind.depends_on_images:
            return cached(key, lambda: with_sizes(_once_each(kind.read(files))), _has_all_images)
        index = cached(key, lambda: _once_each(kind.read(files)), _as_spelt)
        unknown = [str(index.path(row)) for row in np.flatnonzero((index.sizes == 0).any(axis=1)).tolist()]
        if not unknown:
            return with_sizes(index)
        # by the headers of pictures, which may change while the annotations stay
        return cached(fingerprint({"read": key}, unknown), lambda: with_sizes(index), _as_spelt)
    except AnnotationError as error:
        raise AnnotationError(f"{error}{_looks_like(format, files.annotations)}") from None


def _looks_like(format: str, annotations: tuple[Path, ...]) -> str:
    """What the files of a format that cannot be read look like, as the end of a message; empty where unknown."""
    for file in annotations:
        with suppress(OSError), file.open("rb") as opened:  # a folder has its own message
            begin = opened.read(64).removeprefix(BOM).lstrip()[:1]
            if (kind := BEGINS.get(begin)) and kind != format:
                return f"\n{file.name} begins with {begin.decode()!r}, as files of `format: {kind}` do"
    return ""


def _once_each(index: Index) -> Index:
    """The index. Raises `AnnotationError` where a picture is in it under two spellings of its path (`a.png`,
    `./a.png`, an absolute one): the objects of either would be background of the other."""
    join = os.path.join
    paths = [os.path.normpath(join(index.root, name)) for name in index.names]
    if len(set(paths)) == len(paths):
        return index
    first: dict[str, int] = {}
    problems = [
        f"{index.names[before]!r} and {index.names[row]!r} are one picture, {path}; give it one entry all its boxes"
        for row, path in enumerate(paths)
        if (before := first.setdefault(path, row)) != row
    ]
    raise AnnotationError(problem_list(f"{len(problems):,} picture(s) are listed twice", too_many(problems)))


def with_sizes(index: Index) -> Index:
    """`fill_sizes`, then a look at the boxes. Raises `UserError` where they are shares of their pictures, 0 to 1: a
    detector would learn that every object is the first pixel, and that all else is background."""
    index = fill_sizes(index)
    boxes = np.asarray(index.boxes)
    if len(boxes) and boxes.max() <= 1 and index.sizes.min(initial=SMALL) >= SMALL:
        image = index.path(int(index.image_of_box()[0]))
        raise UserError(
            f"all {len(boxes):,} boxes lie within the first pixel of their pictures, such as xyxy "
            f"{short(boxes[0].tolist())} in {image}; boxes are given in pixels here, not as shares of the picture: "
            "multiply them by its width and height"
        )
    return index


def fill_sizes(index: Index) -> Index:
    """Reads the sizes that are unknown from the image headers and clips the boxes of those images.

    An image that cannot be read keeps size 0 and is counted under `skipped`.
    """
    unknown = np.flatnonzero((index.sizes == 0).any(axis=1))
    if not len(unknown) or _without_image(index):  # counted already
        return index
    paths = [index.path(int(row)) for row in unknown]
    sizes = index.sizes.copy()
    skipped = {reason: list(places) for reason, places in index.skipped.items()}
    for row, path, size in zip(unknown, paths, header_sizes(paths, index.upright), strict=True):
        if size is None:
            skipped.setdefault(CANNOT_BE_READ, []).append(str(path))
        else:
            sizes[row] = size
    image_of_box = index.image_of_box()
    filled = sizes[image_of_box]
    filled[(index.sizes[image_of_box] != 0).all(axis=1)] = 0  # those the reader has clipped
    clipped, reason = clip_to_images(index.boxes.astype(np.float64), filled)
    for box in np.flatnonzero(reason != "").tolist():
        place = index.path(int(image_of_box[box]))
        skipped.setdefault(str(reason[box]), []).append(f"{place}: xyxy {short(index.boxes[box].tolist())}")
    before, after = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (index.boxes, clipped))
    # an annotated area (COCO's segmentation) stays, one that was the box's own follows the clipping
    area = np.where(np.isclose(index.area, before), after, index.area).astype(np.float32)
    keep = ~np.isin(reason, LEFT_OUT)
    box_offsets = offsets(np.bincount(image_of_box[keep], minlength=len(index)))
    known = replace(index, boxes=clipped.astype(np.float32), area=area)
    return replace(known, sizes=sizes, box_offsets=box_offsets, **known.box_columns(keep), skipped=skipped)


def _without_image(index: Index) -> bool:
    return any(reason in index.skipped for reason in IMAGE_REASONS)


def _has_all_images(index: Index) -> bool:
    """Else it is not kept: they may be there the next time."""
    return not _without_image(index)


def _as_spelt(index: Index) -> bool:
    """And no picture is called otherwise than its annotations say: it may be renamed in a folder whose time the
    key does not have."""
    return _has_all_images(index) and OTHER_SPELLING not in index.skipped


def _absolute(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    return tuple(path.absolute() for path in paths)


def _check(name: str, format: Format, files: SplitFiles) -> None:
    """Raises `UserError`: first all that is given wrongly, then all that is not there."""
    problems = []
    for key in ("annotations", "images", "image_set", "ignore"):
        least, most = format.keys.get(key, NONE)
        count = len(getattr(files, key))
        if not least <= count <= most:
            wanted = "none" if most == 0 else "exactly one" if least == most else "at most one"
            fix = "; leave it out" if most == 0 else ""
            problems.append(f"`{key}` has {count} entries, {name} takes {wanted}{fix}")
    problems += format.problems(files)
    if files.edition is not None and "edition" not in format.keys:
        problems.append(f"`edition` is {files.edition}, but {name} has no editions; leave it out")
    if files.classes is not None and "classes" not in format.keys:
        problems.append(f"`classes` is given, but {name} files name their classes; leave it out")
    problems = problems or [text for needed in format.needs(files) if (text := _missing(*needed))]
    if problems:
        raise UserError(problem_list(f"files of the {files.split} split", problems))


def _missing(what: str, path: Path, folder: bool) -> str:
    """What is wrong with the path, "" if nothing."""
    if path.is_dir() if folder else path.is_file():
        return ""
    if path.exists():
        return f"{what}: {path} is a {'file, expected a folder' if folder else 'folder, expected a file'}"
    parent = path.parent
    if not parent.is_dir():
        there = next((p for p in parent.parents if p.is_dir()), parent)
        gone = parent.relative_to(there).parts[0] if there != parent else ""
        siblings = [entry.name for entry in there.iterdir()]
        return f"{what}: {path} does not exist: no {gone!r} in {there}{_suggestion(gone, siblings)}"
    names = [entry.name for entry in parent.iterdir() if entry.is_dir() == folder]
    return f"{what}: {path} does not exist{_suggestion(path.name, names)}"


def _suggestion(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
