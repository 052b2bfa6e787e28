"""Running a detector over the validation split of a dataset and scoring it by the dataset's protocol."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crossdet.data.hybrid import HybridDataset, Part
from crossdet.data.index import Index
from crossdet.data.loading import make_loader, sequential_batches
from crossdet.data.transforms import Resize
from crossdet.evaluation.arrays import DetectionArrays, GroundTruth
from crossdet.evaluation.coco import CocoScores, coco_scores
from crossdet.evaluation.confidence import confident_share
from crossdet.inference import rescale
from crossdet.labels import DROPPED, LabelSpace
from crossdet.models.retinanet import RetinaNet
from crossdet.types import REGION_FLAGS, Flag


@dataclass(frozen=True)
class EvalSettings:
    """shorter, longer: network input. The others: see `RetinaNet.decode`."""

    shorter: int
    longer: int
    score_threshold: float = 0.05
    topk: int = 1000
    nms_iou: float = 0.5
    max_detections: int = 100
    batch_size: int = 8
    workers: int = 0


@dataclass(frozen=True)
class Found:
    """What a detector found in a split. unreadable: images that could not be read; they count as empty."""

    detections: DetectionArrays
    unreadable: tuple[str, ...]


@torch.inference_mode()
def detect(
    model: RetinaNet,
    index: Index,
    classes: Sequence[int] | None,
    settings: EvalSettings,
    autocast: AbstractContextManager[Any] | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> Found:
    """Detections of the unified `classes` (None = all) in all images of `index`, in original pixels.

    With several `ranks` each process takes its share of the images and all get the whole result. The model's
    train/eval mode is restored.
    """
    space = LabelSpace(("dataset",), ("object",), ({},))  # the ground truth is not needed to detect
    part = Part(index, 0, np.full(len(index.classes), DROPPED, np.int64))
    dataset = HybridDataset([part], space, Resize(settings.shorter, settings.longer), substitute=False)
    batches = sequential_batches(len(index), settings.batch_size, rank, ranks)
    was_training = model.training
    model.eval()
    device = model.mean.device
    boxes, scores, labels, images, lost = [], [], [], [], []
    with autocast or nullcontext():
        for batch in make_loader(
            dataset, batches, settings.workers, device.type == "cuda", model.mean_colour
        ):
            outputs = model(batch.images.to(device, non_blocking=True))
            found = model.decode(
                outputs,
                batch.sizes.to(device),
                classes,
                settings.score_threshold,
                settings.topk,
                settings.max_detections,
                settings.nms_iou,
            )
            lost.extend(batch.unreadable)
            for row, detections in enumerate(found):
                if int(batch.original_sizes[row, 0]) == 0:
                    continue
                original = rescale(detections, batch.sizes[row], batch.original_sizes[row])
                boxes.append(original.boxes.numpy())
                scores.append(original.scores.numpy())
                labels.append(original.labels.numpy())
                images.append(np.full(len(original), int(batch.image_ids[row]), np.int64))
    model.train(was_training)
    arrays = {
        "boxes": np.concatenate([np.zeros((0, 4), np.float32), *boxes]),
        "scores": np.concatenate([np.zeros(0, np.float32), *scores]),
        "labels": np.concatenate([np.zeros(0, np.int64), *labels]),
        "image_of_box": np.concatenate([np.zeros(0, np.int64), *images]),
    }
    if ranks > 1:
        arrays, lost = _gather(arrays, lost, ranks)
    return Found(DetectionArrays(**arrays), tuple(lost))


def _gather(
    arrays: dict[str, NDArray[Any]], lost: list[str], ranks: int
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    everyone: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(everyone, (arrays, lost))
    joined = {key: np.concatenate([part[key] for part, _ in everyone]) for key in arrays}
    order = np.argsort(joined["image_of_box"], kind="stable")
    return {key: value[order] for key, value in joined.items()}, [
        line for _, part in everyone for line in part
    ]


def ground_truth(index: Index, class_ids: NDArray[np.int64], classes: Sequence[int]) -> GroundTruth:
    """The boxes of `index` in unified ids, for COCO-style scores.

    `class_ids [K]` maps the index's classes. Crowds, ignore regions, invalid and difficult boxes become crowd
    boxes: a detection on them is neither right nor wrong. A region of no class counts for all `classes`.
    """
    labels = np.asarray(index.labels, np.int64)
    unified = np.where(labels >= 0, class_ids[np.maximum(labels, 0)], -1)
    ignored = (np.asarray(index.flags) & int(REGION_FLAGS | Flag.INVALID | Flag.DIFFICULT)) != 0
    sides = index.boxes[:, 2:] - index.boxes[:, :2]
    usable = (sides > 0).all(1) & ((labels < 0) | (unified != DROPPED))
    regions = np.flatnonzero(usable & (labels < 0))
    objects = np.flatnonzero(usable & (labels >= 0))
    rows = np.concatenate([objects, np.repeat(regions, len(classes))])
    return GroundTruth(
        image_ids=np.arange(len(index), dtype=np.int64),
        boxes=np.asarray(index.boxes)[rows].astype(np.float64),
        labels=np.concatenate([unified[objects], np.tile(np.asarray(classes, np.int64), len(regions))]),
        crowd=np.concatenate([ignored[objects], np.ones(len(regions) * len(classes), bool)]),
        area=np.asarray(index.area)[rows].astype(np.float64),
        image_of_box=index.image_of_box()[rows],
    )


def score_dataset(
    model: RetinaNet,
    index: Index,
    class_ids: NDArray[np.int64],
    class_names: Sequence[str],
    settings: EvalSettings,
    **detect_options: Any,
) -> dict[str, Any]:
    """COCO scores of one dataset on the classes that it labels, as a JSON-able record.

    Per class also `found_confidently`: the share of its boxes found with a score of at least 0.3.

    class_ids: `[K]` unified id of each class of the index (DROPPED = -1). class_names: unified names by id.
    """
    classes = sorted({int(c) for c in class_ids if c != DROPPED})
    found = detect(model, index, classes, settings, **detect_options)
    truth = ground_truth(index, class_ids, classes)
    result = coco_scores(truth, found.detections, classes, settings.max_detections)
    scores = record("coco", result, class_names, len(index), found.unreadable)
    for class_id, share in confident_share(truth, found.detections, classes).items():
        scores["per_class"][class_names[class_id]]["found_confidently"] = share
    return scores


def record(
    protocol: str, result: CocoScores, class_names: Sequence[str], images: int, unreadable: Sequence[str]
) -> dict[str, Any]:
    """Scores of one dataset as they go into `metrics.json`; ratios in 0..1, not rounded."""
    return {
        "protocol": protocol,
        **result.scores,
        "per_class": {class_names[c]: dict(values) for c, values in result.per_class.items()},
        "images": images,
        "unreadable": list(unreadable),
    }
