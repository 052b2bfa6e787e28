"""What a training step of D-FINE costs as the union grows: how much a step over own classes could save.

    python benchmarks/detr_union.py [--size nano] [--square 320] [--batch 4] [--json FILE]

Every image trusts `--own` classes and shows ten boxes of them. The union has as many, the bound of what could be
saved, or 80, or 2,000. Seconds of CPU of one thread, the median of interleaved steps, so that other processes
matter little; the forward part of selection, class heads, and class loss (negatives and terms) beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from bench import machine
from crossdet.models.detr import criterion, network
from crossdet.models.detr.architecture import build
from crossdet.models.detr.graphs import rt_detr
from crossdet.models.detr.settings import DetrLoss, DFineModel, DFineSettings
from crossdet.types import Annotations, Batch

PARTS = {
    "selection": [(network, "chosen")],
    "class heads": [(rt_detr, "logits_of")],
    "class loss": [(criterion, "negatives_of"), (criterion, "class_sums")],
}


def batch_of(images: int, side: int, own: int, classes: int, boxes: int = 10) -> Batch:
    source = torch.Generator().manual_seed(0)
    trusted = torch.zeros(images, classes, dtype=torch.bool)
    targets = []
    for image in range(images):
        first = image * own % classes
        trusted[image, first : first + own] = True
        low = torch.rand(boxes, 2, generator=source) * side * 0.7
        high = low + 12 + torch.rand(boxes, 2, generator=source) * side * 0.25
        labels = first + torch.randint(0, own, (boxes,), generator=source)
        targets.append(Annotations(torch.cat([low, high], 1), labels, torch.zeros(boxes, dtype=torch.uint8)))
    sizes, rows = torch.tensor([[side, side]] * images), torch.arange(images)
    pictures = torch.randint(0, 256, (images, 3, side, side), generator=source, dtype=torch.uint8)
    return Batch(pictures, sizes, sizes, targets, trusted, rows, rows)


def watched(spent: dict[str, float]) -> None:
    """Adds up what the parts take."""

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            begin = time.process_time()
            result = function(*arguments)
            spent[part] += time.process_time() - begin
            return result

        return call

    for part, places in PARTS.items():
        for module, name in places:
            setattr(module, name, timed(part, getattr(module, name)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="nano")
    parser.add_argument("--square", type=int, default=320)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--own", type=int, default=20, help="classes of an image")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = DFineSettings.of(DFineModel(size=args.size, square=args.square), DetrLoss())
    runs = {}
    for classes in (args.own, 80, 2000):
        torch.manual_seed(0)
        made = build(settings, classes, None)
        made.training_mode()
        batch = made.prepare()(batch_of(args.batch, args.square, args.own, classes))
        runs[classes] = (made, batch, torch.optim.AdamW(made.parameters(), 1e-5))
    spent: dict[str, float] = defaultdict(float)
    watched(spent)
    found: dict[int, list[dict[str, float]]] = {classes: [] for classes in runs}
    for _ in range(args.steps + 1):
        for classes, (made, batch, optimiser) in runs.items():
            spent.clear()
            begin = time.process_time()
            optimiser.zero_grad(set_to_none=True)
            sum(made.losses(batch).normalised("batch").values()).backward()
            optimiser.step()
            found[classes].append({"step": time.process_time() - begin, **spent})
    rows = []
    for classes, steps in found.items():
        names = steps[0].keys()
        row = {name: round(statistics.median(step[name] for step in steps[1:]), 4) for name in names}
        rows.append({"classes": classes, **row})
        print(rows[-1] | {"x flat": round(row["step"] / rows[0]["step"], 3)}, flush=True)
    if args.json:
        versions = {"machine": machine(), "transformers": transformers.__version__}
        what = {"size": args.size, "square": args.square, "batch": args.batch, "own": args.own, "seed": 0}
        args.json.write_text(json.dumps({**what, **versions, "seconds": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
