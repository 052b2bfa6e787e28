"""Matching and class loss, forward and backward to the logits, against others: no network, only what is between.

    python benchmarks/loss.py [--rounds 15] [--compile] [--json FILE]

24,885 anchors (320x416), 81 classes, batch 8, 10 boxes per image. `torchvision`: its matcher and
classification loss. `paper, full tensors`: eq. 3-4 of the paper in plain PyTorch, with targets and masks of the
logits' shape. All take turns; medians and ratios. `aware over plain`: the same loss with half of the classes
avoided and with none, median of pairs whose order changes. `--compile` adds the loss through torch.compile.
`--crowd`: a batch of four with 2,000 faces in one image at 800x1344, 201,600 anchors: time of matching, and how
much more memory a process takes for it than with 10 faces.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.retinanet import RetinaNetClassificationHead
from torchvision.ops import box_iou

from bench import card_of
from crossdet.losses import image_focal_losses
from crossdet.models.retinanet.anchors import AnchorGrid, anchor_grid, cell_anchors, pyramid_grids
from crossdet.models.retinanet.matching import label_anchors
from crossdet.models.retinanet.settings import PYRAMID_STRIDES
from crossdet.types import Annotations

BATCH, CLASSES, BOXES, SIZE = 8, 81, 10, (320, 416)


def all_anchors(size: tuple[int, int], scales: tuple[float, ...], device: torch.device) -> AnchorGrid:
    cells = [cell_anchors(stride, scales, (0.5, 1.0, 2.0)).to(device) for stride in PYRAMID_STRIDES]
    return anchor_grid(cells, pyramid_grids(*size, len(cells)), PYRAMID_STRIDES)


def random_case(device: torch.device) -> tuple[Tensor, AnchorGrid, list[Annotations], Tensor]:
    g = torch.Generator().manual_seed(0)
    scales = tuple(4 * 2 ** (k / 3) for k in range(3))
    anchors = all_anchors(SIZE, scales, device)
    targets = []
    for _ in range(BATCH):
        corner = torch.rand(BOXES, 2, generator=g) * torch.tensor([SIZE[1] * 0.7, SIZE[0] * 0.7])
        extent = 12 + torch.rand(BOXES, 2, generator=g) * min(SIZE) * 0.28
        labels = torch.randint(0, CLASSES, (BOXES,), generator=g)
        targets.append(
            Annotations(torch.cat([corner, corner + extent], 1), labels, torch.zeros(BOXES, dtype=torch.uint8))
        )
    logits = torch.randn(BATCH, len(anchors.boxes), CLASSES, generator=g) - 4
    trusted = torch.zeros(BATCH, CLASSES, dtype=torch.bool)
    trusted[:, : CLASSES // 2] = True
    targets = [target.to(device) for target in targets]
    return logits.to(device), anchors, targets, trusted.to(device)


def ours(
    logits: Tensor, anchors: AnchorGrid, targets: list[Annotations], trusted: Tensor, compiled: bool = False
) -> Tensor:
    found = label_anchors(anchors, targets, has_regions=False)
    sums = image_focal_losses(logits, found.labels, trusted, avoid=found.avoid, compiled=compiled)
    return sums.sum() / (found.labels >= 0).sum().clamp(min=1)


def torchvision_loss(logits: Tensor, anchors: AnchorGrid, targets: list[Annotations], head: object) -> Tensor:
    """`RetinaNet.compute_loss` without the boxes; it divides per image."""
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    matched = [matcher(box_iou(target.boxes, anchors.boxes)) for target in targets]
    boxes = [{"labels": target.labels} for target in targets]
    return head.compute_loss(boxes, {"cls_logits": logits}, matched)  # type: ignore[attr-defined]


def paper_loss(logits: Tensor, anchors: AnchorGrid, targets: list[Annotations], trusted: Tensor) -> Tensor:
    """Eq. 3-4 as they stand: one-hot targets, the focal term everywhere, a mask over all of it."""
    found = label_anchors(anchors, targets, has_regions=False)
    foreground = found.labels >= 0
    onehot = F.one_hot(found.labels.clamp(min=0), logits.shape[2]).to(logits.dtype) * foreground[..., None]
    p = torch.sigmoid(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, onehot, reduction="none")
    pt = p * onehot + (1 - p) * (1 - onehot)
    weight = 0.25 * onehot + 0.75 * (1 - onehot)
    counted = (trusted[:, None] | foreground[..., None]) & (found.labels != -2)[..., None]
    return (weight * (1 - pt) ** 2 * entropy * counted).sum() / foreground.sum().clamp(min=1)


def crowd(boxes: int, rounds: int) -> dict[str, float]:
    """Seconds of matching and MB by which this process grows: run in a process of its own."""
    g = torch.Generator().manual_seed(0)
    size = (800, 1344)
    anchors = all_anchors(size, (2.0, 3.0, 4.0), torch.device("cpu"))
    targets = []
    for count in (boxes, 10, 10, 10):
        corner = torch.rand(count, 2, generator=g) * torch.tensor([size[1] * 0.95, size[0] * 0.95])
        side = 6 * (40 / 6) ** torch.rand(count, 1, generator=g)  # 6 to 40 pixels, as in WIDER FACE's crowds
        box = torch.cat([corner, corner + side * torch.tensor([[1.0, 1.25]])], 1)
        targets.append(
            Annotations(box, torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.uint8))
        )
    label_anchors(anchors, targets[1:], has_regions=False)  # loads what is loaded once
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    label_anchors(anchors, targets, has_regions=False)
    grown = _status("VmHWM") - before
    taken = statistics.median(
        _seconds(lambda: label_anchors(anchors, targets, has_regions=False)) for _ in range(rounds)
    )
    return {"seconds": taken, "mb": grown}


def _status(key: str) -> float:
    """MB of a line of this process's status (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def crowd_in_processes(rounds: int) -> dict[str, float]:
    """With 2,000 faces, and with 10 instead."""
    results = []
    for boxes in (2000, 10):
        command = [sys.executable, __file__, "--measure-crowd", str(boxes), "--rounds", str(min(rounds, 7))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    many, few = results
    return {
        "crowd_seconds": many["seconds"],
        "without_seconds": few["seconds"],
        "crowd_adds_mb": many["mb"] - few["mb"],
    }


def aware_and_plain(taken: Callable[[str], float], rounds: int) -> list[tuple[float, float]]:
    """Seconds of both, next to each other and nothing else between, either one first in turns."""
    pairs = []
    for number in range(rounds):
        names = ("aware", "plain") if number % 2 else ("plain", "aware")
        seconds = {name: taken(name) for name in names}
        pairs.append((seconds["aware"], seconds["plain"]))
    return pairs


def main() -> None:  # noqa: C901  (one measurement from top to bottom)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--crowd", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure-crowd", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure_crowd:
        print(json.dumps(crowd(args.measure_crowd, args.rounds)))
        return
    device = torch.device(args.device)
    logits, anchors, targets, trusted = random_case(device)
    everything = torch.ones_like(trusted)
    head = RetinaNetClassificationHead(8, 9, CLASSES)

    def timed(loss: Callable[[Tensor], Tensor]) -> float:
        leaf = logits.detach().requires_grad_()
        start = time.perf_counter()
        loss(leaf).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    sides: dict[str, Callable[[Tensor], Tensor]] = {
        "crossdet, aware": lambda x: ours(x, anchors, targets, trusted),
        "crossdet, plain": lambda x: ours(x, anchors, targets, everything),
        "torchvision": lambda x: torchvision_loss(x, anchors, targets, head),
        "paper, full tensors": lambda x: paper_loss(x, anchors, targets, trusted),
    }
    if args.compile:
        sides["crossdet, compiled"] = lambda x: ours(x, anchors, targets, trusted, compiled=True)
    aware, reference = sides["crossdet, aware"](logits), sides["paper, full tensors"](logits)
    torch.testing.assert_close(aware, reference, rtol=1e-4, atol=1e-5)
    for loss in sides.values():
        timed(loss)
    times: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides.items())
    for _ in range(args.rounds):
        for name, loss in order:
            times[name].append(timed(loss))
        order.reverse()  # no side always has the same one before it
    medians = {name: statistics.median(values) for name, values in times.items()}
    pairs = aware_and_plain(lambda name: timed(sides[f"crossdet, {name}"]), args.rounds)
    result: dict[str, Any] = {
        "seconds": medians,
        "torchvision_over_crossdet": medians["torchvision"] / medians["crossdet, aware"],
        "paper_over_crossdet": medians["paper, full tensors"] / medians["crossdet, aware"],
        "aware_over_plain": statistics.median(a / b for a, b in pairs),
        "matching_seconds": statistics.median(
            _seconds(lambda: label_anchors(anchors, targets, has_regions=False)) for _ in range(args.rounds)
        ),
        "rounds": args.rounds,
        "threads": torch.get_num_threads(),
        "device": card_of(device) or "cpu",
        "gpu": card_of(device),
    }
    if args.compile:
        result["torchvision_over_compiled"] = medians["torchvision"] / medians["crossdet, compiled"]
    with_crowd = args.crowd and Path("/proc/self/clear_refs").exists()  # how memory is measured
    if with_crowd:
        result |= crowd_in_processes(args.rounds)
    for name, value in medians.items():
        print(f"{name:20} {1000 * value:8.1f} ms")
    print(
        f"torchvision takes {result['torchvision_over_crossdet']:.2f} times as long, the paper's formulas over "
        f"full tensors {result['paper_over_crossdet']:.2f} times; "
        f"aware over plain {result['aware_over_plain']:.3f}; "
        f"matching alone {1000 * result['matching_seconds']:.1f} ms (median of {args.rounds} rounds)"
    )
    if args.compile:
        print(f"torchvision takes {result['torchvision_over_compiled']:.2f} times as long as ours compiled")
    if args.crowd and not with_crowd:
        print("--crowd: left out, its memory is measured on Linux only")
    if with_crowd:
        print(
            f"2,000 faces in one of four images at 800x1344: matching {1000 * result['crowd_seconds']:.1f} ms, "
            f"with 10 faces {1000 * result['without_seconds']:.1f} ms; the crowd adds "
            f"{result['crowd_adds_mb']:.0f} MB"
        )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
