"""YOLO datasets (Ultralytics `data.yaml`, one label text per image) to and from an `Index`.

Source: the Ultralytics detection format. A label line is `class cx cy w h`, all but the class divided by the
image's width or height; a longer line is a polygon `class x1 y1 x2 y2 ...`, read as its enclosing box. The
label file of `.../images/a/b.jpg` is `.../labels/a/b.txt`, else `b.txt` beside the image.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from crossdet.data.annotation_files import (
    PICTURE_SUFFIXES,
    header_sizes,
    is_there,
    raise_if_any,
    read_lines,
    read_text,
)
from crossdet.data.formats.format import ONE, OPTIONAL, Format, SplitFiles
from crossdet.data.formats.tree import WORDS, Found, Refused, Tree, walk, without_suffix
from crossdet.data.index import CANNOT_BE_READ, NO_LABELS, Index, IndexBuilder
from crossdet.errors import AnnotationError, UserError
from crossdet.labels.patterns import composed
from crossdet.types import REGION_FLAGS, Flag

SCALARS = (str, int, float, bool)
MAX_DIGITS = 9  # of a class id
SAMPLED_LABELS = 200
"""Label files that `find` reads where nobody names the classes."""
DATA_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
"""What a `data.yaml` is called as a rule."""
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels")
"""Where tools without a `data.yaml` list class names, one per line: LabelImg and Label Studio, CVAT, Roboflow."""
_AS_WRITTEN = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp")}
OVERSHOOT = 0.01
"""How far outside 0..1 a coordinate may lie (rounding by annotation tools); the box is clipped then."""


@dataclass(frozen=True)
class YoloSplit:
    """The files of one split: `labels[i]` belongs to `images[i]`, None where there is none.

    Both are texts: there may be 100,000, and making, comparing and splitting as many `Path`s takes seconds.
    """

    classes: dict[int, str]
    images: list[str]
    labels: list[str | None]
    lists: list[Path]
    keypoint_numbers: int


def read_yolo(data_yaml: Path, split: str) -> Index:
    """Reads the split that `data_yaml` names `split` ("train", "val", ...); images are sorted per folder."""
    files = list_files(data_yaml, split)
    problems: list[str] = []
    position = {number: i for i, number in enumerate(files.classes)}
    folders = {os.path.dirname(image) for image in files.images}  # noqa: PTH120
    root = Path(os.path.commonpath(folders)) if folders else data_yaml.parent
    builder = IndexBuilder(root)
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
    images: list[str] = []
    lists: list[Path] = []
    for entry in given if isinstance(given, list) else [given]:
        if not isinstance(entry, SCALARS):
            problems.append(f"`{split}`: {_show(entry)}, expected a folder or a .txt list of images")
            continue
        images += _images_of(str(entry), data_yaml, content, f"`{split}`", lists, problems)
    raise_if_any(data_yaml, problems)
    images = list(dict.fromkeys(images))
    labels = _label_files(images)
    of: dict[str, str] = {}
    for image, label in zip(images, labels, strict=True):
        if label is not None and of.setdefault(label, image) != image:
            problems.append(
                f"`{split}`: {label} is the label file of {of[label]} and of {image}; rename one of the pictures, "
                "with a label file of its own"
            )
    raise_if_any(data_yaml, problems)
    if images and not any(labels):
        looked = " or ".join(_label_candidates(images[0]))
        raise_if_any(data_yaml, [f"`{split}`: none of its {len(images)} images has a label file, such as {looked}"])
    shape = content.get("kpt_shape")
    keypoints = math.prod(shape) if isinstance(shape, list) and all(isinstance(v, int) for v in shape) else 0
    return YoloSplit(classes, images, labels, lists, keypoints)


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
        content = _load(file)
        if content.get("names") != names:
            raise UserError(f"{file}: is there with other class names; write to another folder")
    content[split] = f"images/{split}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


# ------------------------------------------------------------------------------------------- data.yaml


def _load(data_yaml: Path) -> dict[str, Any]:
    content: Any = None
    if data_yaml.suffix == ".json":
        raise_if_any(data_yaml, ["it looks like a file of COCO: `format: coco`, and the folder of its `images`"])
    text = read_text(data_yaml)
    try:
        content = _parsed(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1} column {mark.column + 1}: " if mark else ""
        raise_if_any(data_yaml, [f"{place}not valid YAML ({error.problem})"])
    except yaml.YAMLError as error:
        raise_if_any(data_yaml, [f"not valid YAML ({error})"])
    except Exception as error:  # PyYAML's constructors raise almost anything (2024-13-45, `!!bool x`, `!!int ''`)
        raise_if_any(data_yaml, [f"holds a value that cannot be read ({type(error).__name__}: {error})"])
    if not isinstance(content, dict):
        raise_if_any(data_yaml, ["expected the keys `train`, `val` and `names`"])
    return dict(content)


def _parsed(text: str) -> Any:
    """Plain YAML, but class names are texts as they are written: `yes` is no truth and `08` no number."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        names = [value for key, value in _children(node) if key is not None and key.value == "names"]
        for _, child in chain.from_iterable(map(_children, names)):
            if isinstance(child, yaml.ScalarNode) and child.tag in _AS_WRITTEN:
                child.tag = "tag:yaml.org,2002:str"
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _children(node: yaml.Node) -> list[tuple[yaml.Node | None, yaml.Node]]:
    """(key, value) of a mapping, (None, entry) of a list."""
    if isinstance(node, yaml.MappingNode):
        return list(node.value)
    return [(None, child) for child in node.value] if isinstance(node, yaml.SequenceNode) else []


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
        if not str(key).isdecimal() or len(str(key)) > MAX_DIGITS:
            problems.append(f"names: {_show(key)}, expected a class id 0, 1, ...")
        elif not isinstance(name, SCALARS):
            problems.append(f"names[{key}]: {_show(name)}, expected a class name")
        elif int(key) in classes:
            problems.append(f"names: class id {int(key)} is listed twice")
        elif composed(str(name)) in classes.values():
            problems.append(f"names[{key}]: {str(name)!r} is the name of another class too; rename one of them")
        else:
            classes[int(key)] = composed(str(name))
    count = content.get("nc")
    if count is not None and count != len(names):
        problems.append(f"nc: {_show(count)}, but `names` has {len(names)} classes; correct one of the two")
    return dict(sorted(classes.items()))


