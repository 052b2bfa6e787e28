"""The union test: images on which the objects of all classes are labelled, whatever dataset labels which.

It shows what the datasets' own validation cannot: what a detector finds of a class in the pictures of datasets that
do not label it. `crossdet audit`, the demo and the studies in `research` are judged on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from crossdet.data.drawing import class_colour, draw_boxes
from crossdet.data.formats.format import SplitFiles
from crossdet.data.index import Index
from crossdet.data.picture_files import read_pixels
from crossdet.data.reading import read_split
from crossdet.evaluation.arrays import DetectionArrays, GroundTruth, Ints
from crossdet.evaluation.splits import Split, ground_truth
from crossdet.labels.space import DROPPED

GAP, LINE = 8, 22
"""Pixels between the panels of a comparison, and of the line of text above each."""


@dataclass(frozen=True)
class UnionTest:
    """Fully labelled pictures of several domains, such as cameras.

    truth: in ids of `classes`. domain_of: `[I]` domain of every image. labelled_in: domain -> classes that the
    training data label there.
    """

    index: Index
    truth: GroundTruth
    classes: tuple[str, ...]
    domain_of: NDArray[np.str_]
    labelled_in: Mapping[str, frozenset[str]]


def open_union_test(
    annotations: Path,
    images: Path,
    domain: Callable[[str], str],
    labelled_in: Mapping[str, frozenset[str]],
    classes: Sequence[str] = (),
) -> UnionTest:
    """Reads a COCO file. domain: of an image, by its name. classes: the order of the ids; none: the file's.

    Raises `UserError` where the files cannot be read.
    """
    index = read_split("coco", SplitFiles(annotations=(annotations,), images=(images,)))
    names = tuple(classes or index.classes)
    domains = np.array([domain(index.names[row]) for row in range(len(index))])
    return UnionTest(index, ground_truth(in_classes(index, names)), names, domains, labelled_in)


def in_classes(index: Index, classes: Sequence[str], ids: Mapping[str, int] | None = None) -> Split:
    """The images in a detector's classes; what it does not know is left out. ids: further names of its classes."""
    known = dict(ids or {}) | {name: number for number, name in enumerate(classes)}
    return Split(index, np.array([known.get(name, DROPPED) for name in index.classes], np.int64), tuple(classes))


def of_images(truth: GroundTruth, found: DetectionArrays, rows: Ints) -> tuple[GroundTruth, DetectionArrays]:
    """Truth and detections of some images (`rows`, each at most once), in their order."""
    place = np.full(len(truth.image_ids), -1, np.int64)
    place[rows] = np.arange(len(rows))
    boxes = np.flatnonzero(place[truth.image_of_box] >= 0)
    part = GroundTruth(
        image_ids=truth.image_ids[rows],
        image_of_box=place[truth.image_of_box[boxes]],
        verified=truth.verified and truth.verified.take(rows, len(truth.image_ids)),
        **{name: getattr(truth, name)[boxes] for name in ("boxes", "labels", "crowd", "area")},
    )
    moved = place[found.image_of_box]
    return part, found.take(np.flatnonzero(moved >= 0), moved)


# ------------------------------------------------------------------------------------------- pictures


def compare(
    test: UnionTest,
    row: int,
    title: str,
    found: Sequence[tuple[str, DetectionArrays]],
    score: float,
    factor: float = 1.0,
) -> Image.Image:
    """One picture: all its objects below `title`, and beside it what each detector finds with at least `score`.

    found: (name of the detector, its detections in the test, in ids of `test.classes`). factor: that it is enlarged
    by; below 1 it stays as it is.
    """
    factor = max(1.0, factor)
    picture = Image.fromarray(read_pixels(test.index, row))
    size = (round(picture.width * factor), round(picture.height * factor))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    mine = np.flatnonzero((test.truth.image_of_box == row) & ~test.truth.crowd)
    panels = [_panel(picture, title, test, factor * test.truth.boxes[mine], test.truth.labels[mine], None)]
    for name, one in found:
        mine = np.flatnonzero((one.image_of_box == row) & (one.scores >= score))
        text = f"{name}, score >= {score:g}"
        panels.append(_panel(picture, text, test, factor * one.boxes[mine], one.labels[mine], one.scores[mine]))
    return joined(panels)


def _panel(
    picture: Image.Image,
    title: str,
    test: UnionTest,
    boxes: NDArray[Any],
    labels: NDArray[Any],
    scores: NDArray[Any] | None,
) -> Image.Image:
    """The picture with boxes, below a line of text."""
    texts = [test.classes[label] for label in labels.tolist()]
    if scores is not None:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, scores.tolist(), strict=True)]
    drawn = draw_boxes(picture, boxes.tolist(), texts, [class_colour(label) for label in labels.tolist()])
    panel = Image.new("RGB", (drawn.width, drawn.height + LINE), "white")
    panel.paste(drawn, (0, LINE))
    ImageDraw.Draw(panel).text((4, 3), title, fill="black", font=ImageFont.load_default(14))
    return panel


def joined(parts: Sequence[Image.Image], upright: bool = False) -> Image.Image:
    """Side by side, or one below the other."""
    long = sum(part.height if upright else part.width for part in parts) + GAP * (len(parts) - 1)
    wide = max(part.width if upright else part.height for part in parts)
    sheet = Image.new("RGB", (wide, long) if upright else (long, wide), "white")
    at = 0
    for part in parts:
        sheet.paste(part, (0, at) if upright else (at, 0))
        at += (part.height if upright else part.width) + GAP
    return sheet
