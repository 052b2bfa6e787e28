"""The sets of photographs: where their files are, and the judge of all methods."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import Tensor

from crossdet.config.schema import config_type
from crossdet.config.sources import open_sources
from crossdet.data.formats.yolo import write_yolo
from crossdet.data.index import Index
from crossdet.evaluation.arrays import DetectionArrays, GroundTruth
from crossdet.evaluation.protocols.coco import coco_scores
from crossdet.evaluation.splits import ground_truth
from crossdet.runs.evaluate import splits_for_training
from crossdet.types import REGION_FLAGS, Flag

from .job import MOST, SCORE


def _coco(images: str, annotations: str) -> dict[str, Any]:
    """{split} stands for the split's name."""
    split = {
        name: {"images": images.format(split=name), "annotations": annotations.format(split=name)}
        for name in ("train", "val")
    }
    return {"format": "coco", **split}


def _voc() -> dict[str, Any]:
    files = {"images": "JPEGImages", "annotations": "Annotations"}
    return {"format": "voc", **{name: {**files, "image_set": name} for name in ("train", "val")}}


_DETECTION_FILES = "annotations/instances_{split}.json"
SETS: dict[str, dict[str, Any]] = {
    "bccd": _voc(),
    "aquarium": _coco("images/{split}", _DETECTION_FILES),
    "dice": {"format": "yolo", "train": {"annotations": "data.yaml"}, "val": {"annotations": "data.yaml"}},
    "playing_cards": _coco("images/{split}", _DETECTION_FILES),
    "voc_animals": _voc(),
    "site_safety": _coco(".", "{split}_merged.json"),
}
"""Set -> its section of a crossdet config; files are relative to the set's folder."""


def section(name: str, data: Path) -> dict[str, Any]:
    """`datasets.NAME` of a config, with files below `data`."""
    found: dict[str, Any] = {"format": SETS[name]["format"]}
    for split in ("train", "val"):
        files = SETS[name][split]
        found[split] = {k: v if k == "image_set" else str(data / name / v) for k, v in files.items()}
    return found


@dataclass(frozen=True)
class Photographs:
    """A set with all its labels. Labels in both indexes are positions in `classes`."""

    name: str
    classes: tuple[str, ...]
    train: Index
    val: Index
    truth: GroundTruth

    def score(self, found: DetectionArrays) -> dict[str, Any]:
        """AP and AP50 in 0..1 by the COCO protocol, also per class."""
        scores = coco_scores(self.truth, found, range(len(self.classes)), MOST)
        per_class = {self.classes[c]: numbers for c, numbers in scores.per_class.items()}
        return {"AP": scores.scores["AP"], "AP50": scores.scores["AP50"], "per_class": per_class}


def open_set(name: str, data: Path) -> Photographs:
    """Raises `UserError` for files that are missing or wrong."""
    content = {"datasets": {name: section(name, data)}}
    sources = open_sources(config_type(content).model_validate(content))
    train, val, classes = sources.train[name], sources.val[name], sources.space.classes
    split = splits_for_training(sources)[name]
    # methods number classes by the training index, the judge by the label space
    if not train.classes == val.classes == classes or split.class_ids.tolist() != list(range(len(classes))):
        raise ValueError(f"{name}: its splits number their classes differently")
    return Photographs(name, classes, train, val, ground_truth(split))


def objects(index: Index, row: int) -> np.ndarray:
    """Rows of the picture's boxes that are objects to learn: neither regions nor invalid."""
    rows = np.arange(index.rows(row).start, index.rows(row).stop)
    return rows[(index.flags[rows] & (REGION_FLAGS | Flag.INVALID)) == 0]


def write_yolo_set(photographs: Photographs, folder: Path) -> Path:
    """The set as Ultralytics reads it, pictures as links; returns its data.yaml."""
    for split in ("train", "val"):
        index: Index = getattr(photographs, split)
        numbered = replace(index, category_ids=np.arange(len(index.classes)))  # without the gaps of COCO's ids
        write_yolo(numbered, folder, split)
        for row in range(len(index)):
            link = folder / "images" / split / index.names[row]
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(index.path(row).resolve())
    file = folder / "data.yaml"
    content = yaml.safe_load(file.read_text())
    content["path"] = str(folder.absolute())  # Ultralytics looks for a relative one in a folder of its own
    file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return file


class Found:
    """Collects the detections of a split, picture by picture."""

    def __init__(self) -> None:
        self.rows: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, image: int, boxes: Tensor, scores: Tensor, labels: Tensor) -> None:
        """boxes: `[N, 4]` xyxy in pixels of the picture as stored. image: its row in the index."""
        order = scores.argsort(descending=True)[:MOST]
        order = order[scores[order] > SCORE].cpu()
        columns = [column.detach().cpu()[order].double().numpy() for column in (boxes, scores)]
        classes = labels.detach().cpu()[order].long().numpy()
        self.rows.append((*columns, classes, np.full(len(order), image)))

    def arrays(self) -> DetectionArrays:
        if not self.rows:
            return DetectionArrays(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
        return DetectionArrays(*(np.concatenate(columns) for columns in zip(*self.rows, strict=True)))
