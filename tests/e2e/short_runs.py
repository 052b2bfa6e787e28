"""Short trainings on the tiny world."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossdet import train
from crossdet.models.weights import load_weights

STEPS_PER_EPOCH = 6


def run(world, folder: Path, changes: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    return train(world.config({"train.max_steps": 3, **(changes or {})}), output=folder, **options)


def weights(folder: Path, name: str = "model.safetensors") -> dict[str, Tensor]:
    return load_weights(folder / name)[0]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steps(folder: Path) -> list[dict[str, str]]:
    with (folder / "steps.csv").open(newline="") as file:
        return list(csv.DictReader(file))
