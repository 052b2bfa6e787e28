"""What `crossdet predict` finds, as the annotations of a data set that people correct in a labelling tool."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from crossdet.errors import UserError
from crossdet.files import write_atomically, write_json
from crossdet.yaml_text import flow

Entries = Sequence[Mapping[str, Any]]
"""`images` of `predictions.json`: file, width, height, detections (class, score, box_xyxy in pixels)."""
CREATED = {"coco": ("annotations.json",), "yolo": ("labels", "data.yaml")}
"""Kind -> what `write_annotations` makes in its folder."""


def check_annotations(kind: str, folder: Path, files: Sequence[Path]) -> None:
    """Raises `UserError` where annotations of `files` cannot be written into `folder`: they are never written over,
    for somebody may have corrected them."""
    for name in CREATED[kind]:
        if (there := folder / name).exists():
            raise UserError(
                f"--annotations {kind}: {there} is there already; give another --output or move it away"
            )
    if kind == "yolo":
        texts: dict[PurePath, Path] = {}
        for file, place in _places(files).items():
            if (
                "images" in place.parts[:-1]
            ):  # readers look for its labels in `labels` in place of the last `images`
                raise UserError(
                    f"--annotations yolo: {file} lies in a folder `images` below others, where labels are not "
                    "looked for; call it for each of these folders, or use `coco`"
                )
            other = texts.setdefault(place.with_suffix(".txt"), file)
            if other is not file:
                text = f"labels/{place.with_suffix('.txt').as_posix()}"
                raise UserError(
                    f"--annotations yolo: {other} and {file} would share {text}; rename one of them, or use `coco`"
                )


def write_annotations(
    kind: str, folder: Path, files: Sequence[Path], entries: Entries, classes: Sequence[str]
) -> None:
    """files: all that were asked for. entries: those that could be read, a picture without a detection among them.
    classes: in the order of their ids.

    Raises `RunError` for a file that cannot be written."""
    _WRITERS[kind](folder, _places(files), entries, classes)


def _places(files: Sequence[Path]) -> dict[Path, PurePath]:
    """Of each file its path below the folder that holds all of them."""
    absolute = {file: os.path.abspath(file) for file in files}  # noqa: PTH100 (links stay, `..` would lead out)
    above = os.path.commonpath(map(os.path.dirname, absolute.values())) if absolute else ""
    return {file: PurePath(os.path.relpath(path, above)) for file, path in absolute.items()}


def _write_coco(folder: Path, places: Mapping[Path, PurePath], entries: Entries, classes: Sequence[str]) -> None:
    ids = {name: number for number, name in enumerate(classes, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, entry in enumerate(entries, 1):
        place = places[Path(entry["file"])].as_posix()
        images.append({"id": number, "file_name": place, "width": entry["width"], "height": entry["height"]})
        for found in entry["detections"]:
            x1, y1, x2, y2 = found["box_xyxy"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": ids[found["class"]],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "score": found["score"],
                }
            )
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(folder / "annotations.json", content)


def _write_yolo(folder: Path, places: Mapping[Path, PurePath], entries: Entries, classes: Sequence[str]) -> None:
    ids = {name: number for number, name in enumerate(classes)}
    for entry in entries:
        width, height = entry["width"], entry["height"]
        lines = []
        for found in entry["detections"]:
            x1, y1, x2, y2 = found["box_xyxy"]
            box = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(" ".join([str(ids[found["class"]]), *(f"{number:.6f}" for number in box)]) + "\n")
        place = places[Path(entry["file"])].with_suffix(".txt")
        write_atomically(folder / "labels" / place, "".join(lines).encode())
    names = "".join(f"  {number}: {flow(name)}\n" for name, number in ids.items())
    content = f"""\
# Found by a detector and checked by nobody yet. The pictures go into images/, beside labels/.
path: .
train: images
val: images
names:
{names}"""
    write_atomically(folder / "data.yaml", content.encode())


_WRITERS: dict[str, Callable[[Path, Mapping[Path, PurePath], Entries, Sequence[str]], None]] = {
    "coco": _write_coco,
    "yolo": _write_yolo,
}
