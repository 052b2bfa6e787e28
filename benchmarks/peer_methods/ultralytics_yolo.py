"""Ultralytics' newest nano YOLO from its own .yaml, by its own trainer and defaults, with `time=` as the budget.

Theirs: everything, down to the optimiser that `auto` chooses, mosaic, EMA (the weights at the end are averages) and
the update after 64 pictures. The clock runs from the trainer's start of training to the end of the last epoch.
Ours: no ImageNet weights (its backbone has none that are no detector's), no validation during the training and no
choice of the best epoch by it, float32 as all others, and its threads: by itself it leaves a core free.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

from crossdet.data.index import Index

from .job import MOST, SCORE, Job, Training
from .sets import Found, Photographs, write_yolo_set

MODEL = "yolo26n.yaml"


def train(job: Job, photographs: Photographs) -> tuple[Training, Any]:
    folder = Path(job.folder)
    os.environ["YOLO_CONFIG_DIR"] = str(folder)  # read when ultralytics is imported
    os.environ["YOLO_OFFLINE"] = "true"
    from ultralytics import YOLO

    settings = job.settings
    data = write_yolo_set(photographs, folder / "data")
    seen: dict[str, Any] = {"losses": [], "pictures": 0}

    def on_start(_: Any) -> None:
        torch.set_num_threads(settings.threads)
        seen["begun"] = time.monotonic()

    def on_batch(trainer: Any) -> None:
        seen["losses"].append(float(trainer.loss.detach()) / settings.batch)
        if time.monotonic() - seen["begun"] > 60 * settings.minutes:
            trainer.stop = True  # by itself it looks at the clock at its updates only, every 64 pictures

    def on_epoch_end(trainer: Any) -> None:
        seen["ended"], seen["epochs"] = time.monotonic(), trainer.epoch + 1
        seen["optimiser"] = type(trainer.optimizer).__name__

    def on_start_of_batch(_: Any) -> None:
        seen["pictures"] += settings.batch

    model = YOLO(MODEL)
    model.add_callback("on_train_start", on_start)
    model.add_callback("on_train_batch_start", on_start_of_batch)
    model.add_callback("on_train_batch_end", on_batch)
    model.add_callback("on_train_epoch_end", on_epoch_end)
    model.train(
        data=str(data),
        time=settings.minutes / 60,
        imgsz=settings.size,
        batch=settings.batch,
        workers=settings.workers,
        device=settings.device.replace("cuda", "0"),
        seed=settings.seed,
        pretrained=False,
        val=False,
        amp=False,
        plots=False,
        project=str(folder),
        name="run",
    )
    about = {"epochs": seen["epochs"], "optimiser": seen["optimiser"], "model": MODEL}
    steps = seen["pictures"] // settings.batch
    seconds = seen["ended"] - seen["begun"]
    training = Training(seconds, steps, seen["pictures"], seen["losses"], "random", about)
    trained = YOLO(str(folder / "run/weights/last.pt"))
    training.about["parameters"] = sum(p.numel() for p in trained.model.parameters())
    return training, trained


def detect(model: Any, index: Index, size: int, batch: int, device: str) -> Found:
    found = Found()
    for start in range(0, len(index), batch):
        rows = range(start, min(start + batch, len(index)))
        files = [str(index.path(row)) for row in rows]
        options = {"imgsz": size, "conf": SCORE, "max_det": MOST, "batch": batch, "verbose": False}
        answers = model.predict(files, device=device.replace("cuda", "0"), **options)
        for row, answer in zip(rows, answers, strict=True):
            found.add(row, answer.boxes.xyxy, answer.boxes.conf, answer.boxes.cls)
    return found


def run(job: Job, photographs: Photographs) -> tuple[Training, Any]:
    settings = job.settings
    training, model = train(job, photographs)
    return training, lambda: detect(model, photographs.val, settings.size, settings.batch, settings.device)
