"""The columnar index: one dataset split as flat arrays, cached on disk and shared between processes.

A reader (`data/formats/`) turns annotation files into an `Index`; nothing after it knows the
format. The arrays are written as `.npy` files and opened memory-mapped, so opening is instant at any size and
loader workers share the pages instead of each holding a copy. No torch in here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdet.data.rotation_geometry import Rotation
from crossdet.types import REGION_FLAGS, Flag

NOT_A_NUMBER = "box with a coordinate that is no number"
NO_AREA = "box without area"
OUTSIDE = "box outside its image"
LEFT_OUT = (NOT_A_NUMBER, NO_AREA, OUTSIDE)
"""Reasons why a box is left out, in `Index.skipped`."""
FAR_OVER = "box far over its image's border, cut"
MOST_OVER = 0.1
"""A box of `FAR_OVER`, in `Index.skipped`, reaches over by more than this share of the image's width or height."""
TURNED = "box of negative width or height, turned round"
POSE_LIKE = "line read as a polygon that may be a box with keypoints"
TRACK_LIKE = "line read as a polygon that may be a box with confidence and track id"
STRAY_REGION = "ignore region of a picture that is not there"
NO_LABELS, NO_PICTURE = "image without a label file", "label file without an image"
XML_BELOW = "XML file in a folder below, which is not read"
OTHER_SPELLING = "name of a file that is spelt otherwise on the disk, found"
"""In `Index.skipped`, too, though nothing is left out."""
CANNOT_BE_READ, NOT_FOUND = "image cannot be read", "image not found"
IMAGE_REASONS = (CANNOT_BE_READ, NOT_FOUND)
"""In `Index.skipped`, of images that are taken for ones without objects."""
FLOAT32_MAX = float(np.finfo(np.float32).max)


