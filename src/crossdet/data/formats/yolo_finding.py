"""What `crossdet new` recognises as a YOLO dataset, and what is missing where it is none yet."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import yaml

from crossdet.data.annotation_files import PICTURE_SUFFIXES, read_lines
from crossdet.data.formats.format import SplitFiles
from crossdet.data.formats.tree import WORDS, Found, Refused, Tree, without_suffix
from crossdet.data.formats.yolo_files import MAX_DIGITS, list_files, load_data_yaml
from crossdet.data.formats.yolo_label_files import label_files
from crossdet.errors import AnnotationError

SAMPLED_LABELS = 200
"""Label files that `find` reads where nobody names the classes."""
DATA_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
"""What a `data.yaml` is called as a rule."""
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels")
"""Where tools without a `data.yaml` list class names, one per line: LabelImg and Label Studio, CVAT, Roboflow."""


def find_yolo(tree: Tree) -> Iterator[Found | Refused]:
    """See `Format.find`."""
    known = set()
    for file in tree.files(".yaml", ".yml"):
        try:
            content = load_data_yaml(file)
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
        numbers = _class_numbers(list(filter(None, label_files(pictures)))[:SAMPLED_LABELS])
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
        if folder.is_relative_to(home) and any(label_files(mine)):
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
