"""What lies below a folder, listed once; and what a format recognises in it (`Format.find`)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath

from crossdet.data.annotation_files import is_picture
from crossdet.data.formats.format import SplitFiles
from crossdet.data.spellings import plain
from crossdet.errors import UserError

WORDS = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Split -> what folders and files of it are called."""
_SPLIT = {word: split for split, words in WORDS.items() for word in words}
_OF_DATASET = re.compile(rf"(annotations|labels|images|imagesets|main|wider_face_split|{'|'.join(_SPLIT)})\d*")
"""Folders within a dataset."""
RUN = {"config.yaml", "steps.csv"}
"""Files of a training's directory, whose pictures and JSONs (such as the audit's) are no data set."""
SAMPLE = 20
"""So many pictures of a split are looked for."""


LOOKED_AT = 1000
"""Folders of one that may be anything, such as a home."""


@dataclass(frozen=True)
class Found:
    """A split that was recognised.

    home: folder of the dataset; its splits have the same. split: of `WORDS`, "" where no name says one. variant:
    tells several annotations in one home apart. pictures: paths without suffix.
    """

    home: Path
    split: str
    files: SplitFiles
    pictures: frozenset[str]
    variant: str = ""


@dataclass(frozen=True)
class Refused:
    """A file that looks like annotations and is none that can be used. pictures: paths without suffix, of which it
    would be, where they are known: if others annotate them nothing is missing."""

    path: Path
    reason: str
    pictures: frozenset[str] = frozenset()

    @classmethod
    def of(cls, path: Path, error: UserError) -> Refused:
        """reason: the first mistake that the error lists, and how many more there are."""
        head, *listed = str(error).splitlines()
        first = (listed or [head])[0].removeprefix("  - ").removeprefix(f"{path}: ")
        count = re.search(r": (\d+) mistake\(s\)$", head)
        more = int(count[1]) - 1 if count else 0
        return cls(path, f"{first} (and {more:,} more)" if more else first)


@dataclass(frozen=True)
class Tree:
    """folders: every folder below `root` and itself -> names of its files; hidden ones are left out."""

    root: Path
    folders: Mapping[Path, frozenset[str]]

    @classmethod
    def of(cls, root: Path) -> Tree:
        """Raises `UserError` where `root` is no folder."""
        if not root.is_dir():
            hint = f"; did you mean its folder, {root.parent}?" if root.is_file() else ""
            raise UserError(f"{root} is no folder; expected one with data sets below it{hint}")
        root = root.absolute()
        folders = {}
        for parent, below, names in walk(root):
            if {*names} >= RUN:
                below[:] = []
                continue
            below[:] = sorted(name for name in below if not name.startswith("."))
            folders[Path(parent)] = frozenset(name for name in names if not name.startswith("."))
        return cls(root, folders)

    def files(self, *suffixes: str) -> Iterator[Path]:
        """By folder and name."""
        for folder, names in self.folders.items():
            yield from (folder / name for name in sorted(names) if name.lower().endswith(suffixes))

    def split_of(self, path: Path) -> str:
        """The split that the name says, else the nearest folder's; "" for none."""
        for part in reversed(path.relative_to(self.root).parts):
            for word in reversed(re.findall(r"[a-z]+", part.lower())):
                if word in _SPLIT:
                    return _SPLIT[word]
        return ""

    def home(self, folder: Path) -> Path:
        """The folder of the dataset whose annotations lie in `folder`."""
        while folder != self.root and _OF_DATASET.fullmatch(folder.name.lower()):
            folder = folder.parent
        return folder

    def holding(self, pictures: Sequence[Sequence[str]], near: Path) -> Path | None:
        """The folder from which pictures lie where their names say, of several that nearest to `near`, of these one
        of the same split, and of these one whose name is in that of `near` (`train2017`). None: no such folder.

        pictures: of each the spellings that its name may have. Where no folder has any of them others count that
        readers take for them (`data.spellings`).
        """
        sample = [[(PurePosixPath(s).parent, PurePosixPath(s).name) for s in some] for some in _some(pictures)]
        split = self.split_of(near)

        def rank(folder: Path, has: Callable[[Path, str], bool]) -> tuple[int, int, bool, bool]:
            there = sum(any(has(folder / below, name) for below, name in some) for some in sample)
            common = len(Path(os.path.commonpath([folder, near])).parts)
            return there, common, self.split_of(folder) == split, folder.name in near.name

        for has in (self._has, self._has_alike):
            ranks = {folder: rank(folder, has) for folder in self.folders}
            best = max(ranks, key=lambda folder: ranks[folder])
            if ranks[best][0]:
                return best
        return None

    def _has(self, folder: Path, name: str) -> bool:
        return name in self.folders.get(folder, ())

    def _has_alike(self, folder: Path, name: str) -> bool:
        return plain(name) in self._alike.get(plain(str(folder)), ())

    @cached_property
    def _alike(self) -> dict[str, set[str]]:
        """The pictures of each folder, and their names without endings, as `plain` has them."""
        alike: dict[str, set[str]] = {}
        for folder, names in self.folders.items():
            mine = alike.setdefault(plain(str(folder)), set())
            for name in filter(is_picture, names):
                mine |= {plain(name), plain(os.path.splitext(name)[0])}  # noqa: PTH122
        return alike


def holds_pictures(folder: Path) -> bool:
    """Whether pictures lie below a folder, but for those of trainings; the first folders below are looked at."""
    for _, below, names in islice(walk(folder), LOOKED_AT):
        if {*names} >= RUN:
            below[:] = []
        elif any(map(is_picture, names)):
            return True
    return False


def variant(name: str) -> str:
    """What the name of an annotation file says beyond its split, year and kind."""
    words = re.findall(r"[a-z]+|\d+", name.lower())
    known = {*_SPLIT, "instances", "annotations", "coco", "json"}
    return "_".join(word for word in words if word not in known and not re.fullmatch(r"(19|20)\d\d", word))


def without_suffix(paths: Iterable[str]) -> frozenset[str]:
    """For `Found.pictures`."""
    return frozenset(os.path.splitext(path)[0] for path in paths)  # noqa: PTH122 - they may be 100,000


def _some(items: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
    return items[:: max(1, len(items) // SAMPLE)]


def walk(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` through links to folders as well, but for those that lead back to a folder that holds them."""
    for parent, below, names in os.walk(root, followlinks=True):
        below[:] = [name for name in below if not _leads_back(Path(parent, name))]
        yield parent, below, names


def _leads_back(folder: Path) -> bool:
    return folder.is_symlink() and folder.resolve() in folder.absolute().parents
