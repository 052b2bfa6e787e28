"""Matching and class loss, forward and backward to the logits, against others: no network, only what is between.

    python benchmarks/loss.py [--rounds 15] [--json FILE]

24,885 anchors (320x416), 81 classes, batch 8, 10 boxes per image. `torchvision`: its matcher and
classification loss. `paper, full tensors`: eq. 3-4 of the paper in plain PyTorch, with targets and masks of the
logits' shape. All take turns; medians and ratios. `aware over plain`: the same loss with half of the classes
avoided and with none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.retinanet import RetinaNetClassificationHead
from torchvision.ops import box_iou

from crossdet.losses import image_focal_losses
from crossdet.models.anchors import cell_anchors, grid_anchors
from crossdet.models.matching import label_anchors
from crossdet.types import PYRAMID_STRIDES, Annotations

BATCH, CLASSES, BOXES, SIZE = 8, 81, 10, (320, 416)


def random_case(device: torch.device) -> tuple[Tensor, Tensor, list[Annotations], Tensor]:
    g = torch.Generator().manual_seed(0)
    scales = tuple(4 * 2 ** (k / 3) for k in range(3))
    anchors = torch.cat(
        [
            grid_anchors(cell_anchors(s, scales, (0.5, 1.0, 2.0)), (-(-SIZE[0] // s), -(-SIZE[1] // s)), s)
            for s in PYRAMID_STRIDES
        ]
    )
    targets = []
    for _ in range(BATCH):
        corner = torch.rand(BOXES, 2, generator=g) * torch.tensor([SIZE[1] * 0.7, SIZE[0] * 0.7])
        extent = 12 + torch.rand(BOXES, 2, generator=g) * min(SIZE) * 0.28
        labels = torch.randint(0, CLASSES, (BOXES,), generator=g)
        targets.append(
            Annotations(
                torch.cat([corner, corner + extent], 1), labels, torch.zeros(BOXES, dtype=torch.uint8)
            )
        )
    logits = torch.randn(BATCH, len(anchors), CLASSES, generator=g) - 4
    trusted = torch.zeros(BATCH, CLASSES, dtype=torch.bool)
    trusted[:, : CLASSES // 2] = True
    targets = [target.to(device) for target in targets]
    return logits.to(device), anchors.to(device), targets, trusted.to(device)


def ours(logits: Tensor, anchors: Tensor, targets: list[Annotations], trusted: Tensor) -> Tensor:
    found = label_anchors(anchors, targets, has_regions=False)
    sums = image_focal_losses(logits, found.labels, trusted, avoid=found.avoid)
    return sums.sum() / (found.labels >= 0).sum().clamp(min=1)


def torchvision_loss(logits: Tensor, anchors: Tensor, targets: list[Annotations], head: object) -> Tensor:
    """`RetinaNet.compute_loss` without the boxes; it divides per image."""
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    matched = [matcher(box_iou(target.boxes, anchors)) for target in targets]
    boxes = [{"labels": target.labels} for target in targets]
    return head.compute_loss(boxes, {"cls_logits": logits}, matched)  # type: ignore[attr-defined]


def paper_loss(logits: Tensor, anchors: Tensor, targets: list[Annotations], trusted: Tensor) -> Tensor:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
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
    aware, reference = sides["crossdet, aware"](logits), sides["paper, full tensors"](logits)
    torch.testing.assert_close(aware, reference, rtol=1e-4, atol=1e-5)
    for loss in sides.values():
        timed(loss)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, loss in sides.items():
            times[name].append(timed(loss))
    medians = {name: statistics.median(values) for name, values in times.items()}
    pairs = zip(times["crossdet, aware"], times["crossdet, plain"], strict=True)
    result = {
        "seconds": medians,
        "torchvision_over_crossdet": medians["torchvision"] / medians["crossdet, aware"],
        "paper_over_crossdet": medians["paper, full tensors"] / medians["crossdet, aware"],
        "aware_over_plain": statistics.median(a / b for a, b in pairs),
        "matching_seconds": statistics.median(
            _seconds(lambda: label_anchors(anchors, targets, has_regions=False)) for _ in range(args.rounds)
        ),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }
    for name, value in medians.items():
        print(f"{name:20} {1000 * value:8.1f} ms")
    print(
        f"torchvision takes {result['torchvision_over_crossdet']:.2f} times as long, the paper's formulas over "
        f"full tensors {result['paper_over_crossdet']:.2f} times; "
        f"aware over plain {result['aware_over_plain']:.3f}; "
        f"matching alone {1000 * result['matching_seconds']:.1f} ms (median of {args.rounds} rounds)"
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
