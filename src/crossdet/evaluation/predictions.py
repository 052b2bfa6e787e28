"""Detections of a split in the layout that its community exchanges, ready for `crossdet score` and other tools."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np

from crossdet.data.index import Index
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.protocols import Split
from crossdet.jsonfiles import write_atomically


def write_predictions(folder: Path, split: Split, detections: DetectionArrays, protocol: str) -> None:
    """Writes the detections of a split, boxes in pixels, nothing rounded.

    coco, lvis: `results.json`, the format's own image and category ids. voc: `CLASS.txt`, 1-based inclusive
    corners. wider_face: `EVENT/IMAGE.txt`. wider_pedestrian: `submission.txt`, without classes. Classes carry the
    dataset's own names; of several that are merged into one the first.
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
    for label, found in lines.items():
        _write(folder / f"{split.index.classes[source[label]]}.txt", found)


def _wider_face(folder: Path, split: Split, detections: DetectionArrays) -> None:
    lines: dict[int, list[str]] = defaultdict(list)
    for (x1, y1, x2, y2), score, _, image in _rows(detections):
        lines[image].append(_numbers(x1, y1, x2 - x1, y2 - y1, score))
    for image in range(len(split.index)):
        name = PurePosixPath(split.index.names[image])
        found = lines[image]
        _write(folder / name.parent.name / f"{name.stem}.txt", [name.stem, str(len(found)), *found])


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
