"""The columnar index: one dataset split as flat arrays, cached on disk and shared between processes.

A reader (`data/formats/`) turns annotation files into an `Index`; nothing after it knows the
format. The arrays are written as `.npy` files and opened memory-mapped, so opening is instant at any size and
loader workers share the pages instead of each holding a copy. No torch in here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdet.data.rotation_geometry import Turned
from crossdet.errors import AnnotationError, problem_list

CACHE_VERSION = 1
MAX_LISTED = 20
"""How many problems of one kind an error or a report lists before it only counts."""
FLOAT32_MAX = float(np.finfo(np.float32).max)
PICTURES = frozenset({".bmp", ".gif", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp"})
"""Suffixes of the image files that `pictures_stamp` looks at."""
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Strings:
    """Many strings as one UTF-8 blob with offsets: no Python object per string, so it can be memory-mapped."""

    blob: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    @classmethod
    def pack(cls, strings: Iterable[str]) -> Strings:
        # surrogateescape: a file name on disk may hold bytes that are no UTF-8
        encoded = [s.encode(errors="surrogateescape") for s in strings]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(e) for e in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> str:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} strings")
        return self.blob[self.offsets[row] : self.offsets[row + 1]].tobytes().decode(errors="surrogateescape")


@dataclass(frozen=True)
class Ragged:
    """One list of integers per image, as flat values with offsets."""

    values: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @classmethod
    def pack(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(r) for r in rows], out=offsets[1:])
        return cls(np.array([v for r in rows for v in r], np.int64), offsets)

    def __getitem__(self, row: int) -> NDArray[np.int64]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]


@dataclass(frozen=True)
class Index:
    """One split of one dataset. `I` images, `M` boxes, `K` classes of the dataset itself.

    classes: the dataset's own class names; `labels` are positions in it.
    category_ids: `[K]` ids that the format uses for the classes (COCO's have gaps), for writing results.
    root: folder that `names` are relative to. names: image files, `I` strings.
    image_ids: `[I]` int64, the format's own ids (row numbers where it has none).
    sizes: `[I, 2]` int32 (height, width) as annotated, or read from the image header; 0 where unreadable.
    box_offsets: `[I + 1]` int64; the boxes of image i are rows `box_offsets[i]:box_offsets[i + 1]`.
    boxes: `[M, 4]` float32 xyxy, absolute pixels, zero-based, half-open (a box [0, 0, w, h] covers the image).
    labels: `[M]` int32 in 0..K-1, or -1 for a region of no class in particular (ignore regions).
    flags: `[M]` uint8, bits of `crossdet.types.Flag`.
    area: `[M]` float32; the annotated area, else the box area. columns: further ones per box (WIDER FACE), `[M]`.
    negatives, not_exhaustive: per-image class lists of a federated dataset (LVIS); None otherwise.
    skipped: what the reader left out, reason -> places ("file:line: value"), for `crossdet check`.
    turned: how far the pictures are turned (`data.rotation`); sizes and boxes are those of the turned ones.
    """

    classes: tuple[str, ...]
    category_ids: NDArray[np.int64]
    root: str
    names: Strings
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int32]
    box_offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int32]
    flags: NDArray[np.uint8]
    area: NDArray[np.float32]
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    negatives: Ragged | None = None
    not_exhaustive: Ragged | None = None
    skipped: dict[str, list[str]] = field(default_factory=dict)
    turned: Turned | None = None

    def __post_init__(self) -> None:
        images, boxes = len(self.names), len(self.boxes)
        wanted = {
            "category_ids": (len(self.classes),),
            "image_ids": (images,),
            "sizes": (images, 2),
            "box_offsets": (images + 1,),
            "boxes": (boxes, 4),
            "labels": (boxes,),
            "flags": (boxes,),
            "area": (boxes,),
        }
        for name, shape in wanted.items():
            have = getattr(self, name).shape
            if have != shape:
                raise ValueError(f"Index.{name}: expected shape {shape}, got {have}")
        for name, column in self.columns.items():
            if column.shape != (boxes,):
                raise ValueError(f"Index.columns[{name!r}]: expected shape {(boxes,)}, got {column.shape}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def federated(self) -> bool:
        return self.negatives is not None

    def path(self, image: int) -> Path:
        return Path(self.root) / self.names[image]

    def rows(self, image: int) -> slice:
        """Rows of the image's boxes in `boxes`, `labels`, `flags`, `area` and `columns`."""
        return slice(int(self.box_offsets[image]), int(self.box_offsets[image + 1]))

    def image_of_box(self) -> NDArray[np.int64]:
        """`[M]` image row of every box."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.box_offsets))

    def take(self, images: NDArray[np.int64]) -> Index:
        """The index of some images (rows, in the given order); `skipped` is kept."""
        counts = np.diff(self.box_offsets)[images]
        offsets = np.zeros(len(images) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        box_rows = np.repeat(self.box_offsets[images] - offsets[:-1], counts) + np.arange(offsets[-1])

        def ragged(lists: Ragged | None) -> Ragged | None:
            return None if lists is None else Ragged.pack([lists[int(i)].tolist() for i in images])

        return Index(
            classes=self.classes,
            category_ids=self.category_ids,
            root=self.root,
            names=Strings.pack(self.names[int(i)] for i in images),
            image_ids=self.image_ids[images],
            sizes=self.sizes[images],
            box_offsets=offsets,
            boxes=self.boxes[box_rows],
            labels=self.labels[box_rows],
            flags=self.flags[box_rows],
            area=self.area[box_rows],
            columns={name: column[box_rows] for name, column in self.columns.items()},
            negatives=ragged(self.negatives),
            not_exhaustive=ragged(self.not_exhaustive),
            skipped=self.skipped,
            turned=None if self.turned is None else self.turned.take(images),
        )


class IndexBuilder:
    """Collects images and boxes row by row (for readers) and checks each box once.

    A box without positive width and height, or without any pixel inside the image, is left out and counted
    under `skipped`; a box that reaches over the border is clipped. Both only where `keep_invalid` is false:
    WIDER FACE's evaluation counts its zero-size boxes, so that reader keeps them, flagged INVALID.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = str(root)
        self._names: list[str] = []
        self._image_ids: list[int] = []
        self._sizes: list[tuple[int, int]] = []
        self._counts: list[int] = []
        self._boxes: list[tuple[float, float, float, float]] = []
        self._labels: list[int] = []
        self._flags: list[int] = []
        self._areas: list[float] = []
        self._columns: dict[str, list[int]] = {}
        self._negatives: list[Sequence[int]] = []
        self._not_exhaustive: list[Sequence[int]] = []
        self.skipped: dict[str, list[str]] = {}

    def image(
        self,
        name: str,
        height: int = 0,
        width: int = 0,
        image_id: int | None = None,
        negatives: Sequence[int] = (),
        not_exhaustive: Sequence[int] = (),
    ) -> None:
        """Starts the next image; the boxes added from now on are its own. Size 0 = read the header later."""
        self._names.append(name)
        self._image_ids.append(len(self._image_ids) if image_id is None else image_id)
        self._sizes.append((height, width))
        self._counts.append(0)
        self._negatives.append(negatives)
        self._not_exhaustive.append(not_exhaustive)

    def skip(self, reason: str, place: str) -> None:
        self.skipped.setdefault(reason, []).append(place)

    def box(
        self,
        xyxy: tuple[float, float, float, float],
        label: int,
        flags: int = 0,
        area: float | None = None,
        place: str = "",
        keep_invalid: bool = False,
        **columns: int,
    ) -> None:
        """Adds a box to the image last started. `place` is where it stands ("file:line"), for the report."""
        x1, y1, x2, y2 = (float(v) for v in xyxy)
        height, width = self._sizes[-1]
        if not all(abs(v) <= FLOAT32_MAX for v in (x1, y1, x2, y2)):  # false for NaN as well
            self.skip("box with a coordinate that is no number", f"{place}: {xyxy}")
            return
        if not keep_invalid:
            if np.float32(x2) <= np.float32(x1) or np.float32(y2) <= np.float32(y1):
                self.skip("box without area", f"{place}: xyxy {_short(xyxy)}")
                return
            if width and height:
                clipped = (min(max(x1, 0), width), min(max(y1, 0), height), min(x2, width), min(y2, height))
                if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
                    self.skip(
                        "box outside its image", f"{place}: xyxy {_short(xyxy)} in an image of {width}x{height}"
                    )
                    return
                x1, y1, x2, y2 = clipped
        self._counts[-1] += 1
        self._boxes.append((x1, y1, x2, y2))
        self._labels.append(label)
        self._flags.append(int(flags))
        self._areas.append((x2 - x1) * (y2 - y1) if area is None else area)
        for name, value in columns.items():
            self._columns.setdefault(name, []).append(value)

    def build(
        self, classes: Sequence[str], category_ids: Sequence[int] | None = None, federated: bool = False
    ) -> Index:
        offsets = np.zeros(len(self._names) + 1, np.int64)
        np.cumsum(self._counts, out=offsets[1:])
        return Index(
            classes=tuple(classes),
            category_ids=np.array(range(len(classes)) if category_ids is None else category_ids, np.int64),
            root=self.root,
            names=Strings.pack(self._names),
            image_ids=np.array(self._image_ids, np.int64),
            sizes=np.array(self._sizes, np.int32).reshape(-1, 2),
            box_offsets=offsets,
            boxes=np.array(self._boxes, np.float32).reshape(-1, 4),
            labels=np.array(self._labels, np.int32),
            flags=np.array(self._flags, np.uint8),
            area=np.array(self._areas, np.float32),
            columns={name: np.array(values, np.int16) for name, values in self._columns.items()},
            negatives=Ragged.pack(self._negatives) if federated else None,
            not_exhaustive=Ragged.pack(self._not_exhaustive) if federated else None,
            skipped=self.skipped,
        )


def _short(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{v:g}" for v in values) + "]"


def too_many(problems: list[str]) -> list[str]:
    """The first `MAX_LISTED` problems and a line that counts the rest."""
    if len(problems) <= MAX_LISTED:
        return problems
    return [*problems[:MAX_LISTED], f"... and {len(problems) - MAX_LISTED} more"]


def raise_if_any(file: Path | str, problems: list[str]) -> None:
    """Raises one `AnnotationError` that lists all problems found in `file`."""
    if problems:
        raise AnnotationError(problem_list(f"{file}: {len(problems)} mistake(s)", too_many(problems)))


def read_bytes(path: Path) -> bytes:
    """The bytes of an annotation file. Raises `AnnotationError`, one line, where it cannot be read."""
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise AnnotationError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def read_text(path: Path) -> str:
    """The text of an annotation file in UTF-8, with or without a byte order mark.

    Raises `AnnotationError`, one line that names file and byte, where it cannot be read or is no such text.
    """
    content = read_bytes(path)
    start = len(BOM) if content.startswith(BOM) else 0
    try:
        return content[start:].decode()
    except UnicodeDecodeError as error:
        at = start + error.start
        line = content.count(b"\n", 0, at) + 1
        raise AnnotationError(
            f"{path}:{line}: byte {at} of the file (0x{content[at]:02x}) is not text in UTF-8; is it the "
            "annotation file? If so, save it as UTF-8"
        ) from None


def read_lines(path: Path) -> list[str]:
    """The lines of `read_text`."""
    return read_text(path).splitlines()


def is_there(path: Path) -> bool:
    """`path.exists()` that is also false for names that cannot exist (too long, with a null character)."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def header_sizes(paths: Sequence[Path]) -> list[tuple[int, int] | None]:
    """(height, width) of image files from their headers, as stored (EXIF not applied); None = unreadable."""
    from PIL import Image

    def size(path: Path) -> tuple[int, int] | None:
        try:
            with Image.open(path) as image:
                height, width = image.height, image.width
        except Exception:  # on a damaged file Pillow's plugins raise almost anything
            return None
        return (height, width) if 0 < height < 2**31 and 0 < width < 2**31 else None

    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(size, paths))


# ---------------------------------------------------------------------------------------------- cache


def cache_root() -> Path:
    """`$CROSSDET_CACHE`, else `$XDG_CACHE_HOME/crossdet`, else `~/.cache/crossdet`."""
    if own := os.environ.get("CROSSDET_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crossdet"


def fingerprint(settings: dict[str, Any], files: Iterable[Path | str]) -> str:
    """A key that changes when a setting, or the name, size or time of one of the files, changes."""
    digest = hashlib.sha256(json.dumps([CACHE_VERSION, settings], sort_keys=True, default=str).encode())
    for file in files:
        try:
            stat = os.stat(file)  # noqa: PTH116 - twice as fast as Path.stat, and there may be 100,000 files
            state = f"{stat.st_size}|{stat.st_mtime_ns}"
        except (OSError, ValueError):
            state = "missing"
        digest.update(f"{file}|{state}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


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
            if os.path.splitext(entry.name)[1].lower() in PICTURES:  # noqa: PTH122
                try:
                    stat = entry.stat()
                    state = f"{stat.st_size}|{stat.st_mtime_ns}"
                except OSError:
                    state = "missing"
                digest.update(f"{entry.path}|{state}\n".encode(errors="surrogateescape"))
            elif entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
    return digest.hexdigest()[:32]


def cached(
    key: str,
    read: Callable[[], Index],
    root: Path | None = None,
    worth_keeping: Callable[[Index], bool] = lambda _: True,
) -> Index:
    """The index stored under `key`, else the result of `read()`, which is then stored if `worth_keeping`.

    A cache that cannot be written (read-only home, full disk) costs time, never the run: the freshly read index
    is returned. A damaged entry is read anew.
    """
    folder = (root or cache_root()) / "index" / key
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
            "federated": index.federated,
            "skipped": index.skipped,
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

    def array(name: str) -> NDArray[Any]:
        loaded: NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r")
        return loaded

    plain = {f.name for f in fields(Index)} - {
        "classes", "root", "names", "columns", "negatives", "not_exhaustive", "skipped", "turned"
    }  # fmt: skip
    return Index(
        classes=tuple(meta["classes"]),
        root=meta["root"],
        names=Strings(array("names_blob"), array("names_offsets")),
        columns={name: array(f"column_{name}") for name in meta["columns"]},
        negatives=Ragged(array("negatives_values"), array("negatives_offsets")) if meta["federated"] else None,
        not_exhaustive=Ragged(array("not_exhaustive_values"), array("not_exhaustive_offsets"))
        if meta["federated"]
        else None,
        skipped=meta["skipped"],
        **{name: array(name) for name in plain},  # type: ignore[arg-type]
    )


def _arrays(index: Index) -> dict[str, NDArray[Any]]:
    arrays = {
        name: getattr(index, name)
        for name in ("category_ids", "image_ids", "sizes", "box_offsets", "boxes", "labels", "flags", "area")
    }
    arrays |= {"names_blob": index.names.blob, "names_offsets": index.names.offsets}
    arrays |= {f"column_{name}": column for name, column in index.columns.items()}
    if index.negatives is not None and index.not_exhaustive is not None:
        for name, lists in (("negatives", index.negatives), ("not_exhaustive", index.not_exhaustive)):
            arrays |= {f"{name}_values": lists.values, f"{name}_offsets": lists.offsets}
    return arrays
