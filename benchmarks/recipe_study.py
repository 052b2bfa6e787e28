"""Which numbers of a training recipe hold on sets of photographs: many small trainings side by side on one card.

    CROSSDET_BENCH=... CROSSDET_WEIGHTS=... python benchmarks/recipe_study.py collapse -o FOLDER [--workers 3]

`collapse`, `collapse_dealt`, `tuning`, `around` and `untuned` are lists of trainings (`PLANS`; on one H200 some 130
steps per second, so 20 to 300 seconds each); `smoke` is a tiny one for any machine.
Needs the folders of `SETS` below ${CROSSDET_BENCH}, each with `train.json`, `val.json` (COCO; `write_coco` of an
opened split makes them) and the pictures in `train` and `val`; and mobilenetv2_100.imagenet.safetensors in
${CROSSDET_WEIGHTS}. Writes `FOLDER/runs.jsonl` while it runs and `FOLDER/summary.json` at the end.

The detector, its start, the labels of the anchors and the scores are the package's. What differs from
`crossdet train`, so that hundreds of trainings fit into minutes:
- The pictures are decoded and resized once, every one also mirrored, padded to one canvas per set, and stay on the
  card with the labels of their anchors. Batches are full: epochs follow each other without a smaller last batch.
- The loss is written out over all anchors, so that all shapes are fixed (the start compares it with the package's),
  and a whole step (forward, backward, update, average) is replayed as one CUDA graph. A process trains several
  detectors at once, each on its own stream.
- Optimisers, schedules and what is frozen are options here (`Options`).
- Pictures have at most 384 pixels on the longer side; scale and colours are not varied.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import os
import platform
import queue
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from crossdet.config import Config
from crossdet.config.sources import open_sources
from crossdet.data.augment import Augment, Resize
from crossdet.data.hybrid import Draw
from crossdet.data.loading import IMAGENET_MEAN, epoch_rows, pad_images
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.evaluation.protocols.entry import score_split
from crossdet.evaluation.splits import Split
from crossdet.inference import rescale
from crossdet.losses import dataset_aware_focal_loss, smooth_l1
from crossdet.models.building import build_detector
from crossdet.models.retinanet.anchors import encode_boxes, pyramid_grids
from crossdet.models.retinanet.network import Outputs, RetinaNet
from crossdet.runs.building import network_settings, training_data
from crossdet.types import BACKGROUND, IGNORE, PAD_DIVISOR, Batch
from crossdet_research.split.files import write_split
from crossdet_research.split.plan import split_dataset

LONGER = 384
SETS = ("site_safety", "dice", "bccd", "aquarium", "playing_cards", "voc_animals")
PARTS = {"faces": ["head", "lower_face"], "persons": ["person"], "rest": ["torso", "cone", "machinery", "vehicle"]}
"""How site_safety is dealt in three; 90 % of the pictures then show an object that is not labelled."""
PROBE = 64
"""Validation pictures that the statistics of features are taken from."""


@dataclass(frozen=True)
class Options:
    """A recipe.

    backbone_factor: of the learning rate, for the backbone. batch_norm: of the backbone; "fixed", "trained" (with
    the batch's statistics) or "affine" (scale and shift train, statistics fixed). frozen: the stem and first two
    stages do not train. decay_norms: weight decay also on norms and biases. schedule: "steps" (x 0.1 at 16/24 and
    21/24), "cosine", or "flat" (cosine over the last half); after `warmup` steps of linear warm-up. ema: decay of
    the averaged weights, which are scored beside the others.
    """

    optimiser: str = "sgd"
    lr: float = 0.01
    weight_decay: float = 1e-4
    decay_norms: bool = True
    backbone_factor: float = 1.0
    batch_norm: str = "fixed"
    frozen: bool = False
    group_norm: bool = True
    clip: float = 10.0
    warmup: int = 200
    schedule: str = "steps"
    steps: int = 2400
    batch: int = 8
    ema: float = 0.999


@dataclass(frozen=True)
class Run:
    """A training. data: see `config_of`. scores: shares of its steps after which AP is taken; looks: features."""

    data: str
    name: str
    options: Options
    seed: int = 0
    scores: tuple[float, ...] = (0.5, 1.0)
    looks: tuple[float, ...] = (1.0,)


# ---------------------------------------------------------------------------------------------------- plans

CONFIGURED = Options()
"""The recipe that failed: one rate for all, batch norm fixed."""
BASE = Options("adamw", 1e-3, 0.05, False, 0.1, "trained", schedule="flat", warmup=200, steps=1000)
"""Where the variations of `tuning` and `around` start."""
CHOSEN = replace(BASE, lr=5e-4, backbone_factor=1.0, warmup=100, steps=600)
"""The best of `tuning`, for sets that nothing was tuned on."""


def collapse() -> list[Run]:
    """What the recipe of one rate and fixed batch norm does, and each cure, alone and together."""
    variants: dict[str, dict[str, Any]] = {
        "configured": {},
        "backbone x0.1": {"backbone_factor": 0.1},
        "batch norm trained": {"batch_norm": "trained"},
        "stem frozen": {"frozen": True},
        "no group norm": {"group_norm": False},
        "x0.1, batch norm trained": {"backbone_factor": 0.1, "batch_norm": "trained"},
    }
    looks = (0.0, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0)
    return [
        Run("site_safety", name, replace(CONFIGURED, **change), seed, looks=looks)
        for name, change in variants.items()
        for seed in range(3)
    ]


def dealt(name: str, options: Options, hows: Sequence[str]) -> list[Run]:
    """site_safety dealt in three by class."""
    looks = (0.02, 0.04, 0.1, 0.2, 0.3, 0.5, 1.0)
    return [
        Run(f"site_safety/{how}", f"{name}, {how}", options, seed, looks=looks) for how in hows for seed in range(3)
    ]


def collapse_dealt() -> list[Run]:
    return dealt("configured", replace(CONFIGURED, steps=1000), ("aware", "naive"))


def tuning() -> list[Run]:
    """A grid of rates, backbone factors and batch norm, on the sets that may be tuned on; one seed."""
    grid = [("trained", lr) for lr in (2.5e-4, 5e-4, 1e-3, 2e-3)] + [("fixed", lr) for lr in (5e-4, 1e-3)]
    return [
        Run(
            data,
            f"adamw {lr:g} x{factor:g} {batch_norm}",
            replace(BASE, lr=lr, backbone_factor=factor, batch_norm=batch_norm, steps=steps),
        )
        for data, steps in (("site_safety", 1000), ("dice", 600))
        for batch_norm, lr in grid
        for factor in (0.1, 1.0)
    ]


def around() -> list[Run]:
    """One thing changed at a time, on site_safety; one seed."""
    sgd = {"optimiser": "sgd", "lr": 0.01, "weight_decay": 1e-4}
    changes: dict[str, dict[str, Any]] = {
        "sgd 0.01 x1": {**sgd, "backbone_factor": 1.0},
        "clip 1": {"clip": 1.0},
        "backbone x0.3": {"backbone_factor": 0.3},
        "batch norm affine": {"batch_norm": "affine"},
        "cosine": {"schedule": "cosine"},
        "no warm-up": {"warmup": 1},
        "decay 0.0001": {"weight_decay": 1e-4},
        "steps": {"schedule": "steps"},
        "stem frozen": {"frozen": True},
        "no group norm": {"group_norm": False},
        "clip 0.1": {"clip": 0.1},
    }
    return [
        Run("site_safety", f"around: {name}", replace(BASE, **change), scores=(1.0,))
        for name, change in changes.items()
    ]


def untuned() -> list[Run]:
    """The chosen recipe on sets that nothing was tuned on, and site_safety dealt in three under it."""
    of_sets = {
        "adamw 5e-4 x1 trained": CHOSEN,
        "configured": replace(CONFIGURED, steps=600),
        "adamw 5e-4 x0.3 trained": replace(CHOSEN, backbone_factor=0.3),
    }
    return [
        *dealt("adamw", CHOSEN, ("aware", "naive", "full")),
        *(Run(data, name, options, scores=(1.0,)) for data in SETS[2:] for name, options in of_sets.items()),
        *dealt("configured", replace(CONFIGURED, steps=600), ("aware", "naive")),
    ]


def smoke() -> list[Run]:
    few = replace(BASE, steps=4, batch=2, warmup=2)
    fewer = replace(CONFIGURED, steps=4, batch=2)
    return [
        Run("dice", "tuned", few),
        Run("dice", "configured", fewer, 1, looks=(0.0, 0.5, 1.0)),
        Run("site_safety/aware", "tuned", few, scores=()),
    ]


PLANS: dict[str, Callable[[], list[Run]]] = {
    "collapse": collapse,
    "collapse_dealt": collapse_dealt,
    "tuning": tuning,
    "around": around,
    "untuned": untuned,
    "smoke": smoke,
}


# ---------------------------------------------------------------------------------------------------- data


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
            for one, size in zip(self.decode(of_batch, sizes), sizes, strict=True):
                original = rescale(one, size, self.original[row])
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


# ---------------------------------------------------------------------------------------------------- training


class Rates(NamedTuple):
    """`[steps]` each, on the device."""

    lr: Tensor
    ema: Tensor


def learning_rates(options: Options) -> list[float]:
    """Of every step, before the backbone's factor."""
    rates = []
    for step in range(options.steps):
        share = step / options.steps
        if options.schedule == "steps":
            factor = 0.1 ** ((share >= 16 / 24) + (share >= 21 / 24))
        elif options.schedule == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * share))
        else:
            factor = 0.5 * (1 + math.cos(math.pi * max(0.0, 2 * share - 1)))
        rates.append(options.lr * factor * min(1.0, (step + 1) / max(1, options.warmup)))
    return rates


