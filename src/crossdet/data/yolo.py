"""YOLO datasets (Ultralytics `data.yaml`, one label text per image) to and from an `Index`.

Source: the Ultralytics detection format. A label line is `class cx cy w h`, all but the class divided by the
image's width or height; a longer line is a polygon `class x1 y1 x2 y2 ...`, read as its enclosing box. The
label file of `.../images/a/b.jpg` is `.../labels/a/b.txt`, else `b.txt` beside the image.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from crossdet.data.index import Index, IndexBuilder, header_sizes, raise_if_any
from crossdet.errors import UserError
from crossdet.types import REGION_FLAGS, Flag

SUFFIXES = {".bmp", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp"}
OVERSHOOT = 0.01
"""How far outside 0..1 a coordinate may lie (rounding by annotation tools); the box is clipped then."""


@dataclass(frozen=True)
class YoloSplit:
    """The files of one split: `labels[i]` belongs to `images[i]`, None where there is none."""

    classes: dict[int, str]
    images: list[Path]
    labels: list[Path | None]
    lists: list[Path]
    keypoint_numbers: int


def read_yolo(data_yaml: Path, split: str) -> Index:
    """Reads the split that `data_yaml` names `split` ("train", "val", ...); images are sorted per folder."""
    files = list_files(data_yaml, split)
    problems: list[str] = []
    position = {number: i for i, number in enumerate(files.classes)}
    root = _common_folder(files.images, data_yaml.parent)
    builder = IndexBuilder(root)
    sizes = header_sizes(files.images)
    for image, label, size in zip(files.images, files.labels, sizes, strict=True):
        builder.image(Path(os.path.relpath(image, root)).as_posix(), *(size or (0, 0)))
        rows = _label_rows(label, files, problems) if label is not None else []
        if size is None:
            builder.skip("image cannot be read", str(image))
            continue
        height, width = size
        for place, number, (x1, y1, x2, y2) in rows:
            xyxy = (x1 * width, y1 * height, x2 * width, y2 * height)
            builder.box(xyxy, position[number], place=place)
    raise_if_any(data_yaml, problems)
    return builder.build(list(files.classes.values()), list(files.classes))


def list_files(data_yaml: Path, split: str) -> YoloSplit:
    """Finds the images and label files of a split without reading them."""
    content = _load(data_yaml)
    problems: list[str] = []
    classes = _class_names(content, problems)
    if split not in content or content[split] is None:
        has = ", ".join(k for k in ("train", "val", "test") if content.get(k)) or "none of train, val, test"
        problems.append(
            f"missing key `{split}`; expected a folder of images, a list of folders or a .txt list of images "
            f"(the file has {has})"
        )
    raise_if_any(data_yaml, problems)
    given = content[split]
    images: list[Path] = []
    lists: list[Path] = []
    for entry in given if isinstance(given, list) else [given]:
        images += _images_of(str(entry), data_yaml, content, f"`{split}`", lists, problems)
    raise_if_any(data_yaml, problems)
    images = list(dict.fromkeys(images))
    labels = _label_files(images)
    if images and not any(labels):
        looked = " or ".join(str(c) for c in _label_candidates(images[0]))
        raise_if_any(
            data_yaml, [f"`{split}`: none of its {len(images)} images has a label file, such as {looked}"]
        )
    shape = content.get("kpt_shape")
    keypoints = math.prod(shape) if isinstance(shape, list) and all(isinstance(v, int) for v in shape) else 0
    return YoloSplit(classes, images, labels, lists, keypoints)


def write_yolo(index: Index, root: Path, split: str) -> None:
    """Writes `root/labels/<split>/*.txt` and (adding to one that is there) `root/data.yaml`.

    Images are not copied: they belong in `root/images/<split>`. YOLO has no flags: region rows (CROWD,
    IGNORE_REGION, AVOID) and INVALID boxes are left out, DIFFICULT ones are written as ordinary boxes.
    """
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
        content = _load(file)
        if content.get("names") != names:
            raise UserError(f"{file}: is there with other class names; write to another folder")
    content[split] = f"images/{split}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


# ------------------------------------------------------------------------------------------- data.yaml


def _load(data_yaml: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(data_yaml.read_text(encoding="utf-8-sig"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1} column {mark.column + 1}: " if mark else ""
        raise_if_any(data_yaml, [f"{place}not valid YAML ({error.problem})"])
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise_if_any(data_yaml, [f"not valid YAML ({error})"])
    if not isinstance(content, dict):
        raise_if_any(data_yaml, ["expected the keys `train`, `val` and `names`"])
    return dict(content)


def _class_names(content: dict[str, Any], problems: list[str]) -> dict[int, str]:
    """Class id -> name, in the order of the ids."""
    names = content.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        given = "missing key" if "names" not in content else repr(names)
        problems.append(f"names: {given}, expected a list of class names or a map from id to name")
        return {}
    classes: dict[int, str] = {}
    for key, name in names.items():
        if not str(key).isdecimal():
            problems.append(f"names: {key!r}, expected a class id 0, 1, ...")
        elif str(name) in classes.values():
            problems.append(
                f"names[{key}]: {str(name)!r} is the name of another class too; rename one of them"
            )
        else:
            classes[int(key)] = str(name)
    count = content.get("nc")
    if count is not None and count != len(names):
        problems.append(f"nc: {count!r}, but `names` has {len(names)} classes; correct one of the two")
    return dict(sorted(classes.items()))


def _images_of(
    entry: str, data_yaml: Path, content: dict[str, Any], key: str, lists: list[Path], problems: list[str]
) -> list[Path]:
    base = data_yaml.parent / str(content.get("path") or ".")
    source = base / entry
    if not source.exists() and entry.startswith("../"):
        source = base / entry[3:]  # Roboflow writes `../train/images` for the folder beside data.yaml
    source = Path(os.path.normpath(source))
    if source.is_dir():
        found = [
            Path(parent) / name
            for parent, _, names in os.walk(source)
            for name in names
            if os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - a Path per file costs seconds
        ]
        if not found:
            problems.append(f"{key}: the folder {source} has no image ({', '.join(sorted(SUFFIXES))})")
        return sorted(found)
    if source.is_file():
        lists.append(source)
        images = []
        for line in source.read_text(encoding="utf-8-sig").splitlines():
            if name := line.strip():
                below = source.parent if name.startswith("./") or not (base / name).exists() else base
                images.append(Path(os.path.normpath(below / name)))
        return images
    problems.append(f"{key}: {entry!r} is no folder and no file (looked for {source}); correct it or `path`")
    return []


def _label_candidates(image: Path) -> list[Path]:
    text = image.with_suffix(".txt").as_posix()
    head, found, tail = text.rpartition("/images/")
    return [Path(f"{head}/labels/{tail}"), Path(text)] if found else [Path(text)]


def _label_files(images: Sequence[Path]) -> list[Path | None]:
    listed: dict[Path, set[str]] = {}

    def exists(file: Path) -> bool:
        if file.parent not in listed:
            listed[file.parent] = set(os.listdir(file.parent)) if file.parent.is_dir() else set()  # noqa: PTH208
        return file.name in listed[file.parent]

    return [next((c for c in _label_candidates(image) if exists(c)), None) for image in images]


def _common_folder(images: Sequence[Path], default: Path) -> Path:
    parents = {image.parent for image in images}
    return Path(os.path.commonpath(parents)) if parents else default


# ------------------------------------------------------------------------------------------- label files


def _label_rows(
    file: Path, split: YoloSplit, problems: list[str]
) -> list[tuple[str, int, tuple[float, float, float, float]]]:
    """(place, class id, xyxy relative to the image) of every line."""
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
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
                f"{place}: {len(values)} numbers, expected 5 (class cx cy w h) "
                "or a class and 3 or more points"
            )
        elif values[0] not in split.classes:
            problems.append(f"{place}: class {words[0]} is not in `names`; its ids are {_ids(split.classes)}")
        elif not all(-OVERSHOOT <= v <= 1 + OVERSHOOT for v in _relative(values, split.keypoint_numbers)):
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


def _relative(values: list[float], keypoint_numbers: int) -> list[float]:
    """The numbers of a label line that must lie in 0..1 (a keypoint's visibility may be 2)."""
    return values[1:5] if keypoint_numbers else values[1:]


def _ids(classes: dict[int, str]) -> str:
    numbers = list(classes)
    if numbers == list(range(len(numbers))):
        return f"0..{len(numbers) - 1}"
    return ", ".join(str(number) for number in numbers)
