"""Where a picture probably is that is not where annotations say."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path

from crossdet.data.annotation_files import is_picture
from crossdet.data.spellings import plain
from crossdet.labels.patterns import composed

FOLDERS = 1000
"""So many below the images folder are looked through."""
_BETWEEN = re.compile(r"[/\\]|\?d=")  # of paths, of URLs, and of those to local files of Label Studio


def instead(name: str, root: Path, with_root: bool = False) -> str:
    """The end of a message: a picture at or below `root` that is probably the one that is missing there; empty
    where there is none. with_root: `images` of a config is the cure where that alone is wrong."""
    parts = _parts(name)
    folders = [root.joinpath(*parts[at:-1]) for at in range(len(parts))] if parts else []
    found = nearest(name, dict(_listed([*folders, *_below(root)])))
    return "" if found is None else told(name, found, with_root)


def told(name: str, found: Path, with_root: bool = False) -> str:
    parts = _parts(name)
    what = "paths" if parts[-1] == found.name else "names"
    if what == "names" and composed(parts[-1]) == composed(found.name):
        what = "names (its accents are written by other signs, which look the same)"
    base = found.parents[len(parts) - 1] if len(parts) < len(found.parts) else None
    fits = base is not None and base.joinpath(*parts) == found
    cure = f" With `images: {base}` it is found" if with_root and fits else ""
    return f"; {found} is there: did the export write other {what}?{cure}"


def nearest(name: str, folders: Mapping[Path, Collection[str]]) -> Path | None:
    """The file called as the last part of `name`; else one that differs from it in capitals, in how accents are
    written, or in the ending. The first folders count. folders: with the names of their files."""
    base = (_parts(name) or [""])[-1]
    exact = next((folder / base for folder, names in folders.items() if base in names), None)
    if exact is not None or not base:
        return exact
    alike = [(folder, other) for folder, names in folders.items() for other in sorted(names) if is_picture(other)]
    for key in (plain, lambda text: plain(os.path.splitext(text)[0])):  # noqa: PTH122
        wanted = key(base)
        if (one := next((folder / other for folder, other in alike if key(other) == wanted), None)) is not None:
            return one
    return None


def _parts(name: str) -> list[str]:
    return [part for part in _BETWEEN.split(name) if part not in ("", ".", "..")]


def _below(root: Path) -> Iterator[Path]:
    return (Path(parent) for parent, _, _ in islice(os.walk(root), FOLDERS))


def _listed(folders: Collection[Path]) -> Iterator[tuple[Path, set[str]]]:
    for folder in dict.fromkeys(folders):
        try:
            yield folder, {entry.name for entry in os.scandir(folder) if entry.is_file()}
        except (OSError, ValueError):  # no folder
            continue
