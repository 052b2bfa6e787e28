"""Pictures whose names annotations spell otherwise than the disk: in capitals, in how accents are written (zips and
disks that went through macOS), or without the ending.

Looked for only where a name is missing: that costs a listing of its folder.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from crossdet.data.annotation_files import PICTURE_SUFFIXES, is_picture

Key = TypeVar("Key", bound=Hashable)

FEW = 1000
"""So many names in one folder are asked for one by one; for more the folder is listed, which takes a fifth of the
time, and on a slow disk less. (It may hold a million others.)"""


def plain(text: str) -> str:
    """A name without its capitals, its accents composed: what looks alike is equal."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def named_as_files(names: Sequence[str], root: Path) -> tuple[list[str], dict[int, str]]:
    """Names of pictures below `root` as their files are called, and row -> the name of before, where another."""
    at = os.path.abspath(root)  # noqa: PTH100
    missing = _missing(names, at) if os.path.isdir(at) else []  # noqa: PTH112
    if not missing:
        return list(names), {}
    rows = {*missing}
    taken = [os.path.join(at, name) for row, name in enumerate(names) if row not in rows]  # noqa: PTH118
    found = spelt_otherwise({row: [os.path.join(at, names[row])] for row in missing}, taken)  # noqa: PTH118
    real = {row: file if names[row].startswith("/") else file[len(at) + 1 :] for row, file in found.items()}
    return [real.get(row, name) for row, name in enumerate(names)], {row: names[row] for row in real}


def spelt_otherwise(missing: Mapping[Key, Sequence[str]], taken: Collection[str]) -> dict[Key, str]:
    """Key -> the one file that may be meant by its absolute paths, at none of which there is a file.

    None where several may be meant. Nor is it one of `taken`, or one that two keys mean: it has annotations of its
    own already, and the objects of either would be background of the other.
    """
    if not missing:
        return {}
    folders = _Folders()
    found = {}
    for key, paths in missing.items():
        files = {os.path.normpath(file): file for path in paths if (file := folders.picture(path)) is not None}
        if len(files) == 1:
            found[key] = next(iter(files.values()))
    others = {os.path.normpath(path) for path in taken}
    times = Counter(map(os.path.normpath, found.values()))
    wanted = {key: os.path.normpath(file) for key, file in found.items()}
    return {key: found[key] for key, file in wanted.items() if times[file] == 1 and file not in others}


def _missing(names: Sequence[str], root: str) -> list[int]:
    """Rows of the names that are no files, in their order."""
    if len(names) > FEW and not any("/" in name for name in names) and {*_listed(root)}.issuperset(names):
        return []  # what follows takes as long again
    folders: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        folders.setdefault(name[: name.rfind("/") + 1], []).append(row)
    missing: list[int] = []
    for folder, rows in folders.items():
        at = os.path.join(root, folder)  # noqa: PTH118
        if len(rows) > FEW:
            there, begin = {*_listed(at)}, len(folder)
            missing += [row for row in rows if names[row][begin:] not in there]
        else:
            missing += [row for row in rows if not os.path.exists(os.path.join(root, names[row]))]  # noqa: PTH110, PTH118
    return sorted(missing)


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except (OSError, ValueError):
        return []


class _Folders:
    """What lies in folders, each listed once, by names without capitals."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, list[str]]] = {}
        self._stems: dict[str, dict[str, list[str]]] = {}
        self._folders: dict[str, str | None] = {}

    def picture(self, path: str) -> str | None:
        """The one picture that a path may mean; one without the ending of a picture is looked for among these."""
        folder, _, name = path.rpartition("/")
        there = self._folder(folder)
        if there is None:
            return None
        self._list(there)
        ends = name.lower().endswith(PICTURE_SUFFIXES)
        files = (self._entries if ends else self._stems)[there].get(plain(name), [])
        return f"{there}/{files[0]}" if len(files) == 1 else None

    def _folder(self, path: str) -> str | None:
        if path not in self._folders:
            self._folders[path] = path if not path or os.path.isdir(path) else self._alike(path)  # noqa: PTH112
        return self._folders[path]

    def _alike(self, path: str) -> str | None:
        above, _, name = path.rpartition("/")
        there = self._folder(above)
        if there is None:
            return None
        self._list(there)
        alike = [f"{there}/{one}" for one in self._entries[there].get(plain(name), [])]
        found = [one for one in alike if os.path.isdir(one)]  # noqa: PTH112
        return found[0] if len(found) == 1 else None

    def _list(self, folder: str) -> None:
        if folder in self._entries:
            return
        entries: dict[str, list[str]] = {}
        stems: dict[str, list[str]] = {}
        for name in _listed(folder or "/"):
            entries.setdefault(plain(name), []).append(name)
            if is_picture(name):
                stems.setdefault(plain(os.path.splitext(name)[0]), []).append(name)  # noqa: PTH122
        self._entries[folder], self._stems[folder] = entries, stems
