"""The sets: their configs, pictures and labels of anchors on the device, and the judge of detectors on them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from crossdet.config import Config
from crossdet.config.sources import open_sources
from crossdet.data.augment import Augment, Resize
from crossdet.data.hybrid import Draw
from crossdet.data.loading import IMAGENET_MEAN, pad_images
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.evaluation.protocols.entry import score_split
from crossdet.evaluation.splits import Split
from crossdet.inference import rescale
from crossdet.models.building import build_detector
from crossdet.models.retinanet.anchors import encode_boxes
from crossdet.models.retinanet.network import Outputs, RetinaNet
from crossdet.runs.building import network_settings, training_data
from crossdet.types import BACKGROUND, IGNORE, PAD_DIVISOR, Batch
from crossdet_research.split.files import write_split
from crossdet_research.split.plan import split_dataset

LONGER = 384


PARTS = {"faces": ["head", "lower_face"], "persons": ["person"], "rest": ["torso", "cone", "machinery", "vehicle"]}
"""How site_safety is dealt in three; 90 % of the pictures then show an object that is not labelled."""
PROBE = 64
"""Validation pictures that the statistics of features are taken from."""


def config_of(data: str, deal: Path) -> Config:
    """data: a set, or `site_safety/aware`, `site_safety/naive`, `site_safety/full` of the deal in folder `deal`."""
    name, _, how = data.partition("/")
    sections: dict[str, Any] = {
        "model": {
            "backbone": "mobilenetv2_100",
            "weights": "${CROSSDET_WEIGHTS}/mobilenetv2_100.imagenet.safetensors",
            "channels": 128,
            "head_depth": 3,
            "group_norm": True,
            "anchors": {"scales": [2, 3, 4], "ratios": [0.5, 1, 2]},
        },
        "input": {"shorter": 320, "longer": LONGER},
    }
    if not how:
        split = {
            s: {"images": f"${{CROSSDET_BENCH}}/{name}/{s}", "annotations": f"${{CROSSDET_BENCH}}/{name}/{s}.json"}
            for s in ("train", "val")
        }
        return Config.from_dict({"datasets": {name: {"format": "coco", **split}}, **sections})
    content = yaml.safe_load((deal / f"{how}.yaml").read_text())
    content.pop("union_test", None)
    return Config.from_dict({**content, **sections}, base=deal)


def deal_out(folder: Path) -> None:
    """site_safety dealt in three, once for all trainings."""
    sources = open_sources(config_of("site_safety", folder))
    plan = split_dataset(sources.train["site_safety"], sources.val["site_safety"], PARTS, seed=0)
    write_split(plan, folder, overwrite=True)


@dataclass
class Pictures:
    """What is trained on, on one device; row 2 i + m is picture i, mirrored where m is 1.

    images: `[2 N, 3, H, W]` uint8. labels: `[2 N, A]` int8. anchor: `[2 N, F]` int32 the foreground anchors, filled
    up with 0; count: `[2 N]` how many. deltas: `[2 N, F, 4]`. trusted: `[2 N, C]` bool.
    """

    images: Tensor
    labels: Tensor
    anchor: Tensor
    count: Tensor
    deltas: Tensor
    trusted: Tensor

    def to(self, device: torch.device) -> Pictures:
        moved = {name: value.to(device) for name, value in vars(self).items()}
        moved["images"] = moved["images"].contiguous(memory_format=torch.channels_last)
        return Pictures(**moved)


def prepare(data: str, deal: Path, file: Path) -> str:
    """Everything of one set into a file; returns a line about it."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    config = config_of(data, deal)
    sources = open_sources(config)
    detector = build_detector(network_settings(config), len(sources.space.classes))
    dataset = training_data(config, sources)
    sides = [0, 0]
    samples = []
    for row in range(len(dataset)):
        for flip in (0.0, 1.0):
            dataset.transform = Augment(config.input.shorter, config.input.longer, flip=flip)
            sample = dataset[Draw(row, 0)]
            sides = [max(a, b) for a, b in zip(sides, sample.image.shape[1:], strict=True)]
            samples.append(sample)
    height, width = (-(-side // PAD_DIVISOR) * PAD_DIVISOR for side in sides)
    fill = torch.tensor(detector.fill_colour, dtype=torch.uint8)[:, None, None]
    images = fill.expand(3, height, width).repeat(len(samples), 1, 1, 1)
    for canvas, sample in zip(images, samples, strict=True):
        canvas[:, : sample.image.shape[1], : sample.image.shape[2]] = sample.image
    labels, anchors, deltas, avoided = _labelled(detector, images, samples)
    most = max(len(a) for a in anchors)
    torch.save(
        {
            "images": images,
            "labels": torch.cat(labels),
            "anchor": torch.stack([F.pad(a, (0, most - len(a))) for a in anchors]),
            "count": torch.tensor([len(a) for a in anchors]),
            "deltas": torch.stack([F.pad(d, (0, 0, 0, most - len(d))) for d in deltas]),
            "trusted": torch.stack([sample.trusted for sample in samples]),
        },
        file,
    )
    seconds = time.perf_counter() - started
    return (
        f"{data}: {len(dataset)} pictures, canvas {height}x{width}, up to {most} foreground anchors, "
        f"{avoided} avoided pairs ignored, {seconds:.0f} s"
    )


def _labelled(
    detector: RetinaNet, images: Tensor, samples: Sequence[Any]
) -> tuple[list[Tensor], list[Tensor], list[Tensor], int]:
    """Labels, foreground anchors and their deltas by sample, and how many pairs of anchor and class are avoided;
    anchors of such a pair are ignored here for all classes, which is not what the package does."""
    label = detector.prepare()
    grids = detector(images[:1]).grids
    boxes = torch.cat(detector.anchors(grids))
    labels, anchors, deltas, avoided = [], [], [], 0
    for start in range(0, len(samples), 16):
        some = samples[start : start + 16]
        sizes = torch.tensor([sample.image.shape[1:] for sample in some])
        batch = Batch(
            images=images[start : start + 16],
            sizes=sizes,
            original_sizes=sizes,
            targets=[sample.target for sample in some],
            trusted=torch.stack([sample.trusted for sample in some]),
            image_ids=torch.tensor([sample.image_id for sample in some]),
            dataset_ids=torch.tensor([sample.dataset_id for sample in some]),
        )
        found = label(batch).prepared
        assert found is not None
        own = found.labels.to(torch.int8)
        rows = found.avoid[:, 0], found.avoid[:, 1]
        own[rows] = torch.where(own[rows] == BACKGROUND, IGNORE, own[rows]).to(torch.int8)
        avoided += len(found.avoid)
        labels.append(own)
        for image in range(len(some)):
            mine = found.image == image
            anchor = found.anchor[mine]
            anchors.append(anchor.int())
            deltas.append(encode_boxes(found.boxes[mine], boxes[anchor]))
    return labels, anchors, deltas, avoided


class Judge:
    """Scores a detector on the validation pictures of a set, all classes; what `evaluation.run.detect` and
    `score_dataset` do, with pictures that stay on the device."""

    def __init__(self, data: str, deal: Path, device: torch.device) -> None:
        name = data.partition("/")[0]
        config, whole = config_of(data, deal), config_of(name, deal)
        space, val = open_sources(config, ["train"]).space, open_sources(whole, ["val"])
        index = val.val[name]
        ids = np.array([space.classes.index(name) for name in index.classes], np.int64)
        self.split, self.device = Split(index, ids, space.classes), device
        dataset = training_data(whole, replace(val, train=val.val))
        dataset.transform = Resize(config.input.shorter, config.input.longer)
        samples = [dataset[Draw(row, 0)] for row in range(len(dataset))]
        self.original = torch.tensor([sample.original_size for sample in samples])
        self.batches = []
        for start in range(0, len(samples), 32):
            images, sizes = pad_images([s.image for s in samples[start : start + 32]], IMAGENET_MEAN)
            self.batches.append((images.to(device), sizes))

        shell = build_detector(network_settings(config), len(space.classes))
        self.decode = shell.decode  # of outputs on the CPU, with the anchors of a detector there

    @torch.inference_mode()
    def outputs(self, model: RetinaNet, autocast: Any) -> list[Outputs]:
        """What the detector says of all pictures, on the CPU."""
        found = []
        for images, _ in self.batches:
            with autocast:
                found.append(model(images))
        return [Outputs([x.cpu() for x in o.logits], [x.cpu() for x in o.deltas], o.grids) for o in found]

    def scores(self, outputs: list[Outputs]) -> dict[str, Any]:
        """On the CPU only, so that another thread can do it."""
        boxes, scores, labels, rows = [], [], [], []
        row = 0
        for (_, sizes), of_batch in zip(self.batches, outputs, strict=True):
            found = self.decode(of_batch, sizes)
            for original in rescale(found, sizes, self.original[row : row + len(found)]):
                boxes.append(original.boxes.numpy())
                scores.append(original.scores.numpy())
                labels.append(original.labels.numpy())
                rows.append(np.full(len(original), row, np.int64))
                row += 1
        arrays = DetectionArrays(*(np.concatenate(column) for column in (boxes, scores, labels, rows)))
        record = score_split(PROTOCOLS["coco"], self.split, arrays, 100).record
        return {
            "AP": round(100 * record["AP"], 3),
            "AP50": round(100 * record["AP50"], 3),
            "per_class_AP50": {k: round(100 * v["AP50"], 1) for k, v in record["per_class"].items()},
            "top_score": round(float(max((s.max() for s in scores if len(s)), default=0.0)), 4),
        }

    def probe(self) -> Tensor:
        return torch.cat([images for images, _ in self._same_size()])[:PROBE]

    def _same_size(self) -> Iterator[tuple[Tensor, Tensor]]:
        first = self.batches[0][0].shape[2:]
        return (batch for batch in self.batches if batch[0].shape[2:] == first)
