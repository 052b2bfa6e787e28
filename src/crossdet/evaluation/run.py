"""Running a detector over the validation split of a dataset and scoring it by the dataset's protocols."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crossdet.data.augment import Resize
from crossdet.data.canvases import canvases_of
from crossdet.data.hybrid import HybridDataset, Part
from crossdet.data.index import Index
from crossdet.data.loading import make_loader, sequential_batches
from crossdet.data.rotation import rows_per_picture
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.folding import fold_detections, orientation_scores
from crossdet.evaluation.operating import Judged, confident_share, judge
from crossdet.evaluation.precision_recall import Curve
from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.evaluation.protocols.entry import Protocol, ProtocolLimits, score_split
from crossdet.evaluation.splits import Split, ground_truth
from crossdet.inference import rescale
from crossdet.labels.folds import Folding
from crossdet.labels.space import DROPPED, LabelSpace
from crossdet.models.contract import Limits, Network


@dataclass(frozen=True)
class EvalSettings:
    """How a detector looks at the pictures of a split. shorter, longer: network input. The others: see
    `Limits`.

    score_threshold, max_detections: None = as each protocol has it.
    """

    shorter: int
    longer: int
    score_threshold: float | None = None
    topk: int = 1000
    nms_iou: float = 0.5
    max_detections: int | None = None
    batch_size: int = 8
    workers: int = 0
    agnostic_nms: bool = False

    @classmethod
    def of(cls, size: Any, given: Any = None, workers: int = 0, **other: Any) -> EvalSettings:
        """size: has `shorter` and `longer`, such as the config's `input` or a detector's settings. given: has some
        of the other settings under their names, such as the config's `eval`. other: settings that count more.
        """
        names = [field.name for field in fields(cls) if hasattr(given, field.name)]
        values = {name: getattr(given, name) for name in names} | {"workers": workers} | other
        return cls(size.shorter, size.longer, **values)

    def limits(self, protocol: Protocol) -> ProtocolLimits:
        own = protocol.limits
        return ProtocolLimits(
            own.max_detections if self.max_detections is None else self.max_detections,
            own.score_threshold if self.score_threshold is None else self.score_threshold,
        )


@dataclass(frozen=True)
class Found:
    """What a detector found in a split. unreadable: images that could not be read; they count as empty.

    degrees: `[N]` direction of each where folded classes have some.
    """

    detections: DetectionArrays
    unreadable: tuple[str, ...]
    degrees: NDArray[np.int64] | None = None


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
) -> Found:
    """Detections of the unified `classes` (None = all) in all images of `index`, in original pixels.

    Limits that `settings` leaves open are COCO's. With several `ranks` each process takes its share of the images
    and all get the whole result. nms_groups: see `Limits`. The model's train/eval mode is restored.
    """
    space = LabelSpace(("dataset",), ("object",), ({},))  # the ground truth is not needed to detect
    part = Part(index, 0, np.full(len(index.classes), DROPPED, np.int64))
    dataset = HybridDataset([part], space, Resize(settings.shorter, settings.longer), substitute=False)
    canvases = () if model.stretched_to else canvases_of(index.sizes, settings.shorter, settings.longer)
    batches = sequential_batches(len(index), settings.batch_size, rank, ranks, canvases)
    most = settings.limits(PROTOCOLS["coco"])
    limits = Limits(
        most.score_threshold,
        settings.topk,
        most.max_detections,
        settings.nms_iou,
        settings.agnostic_nms,
        nms_groups,
    )
    was_training = model.training
    model.eval()
    device = model.device
    ids = np.zeros(0, np.int64)
    columns: list[tuple[NDArray[Any], ...]] = [(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), ids, ids)]
    lost: list[tuple[int, str]] = []
    with autocast or nullcontext():
        for batch in make_loader(dataset, batches, settings.workers, device.type == "cuda", model.fill_colour):
            images = batch.images.to(device, non_blocking=True)
            rows = model.find(images, batch.sizes.to(device), classes, limits)
            missing = batch.image_ids[batch.original_sizes[:, 0] == 0].tolist()
            lost.extend(zip(missing, batch.unreadable, strict=True))
            for row, detections in enumerate(rows):
                if int(batch.original_sizes[row, 0]) == 0:
                    continue
                one = rescale(detections, batch.sizes[row], batch.original_sizes[row])
                image = np.full(len(one), int(batch.image_ids[row]), np.int64)
                columns.append((one.boxes.numpy(), one.scores.numpy(), one.labels.numpy(), image))
    model.train(was_training)
    mine = DetectionArrays(*map(np.concatenate, zip(*columns, strict=True)))
    everyone: list[Any] = [(mine, lost)]
    if ranks > 1:
        everyone *= ranks
        torch.distributed.all_gather_object(everyone, (mine, lost))
    found = DetectionArrays.joined([detections for detections, _ in everyone])
    in_order = np.argsort(found.image_of_box, kind="stable")
    return Found(
        found.take(in_order), tuple(line for _, line in sorted(one for _, part in everyone for one in part))
    )


@dataclass(frozen=True)
class DatasetScores:
    """record: the numbers as they go into `metrics.json`.

    curves: (protocol, curve name, curve). judged: the detections at home, for the operating points.
    """

    record: dict[str, Any]
    curves: list[tuple[str, str, Curve]]
    judged: Judged
    found: Found


def detect_folded(
    model: Network,
    index: Index,
    classes: Sequence[int] | None,
    settings: EvalSettings,
    folding: Folding | None,
    among: Collection[int] | None = None,
    **options: Any,
) -> Found:
    """`detect`, in folded ids where there is a `folding`: all members are looked for (or those in `among`), and
    where NMS is by member so many more detections are kept before they are folded as there are members."""
    if folding is None:
        return detect(model, index, classes, settings, **options)
    assert settings.max_detections is not None
    more = replace(settings, max_detections=settings.max_detections * folding.largest)
    members = None if classes is None else folding.members(classes)
    if members is not None and among is not None:
        members = [member for member in members if member in among]
    found = detect(model, index, members, more, nms_groups=folding.nms_groups, **options)
    folded, degrees = fold_detections(found.detections, folding, settings.nms_iou)
    return Found(folded, found.unreadable, degrees if folding.has_angles else None)


def score_dataset(
    model: Network,
    split: Split,
    settings: EvalSettings,
    protocols: Sequence[Protocol] = (PROTOCOLS["coco"],),
    folding: Folding | None = None,
    **detect_options: Any,
) -> DatasetScores:
    """Scores of one dataset on the classes that it labels, by each of its protocols.

    The record is flat for the first protocol and has the others under "further". Its `per_class` holds the
    protocol's own numbers per class and `found_confidently`, the share of the boxes found with a score of at
    least 0.3. The images are looked at once, with the widest limits; each protocol then takes what it may have.

    folding: of the model's classes; the ids of the split are then folded ones. Where its classes have directions
    the record gets `orientation` (`orientation_scores`).
    """
    limits = [settings.limits(protocol) for protocol in protocols]
    floor = min(limit.score_threshold for limit in limits)
    widest = replace(settings, score_threshold=floor, max_detections=max(limit.max_detections for limit in limits))
    found = detect_folded(model, split.index, split.classes, widest, folding, split.members, **detect_options)
    parts = [
        score_split(protocol, split, found.detections.above(limit.score_threshold), limit.max_detections)
        for protocol, limit in zip(protocols, limits, strict=True)
    ]
    truth = ground_truth(split)
    record = dict(parts[0].record)
    per_class = record.setdefault("per_class", {})
    for class_id, share in confident_share(truth, found.detections, split.classes).items():
        per_class.setdefault(split.names[class_id], {})["found_confidently"] = share
    record |= {"images": len(split.index), "unreadable": list(found.unreadable)}
    if found.degrees is not None and (directions := orientation_scores(split, found.detections, found.degrees)):
        record["orientation"] = directions
    if notes := dict.fromkeys(note for part in parts for note in part.notes):
        record["notes"] = list(notes)
    if len(parts) > 1:
        record["further"] = {part.record["protocol"]: part.record for part in parts[1:]}
    curves = [
        (p.name, name, curve)
        for p, part in zip(protocols, parts, strict=True)
        for name, curve in part.curves.items()
    ]
    judged = judge(truth, found.detections, split.classes, floor, rows_per_picture(split.index))
    return DatasetScores(record, curves, judged, found)
