"""What a training step costs as the union of datasets grows: time, and memory beside the weights.

    python benchmarks/union.py --datasets 1 5 20 50 --classes 100 [--full] [--json FILE]

ResNet-50, 256 channels, 9 anchors, 320x416, batch 16, 10 boxes per image, SGD with momentum, float32; every image
comes from another dataset as far as there are that many, each dataset has classes of its own. Each size runs in a
fresh process; on a CPU time comes from one process and memory from another. `--dtype bfloat16` is autocast; with
`--labelled` the anchors are labelled beforehand, as a training's loader does. With `--full` beside it the same step
with all logits (loss and gradients are equal), stopped by a memory limit of its own process.

state_mb: weights, gradients and momentum, which grow with the classes by nature. activation_mb: the process's peak
minus what it held before the model was built, minus the state. `--crowd` adds sizes with 300 boxes per image: the
foreground needs all classes, so flatness ends at foreground anchors x classes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import card_of
from crossdet.losses import image_focal_losses
from crossdet.models.building import build_detector
from crossdet.models.contract import Losses
from crossdet.models.retinanet.matching import label_anchors
from crossdet.models.retinanet.network import RetinaNet
from crossdet.models.retinanet.settings import RetinaNetSettings
from crossdet.types import Annotations, Batch

MB = 2**20


class Step(nn.Module):
    """Loss of a batch, from the slices that it needs or from all logits."""

    def __init__(self, detector: RetinaNet, full: bool) -> None:
        super().__init__()
        self.detector, self.full = detector, full

    def forward(self, batch: Batch) -> Tensor:
        features = self.detector.features(batch.images)
        losses = self.all_logits(features, batch) if self.full else self.detector.losses_of(features, batch)
        return sum(losses.normalised(self.detector.normaliser).values())

    def all_logits(self, features: list[Tensor], batch: Batch) -> Losses:
        model = self.detector
        outputs = model.head(features)
        grid = model.anchor_grid(outputs.grids)
        labelled = label_anchors(grid, batch.targets, has_regions=False)
        classification = image_focal_losses(
            torch.cat(outputs.logits, 1), labelled.labels, batch.trusted, avoid=labelled.avoid
        )
        box = model._box_losses(torch.cat(outputs.deltas, 1), grid.boxes, labelled)
        return Losses({"classification": classification, "box": box}, (labelled.labels >= 0).sum(1))


def random_batch(
    images: int, size: tuple[int, int], datasets: int, classes: int, boxes: int, device: torch.device
) -> Batch:
    """Image i is of dataset i modulo their number, and has boxes of its classes."""
    g = torch.Generator().manual_seed(0)
    trusted = torch.zeros(images, datasets * classes, dtype=torch.bool)
    targets = []
    for image in range(images):
        first = image % datasets * classes
        trusted[image, first : first + classes] = True
        corner = torch.rand(boxes, 2, generator=g) * torch.tensor([size[1] * 0.7, size[0] * 0.7])
        extent = 12 + torch.rand(boxes, 2, generator=g) * min(size) * 0.28
        labels = first + torch.randint(0, classes, (boxes,), generator=g)
        flags = torch.zeros(boxes, dtype=torch.uint8)
        targets.append(Annotations(torch.cat([corner, corner + extent], 1), labels, flags))
    sizes = torch.tensor([size] * images)
    pictures = torch.randint(0, 256, (images, 3, *size), generator=g, dtype=torch.uint8)
    rows = torch.arange(images)
    return Batch(pictures, sizes, sizes, targets, trusted, rows, rows % datasets).to(device)


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Runs in a process of its own."""
    device = torch.device(args.device)
    limit = args.limit_gb * 2**30
    if device.type == "cpu":
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    batch = random_batch(args.batch, tuple(args.size), args.measure, args.classes, args.boxes, device)
    torch.manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    settings = RetinaNetSettings(backbone=args.backbone, freeze_batch_norm=True)
    detector = build_detector(settings, args.measure * args.classes).to(device).train()
    step = Step(detector, args.measure_full).to(memory_format=torch.channels_last)
    if args.labelled:
        batch = detector.prepare()(batch.to(torch.device("cpu"))).to(device)
    weights = [p for p in step.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=1e-4, momentum=0.9, weight_decay=1e-4, fused=True)
    times = []
    for _ in range(args.steps + 1):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            loss = step(batch)
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    frozen = sum(p.numel() * p.element_size() for p in step.parameters() if not p.requires_grad)
    state = 3 * sum(p.numel() * p.element_size() for p in weights) + frozen
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {
        "step_seconds": statistics.median(times[1:]),  # the first one allocates
        "state_mb": state / MB,
        "activation_mb": (peak - state) / MB,
    }