def focal_loss(logits: Tensor, labels: Tensor, trusted: Tensor) -> Tensor:
    """`dataset_aware_focal_loss` with its defaults, in operations whose shapes do not depend on values."""
    own = labels[..., None] == torch.arange(logits.shape[2], device=logits.device)
    negative = ((labels == BACKGROUND)[..., None] & trusted[:, None]) | ((labels >= 0)[..., None] & ~own)
    p = logits.sigmoid()
    as_negative = 0.75 * p**2 * F.softplus(logits)
    as_positive = 0.25 * (1 - p) ** 2 * F.softplus(-logits)
    return (negative * as_negative + own * as_positive).sum()


def losses_of(detector: RetinaNet, pictures: Pictures, rows: Tensor) -> Tensor:
    """Class and box loss of a batch; equal to `RetinaNet.losses`, normalised."""
    outputs = detector(pictures.images.index_select(0, rows))
    logits = torch.cat(outputs.logits, 1).float()
    deltas = torch.cat(outputs.deltas, 1)
    labels = pictures.labels.index_select(0, rows).long()
    trusted = pictures.trusted.index_select(0, rows)
    classification = focal_loss(logits, labels, trusted)
    anchor = pictures.anchor.index_select(0, rows).long()
    count = pictures.count.index_select(0, rows)
    used = torch.arange(anchor.shape[1], device=anchor.device) < count[:, None]
    found = deltas.gather(1, anchor[..., None].expand(-1, -1, 4)).float()
    box = (smooth_l1(found, pictures.deltas.index_select(0, rows), detector.settings.loss.box_beta) * used).sum()
    return torch.stack([classification, box * detector.settings.loss.box_weight]) / count.sum().clamp(min=1)


