"""The cache of indexes on disk: when an entry still holds, and how an index is stored and opened."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdet.data.annotation_files import PICTURE_SUFFIXES
from crossdet.data.index import Index, Ragged, Strings

PLAIN = ("category_ids", "image_ids", "sizes", "box_offsets", "boxes", "labels", "flags", "area")
RAGGED = ("negatives", "not_exhaustive")


def cache_root() -> Path:
    """`$CROSSDET_CACHE`, else `$XDG_CACHE_HOME/crossdet`, else `~/.cache/crossdet`."""
    if own := os.environ.get("CROSSDET_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crossdet"


@cache
def _readers(room: Path = Path(__file__).parent) -> str:
    """Changes with the code of this room, and of the flags that it stores: another version may read the same files
    another way."""
    digest = hashlib.sha256()
    for file in [*sorted(room.rglob("*.py")), *room.parent.glob("types.py")]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def fingerprint(settings: dict[str, Any], files: Iterable[Path | str]) -> str:
    """A key that changes with a setting, the code that reads, or the name, size or time of one of the files."""
    digest = hashlib.sha256(json.dumps([_readers(), settings], sort_keys=True, default=str).encode())
    for file in files:
        digest.update(f"{file}|{_state(file)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def _state(file: Path | str) -> str:
    try:
        stat = os.stat(file)  # noqa: PTH116 - twice as fast as Path.stat, and there may be 100,000 files
    except (OSError, ValueError):
        return "missing"
    return f"{stat.st_size}|{stat.st_mtime_ns}"


def pictures_stamp(folder: Path) -> str:
    """A text that changes when a picture anywhere below `folder` is added, removed, renamed or written anew.

    Other files do not count: a program may write its results beside the pictures. Folders behind symbolic links
    are not entered.
    """
    digest = hashlib.sha256()
    below = [str(folder)]
    while below:
        at = below.pop()
        try:
            with os.scandir(at) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            digest.update(f"{at}|missing\n".encode(errors="surrogateescape"))
            continue
        for entry in found:
            if os.path.splitext(entry.name)[1].lower() in PICTURE_SUFFIXES:  # noqa: PTH122
                digest.update(f"{entry.path}|{_state(entry.path)}\n".encode(errors="surrogateescape"))
            elif entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
    return digest.hexdigest()[:32]


def cached(key: str, read: Callable[[], Index], worth_keeping: Callable[[Index], bool] = lambda _: True) -> Index:
    """The index stored under `key`, else the result of `read()`, which is then stored if `worth_keeping`.

    A cache that cannot be written (read-only home, full disk) costs time, never the run: the freshly read index
    is returned. A damaged entry is read anew.
    """
    folder = cache_root() / "index" / key
    if (folder / "meta.json").exists():
        try:
            return load_index(folder)
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            shutil.rmtree(folder, ignore_errors=True)
    index = read()
    if not worth_keeping(index):
        return index
    try:
        save_index(index, folder)
        return load_index(folder)
    except OSError:
        return index


def save_index(index: Index, folder: Path) -> None:
    """Writes one `.npy` per array and `meta.json`; the folder appears complete or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
    try:
        for name, array in _arrays(index).items():
            np.save(staging / f"{name}.npy", array)
        meta = {
            "classes": index.classes,
            "root": index.root,
            "columns": sorted(index.columns),
            "ragged": [name for name in RAGGED if getattr(index, name) is not None],
            "skipped": index.skipped,
            "upright": index.upright,
        }
        (staging / "meta.json").write_text(json.dumps(meta))
        try:
            staging.rename(folder)
        except OSError:
            if not (folder / "meta.json").exists():  # a damaged entry is in the way
                shutil.rmtree(folder, ignore_errors=True)
                staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def load_index(folder: Path) -> Index:
    """Opens what `save_index` wrote, arrays memory-mapped read-only."""
    meta = json.loads((folder / "meta.json").read_text())
    # teachers' labels of older runs have both kinds of lists or none
    lists = meta["ragged"] if "ragged" in meta else RAGGED if meta["federated"] else ()

    def array(name: str) -> NDArray[Any]:
        loaded: NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r")
        return loaded

    def ragged(name: str) -> Ragged | None:
        return Ragged(array(f"{name}_values"), array(f"{name}_offsets")) if name in lists else None

    return Index(
        classes=tuple(meta["classes"]),
        root=meta["root"],
        names=Strings(array("names_blob"), array("names_offsets")),
        columns={name: array(f"column_{name}") for name in meta["columns"]},
        **{name: ragged(name) for name in RAGGED},  # type: ignore[arg-type]
        skipped=meta["skipped"],
        upright=meta["upright"],
        **{name: array(name) for name in PLAIN},  # type: ignore[arg-type]
    )


def _arrays(index: Index) -> dict[str, NDArray[Any]]:
    arrays = {name: getattr(index, name) for name in PLAIN}
    arrays |= {"names_blob": index.names.blob, "names_offsets": index.names.offsets}
    arrays |= {f"column_{name}": column for name, column in index.columns.items()}
    for name in RAGGED:
        if (lists := getattr(index, name)) is not None:
            arrays |= {f"{name}_values": lists.values, f"{name}_offsets": lists.offsets}
    return arrays
