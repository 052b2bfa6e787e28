"""One training in a process of its own: `python -m peer_methods.worker JOB.json RESULT.json`."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from crossdet.data.decoding import read_row
from crossdet.data.drawing import class_colour, draw_boxes
from crossdet.evaluation.arrays import DetectionArrays

from .job import Job, read_job
from .sets import Photographs, open_set

METHODS = {
    "crossdet": "own",
    "retinanet": "torchvision_models",
    "fcos": "torchvision_models",
    "yolo": "ultralytics_yolo",
    "dfine": "dfine",
    "dfine_fast": "dfine",
}
"""Method -> module of this package; its `run(job, photographs)` trains and returns how, and what detects then."""
PACKAGES = ("torch", "torchvision", "timm", "ultralytics", "transformers", "albumentations")


def peak_memory_mb(device: str) -> dict[str, float]:
    """Of this process alone; `resource` would count the memory of the process that started it, too."""
    status = Path("/proc/self/status")
    found = {}
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        found["peak_memory_mb"] = round(int(line.split()[1]) / 1024)
    if device != "cpu":
        found["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return found


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def measure(job: Job) -> dict[str, Any]:
    """Trains, detects, judges."""
    settings = job.settings
    torch.set_num_threads(settings.threads)
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    photographs = open_set(job.set, Path(settings.data))
    method = importlib.import_module(f".{METHODS[job.method]}", __package__)
    training, find = method.run(job, photographs)
    memory = peak_memory_mb(settings.device)
    found = find().arrays()
    draw(photographs, found, Path(job.folder) / "pictures")
    threads = torch.get_num_threads()
    about = {"threads_in_use": threads, "detections": len(found.scores), "versions": versions()}
    return {**photographs.score(found), **training.record(), **memory, **about}


def draw(photographs: Photographs, found: DetectionArrays, folder: Path, pictures: int = 3, most: int = 30) -> None:
    """The first validation pictures with as many of the best detections as they have objects, at most `most`."""
    folder.mkdir(parents=True, exist_ok=True)
    index = photographs.val
    for image in range(min(pictures, len(index))):
        objects = index.rows(image).stop - index.rows(image).start
        rows = np.flatnonzero(found.image_of_box == image)
        rows = rows[np.argsort(-found.scores[rows])][: min(most, objects)]
        picture = Image.fromarray(read_row(index, image).permute(1, 2, 0).numpy())
        labels = found.labels[rows].tolist()
        texts = [f"{photographs.classes[c]} {s:.2f}" for c, s in zip(labels, found.scores[rows], strict=True)]
        colours = [class_colour(c) for c in labels]
        draw_boxes(picture, found.boxes[rows].tolist(), texts, colours).save(folder / f"{image}.png")


def main() -> None:
    job, result = read_job(Path(sys.argv[1])), Path(sys.argv[2])
    result.write_text(json.dumps(measure(job)))


if __name__ == "__main__":
    main()
