"""What an annotation format is. The file of each in this folder ends with its own, `FORMATS` lists them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from crossdet.data.index import Index

if TYPE_CHECKING:
    from crossdet.data.formats.tree import Found, Refused, Tree

NONE, OPTIONAL, ONE, ANY = (0, 0), (0, 1), (1, 1), (0, sys.maxsize)
"""Least and most entries of a key."""


@dataclass(frozen=True)
class SplitFiles:
    """Where one split of a dataset lies: what the config says, paths absolute.

    What a field means, and whether it may be given, depends on the format (`Format.keys`, docs/config.md).
    """

    annotations: tuple[Path, ...]
    images: tuple[Path, ...] = ()
    image_set: tuple[str, ...] = ()
    ignore: tuple[Path, ...] = ()
    split: str = "train"
    classes: tuple[str, ...] | None = None
    edition: int | None = None


class Needed(NamedTuple):
    """A file or folder that has to exist, and what a message calls it."""

    what: str
    path: Path
    folder: bool = False


def annotations_and_images(files: SplitFiles) -> list[Needed]:
    return [
        *(Needed("images folder", path, folder=True) for path in files.images),
        *(Needed("ignore file", path) for path in files.ignore),
        *(Needed("annotations file", path) for path in files.annotations),
    ]


def given_files(files: SplitFiles) -> list[Path | str]:
    return [*files.annotations, *files.ignore]


@dataclass(frozen=True)
class Format:
    """An annotation format: what the config, `read_split` and `crossdet check` know about it.

    read: the index of a split. Sizes of pictures that the annotations do not tell stay 0: `read_split` takes them
        from the image headers. A mistake in the files is an `AnnotationError`, all of them at once.
    keys: the keys that the config may give, each with the least and most entries: `annotations`, `images`,
        `image_set` and `ignore` of a split, `classes` and `edition` of the dataset.
    write: writes the annotations of an index below a folder, as a split of this name, and says where they lie for
        `read`. Pictures are not copied. None: the format is only read.
    tells_sizes: whether the annotations tell the sizes of the pictures.
    problems: what else is wrong with the entries, beyond their numbers.
    needs: what has to exist.
    depends: the files that the index changes with, for the cache.
    depends_on_images: it also changes with the pictures in `images`: sizes may come from their headers.
    find: the splits of this format below a folder, for `crossdet new`, and files that look like it and are not.
    marks: top-level keys that tell an annotation file of this format, where it is a mapping.
    """

    read: Callable[[SplitFiles], Index]
    keys: Mapping[str, tuple[int, int]]
    write: Callable[[Index, Path, str], SplitFiles] | None = None
    tells_sizes: bool = True
    problems: Callable[[SplitFiles], list[str]] = lambda _: []
    needs: Callable[[SplitFiles], Sequence[Needed]] = annotations_and_images
    depends: Callable[[SplitFiles], Sequence[Path | str]] = given_files
    depends_on_images: bool = True
    find: Callable[[Tree], Iterable[Found | Refused]] = lambda _: ()
    marks: tuple[str, ...] = ()
