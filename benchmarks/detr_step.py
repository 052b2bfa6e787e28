"""A training step of D-FINE against that of HF transformers, whose modules it trains: what the rule costs.

    python benchmarks/detr_step.py [--size small] [--square 640] [--batch 16] [--device cpu] [--json FILE]

The same weights, pictures, boxes and numbers (bf16 on a GPU, float32 on a CPU); all classes trusted, ten boxes in a
picture, 100 denoising queries; forward, loss, backward and AdamW. Theirs is `DFineForObjectDetection(..., labels)`
with pictures that are normalised and stretched already; ours begins with uint8 pictures. The steps take turns. On a
CPU: seconds of CPU of one thread, so that other processes matter little; on a GPU: seconds of the clock.
`--profile` prints the longest operations of one step of either.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from bench import card_of, machine
from crossdet.models.detr.architecture import build
from crossdet.models.detr.settings import DetrLoss, DFineModel, DFineSettings
from crossdet.types import Batch
from detr_union import batch_of

CLASSES = 80


def own_step(network: Any, batch: Batch) -> Tensor:
    total: Tensor = sum(network.losses(batch).normalised("batch").values())
    return total


def their_step(network: nn.Module, pictures: Tensor, labels: list[dict[str, Tensor]]) -> Tensor:
    total: Tensor = network(pixel_values=pictures, labels=labels).loss
    return total


def hf_labels(batch: Batch) -> list[dict[str, Tensor]]:
    """Boxes as shares of the picture: middle and size."""
    found = []
    for target, (height, width) in zip(batch.targets, batch.sizes.tolist(), strict=True):
        low, high = target.boxes.split(2, 1)
        shares = torch.cat([(low + high) / 2, high - low], 1) / torch.tensor([width, height, width, height])
        found.append({"class_labels": target.labels, "boxes": shares})
    return found


def steps_of(args: argparse.Namespace) -> dict[str, Callable[[], None]]:
    device = torch.device(args.device)
    settings = DFineSettings.of(DFineModel(size=args.size, square=args.square), DetrLoss())
    torch.manual_seed(0)
    ours = build(settings, CLASSES, None)
    with tempfile.TemporaryDirectory() as folder:
        ours.write_directory([f"class {c}" for c in range(CLASSES)], Path(folder))
        theirs = transformers.DFineForObjectDetection.from_pretrained(folder)
    ours.to(device).training_mode()
    theirs.to(device).train()
    made = ours.prepare()(batch_of(args.batch, args.square, CLASSES, CLASSES))
    pictures = ours.pictures(made.images.to(device), made.sizes)
    labels = [{key: value.to(device) for key, value in one.items()} for one in hf_labels(made)]
    batch = made.to(device)
    optimisers = [torch.optim.AdamW(network.parameters(), 1e-5) for network in (ours, theirs)]

    def step(loss_of: Callable[[], Tensor], optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of()
        loss.backward()
        optimiser.step()

    return {
        "crossdet": lambda: step(lambda: own_step(ours, batch), optimisers[0]),
        "transformers": lambda: step(lambda: their_step(theirs, pictures, labels), optimisers[1]),
    }


def seconds(function: Callable[[], None], device: str) -> float:
    clock = time.process_time if torch.device(device).type == "cpu" else time.perf_counter
    begin = clock()
    function()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="nano")
    parser.add_argument("--square", type=int, default=320)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    steps = steps_of(args)
    found: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(args.rounds + 2):
        for name, step in steps.items():
            spent = seconds(step, args.device)
            if turn >= 2:  # before that memory is asked for, and a GPU chooses its kernels
                found[name].append(spent)
    medians = {name: statistics.median(values) for name, values in found.items()}
    ratio = medians["transformers"] / medians["crossdet"]
    for name, value in medians.items():
        print(f"{name:14} {1000 * value:8.1f} ms")
    print(f"transformers takes {ratio:.2f} times as long")
    if args.profile:
        for name, step in steps.items():
            with profile(activities=[ProfilerActivity.CPU]) as record:
                step()
            print(name, record.key_averages().table(sort_by="self_cpu_time_total", row_limit=25), sep="\n")
    if args.json:
        what = {key: getattr(args, key) for key in ("size", "square", "batch", "rounds", "device")}
        versions = {"machine": machine(), "gpu": card_of(args.device), "transformers": transformers.__version__}
        about = {**what, "classes": CLASSES, **versions, "seconds": medians}
        args.json.write_text(json.dumps(about | {"transformers_over_crossdet": ratio}, indent=1) + "\n")


if __name__ == "__main__":
    main()
