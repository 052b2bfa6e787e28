"""Pictures of what a detector finds in validation images, beside what is labelled there."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from crossdet.data.decoding import UnreadableImage, read_row
from crossdet.data.drawing import class_colour, draw_boxes, draw_detections
from crossdet.data.index import Index
from crossdet.files import safe_names, writing
from crossdet.inference import Detector
from crossdet.labels.space import LabelSpace
from crossdet.types import REGION_FLAGS

PER_DATASET = 8
GAP, TITLE = 6, 22


def write_val_pictures(detector: Detector, space: LabelSpace, val: dict[str, Index], folder: Path) -> list[Path]:
    """For some images of every validation split: labelled boxes on the left, detections of all classes right.

    The images are spread evenly over the split. Unreadable ones are left out. The folder is there when all of them
    are, and takes the place of an earlier one.
    """
    files: list[Path] = []
    began = folder.with_name(f".{folder.name}")
    shutil.rmtree(began, ignore_errors=True)
    for (name, index), plain in zip(val.items(), safe_names(list(val)), strict=True):
        class_ids = space.ids(name, index.classes)
        for image in np.linspace(0, len(index) - 1, min(PER_DATASET, len(index))).astype(int).tolist():
            picture = read_picture(index, image)
            if picture is None:
                continue
            pair = [
                draw_labels(picture, index, image, class_ids, space.classes),
                draw_detections(picture, detector(picture)),
            ]
            sheet = side_by_side(pair)
            files.append(folder / f"{plain}_{image:06d}.jpg")
            with writing(files[-1], "weights and numbers are kept, and --resume draws once there is room"):
                began.mkdir(parents=True, exist_ok=True)
                sheet.save(began / files[-1].name, quality=90)
    with writing(folder, f"weights and numbers are kept, and the pictures are in {began}"):
        began.mkdir(parents=True, exist_ok=True)
        if folder.is_symlink():
            folder.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        began.rename(folder)
    return files


def draw_by_dataset(
    detector: Detector, val: dict[str, Index], columns: int, score: float | None = None, height: int = 320
) -> Image.Image:
    """A sheet with a row of pictures per dataset and the detections of *all* classes drawn (paper, fig. 6).

    columns: pictures per dataset, evenly spread over the split; unreadable ones are replaced by the next. score:
    one threshold for all classes; None = each class's own. height: of a row in pixels.
    """
    rows = []
    for name, index in val.items():
        panels: list[Image.Image] = []
        for start in np.linspace(0, len(index), min(columns, len(index)), endpoint=False).astype(int).tolist():
            picture = next(filter(None, (read_picture(index, row) for row in range(start, len(index)))), None)
            if picture is None:
                continue
            found = draw_detections(picture, detector(picture, score_threshold=score))
            width = max(1, round(found.width * height / found.height))
            panels.append(found.resize((width, height), Image.Resampling.LANCZOS))
        rows.append((name, panels))
    width = max([1, *(sum(p.width + GAP for p in panels) for _, panels in rows)])
    sheet = Image.new("RGB", (width, len(rows) * (height + TITLE)), "white")
    for line, (name, panels) in enumerate(rows):
        top, left = line * (height + TITLE), 0
        ImageDraw.Draw(sheet).text((2, top + 3), name, fill="black", font=ImageFont.load_default(14))
        for panel in panels:
            sheet.paste(panel, (left, top + TITLE))
            left += panel.width + GAP
    return sheet


def read_picture(index: Index, image: int) -> Image.Image | None:
    """None where it cannot be read."""
    try:
        return Image.fromarray(read_row(index, image).permute(1, 2, 0).numpy())
    except UnreadableImage:
        return None


def draw_labels(
    picture: Image.Image, index: Index, image: int, class_ids: np.ndarray, classes: tuple[str, ...]
) -> Image.Image:
    """A copy of the picture with its labelled boxes; class_ids: `[K]` of the classes of the index."""
    rows = index.rows(image)
    labels = [int(class_ids[label]) if label >= 0 else -1 for label in index.labels[rows].tolist()]
    return draw_boxes(
        picture,
        [(x1, y1, x2, y2) for x1, y1, x2, y2 in index.boxes[rows].tolist()],
        [classes[label] if label >= 0 else "" for label in labels],
        [class_colour(label) for label in labels],
        [bool(flags & REGION_FLAGS) for flags in index.flags[rows].tolist()],
    )


def side_by_side(pair: Sequence[Image.Image]) -> Image.Image:
    """Two pictures of one size in one."""
    sheet = Image.new("RGB", (2 * pair[0].width + GAP, pair[0].height), "white")
    for column, part in enumerate(pair):
        sheet.paste(part, (column * (pair[0].width + GAP), 0))
    return sheet