def offsets(counts: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """`[N + 1]`: where each of N groups of so many rows begins, and the end."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


@dataclass(frozen=True)
class Strings:
    """Many strings as one UTF-8 blob with offsets: no Python object per string, so it can be memory-mapped."""

    blob: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    @classmethod
    def pack(cls, strings: Iterable[str]) -> Strings:
        # surrogateescape: a file name on disk may hold bytes that are no UTF-8
        encoded = [s.encode(errors="surrogateescape") for s in strings]
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets([len(e) for e in encoded]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

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
        return cls(np.array([v for r in rows for v in r], np.int64), offsets([len(r) for r in rows]))

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
    skipped: what the reader left out, cut by much, turned, found by another name or doubts, reason -> places
        ("file:line: value"), for `crossdet check`.
    rotation: how far the pictures are turned (`data.rotation`); sizes and boxes are those of the turned ones.
    upright: sizes and boxes are those of the pictures turned as EXIF says, whatever their sizes tell.
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
    rotation: Rotation | None = None
    upright: bool = False

    def __post_init__(self) -> None:
        images, boxes = len(self.names), len(self.boxes)
        wanted = {"category_ids": (len(self.classes),), "image_ids": (images,), "sizes": (images, 2)}
        wanted |= {"box_offsets": (images + 1,), "boxes": (boxes, 4)}
        wanted |= dict.fromkeys(("labels", "flags", "area"), (boxes,))
        have = {name: getattr(self, name) for name in wanted}
        have |= {f"columns[{name!r}]": column for name, column in self.columns.items()}
        for name, array in have.items():
            if array.shape != wanted.get(name, (boxes,)):
                raise ValueError(f"Index.{name}: expected shape {wanted.get(name, (boxes,))}, got {array.shape}")

    @classmethod
    def from_records(
        cls, records: Iterable[Mapping[str, Any]], classes: Sequence[str] | None = None, root: str | Path = "."
    ) -> Index:
        """An index from Python: one record per image.

        records: `{"image": path, "boxes": [[x1, y1, x2, y2], ...], "labels": [class name, ...]}`, and where wanted
            `"flags": [...]`, of each box bits of `crossdet.types.Flag`. Boxes are in pixels, zero-based and
            half-open. An image without objects has empty lists. The label of a region (crowd, ignore, avoid) may be
            None: of no class in particular.
        classes: all class names, in the order of the labels; None = those that occur, sorted. All images of a
            dataset have to be labelled for all its classes: the background is a negative for them.
        root: folder that the paths are relative to.

        Sizes are read from the image headers. Boxes are clipped to their image; those that have no area, or lie
        outside, are left out and counted in `skipped`, as are images that cannot be read.

        Raises `UserError` that lists every mistake: keys, missing images, an image that has two records, boxes
        without four numbers or with x2 < x1 or y2 < y1, labels that are no name or not among `classes`; or says
        that the boxes are shares of their pictures.
        """
        from crossdet.data.records import index_from_records  # it builds on the readers, and they on this module

        return index_from_records(records, classes, root)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        shown = ", ".join(self.classes[:8]) + (", ..." if len(self.classes) > 8 else "")
        return (
            f"Index({len(self)} images, {len(self.boxes)} boxes, {len(self.classes)} classes: {shown}; {self.root})"
        )

    @property
    def federated(self) -> bool:
        return self.negatives is not None

    def path(self, image: int) -> Path:
        return Path(self.root) / self.names[image]

    def rows(self, image: int) -> slice:
        """Rows of the image's boxes in `boxes`, `labels`, `flags`, `area` and `columns`."""
        return slice(int(self.box_offsets[image]), int(self.box_offsets[image + 1]))

    @property
    def is_object(self) -> NDArray[np.bool_]:
        """`[M]`: boxes that are neither regions nor invalid."""
        plain: NDArray[np.bool_] = (np.asarray(self.flags) & int(REGION_FLAGS | Flag.INVALID)) == 0
        return plain & (np.asarray(self.labels) >= 0)

    @property
    def classes_shown(self) -> list[str]:
        """Those of `classes` that an object has, in their order."""
        return [self.classes[label] for label in np.unique(self.labels[self.is_object]).tolist()]

    def image_of_box(self) -> NDArray[np.int64]:
        """`[M]` image row of every box."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.box_offsets))

    def box_columns(self, rows: NDArray[Any]) -> dict[str, Any]:
        """What there is per box, of some boxes (their rows or a mask), by field of the index."""
        plain = {name: getattr(self, name)[rows] for name in ("boxes", "labels", "flags", "area")}
        return plain | {"columns": {name: column[rows] for name, column in self.columns.items()}}

    def take(self, images: NDArray[np.int64]) -> Index:
        """The index of some images (rows, in the given order); `skipped` is kept."""
        counts = np.diff(self.box_offsets)[images]
        starts = offsets(counts)
        box_rows = np.repeat(self.box_offsets[images] - starts[:-1], counts) + np.arange(starts[-1])

        def ragged(lists: Ragged | None) -> Ragged | None:
            return None if lists is None else Ragged.pack([lists[int(i)].tolist() for i in images])

        return replace(
            self,
            names=Strings.pack(self.names[int(i)] for i in images),
            image_ids=self.image_ids[images],
            sizes=self.sizes[images],
            box_offsets=starts,
            **self.box_columns(box_rows),
            negatives=ragged(self.negatives),
            not_exhaustive=ragged(self.not_exhaustive),
            rotation=None if self.rotation is None else self.rotation.take(images),
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
            self.skip(NOT_A_NUMBER, f"{place}: {xyxy}")
            return
        if not keep_invalid:
            if np.float32(x2) <= np.float32(x1) or np.float32(y2) <= np.float32(y1):
                self.skip(NO_AREA, f"{place}: xyxy {short(xyxy)}")
                return
            if width and height:
                clipped = (min(max(x1, 0), width), min(max(y1, 0), height), min(x2, width), min(y2, height))
                if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
                    self.skip(OUTSIDE, f"{place}: xyxy {short(xyxy)} in an image of {width}x{height}")
                    return
                if max(-x1, x2 - width) > MOST_OVER * width or max(-y1, y2 - height) > MOST_OVER * height:
                    self.skip(FAR_OVER, f"{place}: xyxy {short(xyxy)} in an image of {width}x{height}")
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
        return Index(
            classes=tuple(classes),
            category_ids=np.array(range(len(classes)) if category_ids is None else category_ids, np.int64),
            root=self.root,
            names=Strings.pack(self._names),
            image_ids=np.array(self._image_ids, np.int64),
            sizes=np.array(self._sizes, np.int32).reshape(-1, 2),
            box_offsets=offsets(self._counts),
            boxes=np.array(self._boxes, np.float32).reshape(-1, 4),
            labels=np.array(self._labels, np.int32),
            flags=np.array(self._flags, np.uint8),
            area=np.array(self._areas, np.float32),
            columns={name: np.array(values, np.int16) for name, values in self._columns.items()},
            negatives=Ragged.pack(self._negatives) if federated else None,
            not_exhaustive=Ragged.pack(self._not_exhaustive) if federated else None,
            skipped=self.skipped,
        )


def short(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{v:g}" for v in values) + "]"


def clip_to_images(
    boxes: NDArray[np.float64], sizes: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """Clips xyxy boxes to their images, by the rules of `IndexBuilder.box`.

    sizes: `[M, 2]` (height, width) of each box's image; 0 = unknown, not clipped.
    Returns the clipped boxes and for each the reason to leave it out, or `FAR_OVER` for one that is kept, or "".
    """
    with np.errstate(invalid="ignore", over="ignore"):
        boxes = boxes.astype(np.float32).astype(np.float64)  # area that float32 loses is no area
        reason = np.where((boxes[:, 2:] <= boxes[:, :2]).any(axis=1), NO_AREA, "").astype("<U40")
        limits = sizes[:, ::-1].astype(np.float64)
        limits[(sizes == 0).any(axis=1)] = np.inf
        low = np.where(np.isinf(limits), boxes[:, :2], np.clip(boxes[:, :2], 0, limits))
        clipped = np.concatenate([low, np.minimum(boxes[:, 2:], limits)], axis=1)
        outside = (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)
        far_over = (np.abs(boxes - clipped) > MOST_OVER * np.tile(limits, 2)).any(axis=1)
    reason[(reason == "") & far_over] = FAR_OVER
    reason[np.isin(reason, ("", FAR_OVER)) & outside] = OUTSIDE
    reason[~np.isfinite(boxes).all(axis=1)] = NOT_A_NUMBER
    return clipped, reason
