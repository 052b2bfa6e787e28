"""Our training step against torchvision's own RetinaNet: same backbone, input, batch, anchors and device.

    python benchmarks/train_step.py [--backbone resnet50] [--batch 4] [--size 320 416] [--json FILE]

A step is forward, loss, backward and SGD. The two models take turns in one process, so that whatever else the
machine does hits both; the medians are compared. Both have ResNet-50 (all layers trainable, frozen batch norm,
random weights), FPN P3-P7 with 256 channels, 9 anchors and the same number of classes; ours has the
dataset-aware loss with half of the classes avoided in every image, or, with `--datasets 10 --classes 1000`, a
union: every image trusts the 100 classes of its own dataset. Each side runs in its own best memory format: the
faster of contiguous and channels_last, which is tried first and printed. The optimiser is the same, fused SGD.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from crossdet.models.building import DetectorSettings, build_detector
from crossdet.training import TrainStep
from crossdet.types import Annotations, Batch

Step = Callable[[], float]


def random_batch(
    batch: int, size: tuple[int, int], classes: int, datasets: int, device: torch.device
) -> Batch:
    """`batch` random images with 10 boxes each. One dataset: every image trusts half of the classes; several: the
    classes of its own."""
    generator = torch.Generator().manual_seed(0)
    targets = []
    trusted = torch.zeros(batch, classes, dtype=torch.bool)
    own = classes // datasets
    for image in range(batch):
        corner = torch.rand(10, 2, generator=generator) * torch.tensor([size[1] * 0.7, size[0] * 0.7])
        extent = 12 + torch.rand(10, 2, generator=generator) * min(size) * 0.28
        first = image % datasets * own
        trusted[image, first : first + (own if datasets > 1 else (classes + 1) // 2)] = True
        labels = first + torch.randint(0, own, (10,), generator=generator)
        targets.append(
            Annotations(torch.cat([corner, corner + extent], 1), labels, torch.zeros(10, dtype=torch.uint8))
        )
    sizes = torch.tensor([size] * batch)
    return Batch(
        images=torch.randint(0, 256, (batch, 3, *size), generator=generator, dtype=torch.uint8),
        sizes=sizes,
        original_sizes=sizes,
        targets=targets,
        trusted=trusted,
        image_ids=torch.arange(batch),
        dataset_ids=torch.zeros(batch, dtype=torch.int64),
    ).to(device)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4, fused=True)


def our_step(backbone: str, classes: int, batch: Batch, channels_last: bool) -> Step:
    torch.manual_seed(0)
    scales = tuple(4 * 2 ** (k / 3) for k in range(3))
    settings = DetectorSettings(backbone=backbone, scales=scales, frozen_batch_norm=True)
    step = TrainStep(build_detector(settings, classes)).to(batch.images.device).train()
    if channels_last:
        step = step.to(memory_format=torch.channels_last)
    sgd = optimizer(step)

    def run() -> float:
        sgd.zero_grad(set_to_none=True)
        losses = step(batch)
        loss = losses["classification"] + losses["box"]
        loss.backward()
        sgd.step()
        return float(loss.detach())

    return run


def torchvision_step(backbone: str, classes: int, batch: Batch, channels_last: bool) -> Step:
    torch.manual_seed(0)
    builder = {
        "resnet50": torchvision.models.resnet50,
        "resnet18": torchvision.models.resnet18,
    }[backbone]
    body = builder(weights=None, norm_layer=FrozenBatchNorm2d)
    channels = [body.layer2[-1].conv1.in_channels, body.layer3[-1].conv1.in_channels, body.fc.in_features]
    pyramid = BackboneWithFPN(
        body,
        {"layer2": "0", "layer3": "1", "layer4": "2"},
        channels,
        256,
        extra_blocks=LastLevelP6P7(channels[-1], 256),
    )
    height, width = batch.images.shape[-2:]
    model = TorchvisionRetinaNet(pyramid, classes, min_size=height, max_size=max(height, width))
    model = model.to(batch.images.device).train()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    sgd = optimizer(model)
    # its documented input: float images in 0..1 and a dictionary per image
    targets = [{"boxes": target.boxes, "labels": target.labels} for target in batch.targets]

    def run() -> float:
        sgd.zero_grad(set_to_none=True)
        loss = sum(model(list(batch.images.float() / 255), targets).values())
        loss.backward()
        sgd.step()
        return float(loss.detach())

    return run


def seconds(step: Step, device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def best_format(build: Callable[[bool], Step], device: torch.device) -> tuple[Step, str]:
    """The step in the faster memory format, after warming both up."""
    candidates = {"contiguous": build(False), "channels_last": build(True)}
    times = {
        name: min(seconds(step, device) for _ in range(3)) for name, step in candidates.items()
    }  # the first call of three allocates
    name = min(times, key=lambda n: times[n])
    return candidates[name], name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="resnet50", choices=["resnet50", "resnet18"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 416), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--classes", type=int, default=91)
    parser.add_argument("--datasets", type=int, default=1, help="that share the classes among them")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved pairs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    batch = random_batch(args.batch, tuple(args.size), args.classes, args.datasets, device)
    ours, our_format = best_format(lambda last: our_step(args.backbone, args.classes, batch, last), device)
    theirs, their_format = best_format(
        lambda last: torchvision_step(args.backbone, args.classes, batch, last), device
    )
    pairs = [(seconds(ours, device), seconds(theirs, device)) for _ in range(args.rounds)]
    ours_seconds = statistics.median(a for a, _ in pairs)
    torchvision_seconds = statistics.median(b for _, b in pairs)
    result = {
        "ours_seconds": ours_seconds,
        "torchvision_seconds": torchvision_seconds,
        "ratio": torchvision_seconds / ours_seconds,
        "ours_format": our_format,
        "torchvision_format": their_format,
        "backbone": args.backbone,
        "batch": args.batch,
        "size": list(args.size),
        "classes": args.classes,
        "datasets": args.datasets,
        "rounds": args.rounds,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    print(
        f"{args.backbone}, batch {args.batch}, {args.size[0]}x{args.size[1]}, {args.classes} classes, {device}\n"
        f"crossdet     {ours_seconds:8.3f} s per step ({our_format})\n"
        f"torchvision  {torchvision_seconds:8.3f} s per step ({their_format})\n"
        f"ratio        {result['ratio']:8.3f} (torchvision over crossdet; median of {args.rounds} pairs)"
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