def _show(value: Any) -> str:
    """The value for a message; a list or map only by its kind: with YAML's aliases it may be endless."""
    if isinstance(value, (list, dict)):
        return f"a {'list' if isinstance(value, list) else 'map'}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _images_of(
    entry: str, data_yaml: Path, content: dict[str, Any], key: str, lists: list[Path], problems: list[str]
) -> list[str]:
    base = _base(data_yaml, content, problems)
    if base is None:
        return []
    source = Path(os.path.normpath(base / entry))
    if entry.startswith("../"):  # Roboflow writes `../train/images` for the folder beside data.yaml
        mine = Path(os.path.normpath(base / entry[3:]))
        if is_there(source) and is_there(mine):  # the first is of another dataset, in whose folder this one lies?
            problems.append(f"{key}: {entry!r} is {source}, and {mine} is there, too; write the one that is meant")
            return []
        source = mine if is_there(mine) else source
    if not is_there(source):
        beside = _beside(data_yaml, content, entry)
        hint = f"did you mean {beside!r}, beside the file?" if beside else "correct it or `path`"
        problems.append(f"{key}: {entry!r} is no folder and no file (looked for {source}); {hint}")
        return []
    if source.is_dir():
        found = [
            f"{parent}{os.sep}{name}"
            for parent, _, names in walk(source)
            for name in names
            if os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES  # noqa: PTH122
        ]
        if not found:
            problems.append(f"{key}: the folder {source} has no image ({', '.join(PICTURE_SUFFIXES)})")
        return sorted(found, key=lambda file: file.split(os.sep))  # noqa: PTH206 - folder by folder
    lists.append(source)
    images = []
    for line in read_lines(source):
        if name := line.strip():
            if "\\" in name and not (is_there(base / name) or is_there(source.parent / name)):
                name = name.replace("\\", "/")  # of Windows
            below = source.parent if name.startswith("./") or not is_there(base / name) else base
            images.append(os.path.normpath(below / name))
    return images


