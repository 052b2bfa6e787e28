"""WIDER Pedestrian ground truth, editions 2018 and 2019, ignore regions, and submissions.

A submission has one detection per line, `name score x y w h`, top-left corner and size in pixels, no class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from crossdet.data.annotation_files import raise_if_any
from crossdet.data.formats.wider_pedestrian import NUMBERS_PER_BOX, Line, read_box_lines, read_ignore_lines
from crossdet.evaluation.arrays import Bools, DetectionArrays, GroundTruth, PedestrianTruth
from crossdet.evaluation.files.lines import line_of, read_detection_lines, rows_of, write_lines
from crossdet.evaluation.splits import Split

LAYOUT = "name score x y w h"


@dataclass(frozen=True)
class PedestrianFiles:
    """truth: boxes as they stand. images: names of its rows. cyclist: `[M]`, all false in 2019.

    outside: ignore regions of images that the annotations do not have; left out.
    """

    truth: PedestrianTruth
    images: tuple[str, ...]
    cyclist: Bools
    edition: int
    outside: int


def read_pedestrian_truth(
    annotations: Path, ignore: Path | None = None, edition: int | None = None
) -> PedestrianFiles:
    """Reads boxes and, with `ignore`, ignore regions. edition: 2018 or 2019, None = the layout of the file.

    Raises `AnnotationError` with every malformed line.
    """
    lines, year = read_box_lines(annotations, edition)
    regions = read_ignore_lines(ignore) if ignore is not None else []
    _raise_if_not_finite(annotations, lines)
    if ignore is not None:
        _raise_if_not_finite(ignore, regions)
    row_of = {line.name: row for row, line in enumerate(lines)}
    known = [line for line in regions if line.name in row_of]
    boxes, image_of_box = _boxes(lines, NUMBERS_PER_BOX[year], row_of)
    areas, image_of_region = _boxes(known, 4, row_of)
    truth = PedestrianTruth(len(lines), boxes[:, -4:], image_of_box, areas, image_of_region)
    cyclist = boxes[:, 0] == 2 if year == 2018 else np.zeros(len(boxes), bool)
    outside = sum(len(line.numbers) // 4 for line in regions) - len(areas)
    return PedestrianFiles(truth, tuple(row_of), cyclist, year, outside)


def _boxes(
    lines: Sequence[Line], step: int, row_of: dict[str, int]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """`[M, step]` numbers of the boxes and `[M]` their image rows."""
    numbers = np.array([v for line in lines for v in line.numbers], np.float64).reshape(-1, step)
    counts = [len(line.numbers) // step for line in lines]
    return numbers, np.repeat(np.array([row_of[line.name] for line in lines], np.int64), counts)


def _raise_if_not_finite(file: Path, lines: Sequence[Line]) -> None:
    bad = [line for line in lines if not np.isfinite(line.numbers).all()]
    raise_if_any(file, [f"{line.place}: a coordinate of {line.name!r} is no finite number" for line in bad])


def read_submission(file: Path, annotations: Path, images: Sequence[str]) -> DetectionArrays:
    """Reads detections, boxes x, y, w, h. images: names as the annotations have them.

    Raises `AnnotationError` with every malformed line and every image that the annotations do not have.
    """
    row_of = {name: row for row, name in enumerate(images)}
    rows, numbers = read_detection_lines(file, row_of, LAYOUT, str(annotations))
    return DetectionArrays(numbers[:, 1:], numbers[:, 0], np.zeros(len(rows), np.int64), rows)


def coco_style(files: PedestrianFiles, ignore_cyclists: bool) -> GroundTruth:
    """The same as one class, 0, for the COCO protocol, boxes x, y, w, h (`sized`).

    Ignore regions are crowd boxes, area is width * height.

    ignore_cyclists: cyclists are crowd boxes, too; otherwise they are pedestrians.
    """
    truth = files.truth
    boxes = np.concatenate([truth.boxes, truth.regions])
    ignored = files.cyclist if ignore_cyclists else np.zeros(len(truth.boxes), bool)
    return GroundTruth(
        image_ids=np.arange(truth.images),
        boxes=boxes,
        labels=np.zeros(len(boxes), np.int64),
        crowd=np.concatenate([ignored, np.ones(len(truth.regions), bool)]),
        area=boxes[:, 2] * boxes[:, 3],
        image_of_box=np.concatenate([truth.image_of_box, truth.image_of_region]),
    )


def write_submission(folder: Path, split: Split, detections: DetectionArrays) -> None:
    """`submission.txt`, with file names without folders where these are unique, as the annotations have them."""
    names = [split.index.names[row] for row in range(len(split.index))]
    plain = [PurePosixPath(name).name for name in names]
    if len(set(plain)) == len(plain):
        names = plain
    lines = [
        line_of(names[image], score, x1, y1, x2 - x1, y2 - y1)
        for (x1, y1, x2, y2), score, _, image in rows_of(detections)
    ]
    write_lines(folder / "submission.txt", lines)