class Training:
    """One detector in training. After `capture` a step is the replay of a graph; before, it runs as written."""

    def __init__(self, data: str, deal: Path, pictures: Pictures, options: Options, seed: int) -> None:
        self.options, self.pictures = options, pictures
        self.device = pictures.images.device
        config = config_of(data, deal)
        changes = {"group_norm": options.group_norm, "freeze_batch_norm": options.batch_norm == "fixed"}
        settings = network_settings(config).model_copy(update=changes)
        torch.manual_seed(seed)
        detector = build_detector(settings, pictures.trusted.shape[1], weights=config.model.weights)
        self.detector = detector.to(self.device).to(memory_format=torch.channels_last)
        self._freeze()
        self.average = copy.deepcopy(self.detector).eval()
        self.rows, self.rates = self._tables(seed)
        self.done = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.log = torch.zeros(options.steps, 4, device=self.device)
        self.optimizer = self._optimizer()
        self.graph: Any = None
        self.stream = torch.cuda.Stream() if self.device.type == "cuda" else None
        self.train_mode()

    def autocast(self) -> Any:
        return torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda")

    def _body(self) -> Any:
        return self.detector.backbone.body

    def _freeze(self) -> None:
        body = self._body()
        if self.options.frozen:
            for module in (body.conv_stem, body.bn1, body.blocks[0], body.blocks[1]):
                module.requires_grad_(False)

    def train_mode(self) -> None:
        self.detector.train()
        body = self._body()
        frozen = (body.bn1, body.blocks[0], body.blocks[1]) if self.options.frozen else ()
        for module in body.modules() if self.options.batch_norm == "affine" else frozen:
            module.eval()

    def _tables(self, seed: int) -> tuple[Tensor, Rates]:
        """Rows of the pictures by step, and rates."""
        options, count = self.options, len(self.pictures.images) // 2
        generator = np.random.default_rng([seed, 0])
        epochs = -(-options.steps * options.batch // count)
        rows = np.concatenate([epoch_rows(np.ones(count), generator) for _ in range(epochs)])
        rows = 2 * rows + generator.integers(0, 2, len(rows))
        rows = rows[: options.steps * options.batch].reshape(options.steps, options.batch)
        ema = [min(options.ema, (1 + n) / (10 + n)) for n in range(options.steps)]
        return torch.from_numpy(rows).to(self.device), Rates(
            torch.tensor(learning_rates(options), device=self.device), torch.tensor(ema, device=self.device)
        )

    def _optimizer(self) -> torch.optim.Optimizer:
        options = self.options
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.detector.named_parameters():
            if parameter.requires_grad:
                decays = parameter.dim() > 1 or options.decay_norms
                groups.setdefault((name.startswith("backbone."), decays), []).append(parameter)
        rows = [
            {
                "params": parameters,
                "lr": torch.zeros((), device=self.device),
                "weight_decay": options.weight_decay if decays else 0.0,
            }
            for (_, decays), parameters in groups.items()
        ]
        self.factors = [options.backbone_factor if backbone else 1.0 for backbone, _ in groups]
        self.parameters = [p for parameters in groups.values() for p in parameters]
        self.of_backbone = [p for (backbone, _), some in groups.items() if backbone for p in some]
        card = self.device.type == "cuda"
        if options.optimiser == "sgd":
            return torch.optim.SGD(rows, lr=0.0, momentum=0.9, fused=card)
        return torch.optim.AdamW(rows, lr=0.0, fused=card, capturable=card)

    def step(self) -> None:
        """One update, without a look at any value: it can be captured."""
        rows = self.rows.index_select(0, self.done)[0]
        rate = self.rates.lr.index_select(0, self.done)[0]
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            group["lr"].copy_(rate * factor)
        with self.autocast():
            losses = losses_of(self.detector, self.pictures, rows)
        losses.sum().backward()
        norms = torch._foreach_norm([cast(Tensor, p.grad) for p in self.of_backbone])
        whole = nn.utils.clip_grad_norm_(self.parameters, self.options.clip)
        self.optimizer.step()
        line = torch.stack([*losses.detach(), whole, torch.stack(norms).norm()])
        self.log.index_copy_(0, self.done, line[None])
        self._average(self.rates.ema.index_select(0, self.done)[0])
        self.done += 1

    @torch.no_grad()
    def _average(self, kept: Tensor) -> None:
        pairs = [
            (a, b)
            for a, b in zip(self.average.state_dict().values(), self.detector.state_dict().values(), strict=True)
            if a.is_floating_point()
        ]
        averages, current = [a for a, _ in pairs], [b for _, b in pairs]
        change = torch._foreach_sub(current, averages)
        torch._foreach_mul_(change, 1 - kept)
        torch._foreach_add_(averages, change)

    def capture(self) -> None:
        """Records a step as a graph, and puts everything back to where it was."""
        if self.stream is None:
            return
        before = {k: v.clone() for k, v in self.detector.state_dict().items()}
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(3):
                self.optimizer.zero_grad(set_to_none=True)
                self.step()
        torch.cuda.synchronize()
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self.step()
        self.graph = graph
        torch.cuda.synchronize()
        for model in (self.detector, self.average):
            model.load_state_dict(before)
        for state in self.optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    value.zero_()
        self.done.zero_()
        torch.cuda.synchronize()

    def advance(self, steps: int) -> None:
        """Queues so many steps."""
        for _ in range(steps):
            if self.graph is not None:
                with torch.cuda.stream(self.stream):
                    self.graph.replay()
            else:
                self.optimizer.zero_grad(set_to_none=True)
                self.step()


@torch.inference_mode()
def features_of(training: Training, images: Tensor) -> dict[str, float]:
    """What is left of the features on some pictures: dead channels, mean activation, variation over pictures."""
    model, highest, handles = training.detector, {}, []

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            highest[name] = output.amax((0, 2, 3))

        return hook

    model.eval()
    for name, module in model.backbone.body.named_modules():
        if "BatchNorm" in type(module).__name__ and not isinstance(getattr(module, "act", None), nn.Identity):
            handles.append(module.register_forward_hook(watch(name)))
    with training.autocast():
        x = (images.float() - model.mean) / model.std
        x = x.contiguous(memory_format=torch.channels_last)
        maps = model.backbone(x)
        pyramid = list(model.fpn({f"c{i + 3}": c for i, c in enumerate(maps)}).values())
    for handle in handles:
        handle.remove()
    training.train_mode()
    named = dict(zip(("C3", "C4", "C5", "P3", "P4", "P5", "P6", "P7"), [*maps, *pyramid], strict=True))
    dead = {name: (high <= 0).float().mean() for name, high in highest.items()}
    found = {
        "dead": (torch.cat(list(highest.values())) <= 0).float().mean(),
        "dead_in_blocks.6.0.bn1": dead["blocks.6.0.bn1"],
        "dead_most": torch.stack(list(dead.values())).max(),
    }
    for name, value in named.items():
        wide = value.float()
        found[f"mean_abs_{name}"] = wide.abs().mean()
        spread = (wide - wide.mean(0, keepdim=True)).square().mean().sqrt()
        found[f"variation_{name}"] = spread / wide.square().mean().sqrt()
    values = torch.stack(list(found.values())).tolist()  # one transfer: each waits for the card
    return {name: round(value, 4) for name, value in zip(found, values, strict=True)}


# ---------------------------------------------------------------------------------------------------- running


class Slot:
    """A training under way in a process: what it still has to do, and its record so far."""

    def __init__(self, run: Run, shared: Shared, pictures: Pictures, judge: Judge) -> None:
        begun = time.perf_counter()
        self.run, self.judge, self.at = run, judge, 0
        self.training = Training(run.data, shared.folder / "deal", pictures, run.options, run.seed)
        if shared.graphs:
            self.training.capture()
        steps = run.options.steps
        self.score_at = {round(share * steps) for share in run.scores}
        self.look_at = {round(share * steps) for share in run.looks}
        self.begun = time.perf_counter()
        self.record: dict[str, Any] = {
            "data": run.data,
            "name": run.name,
            "seed": run.seed,
            "options": asdict(run.options),
            "start_s": round(self.begun - begun, 1),
            "looks": {},
            "scores": {},
        }
        if 0 in self.look_at:
            self.record["looks"][0] = features_of(self.training, judge.probe())

    @property
    def done(self) -> bool:
        return self.at >= self.run.options.steps

    def advance(self, most: int) -> None:
        """Queues steps up to the next stop."""
        stop = min(s for s in (*self.score_at, *self.look_at, self.run.options.steps) if s > self.at)
        count = min(most, stop - self.at)
        self.training.advance(count)
        self.at += count

    def look(self, last: bool, scorer: ThreadPoolExecutor) -> None:
        """Features and scores that are due. last: time is up."""
        last = last or self.done
        if self.at in self.look_at or last:
            self.record["looks"][self.at] = features_of(self.training, self.judge.probe())
        if self.run.scores and (self.at in self.score_at or last):
            self._score("raw", self.training.detector.eval(), scorer)
            self.training.train_mode()
            if last:
                self._score("ema", self.training.average, scorer)

    def _score(self, name: str, model: RetinaNet, scorer: ThreadPoolExecutor) -> None:
        outputs = self.judge.outputs(model, self.training.autocast())
        scorer.submit(write_scores, self.record, self.at, name, self.judge, outputs)

    def finish(self, scorer: ThreadPoolExecutor, results: Any) -> None:
        """Hands the record over once it is scored; the one thread of `scorer` keeps the order."""
        self.record |= {
            "steps_done": self.at,
            "train_s": round(time.perf_counter() - self.begun, 1),
            "log": _thinned(self.training.log[: self.at]),
        }
        scorer.submit(results.put, self.record)


def write_scores(record: dict[str, Any], at: int, name: str, judge: Judge, outputs: list[Outputs]) -> None:
    try:
        record["scores"].setdefault(at, {})[name] = judge.scores(outputs)
    except Exception:
        record["error"] = traceback.format_exc()


def worker(shared: Shared) -> None:
    """Keeps `shared.slots` trainings under way until there are no more, or time is up."""
    torch.set_num_threads(1)
    gc.disable()  # else the scorer's thread may free memory of the card while a step is captured
    loaded: dict[str, tuple[Pictures, Judge]] = {}
    slots: list[Slot] = []
    with ThreadPoolExecutor(1) as scorer:
        while True:
            late = time.time() > shared.until
            while not late and len(slots) < shared.slots and (slot := next_slot(shared, loaded)):
                slots.append(slot)
            if not slots:
                break
            for slot in slots if not late else ():
                slot.advance(20)
            if shared.device.type == "cuda":
                torch.cuda.synchronize()
            for slot in slots:
                slot.look(late, scorer)
                if late or slot.done:
                    slot.finish(scorer, shared.results)
            slots = [slot for slot in slots if not late and not slot.done]
    shared.results.put(None)


def next_slot(shared: Shared, loaded: dict[str, tuple[Pictures, Judge]]) -> Slot | None:
    """The next training of the queue that can be started; None if there is none."""
    while True:
        try:
            run = shared.jobs.get(timeout=0.2)
        except queue.Empty:
            return None
        gc.collect()
        try:
            if run.data not in loaded:
                stored = torch.load(shared.folder / f"{run.data.replace('/', '_')}.pt")
                judge = Judge(run.data, shared.folder / "deal", shared.device)
                loaded[run.data] = Pictures(**stored).to(shared.device), judge
            return Slot(run, shared, *loaded[run.data])
        except Exception:
            shared.results.put({"data": run.data, "name": run.name, "error": traceback.format_exc()})


def _thinned(log: Tensor) -> dict[str, list[float]]:
    """Means over pieces of 50 steps (the first 10 steps one by one): class and box loss, gradient norms."""
    names = ("classification", "box", "gradient", "backbone_gradient")
    first, rest = log[:10], log[10:]
    pieces = [*first, *(piece.mean(0) for piece in rest.split(50) if len(piece))]
    if not pieces:
        return {}
    table = torch.stack(pieces).T.tolist()
    return {name: [float(f"{v:.4g}") for v in row] for name, row in zip(names, table, strict=True)}


@dataclass
class Shared:
    """What all processes know. until: time of the clock at which they stop. graphs: whether steps are captured.

    slots: trainings at once in each. jobs, results: queues of runs and of records.
    """

    folder: Path
    device: torch.device
    until: float
    graphs: bool = True
    slots: int = 4
    jobs: Any = None
    results: Any = None


def check_loss() -> None:
    """The loss here against the package's, on random labels, in float64."""
    torch.manual_seed(0)
    images, anchors, classes = 3, 500, 4
    labels = torch.randint(IGNORE, classes, (images, anchors))
    trusted = torch.rand(images, classes) < 0.6
    logits = torch.randn(images, anchors, classes, dtype=torch.float64)
    mine = focal_loss(logits, labels, trusted)
    theirs = dataset_aware_focal_loss(logits, labels, trusted)
    assert torch.allclose(mine, theirs), (mine, theirs)


def streams_pay(deal: Path) -> dict[int, float] | None:
    """Steps per second of 1, 2, 4 and 8 detectors at once in this process, on random data; None where a step
    cannot be captured. It runs while the pictures are prepared."""
    generator = torch.Generator().manual_seed(0)
    anchors = 9 * sum(rows * columns for rows, columns in pyramid_grids(LONGER, LONGER, 5))
    labels = torch.full((16, anchors), BACKGROUND, dtype=torch.int8)
    labels[:, :40] = 0
    pictures = Pictures(
        images=torch.randint(0, 256, (16, 3, LONGER, LONGER), generator=generator, dtype=torch.uint8),
        labels=labels,
        anchor=torch.arange(40, dtype=torch.int32).repeat(16, 1),
        count=torch.full((16,), 40),
        deltas=torch.zeros(16, 40, 4),
        trusted=torch.ones(16, 7, dtype=torch.bool),
    ).to(torch.device("cuda"))
    found = {}
    trainings: list[Training] = []
    try:
        for number in (1, 2, 4, 8):
            while len(trainings) < number:
                options = BASE if len(trainings) % 2 else CONFIGURED
                trainings.append(Training("site_safety", deal, pictures, options, len(trainings)))
                trainings[-1].capture()
            begun = time.perf_counter()
            for _ in range(20):
                for training in trainings:
                    training.advance(1)
            torch.cuda.synchronize()
            found[number] = round(20 * number / (time.perf_counter() - begun), 1)
        if not all(bool(torch.isfinite(t.log[:20]).all()) and float(t.log[19, 0]) > 0 for t in trainings):
            raise RuntimeError(f"a captured step gives {trainings[0].log[:20].tolist()}")
    except Exception:
        traceback.print_exc()
        return None
    return found


def show(record: dict[str, Any], started: float) -> None:
    if "error" in record:
        print(f"{record['data']} {record['name']}: {record['error'][-600:]}", flush=True)
        return
    last = list(record["scores"].values())[-1] if record["scores"] else {}
    look = list(record["looks"].values())[-1] if record["looks"] else {}
    scores = " ".join(f"{k} {v['AP']:.1f}/{v['AP50']:.1f}" for k, v in last.items())
    print(
        f"[{time.time() - started:.0f}] {record['data']} {record['name']} s{record['seed']} "
        f"{record['steps_done']} {scores} dead {100 * look.get('dead_in_blocks.6.0.bn1', -1):.0f}% "
        f"C5v {look.get('variation_C5', -1):.2f} in {record['train_s']} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("plans", nargs="+", help=f"any of {', '.join(PLANS)}, or a JSON file of jobs")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="for prepared data; default: FOLDER/work")
    parser.add_argument("--workers", type=int, default=3, help="processes")
    parser.add_argument("--seconds", type=float, default=1e9, help="after which trainings are scored as they are")
    args = parser.parse_args()
    args.work = args.work or args.output / "work"
    started = time.time()
    check_loss()
    args.output.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    jobs = [run for plan in args.plans for run in (PLANS[plan]() if plan in PLANS else read_runs(Path(plan)))]
    context = mp.get_context("spawn")
    shared = Shared(args.work, device, started + args.seconds)
    shared.jobs, shared.results = context.Queue(), context.Queue()
    rates = prepare_all(context, shared, list(dict.fromkeys(run.data for run in jobs)))
    for job in jobs:
        shared.jobs.put(job)
    workers = [context.Process(target=worker, args=(shared,)) for _ in range(args.workers)]
    for process in workers:
        process.start()
    print(f"[{time.time() - started:.0f}] {len(jobs)} runs, {args.workers} x {shared.slots} at once", flush=True)
    records = collect(shared, args.output / "runs.jsonl", len(workers), started)
    for process in workers:
        process.join(5)
    content = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "seconds": round(time.time() - started, 1),
        "at_once": [args.workers, shared.slots],
        "steps_per_second_of_random_data": rates,
        "input": {"shorter": 320, "longer": LONGER},
        "runs": sorted((r for r in records if "error" not in r), key=lambda r: (r["data"], r["name"], r["seed"])),
        "failed": [r for r in records if "error" in r],
    }
    (args.output / "summary.json").write_text(json.dumps(content))


def prepare_all(context: Any, shared: Shared, sets: Sequence[str]) -> dict[int, float] | None:
    """Prepares the pictures of all sets, and meanwhile finds out how many trainings at once pay in a process."""
    deal, rates = shared.folder / "deal", None
    if any("/" in data for data in sets):
        deal_out(deal)
    with context.Pool(min(len(sets), os.cpu_count() or 1)) as pool:
        files = [shared.folder / f"{data.replace('/', '_')}.pt" for data in sets]
        waiting = [pool.apply_async(prepare, (data, deal, file)) for data, file in zip(sets, files, strict=True)]
        if shared.device.type == "cuda":
            rates = streams_pay(deal)
            print(f"steps per second by detectors at once: {rates}", flush=True)
            if rates is None:
                raise SystemExit("a step cannot be captured here")
            shared.slots = 8 if rates[8] > 1.15 * rates[4] else 4
        else:
            shared.graphs, shared.slots = False, 1
        for one in waiting:
            print(one.get(), flush=True)
    return rates


def collect(shared: Shared, file: Path, workers: int, started: float) -> list[dict[str, Any]]:
    """The records of all trainings, written as they come."""
    records: list[dict[str, Any]] = []
    with file.open("w") as lines:
        while workers:
            record = shared.results.get()
            if record is None:
                workers -= 1
                continue
            records.append(record)
            lines.write(json.dumps(record) + "\n")
            lines.flush()
            show(record, started)
    return records


def read_runs(file: Path) -> list[Run]:
    """Runs from JSON: `[{"data": ..., "name": ..., "options": {option: value, ...}, "seed": ...}, ...]`."""
    rows = json.loads(file.read_text())
    return [Run(**{**row, "options": Options(**row["options"])}) for row in rows]


if __name__ == "__main__":
    main()