def _base(data_yaml: Path, content: dict[str, Any], problems: list[str]) -> Path | None:
    """The folder that entries are relative to: `path`, and the file's own where that is of another machine."""
    path = content.get("path") or "."
    if not isinstance(path, SCALARS):
        problems.append(f"path: {_show(path)}, expected the folder that the others are relative to")
        return None
    base = data_yaml.parent / str(path)
    return base if is_there(base) else data_yaml.parent


def _beside(data_yaml: Path, content: dict[str, Any], entry: str) -> str | None:
    """The last parts of a path of another machine (`C:\\data\\train\\images`) that are there beside the file.

    Parts with which another split's path ends as well (`images` alone) are no answer: both would be the same.
    """
    others = [other for word in chain.from_iterable(WORDS.values()) for other in _entries(content.get(word))]
    taken = {tail for other in others if other != entry for tail in _tails(other)}
    return next((t for t in _tails(entry) if t not in taken and is_there(data_yaml.parent / t)), None)


def _entries(given: Any) -> list[str]:
    return [str(entry) for entry in (given if isinstance(given, list) else [given]) if isinstance(entry, SCALARS)]


def _tails(entry: str) -> list[str]:
    """`b/c` and `c` of `/a/../b/c`, after the whole of it."""
    parts = [part for part in entry.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return ["/".join(parts[at:]) for at in range(len(parts))]


def _label_candidates(image: str) -> list[str]:
    text = os.path.splitext(image.replace(os.sep, "/"))[0] + ".txt"  # noqa: PTH122
    head, found, tail = text.rpartition("/images/")
    return [f"{head}/labels/{tail}", text] if found else [text]


def _label_files(images: Sequence[str]) -> list[str | None]:
    listed: dict[str, dict[str, str]] = {}

    def found(file: str) -> str | None:
        """The file as it is written; its suffix may be `.TXT`, and its accents those of another file system."""
        folder, _, name = file.rpartition("/")
        if folder not in listed:
            try:
                names = sorted(os.listdir(folder or "/"), key=lambda name: name.endswith(".txt"))  # noqa: PTH208
            except (OSError, ValueError):
                names = []
            # where both spellings are there the usual one counts
            own = {f"{name[:-4]}.txt": name for name in names if name[-4:].lower() == ".txt"}
            listed[folder] = {composed(name): file for name, file in own.items()} | own
        there = listed[folder].get(name) or listed[folder].get(composed(name))
        return None if there is None else f"{folder}/{there}"

    return [next(filter(None, map(found, _label_candidates(image))), None) for image in images]


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
    return [*files.annotations, *found.lists, *filter(None, found.labels), *found.images]


def _write(index: Index, root: Path, split: str) -> SplitFiles:
    write_yolo(index, root, split)
    return SplitFiles((root / "data.yaml",), split=split)


def _find(tree: Tree) -> Iterator[Found | Refused]:
    known = set()
    for file in tree.files(".yaml", ".yml"):
        try:
            content = _load(file)
        except AnnotationError as error:
            if file.name in DATA_FILES:  # others are YAML of anything
                known.add(tree.home(file.parent))
                yield Refused.of(file, error)
            continue
        if "names" not in content:
            continue
        known.add(tree.home(file.parent))
        for split, words in WORDS.items():
            key = next((word for word in words if content.get(word)), None)
            if key is None:
                continue
            try:
                pictures = without_suffix(list_files(file, key).images)
            except AnnotationError as error:
                yield Refused.of(file, error)
                continue
            named = () if key == split != "test" else (key,)  # a config has no split `test`
            yield Found(tree.home(file.parent), split, SplitFiles((file,), image_set=named, split=split), pictures)
    for file in tree.files(*NAME_FILES):
        home = tree.home(file.parent)
        if file.name in NAME_FILES and home not in known:
            known.add(home)
            yield from _without_yaml(tree, home, file)
    yield from _without_names(tree, known)


def _without_names(tree: Tree, known: Collection[Path]) -> Iterator[Refused]:
    """Pictures with labels beside them, in the data set of no file that names classes."""
    homes: dict[Path, list[str]] = {}
    for folder, files in tree.folders.items():
        mine = _pictures_among(files, folder)
        if mine and not any(folder.is_relative_to(home) for home in known):
            homes.setdefault(tree.home(folder), []).extend(mine)
    for home, pictures in homes.items():
        numbers = _class_numbers(list(filter(None, _label_files(pictures)))[:SAMPLED_LABELS])
        if numbers:
            told = ", ".join([*map(str, numbers[:8]), *(["..."] if len(numbers) > 8 else [])])
            what = f"{len(pictures):,} pictures with labels of YOLO, whose classes are {told}, without their names"
            fix = f"write {home / 'data.yaml'} with the keys `train`, `val` and `names`"
            yield Refused(home, f"{what}; {fix}", without_suffix(pictures))


def _pictures_among(files: Collection[str], folder: Path) -> list[str]:
    return [str(folder / name) for name in sorted(files) if Path(name).suffix.lower() in PICTURE_SUFFIXES]


def _is_share(text: str) -> bool:
    """Of a picture's side, or not far from one."""
    try:
        return -1 <= float(text) <= 2
    except ValueError:
        return False


def _is_class(text: str) -> bool:
    return text.isdecimal() and len(text) <= MAX_DIGITS


def _class_numbers(files: Sequence[str]) -> list[int]:
    """Of label files; none where these say something else."""
    found: set[int] = set()
    for file in files:
        try:
            rows = [line.split() for line in read_lines(Path(file)) if line.strip()]
        except AnnotationError:
            return []
        if not all(len(row) >= 5 and _is_class(row[0]) and all(map(_is_share, row[1:])) for row in rows):
            return []
        found |= {int(row[0]) for row in rows}
    return sorted(found)


def _without_yaml(tree: Tree, home: Path, file: Path) -> Iterator[Refused]:
    """What to write for a data set that has a file of class names and no `data.yaml`."""
    folders: dict[str, list[Path]] = {}
    pictures: list[str] = []
    for folder, files in tree.folders.items():  # those below others come after them
        mine = _pictures_among(files, folder)
        if folder.is_relative_to(home) and any(_label_files(mine)):
            pictures += mine
            own = folders.setdefault(tree.split_of(folder) or "train", [])
            if not any(folder.is_relative_to(other) for other in own):
                own.append(folder)
    if not folders:
        return
    told, names = "class names of YOLO labels without a data.yaml", _lines_of(file)
    every = [folder for own in folders.values() for folder in own]
    nested = any(a != b and a.is_relative_to(b) for a in every for b in every)
    if names is None or nested:
        why = "its folders of splits lie in each other" if nested else "a line between its names is blank"
        told += f"; {why}, so write {home / 'data.yaml'} yourself: keys `train`, `val`, `names`"
    else:
        places = {s: [f.relative_to(home).as_posix() for f in own] for s, own in folders.items()}
        content = {s: own[0] if len(own) == 1 else own for s, own in places.items()} | {"names": names}
        said = yaml.safe_dump(content, default_flow_style=True, sort_keys=False, width=math.inf)
        told += f"; write {home / 'data.yaml'}: {said.strip()}"
    yield Refused(file, told, without_suffix(pictures))


def _lines_of(file: Path) -> list[str] | None:
    """Class names, one per line; None where they cannot be read, or which number a name has is open."""
    try:
        lines = [line.strip() for line in read_lines(file)]
    except AnnotationError:
        return None
    while lines and not lines[-1]:
        lines.pop()
    return lines if all(lines) else None


FORMAT = Format(
    read=lambda files: read_yolo(files.annotations[0], _key(files)),
    keys={"annotations": ONE, "image_set": OPTIONAL},
    write=_write,
    tells_sizes=False,
    depends=_depends,
    find=_find,
    marks=("names",),
)
