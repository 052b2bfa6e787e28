"""A world for tests: grey pictures with red cars and yellow faces, half of them labelled by each of two datasets.

Every picture shows both classes; `cars` (COCO layout) labels the cars only, `faces` (WIDER FACE layout) the
faces only. A network of 0.1 million parameters learns it in seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from crossdet.config import Config, load_config
from crossdet.data.formats.coco import write_coco
from crossdet.data.formats.wider_face import write_wider_face
from crossdet.data.index import Index, IndexBuilder

WIDTH, HEIGHT = 64, 48
CAR, FACE = (200, 40, 40), (230, 220, 60)
TRAIN, VAL = 12, 5
"""Pictures per dataset."""
BACKBONE = "test_efficientnet"
"""timm's own test model: 82,000 parameters, 7 ms forward and backward for 4 pictures of 96x64 on one core."""


@dataclass(frozen=True)
class World:
    """Where the generated datasets lie, and their splits as they were written."""

    root: Path
    cars: dict[str, Index]
    faces: dict[str, Index]

    def settings(self) -> dict[str, Any]:
        """A config as plain values: two datasets, tiny network, 6 steps per epoch."""
        return {
            "datasets": {
                "cars": {
                    "format": "coco",
                    **{
                        split: {
                            "images": str(self.root / "cars"),
                            "annotations": str(self.root / f"cars_{split}.json"),
                        }
                        for split in ("train", "val")
                    },
                },
                "faces": {
                    "format": "wider_face",
                    **{
                        split: {
                            "images": str(self.root / "faces"),
                            "annotations": str(self.root / f"faces_{split}.txt"),
                        }
                        for split in ("train", "val")
                    },
                },
            },
            "model": {
                "backbone": BACKBONE,
                "weights": "none",
                "channels": 16,
                "head_depth": 1,
                "anchors": {"scales": [2, 3], "ratios": [0.6, 1]},
            },
            "input": {"shorter": 64, "longer": 96},
            "train": {
                "recipe": "paper",
                "epochs": 2,
                "batch_size": 4,
                "lr": 0.02,
                "warmup_epochs": 0.5,
                "steps": [100.0],
                "workers": 0,
                "log_every": 1,
                "accelerator": "cpu",
            },
            "eval": {"batch_size": 4},
        }

    def config(self, changes: dict[str, Any] | None = None) -> Config:
        """`settings` with changes: dotted key -> value."""
        return Config.from_dict(changed(self.settings(), changes or {}))

    def write_config(self, path: Path, changes: dict[str, Any] | None = None) -> Path:
        path.write_text(yaml.safe_dump(changed(self.settings(), changes or {}), sort_keys=False))
        load_config(path)
        return path


def changed(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`settings` with dotted keys set, or deleted where the value is None."""
    for key, value in changes.items():
        *path, last = key.split(".")
        level = settings
        for part in path:
            level = level.setdefault(part, {})
        if value is None:
            level.pop(last, None)
        else:
            level[last] = value
    return settings


def make_world(root: Path) -> World:
    rng = np.random.default_rng(7)
    cars = {
        split: draw_split(rng, root / "cars", [f"{split}_{i}.png" for i in range(count)], "car")
        for split, count in (("train", TRAIN), ("val", VAL))
    }
    faces = {
        split: draw_split(rng, root / "faces", [f"0--Parade/{split}_{i}.png" for i in range(count)], "face")
        for split, count in (("train", TRAIN), ("val", VAL))
    }
    for split in ("train", "val"):
        write_coco(cars[split], root / f"cars_{split}.json")
        write_wider_face(faces[split], root / f"faces_{split}.txt")
    return World(root, cars, faces)


def draw_split(rng: np.random.Generator, folder: Path, names: list[str], labelled: str) -> Index:
    """Draws and saves pictures that show a car and a face each; the index knows the `labelled` class alone."""
    builder = IndexBuilder(folder)
    for number, name in enumerate(names, 1):
        pixels = rng.integers(90, 130, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        builder.image(name, HEIGHT, WIDTH, image_id=number)
        left = rng.permutation(["car", "face"]).tolist()  # one in each half, so that they do not overlap
        for side, kind in enumerate(left):
            width, height = (24, 14) if kind == "car" else (16, 16)
            x = int(rng.integers(0, WIDTH // 2 - width + 1)) + side * WIDTH // 2
            y = int(rng.integers(0, HEIGHT - height + 1))
            pixels[y : y + height, x : x + width] = CAR if kind == "car" else FACE
            if kind == labelled:
                builder.box((x, y, x + width, y + height), 0)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return builder.build([labelled], [3] if labelled == "car" else [0])


def crossdet(*arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", "from crossdet.commands.main import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=folder,
        env=one_thread(),
    )


def one_thread() -> dict[str, str]:
    """Environment in which torch uses one thread: tests run side by side, and sums keep their order."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def picture(world: World, number: int = 0, dataset: str = "cars") -> Path:
    index: Index = getattr(world, dataset)["val"]
    return index.path(number)
