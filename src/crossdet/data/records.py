"""An index from plain Python records, one per image, with all their mistakes in one message."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crossdet.data.annotation_files import is_there, too_many
from crossdet.data.index import Index, IndexBuilder
from crossdet.data.reading import with_sizes
from crossdet.errors import UserError, problem_list, show
from crossdet.labels.patterns import class_name
from crossdet.labels.rules import unknown
from crossdet.types import REGION_FLAGS, Flag

KEYS = ("image", "boxes", "labels", "flags")
ALL_FLAGS = sum(Flag)


def index_from_records(
    records: Iterable[Mapping[str, Any]], classes: Sequence[str] | None = None, root: str | Path = "."
) -> Index:
    """See `Index.from_records`."""
    reader = _Reader(classes, Path(root).absolute())
    for row, record in enumerate(records):
        reader.read(row, record)
    return reader.index()


def _listed(values: Any) -> list[Any] | None:
    """None for what is no list, array or tensor."""
    try:
        return None if isinstance(values, str | bytes | Mapping) else list(values)
    except TypeError:
        return None


class _Reader:
    """Collects the mistakes of all records before it gives up; lives for one call.

    rows: of every good record its image and its boxes as (xyxy, class name or None, flags), with their places.
    """

    def __init__(self, classes: Sequence[str] | None, root: Path) -> None:
        listed = classes is not None and not isinstance(classes, str)
        self.classes = [class_name(c) if isinstance(c, str) else c for c in classes or ()] if listed else classes
        self.root = root
        self.problems: list[str] = []
        if isinstance(classes, str):
            self.problems.append(f"classes: expected a list of names, got {show(classes)}; write [{classes!r}]")
        self.rows: list[tuple[str, list[tuple[tuple[float, ...], str | None, int, str]]]] = []
        self._place_of: dict[Path, str] = {}

    def read(self, row: int, record: Mapping[str, Any]) -> None:
        place = f"records[{row}]"
        if not isinstance(record, Mapping):
            self.problems.append(f"{place}: expected image, boxes and labels as a dict, got {show(record)}")
            return
        for key in record:
            if key not in KEYS:
                self.problems.append(f"{place}: {unknown('key', key, KEYS)}")
        lacking = [key for key in ("image", "boxes", "labels") if key not in record]
        if lacking:
            empty = "; an image without objects has boxes [] and labels []" if lacking != ["image"] else ""
            self.problems.append(f"{place}: no {', '.join(lacking)}{empty}")
            return
        self._image(place, record["image"])
        given = [_listed(record.get(key, [])) for key in KEYS[1:]]
        for key, one in zip(KEYS[1:], given, strict=True):
            if one is None:
                self.problems.append(f"{place}.{key}: expected a list, got {show(record[key])}")
        if None in given:
            return
        boxes, labels, flags = (one or [] for one in given)
        flags = flags if "flags" in record else [0] * len(boxes)
        if not len(boxes) == len(labels) == len(flags):
            counts = f"{len(boxes)} boxes, {len(labels)} labels, {len(flags)} flags"
            self.problems.append(f"{place}: as many labels (and flags) as boxes are needed, got {counts}")
            return
        read = [
            self._box(f"{place}.boxes[{number}]", *parts)
            for number, parts in enumerate(zip(boxes, labels, flags, strict=True))
        ]
        self.rows.append((str(record["image"]), [box for box in read if box is not None]))

    def _image(self, place: str, image: Any) -> None:
        if not isinstance(image, str | Path) or not str(image):
            self.problems.append(f"{place}.image: expected a path, got {show(image)}")
            return
        path = Path(os.path.normpath(self.root / image))
        if path in self._place_of:
            # the objects of either record would be background of the other
            first = self._place_of[path]
            self.problems.append(f"{place}.image: {image} is that of {first} already; one record has all its boxes")
        elif not is_there(path):
            self.problems.append(f"{place}.image: {path} does not exist")
        self._place_of.setdefault(path, place)

    def _box(
        self, place: str, box: Any, name: Any, flags: Any
    ) -> tuple[tuple[float, ...], str | None, int, str] | None:
        before = len(self.problems)
        try:
            xyxy = tuple(float(value) for value in box)
        except (TypeError, ValueError):
            xyxy = ()
        if len(xyxy) != 4:
            self.problems.append(f"{place}: expected x1, y1, x2, y2 in pixels, got {show(box)}")
        elif xyxy[2] < xyxy[0] or xyxy[3] < xyxy[1]:
            self.problems.append(
                f"{place}: x2 < x1 or y2 < y1 in {show(list(xyxy))}; expected two corners, and no width and height"
            )
        bits = int(flags) if hasattr(flags, "__index__") and not isinstance(flags, bool) else -1
        if bits < 0 or bits & ~ALL_FLAGS:
            self.problems.append(f"{place}: its flags are bits of crossdet.types.Flag, got {show(flags)}")
        region = bits >= 0 and bool(bits & int(REGION_FLAGS))
        if name is None and region:
            return (xyxy, None, bits, place) if len(self.problems) == before else None
        if not isinstance(name, str) or not class_name(name):
            self.problems.append(f"{place}: its label is the name of a class, got {show(name)}")
        elif self.classes is not None and class_name(name) not in self.classes:
            self.problems.append(f"{place}: {unknown('class', name, self.classes)}")
        return (xyxy, class_name(name), bits, place) if len(self.problems) == before else None

    def index(self) -> Index:
        """Raises `UserError` that lists what is wrong in the records."""
        if self.problems:
            heading = f"Index.from_records: {len(self.problems)} mistake(s)"
            raise UserError(problem_list(heading, too_many(self.problems)))
        names = {name for _, boxes in self.rows for _, name, _, _ in boxes if name is not None}
        classes = sorted(names) if self.classes is None else list(self.classes)
        number = {name: label for label, name in enumerate(classes)}
        builder = IndexBuilder(self.root)
        for image, boxes in self.rows:
            builder.image(image)
            for (x1, y1, x2, y2), name, flags, place in boxes:
                builder.box((x1, y1, x2, y2), -1 if name is None else number[name], flags, place=place)
        return with_sizes(builder.build(classes))
