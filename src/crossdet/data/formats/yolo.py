"""YOLO datasets (Ultralytics `data.yaml`, one label text per image) to and from an `Index`.

Source: the Ultralytics detection format. A label line is `class cx cy w h`, all but the class divided by the
image's width or height; a longer line is a polygon `class x1 y1 x2 y2 ...`, read as its enclosing box. The
label file of `.../images/a/b.jpg` is `.../labels/a/b.txt`, else `b.txt` beside the image.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from crossdet.data.annotation_files import header_sizes, raise_if_any, read_lines
from crossdet.data.formats.format import ONE, OPTIONAL, Format, SplitFiles
from crossdet.data.formats.yolo_files import YoloSplit, list_files, load_data_yaml
from crossdet.data.formats.yolo_finding import find_yolo
from crossdet.data.formats.yolo_label_files import is_label_file
from crossdet.data.index import CANNOT_BE_READ, NO_LABELS, NO_PICTURE, OTHER_SPELLING, Index, IndexBuilder
from crossdet.errors import AnnotationError, UserError
from crossdet.types import REGION_FLAGS, Flag

OVERSHOOT = 0.01
"""How far outside 0..1 a coordinate may lie (rounding by annotation tools); the box is clipped then."""


def read_yolo(data_yaml: Path, split: str) -> Index:
    """Reads the split that `data_yaml` names `split` ("train", "val", ...); images are sorted per folder."""
    files = list_files(data_yaml, split)
    problems: list[str] = []
    position = {number: i for i, number in enumerate(files.classes)}
    folders = {os.path.dirname(image) for image in files.images}  # noqa: PTH120
    root = Path(os.path.commonpath(folders)) if folders else data_yaml.parent
    builder = IndexBuilder(root)
    for place in files.otherwise:
        builder.skip(OTHER_SPELLING, place)
    for orphan in filter(is_label_file, files.orphans):
        builder.skip(NO_PICTURE, orphan)
    sizes = header_sizes([Path(image) for image in files.images], upright=True)
    for image, label, size in zip(files.images, files.labels, sizes, strict=True):
        builder.image(Path(os.path.relpath(image, root)).as_posix(), *(size or (0, 0)))
        rows = _label_rows(Path(label), files, problems) if label is not None else []
        if size is None:
            builder.skip(CANNOT_BE_READ, str(image))
            continue
        if label is None:
            builder.skip(NO_LABELS, str(image))
        height, width = size
        for place, number, (x1, y1, x2, y2) in rows:
            builder.box((x1 * width, y1 * height, x2 * width, y2 * height), position[number], place=place)
    raise_if_any(data_yaml, problems)
    # the tools that write YOLO labels, and those that train on them, turn pictures as EXIF says
    return replace(builder.build(list(files.classes.values()), list(files.classes)), upright=True)


def write_yolo(index: Index, root: Path, split: str) -> None:
    """Writes `root/labels/<split>/*.txt` and (adding to one that is there) `root/data.yaml`.

    Images are not copied: they belong in `root/images/<split>`. YOLO has no flags: region rows (CROWD,
    IGNORE_REGION, AVOID) and INVALID boxes are left out, DIFFICULT ones are written as ordinary boxes.

    Raises `UserError` for an image whose name leads out of that folder (labels are found by its path), and for two
    that differ in their endings alone, which would share a file of labels, before anything is written, and for
    boxes in an image of unknown size.
    """
    seen: dict[PurePosixPath, str] = {}
    for row in range(len(index)):
        name = PurePosixPath(index.names[row].replace("\\", "/"))
        if (other := seen.setdefault(name.with_suffix(""), index.names[row])) != index.names[row]:
            raise UserError(
                f"images {other!r} and {index.names[row]!r}: YOLO has one file of labels for both, which has their "
                "name without its ending; rename one"
            )
        if name.is_absolute() or ".." in name.parts or not name.name or "\0" in str(name):
            raise UserError(
                f"image {index.names[row]!r}: its path leads out of the folder of images, where YOLO's labels are "
                f"looked for by the same path; move the image below {index.root}"
            )
    _write_data_yaml(index, root / "data.yaml", split)
    plain = (index.flags & (REGION_FLAGS | Flag.INVALID)) == 0
    for row in range(len(index)):
        height, width = (int(v) for v in index.sizes[row])
        rows = index.rows(row)
        if plain[rows].any() and not (height and width):
            raise UserError(f"{index.path(row)}: size unknown, so its boxes cannot be written relative to it")
        boxes = index.boxes[rows][plain[rows]].astype(np.float64)
        boxes /= [width or 1, height or 1] * 2
        middle, side = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        numbers = index.category_ids[index.labels[rows][plain[rows]]].tolist()
        lines = [
            " ".join([str(number), *(repr(v) for v in values)])
            for number, values in zip(numbers, np.hstack([middle, side]).tolist(), strict=True)
        ]
        file = (root / "labels" / split / PurePosixPath(index.names[row])).with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{line}\n" for line in lines))


def _write_data_yaml(index: Index, file: Path, split: str) -> None:
    names = dict(zip(index.category_ids.tolist(), index.classes, strict=True))
    content: dict[str, Any] = {"path": ".", "names": names}
    if file.exists():
        content = load_data_yaml(file)
        if content.get("names") != names:
            raise UserError(f"{file}: is there with other class names; write to another folder")
    content[split] = f"images/{split}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


# ------------------------------------------------------------------------------------------- label files


def _label_rows(
    file: Path, split: YoloSplit, problems: list[str]
) -> list[tuple[str, int, tuple[float, float, float, float]]]:
    """(place, class id, xyxy relative to the image) of every line."""
    rows = []
    try:
        lines = read_lines(file)
    except AnnotationError as error:
        problems.append(str(error))
        return []
    gaps = list(split.classes) != list(range(len(split.classes)))
    ids = ", ".join(map(str, split.classes)) if gaps else f"0..{len(split.classes) - 1}"
    for number, line in enumerate(lines, start=1):
        words, place = line.split(), f"{file}:{number}"
        if not words:
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            problems.append(f"{place}: {line!r}, expected numbers: class cx cy w h")
            continue
        box = _enclosing_box(values[1:], split.keypoint_numbers)
        if box is None:
            problems.append(
                f"{place}: {len(values)} numbers, expected 5 (class cx cy w h) or a class and 3 or more points"
            )
        elif values[0] not in split.classes:
            problems.append(f"{place}: class {words[0]} is not in `names`; its ids are {ids}")
        # a keypoint's visibility may be 2
        elif not all(-OVERSHOOT <= v <= 1 + OVERSHOOT for v in values[1 : 5 if split.keypoint_numbers else None]):
            problems.append(
                f"{place}: {' '.join(words[1:])} reaches outside 0..1; "
                "divide x and w by the image's width, y and h by its height"
            )
        else:
            rows.append((place, int(values[0]), box))
    return rows


def _enclosing_box(values: list[float], keypoint_numbers: int) -> tuple[float, float, float, float] | None:
    if len(values) == 4 or (keypoint_numbers and len(values) == 4 + keypoint_numbers):
        cx, cy, w, h = values[:4]
        return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    if len(values) < 6 or len(values) % 2:
        return None
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def _key(files: SplitFiles) -> str:
    """The key of the split in `data.yaml`."""
    return files.image_set[0] if files.image_set else files.split


def _depends(files: SplitFiles) -> list[Path | str]:
    found = list_files(files.annotations[0], _key(files))
    beside = sorted({os.path.dirname(orphan) for orphan in found.orphans})  # noqa: PTH120
    return [*files.annotations, *found.lists, *filter(None, found.labels), *found.images, *beside]


def _write(index: Index, root: Path, split: str) -> SplitFiles:
    write_yolo(index, root, split)
    return SplitFiles((root / "data.yaml",), split=split)


FORMAT = Format(
    read=lambda files: read_yolo(files.annotations[0], _key(files)),
    keys={"annotations": ONE, "image_set": OPTIONAL},
    write=_write,
    tells_sizes=False,
    depends=_depends,
    find=find_yolo,
    marks=("names",),
)
