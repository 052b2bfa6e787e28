"""What `test_detr_distributed.py` runs in one process and in two: steps of two networks, and a training.

    python two_detr_processes.py CONFIG OUT

Writes OUT_<rank>.pt with what the test compares, and the runs OUT_whole and OUT_resumed.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from two_processes import GLOBAL_BATCHES, share

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.unit.models.detr.made import stirred, tiny

from crossdet import load_config, train
from crossdet.config import Config
from crossdet.config.sources import open_sources
from crossdet.data.hybrid import HybridDataset
from crossdet.models.detr.network import Detr
from crossdet.runs.building import build_fabric, training_data
from crossdet.training.loop import Sealed, TrainStep
from crossdet.types import Annotations, Batch

NETWORKS = ("dfine", "rfdetr")
"""With denoising, distributions and quality; with groups of queries."""
WITHOUT = 14
"""A picture whose objects are taken away. A process that has it alone gives no denoising queries."""


def compute(config: Config) -> dict[str, Any]:
    fabric = build_fabric(config)
    dataset = training_data(config, open_sources(config, ["train"]))
    return {name: three_steps(made(name), fabric, dataset) for name in NETWORKS}


def made(name: str) -> Detr:
    """Float64: what differs between one process and two is not rounding. Statistics of batch norm are fixed: those
    of a process would be of its own pictures."""
    network = stirred(tiny(name, 2), 0.1).double()
    network.training_mode(fixed_statistics=True)
    return network


def three_steps(network: Detr, fabric: Fabric, dataset: HybridDataset) -> dict[str, Any]:
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    module, optimizer = fabric.setup(TrainStep(network), optimizer)
    steps, gradients = [], {}
    for rows in GLOBAL_BATCHES:
        batch = part_of(fabric, dataset, rows)
        terms, image_loss, positives, noted = module(Sealed(batch))
        fabric.backward(sum(terms.values()))
        gradients = gradients or {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        of_images = {"loss": image_loss, "positives": positives, **noted}
        kept = {name: value.detach().clone() for name, value in terms.items()}
        steps.append({"terms": kept, "datasets": batch.dataset_ids, "of_images": of_images})
    return {"steps": steps, "gradients": gradients, "weights": dict(network.state_dict())}


def part_of(fabric: Fabric, dataset: HybridDataset, rows: list[int]) -> Batch:
    """This process's part of a global batch."""
    batch = share(fabric, dataset, rows)
    pairs = zip(batch.image_ids.tolist(), batch.targets, strict=True)
    targets = [Annotations(t.boxes[:0], t.labels[:0], t.flags[:0]) if row == WITHOUT else t for row, t in pairs]
    return replace(batch, targets=targets)


def run(file: str, out: str) -> None:
    """A training of two epochs, and the same one that ended after the first and was resumed."""
    train(load_config(file), output=f"{out}_whole")
    train(load_config(file, ["train.epochs=1"]), output=f"{out}_resumed")
    train(load_config(file), output=f"{out}_resumed", resume=True)


if __name__ == "__main__":
    result = compute(load_config(sys.argv[1]))
    run(sys.argv[1], sys.argv[2])
    rank = build_fabric(load_config(sys.argv[1])).global_rank
    torch.save(result, f"{sys.argv[2]}_{rank}.pt")
