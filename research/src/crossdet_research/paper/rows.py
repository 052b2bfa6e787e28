"""The paper's experiments, read from `paper.yaml`: datasets, trainings, tables 1-6 and figure 5, contradictions.

A *training* is what is trained; a *row* of a table points at a training and holds the numbers that the paper prints
for it, in percent. Several rows share a training: table 1's COCO+FACE is table 3's F+C.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Dataset:
    """key: its name in the configs. images: training images of the official download. full, mini, photos: the
    dataset's section of the config at each scale, all paths below the data folder. `mini` is generated; `photos`
    replaces it in table 5 where these folders exist."""

    key: str
    title: str
    images: int
    full: Mapping[str, Any]
    mini: Mapping[str, Any]
    photos: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Anchors:
    """Aspect ratios (height / width) and scales (in strides)."""

    ratios: tuple[float, ...]
    scales: tuple[float, ...]


@dataclass(frozen=True)
class Training:
    """merge: equal classes under other names (person and pedestrian, VOC's 20 in COCO) become one class."""

    name: str
    datasets: tuple[str, ...]
    backbone: str
    anchors: Anchors
    merge: bool = True


@dataclass(frozen=True)
class Row:
    """table: "1" to "6" or "fig5". values: evaluated dataset -> metric as the paper calls it -> percent. None: the
    paper shows the result as a curve only. scales: as printed, where that is not the training's. notes: keys of
    `CONTRADICTIONS`."""

    table: str
    training: str
    values: Mapping[str, Mapping[str, float | None]]
    notes: tuple[int, ...] = ()
    scales: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        """`t3/coco_face_resnet50`, `fig5/...`."""
        return f"{short(self.table)}/{self.training}"


@dataclass(frozen=True)
class Contradiction:
    """Where the paper contradicts itself or leaves something open, and what is run here."""

    problem: str
    reading: str


def short(table: str) -> str:
    return f"t{table}" if table.isdigit() else table


def _row(given: Mapping[str, Any]) -> Row:
    values = {
        name: dict(zip(keys, given[name], strict=False)) for name, keys in RECORD_KEYS.items() if name in given
    }
    scales = given.get("scales")
    notes = tuple(given.get("notes", ()))
    return Row(given["table"], given["training"], values, notes, None if scales is None else tuple(scales))


def _training(name: str, given: Mapping[str, Any]) -> Training:
    anchors = Anchors(**{key: tuple(values) for key, values in _PAPER["anchors"][given["anchors"]].items()})
    return Training(name, tuple(given["datasets"]), given["backbone"], anchors, given.get("merge", True))


_PAPER = yaml.safe_load((Path(__file__).parent / "paper.yaml").read_text())

VOC_CLASSES: tuple[str, ...] = tuple(_PAPER["voc_classes"])
COCO_NAMES: dict[str, str] = _PAPER["coco_names"]
"""COCO's names of the VOC classes that are called otherwise there."""
GENERATED_VOC_CLASSES: tuple[str, ...] = tuple(_PAPER["generated_voc_classes"])
DATASETS = {name: Dataset(**given) for name, given in _PAPER["datasets"].items()}
BACKBONES: dict[str, str] = _PAPER["backbones"]
FULL: dict[str, dict[str, Any]] = _PAPER["full"]
"""The paper's recipe; what it leaves open has the config's defaults."""
MINI: dict[str, dict[str, Any]] = _PAPER["mini"]
"""The demo's recipe."""
MINI_BACKBONES: dict[str, str] = _PAPER["mini_backbones"]
MINI_STEPS = 675
"""Optimiser steps of every mini training, whatever it is trained on: 5,400 draws in batches of 8."""
MINI_WARMUP, MINI_FALLS = 1 / 12, (3 / 4, 11 / 12)
"""As shares of the steps: the end of the warm-up, and where the learning rate falls to a tenth."""
MINI_IMAGES = 300
"""Generated training images per dataset; half as many for validation."""
RECORD_KEYS: dict[str, dict[str, list[str]]] = _PAPER["metrics"]
"""Where the record of a dataset holds the paper's metric."""
TITLES: dict[str, str] = {name: table["title"] for name, table in _PAPER["tables"].items()}
DATASETS_ORDER: dict[str, list[str]] = {name: table["datasets"] for name, table in _PAPER["tables"].items()}
"""Table -> evaluated datasets, in the order of the columns."""
TRAININGS = {name: _training(name, given) for name, given in _PAPER["trainings"].items()}
ROWS = tuple(map(_row, _PAPER["rows"]))
CONTRADICTIONS = {number: Contradiction(**given) for number, given in _PAPER["contradictions"].items()}
