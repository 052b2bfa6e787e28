"""Where the pictures and labels of a YOLO dataset lie, by its `data.yaml`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from crossdet.data.annotation_files import OF_MACOS, PICTURE_SUFFIXES, is_there, raise_if_any, read_lines, read_text
from crossdet.data.formats.tree import WORDS, walk
from crossdet.data.formats.yolo_label_files import label_candidates, look_up
from crossdet.data.nearby import instead
from crossdet.data.spellings import spelt_otherwise
from crossdet.labels.patterns import class_name
from crossdet.yaml_text import check_aliases

SCALARS = (str, int, float, bool)
MAX_DIGITS = 9
"""Of a class id."""
_AS_WRITTEN = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp")}


@dataclass(frozen=True)
class YoloSplit:
    """The files of one split: `labels[i]` belongs to `images[i]`, None where there is none.

    Both are texts: there may be 100,000, and making, comparing and splitting as many `Path`s takes seconds.
    orphans: texts beside the labels that no picture has. otherwise: which names another spelling of a file was
    taken for, for people.
    """

    classes: dict[int, str]
    images: list[str]
    labels: list[str | None]
    lists: list[Path]
    keypoint_numbers: int
    orphans: list[str]
    otherwise: list[str]


def list_files(data_yaml: Path, split: str) -> YoloSplit:
    """Finds the images and label files of a split without reading them."""
    content = load_data_yaml(data_yaml)
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
    lists: dict[Path, list[str]] = {}
    for entry in given if isinstance(given, list) else [given]:
        if not isinstance(entry, SCALARS):
            problems.append(f"`{split}`: {_show(entry)}, expected a folder or a .txt list of images")
            continue
        images += _images_of(str(entry), data_yaml, content, f"`{split}`", lists, problems)
    raise_if_any(data_yaml, problems)
    images = list(dict.fromkeys(images))
    found = look_up(images)
    labels = found.files
    of: dict[str, str] = {}
    for image, label in zip(images, labels, strict=True):
        if label is not None and of.setdefault(label, image) != image:
            problems.append(
                f"`{split}`: {label} is the label file of {of[label]} and of {image}; rename one of the pictures, "
                "with a label file of its own"
            )
    raise_if_any(data_yaml, problems)
    if images and not any(labels):
        looked = " or ".join(label_candidates(images[0]))
        raise_if_any(data_yaml, [f"`{split}`: none of its {len(images)} images has a label file, such as {looked}"])
    shape = content.get("kpt_shape")
    keypoints = math.prod(shape) if isinstance(shape, list) and all(isinstance(v, int) for v in shape) else 0
    otherwise = [*chain.from_iterable(lists.values()), *found.otherwise]
    return YoloSplit(classes, images, labels, [*lists], keypoints, found.orphans, otherwise)


# ------------------------------------------------------------------------------------------- data.yaml


def load_data_yaml(data_yaml: Path) -> dict[str, Any]:
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
        check_aliases(node)
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
        elif (read := class_name(str(name))) in classes.values():
            problems.append(f"names[{key}]: {read!r} is the name of another class too; rename one of them")
        else:
            classes[int(key)] = read
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
    entry: str,
    data_yaml: Path,
    content: dict[str, Any],
    key: str,
    lists: dict[Path, list[str]],
    problems: list[str],
) -> list[str]:
    """The pictures of a folder or a list. Lists are added to `lists`, each with what `YoloSplit.otherwise` says."""
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
            if os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES and not name.startswith(OF_MACOS)  # noqa: PTH122
        ]
        if not found:
            problems.append(f"{key}: the folder {source} has no image ({', '.join(PICTURE_SUFFIXES)})")
        return sorted(found, key=lambda file: file.split(os.sep))  # noqa: PTH206 - folder by folder
    return _listed_images(source, base, problems, lists.setdefault(source, []))


def _listed_images(source: Path, base: Path, problems: list[str], otherwise: list[str]) -> list[str]:
    """The pictures that the lines of a list name; names that other spellings were taken for go to `otherwise`."""
    names = [(number, line.strip()) for number, line in enumerate(read_lines(source), start=1) if line.strip()]
    found = [_of_line(name, base, source.parent) for _, name in names]
    missing = [row for row, (_, there) in enumerate(found) if not there]
    places = {row: [*_places(names[row][1], base, source.parent)] for row in missing}
    for row, file in spelt_otherwise(places, [file for file, there in found if there]).items():
        found[row] = os.path.normpath(file), True
        otherwise.append(f"{source}:{names[row][0]}: {names[row][1]} is {found[row][0]}")
    if found and not any(there for _, there in found):
        (number, name), (image, _) = names[0], found[0]
        others = f", nor does any other of its {len(names):,} pictures" if len(names) > 1 else ""
        problems.append(f"{source}:{number}: {image} does not exist{others}{instead(name, source.parent)}")
    return [image for image, _ in found]


def _of_line(name: str, base: Path, beside: Path) -> tuple[str, bool]:
    """The picture of a line, and whether it is there. beside: the folder of the list."""
    for place in _places(name, base, beside):
        if is_there(Path(place)):
            return os.path.normpath(place), True
    return os.path.normpath(beside / name.replace("\\", "/")), False


def _places(name: str, base: Path, beside: Path) -> Iterator[str]:
    """Where the picture of a line may be."""
    plain = name.replace("\\", "/")  # of Windows
    spelt = [name, plain]
    if plain.startswith("data/") and plain.count("/") > 1:  # CVAT writes a folder that its exports do not have
        spelt.append(plain.removeprefix("data/"))
    for text in dict.fromkeys(spelt):
        for folder in (beside,) if text.startswith("./") else (base, beside):
            yield os.path.join(folder, text)  # noqa: PTH118


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
