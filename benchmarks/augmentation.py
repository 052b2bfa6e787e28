"""Images per second of processor time of the input pipeline with each augmentation, and what mosaics cost the loss.

    python benchmarks/augmentation.py [--size 320] [--rounds 5] [--workers 1] [--json FILE]
    python benchmarks/augmentation.py --images DIR --annotations FILE.json   # real pictures, not generated ones

One loader with so many workers, batches of 8, as in training (flips on). The settings take turns; a rate is of the
processor time of all processes involved, which other load disturbs little. `photometric` includes what the training
process does to the colours, here on the CPU; `torchvision's` is its distortion in the worker instead, after
resizing.

The second table: what `LocalTrust` adds to a training step's loss for a batch of 8 mosaics, in ms, and the share of
the (anchor, class) background terms that the four pictures would give alone that mosaics of K datasets keep, by
tile, and if a mosaic trusted only what all its tiles do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor
from torchvision.transforms import v2

from crossdet.data.augment import Augment, View
from crossdet.data.cache import load_index, save_index
from crossdet.data.colour import coloured
from crossdet.data.formats.coco import read_coco
from crossdet.data.hybrid import Draw, HybridDataset, Part
from crossdet.data.index import Index
from crossdet.data.loading import make_loader
from crossdet.data.mosaic import rooms
from crossdet.labels.space import LabelSpace
from crossdet.models.retinanet.anchors import anchor_grid, cell_anchors, pyramid_grids
from crossdet.models.retinanet.settings import PYRAMID_STRIDES
from crossdet.models.tiles import LocalTrust
from crossdet.types import Tiles
from loading import BATCH, longest, processor_seconds, write_generated_photos

SETTINGS: dict[str, dict[str, Any]] = {
    "off": {},
    "scale_jitter": {"scale_jitter": (0.5, 1.5)},
    "photometric": {"photometric": True},
    "torchvision's": {"theirs": True},
    "zoom_out": {"zoom_out": 1.0},
    "iou_crop": {"iou_crop": 1.0},
    "mosaic": {"mosaic": 1.0},
    "all": {"photometric": True, "zoom_out": 0.5, "iou_crop": 0.5, "mosaic": 0.5},
}


class ThenTorchvision:
    """The rest, and torchvision's distortion of what comes of it."""

    def __init__(self, rest: Augment) -> None:
        self.colour, self.rest = v2.RandomPhotometricDistort(p=0.5), rest

    def __call__(self, image: Tensor, boxes: Tensor) -> View:
        view = self.rest(image, boxes)
        return view._replace(image=self.colour(view.image))


def dataset_of(
    index: Index, size: int, theirs: bool = False, mosaic: float = 0.0, photometric: bool = False, **given: Any
) -> HybridDataset:
    space = LabelSpace.build(datasets={"one": list(index.classes)})
    augment = Augment(size, longest(size), **given)
    part = Part(index, 0, space.ids("one", index.classes))
    looks = ThenTorchvision(augment) if theirs else augment
    return HybridDataset([part], space, looks, mosaic=mosaic, photometric=photometric)


def loading(index: Index, size: int, workers: int, draws: int, rounds: int) -> dict[str, Any]:
    batches = [
        [Draw((first + i) % len(index), first + i) for i in range(BATCH)] for first in range(0, draws, BATCH)
    ]
    datasets = {name: dataset_of(index, size, **given) for name, given in SETTINGS.items()}
    spent: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for turn in range(rounds + 1):
        for name, dataset in datasets.items():
            began = processor_seconds()
            for batch in make_loader(dataset, batches, workers):
                coloured(batch, batch.sizes.tolist())
            if turn:  # the first fills the disk's cache
                spent[name].append((processor_seconds() - began) / len(batches) / BATCH)
    return {
        name: {
            "images_per_second_per_core": 1 / statistics.median(seconds),
            "x_time_of_off": statistics.median(a / b for a, b in zip(seconds, spent["off"], strict=True)),
        }
        for name, seconds in spent.items()
    }


def loss_cost(size: int, datasets: int, classes: int, rounds: int) -> dict[str, float]:
    """Of a batch of `BATCH` mosaics of so many datasets that label `classes` each."""
    rng = np.random.default_rng(0)
    sides = size, longest(size) * 3 // 4
    places = [torch.tensor(rooms(*sides, rng), dtype=torch.float32) for _ in range(BATCH)]
    owner = torch.from_numpy(rng.integers(datasets, size=(BATCH, 4)))
    trusted = torch.arange(datasets * classes)[None, None] // classes == owner[..., None]
    tiles = Tiles(torch.stack(places), trusted, owner)
    cells = [cell_anchors(stride, (2, 3, 4), (0.5, 1.0, 2.0)) for stride in PYRAMID_STRIDES]
    grid = anchor_grid(cells, pyramid_grids(*sides, len(cells)), PYRAMID_STRIDES)
    logits = torch.randn(BATCH, len(grid.boxes), datasets * classes, requires_grad=True)
    times = []
    for _ in range(rounds):
        start = time.process_time()
        LocalTrust.of(tiles, grid.boxes).hidden(logits).sum().backward()
        middle = time.process_time()
        (logits + 0).sum().backward()
        times.append(1000 * (middle - start - (time.process_time() - middle)))
    # an anchor belongs to the tile that holds its centre: what its own picture would say of it
    centre = (grid.boxes[:, :2] + grid.boxes[:, 2:]) / 2
    alone = LocalTrust.of(tiles, torch.cat([centre - 1e-3, centre + 1e-3], 1)).dense()
    together = LocalTrust.of(tiles, grid.boxes).dense()
    return {
        "ms": statistics.median(times),
        "kept_by_tile": float((together & alone).sum() / alone.sum()),
        "kept_by_all_tiles": float((trusted.all(1)[:, None] & alone).sum() / alone.sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of real pictures, with --annotations")
    parser.add_argument("--annotations", type=Path, help="COCO instances file of --images")
    parser.add_argument("--size", type=int, default=320, help="shorter side, pixels")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--draws", type=int, default=400, help="images per run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few pictures: does it run?")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    if (args.images is None) != (args.annotations is None):
        parser.error("--images and --annotations go together")
    if args.quick:
        args.size, args.draws, args.rounds = 96, 16, 1
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pictures, annotations = (
            (args.images, args.annotations)
            if args.images
            else write_generated_photos(folder / "data", 8 if args.quick else 64)
        )
        save_index(read_coco(annotations, pictures), folder / "index")
        index = load_index(folder / "index")
        rates = loading(index, args.size, args.workers, args.draws, args.rounds)
    for name, row in rates.items():
        print(f"{name:14} {row['images_per_second_per_core']:6.0f} images/s {row['x_time_of_off']:6.2f} x the time")
    costs = {f"{k} x {c}": loss_cost(args.size, k, c, args.rounds) for k, c in ((1, 7), (3, 3), (4, 20), (8, 20))}
    for name, row in costs.items():
        shares = f"background kept by tile {row['kept_by_tile']:.0%}, by all tiles {row['kept_by_all_tiles']:.0%}"
        print(f"{name:14} {row['ms']:6.1f} ms more per step; {shares}")
    if args.json:
        about = {"pictures": "generated" if args.images is None else "real", "torch": torch.__version__}
        about |= {"torchvision": torchvision.__version__, "size": args.size, "workers": args.workers}
        about |= {"draws": args.draws, "rounds": args.rounds}
        args.json.write_text(json.dumps(about | {"loading": rates, "loss": costs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
