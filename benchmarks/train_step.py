"""Our training step against torchvision's own RetinaNet: same backbone, input, batch, anchors and device.

    python benchmarks/train_step.py [--backbone resnet50] [--batch 4] [--size 320 416] [--json FILE]

A step is forward, loss, backward and SGD. The two models take turns in one process, so that whatever else the
machine does hits both; the medians are compared. Both have the backbone (all layers trainable, frozen batch norm,
random weights), FPN P3-P7 with 256 channels, 9 anchors and the same number of classes; ours has the
dataset-aware loss with half of the classes avoided in every image, or, with `--datasets 10 --classes 1000`, a
union: every image trusts the 100 classes of its own dataset. Each side runs in its own best memory format: the
faster of contiguous and channels_last, which is tried first and printed; with `--dtype best` each also in its
faster number type, float32 or bfloat16 (autocast). The optimiser is the same, fused SGD. Matching is inside both
steps; in a real training ours is done by the loader's workers, and with `--labelled` here, too.

`--compile` compares our compiled step instead: one graph for any size, or with `--compile canvas` a graph of this
size alone, as a training on canvases has it. That one runs in channels_last, as trainings do, so that nothing is
compiled twice. `first_seconds` is what the first step took, compilation included; the cache of torch.compile is an
empty one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from bench import card_of
from crossdet.models.building import build_detector
from crossdet.models.retinanet.settings import Anchors, RetinaNetSettings
from crossdet.training.loop import TrainStep
from crossdet.types import Annotations, Batch

Step = Callable[[], float]
TORCHVISION = {
    # builder, where C3 to C5 come from, their channels
    "resnet50": (torchvision.models.resnet50, ("layer2", "layer3", "layer4"), [512, 1024, 2048]),
    "resnet18": (torchvision.models.resnet18, ("layer2", "layer3", "layer4"), [128, 256, 512]),
    "mobilenetv2_100": (torchvision.models.mobilenet_v2, ("6", "13", "17"), [32, 96, 320]),
}


class Form(NamedTuple):
    """How a side runs."""

    channels_last: bool
    bfloat16: bool

    @property
    def name(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        return f"{'bfloat16' if self.bfloat16 else 'float32'}, {layout}"

    def autocast(self, device: torch.device) -> Any:
        return torch.autocast(device.type, torch.bfloat16) if self.bfloat16 else nullcontext()


def random_batch(batch: int, size: tuple[int, int], classes: int, datasets: int, device: torch.device) -> Batch:
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


@contextmanager
def empty_compile_cache() -> Iterator[None]:
    """What torch.compile keeps on disk lies in a folder of its own, which goes at the end."""
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["TORCHINDUCTOR_CACHE_DIR"]
            if before is not None:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = before


def our_step(
    backbone: str,
    classes: int,
    batch: Batch,
    form: Form,
    compiled: str | None = None,
    group_norm: bool = False,
    labelled: bool = False,
) -> Step:
    """compiled: `any` size or this `canvas`; None: it is not. labelled: the loader has labelled the anchors."""
    torch.manual_seed(0)
    scales = tuple(4 * 2 ** (k / 3) for k in range(3))
    settings = RetinaNetSettings(
        backbone=backbone, anchors=Anchors(scales=scales), freeze_batch_norm=True, group_norm=group_norm
    )
    network = build_detector(settings, classes).to(batch.images.device)
    if compiled:
        network.compile_parts(len(batch.images) if compiled == "canvas" else None)
    if labelled:
        batch = network.prepare()(batch.to(torch.device("cpu"))).to(batch.images.device)
    step = TrainStep(network).train()
    if form.channels_last:
        step = step.to(memory_format=torch.channels_last)
    sgd = optimizer(step)

    def run() -> float:
        sgd.zero_grad(set_to_none=True)
        with form.autocast(batch.images.device):
            terms, *_ = step(batch)
        loss = sum(terms.values())
        loss.backward()
        sgd.step()
        return float(loss.detach())

    return run


def torchvision_step(backbone: str, classes: int, batch: Batch, form: Form) -> Step:
    torch.manual_seed(0)
    builder, layers, channels = TORCHVISION[backbone]
    body = builder(weights=None, norm_layer=FrozenBatchNorm2d)
    pyramid = BackboneWithFPN(
        body if hasattr(body, "layer2") else body.features,
        {layer: str(number) for number, layer in enumerate(layers)},
        channels,
        256,
        extra_blocks=LastLevelP6P7(channels[-1], 256),
    )
    height, width = batch.images.shape[-2:]
    model = TorchvisionRetinaNet(pyramid, classes, min_size=height, max_size=max(height, width))
    model = model.to(batch.images.device).train()
    if form.channels_last:
        model = model.to(memory_format=torch.channels_last)
    sgd = optimizer(model)
    # its documented input: float images in 0..1 and a dictionary per image
    targets = [{"boxes": target.boxes, "labels": target.labels} for target in batch.targets]

    def run() -> float:
        sgd.zero_grad(set_to_none=True)
        with form.autocast(batch.images.device):
            losses = model(list(batch.images.float() / 255), targets)
        loss = sum(losses.values())
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


def forms(dtype: str, layouts: Sequence[bool] = (False, True)) -> list[Form]:
    """layouts: whether channels_last is tried, and what else."""
    halves = {"float32": [False], "bfloat16": [True], "best": [False, True]}[dtype]
    return [Form(last, half) for half in halves for last in layouts]


def best_form(
    build: Callable[[Form], Step], allowed: Sequence[Form], device: torch.device
) -> tuple[Step, Form, float]:
    """The step in the fastest of the allowed forms, after warming all up, and the seconds of its first call."""
    best: tuple[float, Step, Form, float] | None = None
    for form in allowed:
        step = build(form)
        taken = [seconds(step, device) for _ in range(3)]  # the first call of three allocates
        if best is None or min(taken) < best[0]:
            best = min(taken), step, form, taken[0]
    assert best is not None
    return best[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="resnet50", choices=sorted(TORCHVISION))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "best"])
    parser.add_argument(
        "--compile", nargs="?", const="any", choices=["any", "canvas"], help="ours: for any size, or for this one"
    )
    parser.add_argument("--labelled", action="store_true", help="our anchors are labelled before the step")
    parser.add_argument("--group-norm", action="store_true", help="in pyramid and towers, as `recipe: auto` has it")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 416), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--classes", type=int, default=91)
    parser.add_argument("--datasets", type=int, default=1, help="that share the classes among them")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved pairs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    with empty_compile_cache() if args.compile else nullcontext():
        result = measure(args, device)
    print(
        f"{args.backbone}, batch {args.batch}, {args.size[0]}x{args.size[1]}, {args.classes} classes, {device}\n"
        f"crossdet     {result['ours_seconds']:8.3f} s per step ({result['ours_form']})\n"
        f"torchvision  {result['torchvision_seconds']:8.3f} s per step ({result['torchvision_form']})\n"
        f"ratio        {result['ratio']:8.3f} (torchvision over crossdet; median of {args.rounds} pairs)\n"
        f"our first step took {result['first_seconds']:.1f} s"
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    batch = random_batch(args.batch, tuple(args.size), args.classes, args.datasets, device)
    ours, our_form, first = best_form(
        lambda form: our_step(
            args.backbone, args.classes, batch, form, args.compile, args.group_norm, args.labelled
        ),
        forms(args.dtype, [True]) if args.compile == "canvas" else forms(args.dtype),
        device,
    )
    theirs, their_form, _ = best_form(
        lambda form: torchvision_step(args.backbone, args.classes, batch, form), forms(args.dtype), device
    )
    pairs = [(seconds(ours, device), seconds(theirs, device)) for _ in range(args.rounds)]
    ours_seconds = statistics.median(a for a, _ in pairs)
    torchvision_seconds = statistics.median(b for _, b in pairs)
    return {
        "ours_seconds": ours_seconds,
        "torchvision_seconds": torchvision_seconds,
        "ratio": torchvision_seconds / ours_seconds,
        "first_seconds": first,
        "ours_form": our_form.name + (", compiled" if args.compile else ""),
        "compiled_for": args.compile,
        "labelled": args.labelled,
        "group_norm": args.group_norm,
        "torchvision_form": their_form.name,
        "backbone": args.backbone,
        "batch": args.batch,
        "size": list(args.size),
        "classes": args.classes,
        "datasets": args.datasets,
        "rounds": args.rounds,
        "device": card_of(device) or platform.processor() or "cpu",
        "gpu": card_of(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


if __name__ == "__main__":
    main()
