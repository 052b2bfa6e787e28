"""Where the time of a training step goes, and how far it is from what the machine could do.

    python benchmarks/floor.py [--backbone resnet50] [--batch 4] [--size 320 416] [--json FILE]

Phases of the step (one after the other, medians): labelling the anchors, forward of backbone and pyramid, forward
of the subnets with the loss, backward, optimiser. Floor: floating point operations of the convolutions and matrix
products, counted while they run, over the rate that this machine reaches in a large matrix product; and bytes that
must be moved at least, over the bandwidth of a large copy: input, weight and output once of every convolution
module (the class logits, computed in slices, are left out), and twice more in the backward pass. Elementwise
operations are not in the floor. `--top` prints the operators with the most time of their own in one step more: on a
GPU its time, else that of the CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench import card_of
from crossdet.models.building import build_detector
from crossdet.models.retinanet.settings import RetinaNetSettings
from crossdet.training.loop import TrainStep
from crossdet.types import Batch
from train_step import TORCHVISION, Form, optimizer, random_batch


def timed(function: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product, the best of several."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(timed(lambda: a @ b, device)[1] for _ in range(8))


def bandwidth(device: torch.device) -> float:
    """Bytes per second of a large copy, read and written."""
    source = torch.empty(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / min(timed(lambda: target.copy_(source), device)[1] for _ in range(8))


class ConvolutionBytes:
    """Sums what every convolution reads and writes in a forward pass."""

    def __init__(self, module: nn.Module) -> None:
        self.total = 0
        self.handles = [m.register_forward_hook(self.add) for m in module.modules() if isinstance(m, nn.Conv2d)]

    def add(self, module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        tensors = (inputs[0], module.weight, output)
        self.total += sum(t.numel() * t.element_size() for t in tensors)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def phases(step: TrainStep, sgd: torch.optim.Optimizer, batch: Batch, form: Form) -> dict[str, float]:
    """Seconds of the parts of one step."""
    device, detector = batch.images.device, step.network
    labelled, labelling = timed(lambda: detector.prepare()(batch.to("cpu")).to(device), device)
    sgd.zero_grad(set_to_none=True)
    with form.autocast(device):
        features, forward = timed(lambda: detector.features(batch.images), device)
        losses, head = timed(lambda: detector.losses_of(features, labelled).normalised("batch"), device)
    _, backward = timed(sum(losses.values()).backward, device)
    _, update = timed(sgd.step, device)
    return {
        "labelling": labelling,
        "backbone and pyramid, forward": forward,
        "subnets and loss, forward": head,
        "backward": backward,
        "optimiser": update,
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(args.device)
    form = Form(True, args.dtype == "bfloat16")
    batch = random_batch(args.batch, tuple(args.size), args.classes, 1, device)
    settings = RetinaNetSettings(backbone=args.backbone, freeze_batch_norm=True)
    step = TrainStep(build_detector(settings, args.classes).to(device)).train()
    step = step.to(memory_format=torch.channels_last)
    sgd = optimizer(step)
    phases(step, sgd, batch, form)  # allocates
    rounds = [phases(step, sgd, batch, form) for _ in range(args.rounds)]
    medians = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    if args.top:
        with torch.profiler.profile() as profile:
            phases(step, sgd, batch, form)
        by = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=by, row_limit=args.top))
    moved = ConvolutionBytes(step)
    with FlopCounterMode(display=False) as counter, form.autocast(device):
        terms, *_ = step(batch)
        sum(terms.values()).backward()
    moved.remove()
    rate = matrix_rate(device, torch.bfloat16 if form.bfloat16 else torch.float32)
    copy_rate = bandwidth(device)
    seconds = sum(medians.values()) - medians["labelling"]
    compute, memory = counter.get_total_flops() / rate, 3 * moved.total / copy_rate
    return {
        "backbone": args.backbone, "batch": args.batch, "size": list(args.size), "form": form.name,
        "classes": args.classes, "rounds": args.rounds, "threads": torch.get_num_threads(),
        "gpu": card_of(device),
        "phases": medians, "step_seconds": seconds,
        "operations": counter.get_total_flops(), "operations_per_second": rate,
        "bytes": 3 * moved.total, "bytes_per_second": copy_rate,
        "compute_floor_seconds": compute, "memory_floor_seconds": memory,
        "step_over_floor": seconds / max(compute, memory),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="resnet50", choices=sorted(TORCHVISION))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 416), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--classes", type=int, default=91)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--top", type=int, default=0, help="operators to print")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = measure(args)
    print(f"{args.backbone}, batch {args.batch}, {args.size[0]}x{args.size[1]}, {result['form']}")
    for name, seconds in result["phases"].items():
        print(f"{name:32} {1000 * seconds:9.1f} ms")
    print(
        f"floor: {result['operations'] / 1e9:.0f} G operations at {result['operations_per_second'] / 1e9:.0f} G/s "
        f"= {result['compute_floor_seconds']:.3g} s; {result['bytes'] / 1e9:.1f} GB at "
        f"{result['bytes_per_second'] / 1e9:.1f} GB/s = {result['memory_floor_seconds']:.3g} s; the step takes "
        f"{result['step_over_floor']:.2f} times the larger one"
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
