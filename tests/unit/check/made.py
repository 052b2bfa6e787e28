"""Tiny data sets to inspect, and what a person reads of the report."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from crossdet.check import print_report
from crossdet.config import Config
from crossdet.data.index import Index, IndexBuilder

Rows = list[tuple[int, tuple[float, float, float, float], int]]


BOX = (10, 10, 40, 40)


def make(root: Path, classes: tuple[str, ...], images: list[Rows], seed: int = 0, **federated) -> Index:
    """An index and its image files of random pixels, 64 x 48, named 0.png, 1.png, ...

    images: per image its boxes as (label, xyxy, flags). federated: `negatives` and `not_exhaustive` per image.
    """
    rng = np.random.default_rng(seed)
    builder = IndexBuilder(root)
    root.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(images):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(root / f"{number}.png")
        builder.image(f"{number}.png", 48, 64, **{key: lists[number] for key, lists in federated.items()})
        for label, xyxy, flags in rows:
            builder.box(xyxy, label, flags)
    return builder.build(classes, federated=bool(federated))


def one_box(count: int, label: int = 0) -> list[Rows]:
    return [[(label, BOX, 0)] for _ in range(count)]


def configured(datasets: dict, **sections) -> Config:
    return Config.from_dict({"datasets": datasets, "input": {"shorter": 48, "longer": 80}, **sections})


def printed(report, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    print_report(report, console)
    return console.file.getvalue()
