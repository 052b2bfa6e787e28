"""What a network finds in a split, in batches, by one process or several."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crossdet.data.augment import Resize
from crossdet.data.canvases import canvases_of
from crossdet.data.hybrid import HybridDataset, Part
from crossdet.data.index import Index
from crossdet.data.loading import make_loader, sequential_batches
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.evaluation.run import EvalSettings, Found
from crossdet.inference import rescale
from crossdet.labels.space import DROPPED, LabelSpace
from crossdet.models.contract import Limits, Network


@torch.inference_mode()
def detect(
    model: Network,
    index: Index,
    classes: Sequence[int] | None,
    settings: EvalSettings,
    autocast: AbstractContextManager[Any] | None = None,
    rank: int = 0,
    ranks: int = 1,
    nms_groups: Sequence[int] | None = None,
    floors: NDArray[np.float64] | None = None,
) -> Found:
    """See `run.detect`. With several `ranks` each process takes its share of the images and all get the whole
    result. nms_groups: see `Limits`. floors: `[C]` least scores of the classes up to the last one that is looked
    for, in place of the settings' one. The model's train/eval mode is restored.
    """
    space = LabelSpace(("dataset",), ("object",), ({},))  # the ground truth is not needed to detect
    part = Part(index, 0, np.full(len(index.classes), DROPPED, np.int64))
    looks = Resize(settings.shorter, settings.longer, model.stretched_to, model.antialias)
    dataset = HybridDataset([part], space, looks, substitute=False)
    canvases = () if model.stretched_to else canvases_of(index.sizes, settings.shorter, settings.longer)
    batches = sequential_batches(len(index), settings.batch_size, rank, ranks, canvases)
    most = settings.limits(PROTOCOLS["coco"])
    limits = Limits(
        most.score_threshold if floors is None else torch.from_numpy(floors).float().to(model.device),
        settings.topk,
        most.max_detections,
        settings.nms_iou,
        settings.agnostic_nms,
        nms_groups,
    )
    was_training = model.training
    model.eval()
    device = model.device
    parts: list[DetectionArrays] = []
    lost: list[tuple[int, str]] = []
    with autocast or nullcontext():
        for batch in make_loader(dataset, batches, settings.workers, device.type == "cuda", model.fill_colour):
            images = batch.images.to(device, non_blocking=True)
            rows = model.find(images, batch.sizes.to(device), classes, limits)
            missing = batch.image_ids[batch.original_sizes[:, 0] == 0].tolist()
            lost.extend(zip(missing, batch.unreadable, strict=True))
            for row, one in enumerate(rescale(rows, batch.sizes, batch.original_sizes)):
                if int(batch.original_sizes[row, 0]) == 0:
                    continue
                image = np.full(len(one), int(batch.image_ids[row]), np.int64)
                parts.append(DetectionArrays(one.boxes.numpy(), one.scores.numpy(), one.labels.numpy(), image))
    model.train(was_training)
    mine = DetectionArrays.joined(parts)
    everyone: list[Any] = [(mine, lost)]
    if ranks > 1:
        everyone *= ranks
        torch.distributed.all_gather_object(everyone, (mine, lost))
    found = DetectionArrays.joined([detections for detections, _ in everyone])
    in_order = np.argsort(found.image_of_box, kind="stable")
    unread = sorted(one for _, part in everyone for one in part)
    return Found(found.take(in_order), tuple(line for _, line in unread), unseen=tuple(row for row, _ in unread))
