"""Detections of a split in the layout that its community exchanges, ready for `crossdet score` and other tools."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from crossdet.data.index import Index
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.protocols.base import Split
from crossdet.files import safe_names, write_atomically


def write_predictions(folder: Path, split: Split, detections: DetectionArrays, protocol: str) -> None:
    """Writes the detections of a split, boxes in pixels, nothing rounded.

    coco, lvis: `results.json`, the format's own image and category ids. voc: `CLASS.txt`, 1-based inclusive
    corners. wider_face: `EVENT/IMAGE.txt`. wider_pedestrian: `submission.txt`, without classes. Classes carry the
    dataset's own names; of several that are merged into one the first. Files are named by `safe_names`: nothing is
    written outside the folder, whatever a class or an image is called.
    """
    detections = _in_order(detections)
    writers = {
        "coco": _coco,
        "lvis": _coco,
        "voc": _voc,
        "wider_face": _wider_face,
        "wider_pedestrian": _submission,
    }
    writers[protocol](folder, split, detections)


def _in_order(detections: DetectionArrays) -> DetectionArrays:
    return detections.take(np.lexsort((-detections.scores, detections.image_of_box)))


def _source_class(split: Split) -> dict[int, int]:
    """Unified id -> the first class of the index that it stands for."""
    ids = split.class_ids.tolist()
    return {unified: ids.index(unified) for unified in split.classes}


def _coco(folder: Path, split: Split, detections: DetectionArrays) -> None:
    index, source = split.index, _source_class(split)
    rows = [
        {
            "image_id": int(index.image_ids[image]),
            "category_id": int(index.category_ids[source[label]]),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for (x1, y1, x2, y2), score, label, image in _rows(detections)
    ]
    write_atomically(folder / "results.json", json.dumps(rows).encode())


def _voc(folder: Path, split: Split, detections: DetectionArrays) -> None:
    source = _source_class(split)
    lines: dict[int, list[str]] = {label: [] for label in split.classes}
    for (x1, y1, x2, y2), score, label, image in _rows(detections):
        stem = PurePosixPath(split.index.names[image]).stem
        lines[label].append(_numbers(stem, score, x1 + 1, y1 + 1, x2, y2))
    names = safe_names([split.index.classes[source[label]] for label in lines])
    for name, found in zip(names, lines.values(), strict=True):
        _write(folder / f"{name}.txt", found)


def _wider_face(folder: Path, split: Split, detections: DetectionArrays) -> None:
    lines: dict[int, list[str]] = defaultdict(list)
    for (x1, y1, x2, y2), score, _, image in _rows(detections):
        lines[image].append(_numbers(x1, y1, x2 - x1, y2 - y1, score))
    names = [PurePosixPath(split.index.names[image]) for image in range(len(split.index))]
    for image, (name, file) in enumerate(zip(names, _face_files(names), strict=True)):
        found = lines[image]
        title = " ".join(name.stem.splitlines())  # the layout counts lines
        _write(folder / file, [title, str(len(found)), *found])


def _face_files(names: Sequence[PurePosixPath]) -> list[Path]:
    """`EVENT/IMAGE.txt` of every image, all different."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name.parent.name, []).append(row)
    files = [Path()] * len(names)
    for event, folder in zip(rows, safe_names(list(rows)), strict=True):
        stems = safe_names([names[row].stem for row in rows[event]])
        for row, stem in zip(rows[event], stems, strict=True):
            files[row] = Path(folder if event else "", f"{stem}.txt")
    return files


def _submission(folder: Path, split: Split, detections: DetectionArrays) -> None:
    names = _plain_names(split.index)
    lines = [
        _numbers(names[image], score, x1, y1, x2 - x1, y2 - y1)
        for (x1, y1, x2, y2), score, _, image in _rows(detections)
    ]
    _write(folder / "submission.txt", lines)


def _plain_names(index: Index) -> list[str]:
    """File names without folders where these are unique, as the annotations have them."""
    names = [index.names[row] for row in range(len(index))]
    plain = [PurePosixPath(name).name for name in names]
    return plain if len(set(plain)) == len(plain) else names


def _rows(detections: DetectionArrays) -> zip[tuple[list[float], float, int, int]]:
    return zip(
        detections.boxes.astype(np.float64).tolist(),
        detections.scores.astype(np.float64).tolist(),
        detections.labels.tolist(),
        detections.image_of_box.tolist(),
        strict=True,
    )


def _numbers(*values: str | float) -> str:
    return " ".join(value if isinstance(value, str) else repr(value) for value in values)


def _write(file: Path, lines: list[str]) -> None:
    write_atomically(file, "".join(f"{line}\n" for line in lines).encode())
