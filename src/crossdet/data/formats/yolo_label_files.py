"""Which label file belongs to which picture of a YOLO dataset, and which belongs to none."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from crossdet.data.annotation_files import OF_MACOS, is_number, is_picture
from crossdet.data.spellings import plain
from crossdet.labels.patterns import composed

HEAD = 4096
"""Bytes of a text that are looked at: whether its first line is a label's."""


@dataclass(frozen=True)
class Labels:
    """files: the label file of each picture, None where there is none. orphans: texts beside them that are of no
    picture on the disk, sorted; not looked into (`is_label_file`). otherwise: of files in other capitals than their
    picture, for people."""

    files: list[str | None]
    orphans: list[str]
    otherwise: list[str]


def label_candidates(image: str) -> list[str]:
    text = os.path.splitext(image.replace(os.sep, "/"))[0] + ".txt"  # noqa: PTH122
    head, found, tail = text.rpartition("/images/")
    return [f"{head}/labels/{tail}", text] if found else [text]


def label_files(images: Sequence[str]) -> list[str | None]:
    """Of each picture, None where there is none."""
    return look_up(images).files


def look_up(images: Sequence[str]) -> Labels:
    """Finds the label files of pictures without reading them."""
    folders = _Folders()
    files = [next(filter(None, map(folders.found, label_candidates(image))), None) for image in images]
    left = folders.without(files)
    otherwise = _in_other_capitals(images, files, left)
    for row, file in otherwise.items():
        files[row] = file
        left[os.path.dirname(file)].discard(os.path.basename(file))  # noqa: PTH119, PTH120
    told = [f"the labels of {images[row]} are {file}" for row, file in otherwise.items()]
    return Labels(files, sorted(_orphans(left)), told)


class _Folders:
    """The texts in folders, each listed once."""

    def __init__(self) -> None:
        self._listed: dict[str, dict[str, str]] = {}

    def found(self, file: str) -> str | None:
        """The file as it is written; its suffix may be `.TXT`, and its accents those of another file system."""
        folder, _, name = file.rpartition("/")
        if folder not in self._listed:
            try:
                names = sorted(os.listdir(folder or "/"), key=lambda name: name.endswith(".txt"))  # noqa: PTH208
            except (OSError, ValueError):
                names = []
            # where both spellings are there the usual one counts
            own = {f"{name[:-4]}.txt": name for name in names if name[-4:].lower() == ".txt"}
            self._listed[folder] = {composed(name): file for name, file in own.items()} | own
        there = self._listed[folder].get(name) or self._listed[folder].get(composed(name))
        return None if there is None else f"{folder}/{there}"

    def without(self, files: Iterable[str | None]) -> dict[str, set[str]]:
        """Folder -> names of its texts that are none of some files; without folders that have no other."""
        used = {file for file in files if file is not None}
        if len(used) == sum(len(set(names.values())) for names in self._listed.values()):
            return {}
        every = {
            folder: {name for name in names.values() if f"{folder}/{name}" not in used}
            for folder, names in self._listed.items()
        }
        return {folder: names for folder, names in every.items() if names}


def _in_other_capitals(
    images: Sequence[str], files: Sequence[str | None], left: dict[str, set[str]]
) -> dict[int, str]:
    """Row of a picture without a label file -> the only one of those that are left that differs in capitals, where
    no other picture may mean it: on Windows and macOS it is the picture's."""
    if not left:
        return {}
    alike: dict[str, list[str]] = {}
    for folder, names in left.items():
        for name in names:
            alike.setdefault(f"{folder}/{plain(name)}", []).append(f"{folder}/{name}")
    found: dict[int, str] = {}
    for row in (row for row, file in enumerate(files) if file is None):
        for folder, _, name in (candidate.rpartition("/") for candidate in label_candidates(images[row])):
            mine = alike.get(f"{folder}/{plain(name)}", [])
            if len(mine) == 1:
                found[row] = mine[0]
            if mine:
                break
    times = Counter(found.values())
    # a picture on the disk that has exactly the name of a label file may be of another split
    folders = {file.rpartition("/")[0] for file in times}
    own = {
        f"{folder}/{composed(stem)}.txt"
        for folder in folders
        for at in _picture_folders(folder)
        for stem in _pictures_in(at)
    }
    return {
        row: file for row, file in found.items() if times[file] == 1 and composed(f"{file[:-4]}.txt") not in own
    }


def _orphans(left: dict[str, set[str]]) -> Iterator[str]:
    """Of texts that are no label file of this split, those that are of no other either: whose picture is nowhere.

    A text in other capitals than its picture is of it where neither has a double."""
    for folder, names in left.items():
        stems = [name for at in _picture_folders(folder) for name in _pictures_in(at)]
        there, alike = {composed(stem) for stem in stems}, Counter(map(plain, stems))
        own = Counter(plain(name[:-4]) for name in names)
        for name in (name for name in names if not name.startswith(OF_MACOS)):
            key = plain(name[:-4])
            if composed(name[:-4]) not in there and (alike[key], own[key]) != (1, 1):
                yield f"{folder}/{name}"


def _picture_folders(folder: str) -> Iterator[str]:
    """Folders whose pictures may have their label files in this one: see `label_candidates`."""
    yield folder
    whole, word = f"{folder}/", "/labels/"
    at = whole.find(word)
    while at >= 0:
        yield f"{whole[:at]}/images/{whole[at + len(word) :]}"
        at = whole.find(word, at + 1)


def _pictures_in(folder: str) -> Iterator[str]:
    """Names without their endings."""
    with suppress(OSError, ValueError):
        yield from (os.path.splitext(name)[0] for name in os.listdir(folder or "/") if is_picture(name))  # noqa: PTH122, PTH208


def is_label_file(file: str) -> bool:
    """Whether the first line of a text is a label: a class and four numbers or more."""
    try:
        if not Path(file).is_file():  # a named pipe would be waited for
            return False
        with Path(file).open("rb") as opened:
            head = opened.read(HEAD).decode(errors="replace")
    except OSError:
        return False
    words = head.strip().split("\n", 1)[0].split()
    return len(words) >= 5 and all(map(is_number, words)) and float(words[0]).is_integer()
