"""YOLO datasets (Ultralytics `data.yaml`, one label text per image) to and from an `Index`.

Source: the Ultralytics detection format. A label line is `class cx cy w h`, all but the class divided by the
image's width or height; a longer line is a polygon `class x1 y1 x2 y2 ...`, read as its enclosing box, or with
`kpt_shape` a box with keypoints, which are passed over. The label file of `.../images/a/b.jpg` is
`.../labels/a/b.txt`, else `b.txt` beside the image.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from crossdet.data.annotation_files import header_sizes, raise_if_any
from crossdet.data.formats.format import ONE, OPTIONAL, Format, SplitFiles
from crossdet.data.formats.yolo_files import list_files, load_data_yaml
from crossdet.data.formats.yolo_finding import find_yolo
from crossdet.data.formats.yolo_label_files import is_label_file
from crossdet.data.formats.yolo_labels import PoseDoubt, label_rows
from crossdet.data.index import CANNOT_BE_READ, NO_LABELS, NO_PICTURE, OTHER_SPELLING, Index, IndexBuilder
from crossdet.errors import UserError
from crossdet.types import REGION_FLAGS, Flag


def read_yolo(data_yaml: Path, split: str) -> Index:
    """Reads the split that `data_yaml` names `split` ("train", "val", ...); images are sorted per folder."""
    files = list_files(data_yaml, split)
    problems: list[str] = []
    position = {number: i for i, number in enumerate(files.classes)}
    folders = {os.path.dirname(image) for image in files.images}  # noqa: PTH120
    root = Path(os.path.commonpath(folders)) if folders else data_yaml.parent
    builder, doubt = IndexBuilder(root), PoseDoubt()
    for place in files.otherwise:
        builder.skip(OTHER_SPELLING, place)
    for orphan in filter(is_label_file, files.orphans):
        builder.skip(NO_PICTURE, orphan)
    sizes = header_sizes([Path(image) for image in files.images], upright=True)
    for image, label, size in zip(files.images, files.labels, sizes, strict=True):
        builder.image(Path(os.path.relpath(image, root)).as_posix(), *(size or (0, 0)))
        rows = label_rows(Path(label), files, doubt, problems) if label is not None else []
        if size is None:
            builder.skip(CANNOT_BE_READ, str(image))
            continue
        if label is None:
            builder.skip(NO_LABELS, str(image))
        height, width = size
        for place, number, (x1, y1, x2, y2) in rows:
            builder.box((x1 * width, y1 * height, x2 * width, y2 * height), position[number], place=place)
    raise_if_any(data_yaml, problems)
    if doubt.reason is not None:
        builder.skipped[doubt.reason] = doubt.places
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
