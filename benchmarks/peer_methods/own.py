"""crossdet by a config of ten lines: the data, the backbone, the size of the pictures, the minutes.

Batch, device and loader are those of all methods. There is one evaluation, after the training; it comes on top of
`train.minutes`, and does not count in the seconds that are reported. The newest weights are judged, as
everywhere here.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from crossdet.config import load_config
from crossdet.data.decoding import read_row
from crossdet.inference import Detector, load_detector

from .job import MOST, SCORE, Job, Training
from .sets import Found, Photographs, section


def config_of(job: Job) -> dict[str, Any]:
    """The config as it stands in the YAML file."""
    settings = job.settings
    return {
        "datasets": {job.set: section(job.set, Path(settings.data))},
        "model": {"backbone": "mobilenetv2_100", "weights": settings.weights or "none"},
        "input": {"shorter": settings.size, "longer": settings.size},
        "train": {
            "recipe": "auto",
            "minutes": settings.minutes,
            "batch_size": settings.batch,
            "workers": settings.workers,
            "accelerator": settings.device,
            "eval_every": 0,
        },
        "seed": settings.seed,
    }


def train(job: Job) -> tuple[Training, Detector]:
    from crossdet.runs import train as verb

    folder = Path(job.folder)
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config_of(job), sort_keys=False))
    config = load_config(file, list(job.settings.given))
    spent = {"fit": 0.0, "score": 0.0}
    # not an interface: the verb's own two parts are timed where it calls them
    verb.fit = _timed(verb.fit, spent, "fit")
    verb.score_network = _timed(verb.score_network, spent, "score")
    record = verb.train(config, folder / "run")
    with (folder / "run/steps.csv").open(newline="") as lines:
        losses = [float(row["loss"]) for row in csv.DictReader(lines)]
    start = "imagenet" if job.settings.weights else "random"
    steps = int(record["step"])
    seconds = spent["fit"] - spent["score"]
    detector = load_detector(folder / "run", job.settings.device, last=True)
    about = {
        "parameters": sum(p.numel() for p in detector.model.parameters()),
        "evaluation_seconds": round(spent["score"], 3),
    }
    return Training(seconds, steps, steps * job.settings.batch, losses, start, about), detector


def _timed(function: Callable[..., Any], spent: dict[str, float], name: str) -> Callable[..., Any]:
    def timed(*args: Any, **options: Any) -> Any:
        begun = time.monotonic()
        try:
            return function(*args, **options)
        finally:
            spent[name] += time.monotonic() - begun

    return timed


def detect(detector: Detector, photographs: Photographs, batch: int) -> Found:
    found, index = Found(), photographs.val
    for start in range(0, len(index), batch):
        rows = range(start, min(start + batch, len(index)))
        answers = detector.batch([read_row(index, row) for row in rows], None, SCORE, max_detections=MOST)
        for row, answer in zip(rows, answers, strict=True):
            found.add(row, answer.boxes, answer.scores, answer.labels)
    return found


def run(job: Job, photographs: Photographs) -> tuple[Training, Any]:
    training, detector = train(job)
    return training, lambda: detect(detector, photographs, job.settings.batch)
