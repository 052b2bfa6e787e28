"""Pictures of what a detector finds in validation images, beside what is labelled there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from crossdet.data.decoding import UnreadableImage, read_image
from crossdet.data.index import Index
from crossdet.inference import Detector
from crossdet.labels import LabelSpace
from crossdet.pictures import class_colour, draw_boxes
from crossdet.types import REGION_FLAGS, Detections

PER_DATASET = 8


def write_val_pictures(
    detector: Detector, space: LabelSpace, val: dict[str, Index], folder: Path
) -> list[Path]:
    """For some images of every validation split: labelled boxes on the left, detections of all classes right.

    The images are spread evenly over the split. Unreadable ones are left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, index in val.items():
        class_ids = space.ids(name, index.classes)
        for image in np.linspace(0, len(index) - 1, min(PER_DATASET, len(index))).astype(int).tolist():
            size = (int(index.sizes[image, 0]), int(index.sizes[image, 1]))
            try:
                pixels = read_image(index.path(image), size)
            except UnreadableImage:
                continue
            picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            pair = [
                _labelled(picture, index, image, class_ids, space.classes),
                draw_detections(picture, detector(pixels)),
            ]
            sheet = Image.new("RGB", (2 * picture.width + 6, picture.height), "white")
            for column, part in enumerate(pair):
                sheet.paste(part, (column * (picture.width + 6), 0))
            files.append(folder / f"{name}_{image:06d}.jpg")
            sheet.save(files[-1], quality=90)
    return files


def _labelled(
    picture: Image.Image, index: Index, image: int, class_ids: np.ndarray, classes: tuple[str, ...]
) -> Image.Image:
    rows = index.rows(image)
    labels = [int(class_ids[label]) if label >= 0 else -1 for label in index.labels[rows].tolist()]
    return draw_boxes(
        picture,
        [(x1, y1, x2, y2) for x1, y1, x2, y2 in index.boxes[rows].tolist()],
        [classes[label] if label >= 0 else "" for label in labels],
        [class_colour(label) for label in labels],
        [bool(flags & REGION_FLAGS) for flags in index.flags[rows].tolist()],
    )


def draw_detections(image: Image.Image, found: Detections) -> Image.Image:
    """A copy of the picture with boxes, class names and scores."""
    names = found.names or [str(label) for label in found.labels.tolist()]
    return draw_boxes(
        image,
        [(x1, y1, x2, y2) for x1, y1, x2, y2 in found.boxes.tolist()],
        [f"{name} {score:.2f}" for name, score in zip(names, found.scores.tolist(), strict=True)],
        [class_colour(label) for label in found.labels.tolist()],
    )
