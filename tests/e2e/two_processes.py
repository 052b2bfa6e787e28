"""What `test_distributed.py` runs in one process and, under torchrun, in two: one step, three steps, dtypes.

    python two_processes.py CONFIG OUT

Writes OUT_<rank>.pt with everything the test compares.
"""

from __future__ import annotations

import sys
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from crossdet import load_config
from crossdet.config import Config
from crossdet.config.sources import open_sources
from crossdet.data.hybrid import Draw, HybridDataset
from crossdet.data.loading import MicroBatches, collate
from crossdet.models.building import build_detector
from crossdet.models.contract import step_divisor
from crossdet.models.retinanet.network import RetinaNet
from crossdet.runs.building import build_fabric, network_settings, training_data
from crossdet.training.loop import Sealed, TrainStep
from crossdet.types import Batch

GLOBAL_BATCHES = [[0, 13, 5], [2, 3, 20, 17], [7, 14, 8]]
"""Rows of the hybrid dataset (0..11 cars, 12..23 faces). Three images do not split evenly over two processes."""


def compute(config: Config) -> dict[str, Any]:
    fabric = build_fabric(config)
    dataset = training_data(config, open_sources(config, ["train"]))
    return {
        "rank": fabric.global_rank,
        "world_size": fabric.world_size,
        **gradients(config, fabric, dataset),
        "by_image": gradients(config, fabric, dataset, "image")["gradients"],
        "in_parts": gradients_in_parts(config, fabric, dataset),
        "weights": three_steps(config, fabric, dataset),
        "dtypes": head_dtypes(config, dataset),
    }


def detector_of(config: Config) -> RetinaNet:
    torch.manual_seed(0)
    model = build_detector(network_settings(config), 2)
    model.train()
    return model


def share(fabric: Fabric, dataset: HybridDataset, rows: list[int]) -> Batch:
    """This process's part of a global batch, split as training splits it."""
    draws = [Draw(row, 0) for row in rows]
    (mine,) = MicroBatches([draws], 1, fabric.global_rank, fabric.world_size)
    return collate([dataset[draw] for draw in mine])


def gradients(
    config: Config, fabric: Fabric, dataset: HybridDataset, normaliser: Literal["batch", "image"] = "batch"
) -> dict[str, Any]:
    """Gradients of one step in float64: what differs between one process and two is not rounding."""
    detector = detector_of(config).double()
    detector.normaliser = normaliser
    module = fabric.setup(TrainStep(detector))
    batch = share(fabric, dataset, GLOBAL_BATCHES[0])
    terms, _, positives, _ = module(Sealed(batch))
    fabric.backward(sum(terms.values()))
    return {
        "gradients": {n: p.grad.clone() for n, p in detector.named_parameters() if p.grad is not None},
        "images": len(batch),
        "positives": int(positives.sum()),
    }


def gradients_in_parts(config: Config, fabric: Fabric, dataset: HybridDataset) -> dict[str, Tensor]:
    """Of one step of all images: one batch where a process is alone, else two micro-batches in each of two."""
    detector = detector_of(config).double()
    module = fabric.setup(TrainStep(detector))
    parts = 1 if fabric.world_size == 1 else 2
    draws = [Draw(row, 0) for rows in GLOBAL_BATCHES for row in rows]
    micro = MicroBatches([draws], parts, fabric.global_rank, fabric.world_size)
    batches = [collate([dataset[draw] for draw in mine]) for mine in micro]
    divisor = step_divisor([detector.positives(batch).double() for batch in batches], "batch")
    for number, batch in enumerate(batches):
        with fabric.no_backward_sync(module, enabled=number + 1 < parts):
            terms, *_ = module(Sealed(batch, divisor))
            fabric.backward(sum(terms.values()) / parts)
    return {n: p.grad.clone() for n, p in detector.named_parameters() if p.grad is not None}


def three_steps(config: Config, fabric: Fabric, dataset: HybridDataset) -> dict[str, Tensor]:
    detector = detector_of(config).double()
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.01, momentum=0.9)
    module, optimizer = fabric.setup(TrainStep(detector), optimizer)
    for rows in GLOBAL_BATCHES:
        terms, *_ = module(Sealed(share(fabric, dataset, rows)))
        fabric.backward(sum(terms.values()))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {name: value.clone() for name, value in detector.state_dict().items()}


def head_dtypes(config: Config, dataset: HybridDataset) -> dict[str, str]:
    """What the head computes in under bf16-mixed, and what its losses and gradients are kept in."""
    mixed = config.model_copy(update={"train": config.train.model_copy(update={"precision": "bf16-mixed"})})
    fabric = build_fabric(mixed)
    detector = detector_of(config)
    seen: dict[str, str] = {}

    def note(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen[name] = str(output.dtype)

        return hook

    detector.class_subnet.tower[-1].register_forward_hook(note("class_subnet"))
    detector.box_subnet.register_forward_hook(note("box_subnet"))
    detector.backbone.body.conv_stem.register_forward_hook(note("backbone"))
    module = fabric.setup(TrainStep(detector))
    batch = share(fabric, dataset, GLOBAL_BATCHES[1])
    terms, *_ = module(Sealed(batch))
    fabric.backward(sum(terms.values()))
    seen["loss"] = str(terms["classification"].dtype)
    seen["boxes"] = str(batch.targets[0].boxes.dtype)
    seen["gradient"] = str(next(p.grad.dtype for p in detector.parameters() if p.grad is not None))
    return seen


if __name__ == "__main__":
    result = compute(load_config(sys.argv[1]))
    torch.save(result, f"{sys.argv[2]}_{result['rank']}.pt")