def in_fresh_process(args: argparse.Namespace, datasets: int, boxes: int, full: bool) -> dict[str, float] | None:
    """Time from one process, memory from another. None: it ran into its memory limit."""
    timed = run_process(args, datasets, boxes, full, args.steps, {})
    if timed is None or torch.device(args.device).type == "cuda":  # whose allocator counts exactly in any process
        return timed
    # returned memory goes back at once, so that the peak is that of live tensors; this costs time
    exact = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    held = run_process(args, datasets, boxes, full, 1, exact)
    return None if held is None else {**held, "step_seconds": timed["step_seconds"]}


def run_process(
    args: argparse.Namespace, datasets: int, boxes: int, full: bool, steps: int, environment: dict[str, str]
) -> dict[str, float] | None:
    command = [sys.executable, __file__, "--measure", str(datasets), "--classes", str(args.classes)]
    command += ["--batch", str(args.batch), "--size", *map(str, args.size), "--steps", str(steps)]
    command += ["--boxes", str(boxes), "--device", args.device, "--limit-gb", str(args.limit_gb)]
    command += ["--backbone", args.backbone, *(["--measure-full"] if full else [])]
    command += ["--dtype", args.dtype, *(["--labelled"] if args.labelled else [])]
    environment = os.environ | environment
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if "memory" in done.stderr.lower() or done.returncode < 0:
        return None
    raise SystemExit(done.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--datasets", type=int, nargs="+", default=[1, 5, 20, 50])
    parser.add_argument("--classes", type=int, default=100, help="per dataset")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 416), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--boxes", type=int, default=10, help="per image")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one that is not")
    parser.add_argument("--full", action="store_true", help="also the step with all logits")
    parser.add_argument("--crowd", action="store_true", help="also with 300 boxes per image")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--labelled", action="store_true", help="the anchors are labelled before the step")
    parser.add_argument("--limit-gb", type=int, default=12, help="memory limit of each process (CPU)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--measure-full", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args)))
        return
    rows: list[dict[str, Any]] = []
    sizes = [(n, args.boxes) for n in args.datasets]
    sizes += [(n, 300) for n in args.datasets] if args.crowd else []
    print("datasets classes boxes |  step s   x first  state MB  activation MB  x first | full: s      MB")
    for datasets, boxes in sizes:
        ours = in_fresh_process(args, datasets, boxes, False)
        full = in_fresh_process(args, datasets, boxes, True) if args.full else None
        row = {"datasets": datasets, "classes": datasets * args.classes, "boxes": boxes}
        row |= ours or {"step_seconds": None, "state_mb": None, "activation_mb": None}
        row |= {"dtype": args.dtype, "labelled": args.labelled, "gpu": card_of(args.device)}
        row["full_step_seconds"] = full and full["step_seconds"]
        row["full_activation_mb"] = full and full["activation_mb"]
        rows.append(row)
        if ours is None:
            print(f"{datasets:8} {row['classes']:7} {boxes:5} | over the memory limit of {args.limit_gb} GB")
            continue
        first = next(r for r in rows if r["boxes"] == boxes)
        ratios = [row[key] / first[key] for key in ("step_seconds", "activation_mb")]
        beside = f"{full['step_seconds']:8.2f} {full['activation_mb']:7.0f}" if full else "       -"
        print(
            f"{datasets:8} {row['classes']:7} {boxes:5} | {row['step_seconds']:7.2f} {ratios[0]:9.2f} "
            f"{row['state_mb']:9.0f} {row['activation_mb']:14.0f} {ratios[1]:8.2f} | {beside}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
