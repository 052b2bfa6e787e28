"""A world whose pictures have a colour of their own, so that a pixel of an augmented image tells where it is from.

By that it also tells which classes may be told from it: nothing here relies on what a mosaic says about itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from crossdet import LabelSpace
from crossdet.data.augment import Augment
from crossdet.data.hybrid import Draw, HybridDataset, Part
from crossdet.data.index import IndexBuilder
from crossdet.data.loading import collate, epoch_batches
from crossdet.types import Batch, Flag

NAMES = ("a", "b", "c", "d", "e")
LABELLED = {"first": ["a", "b"], "second": ["b", "c"], "third": ["d"], "fed": ["a", "c", "e"]}
FILL = (250, 250, 250)
IMAGES = 4  # per dataset


def colour(part: int, row: int) -> tuple[int, int, int]:
    return 40 * part + 10, 40 * row + 10, 90


def world(folder: Path, augment: Augment, mosaic: float, plain: bool = False) -> HybridDataset:
    """Four datasets of pictures in one colour each, one of them federated, one partly labelled; some boxes are
    regions, some pictures have none."""
    rng = np.random.default_rng(5)
    space = LabelSpace.build(
        LABELLED, merge={"same_names": True}, absent={"third": ["a"]}, not_exhaustive={"second": ["b"]},
        federated=["fed"],
    )  # fmt: skip
    parts = []
    for number, (name, classes) in enumerate(LABELLED.items()):
        (folder / name).mkdir(exist_ok=True)
        builder = IndexBuilder(folder / name)
        for row in range(IMAGES):
            height, width = (int(side) for side in rng.integers(30, 90, 2))
            picture = np.broadcast_to(np.array(colour(number, row), np.uint8), (height, width, 3))
            Image.fromarray(picture.copy()).save(folder / name / f"{row}.png")
            verified = {"negatives": [int(rng.integers(3))]} if name == "fed" else {}
            builder.image(f"{row}.png", height, width, **verified)
            for _ in range(int(rng.integers(0, 5))):
                low = rng.random(2) * [width - 8, height - 8]
                high = low + 4 + rng.random(2) * ([width - 4, height - 4] - low)
                flag = int(rng.choice([0, 0, 0, Flag.IGNORE_REGION, Flag.CROWD]))
                builder.box((*low, *high), int(rng.integers(len(classes))), flag)
        index = builder.build(classes, federated=name == "fed")
        parts.append(Part(index, number, space.ids(name, classes), weight=1.0 + number % 2))
    return HybridDataset(parts, space, augment, plain=plain, mosaic=mosaic)


def own_trust(dataset: HybridDataset, batch: Batch) -> tuple[Tensor, Tensor]:
    """By the pixels' colours. `[B, C, H, W]` bool: the pixel's picture does not trust the class; `[B, C]` bool:
    some picture that is seen does."""
    distrusted = torch.zeros(len(batch), len(dataset.space.classes), *batch.images.shape[2:], dtype=torch.bool)
    somewhere = torch.zeros(len(batch), len(dataset.space.classes), dtype=torch.bool)
    explained = (batch.images == torch.tensor(FILL)[:, None, None]).all(1)
    for part in range(len(LABELLED)):
        for row in range(IMAGES):
            shown = (batch.images.int() - torch.tensor(colour(part, row))[:, None, None]).abs().amax(1) <= 2
            trusted = dataset.annotations(part, row)[1]
            distrusted |= shown[:, None] & ~trusted[:, None, None]
            somewhere |= shown.flatten(1).any(1)[:, None] & trusted
            explained |= shown
    assert explained.all()
    return distrusted, somewhere


def may_be_negative(distrusted: Tensor, anchors: Tensor) -> Tensor:
    """`[B, N, C]`: all pixels that an anchor overlaps at all trust the class (what is no picture, too)."""
    height, width = distrusted.shape[2:]
    sums = nn.functional.pad(distrusted.double().cumsum(2).cumsum(3), (1, 0, 1, 0))
    x1, y1 = (anchors[:, i].floor().clamp(0, s).long() for i, s in ((0, width), (1, height)))
    x2, y2 = (anchors[:, i].ceil().clamp(0, s).long() for i, s in ((2, width), (3, height)))
    x2, y2 = torch.maximum(x1, x2), torch.maximum(y1, y2)
    counts = sums[:, :, y2, x2] - sums[:, :, y1, x2] - sums[:, :, y2, x1] + sums[:, :, y1, x1]
    return (counts == 0).transpose(1, 2)


def drawn(dataset: HybridDataset, seed: int, count: int = 4, canvases: int = 0) -> Batch:
    """canvases: at most so many, as in a training, with sizes that are drawn before; 0: as large as its largest."""
    if canvases:
        placing = dataset.placing(dataset.choose_canvases(canvases))
        batches = epoch_batches(dataset.sizes(), dataset.draw_weights(), count, seed, epoch=0, placing=placing)
        assert placing is not None
        assert batches[0][0].canvas in placing.canvases
        return collate([dataset[draw] for draw in batches[0]], FILL)
    rng = np.random.default_rng(seed)
    draws = [Draw(int(row), int(rng.integers(2**62))) for row in rng.integers(len(dataset), size=count)]
    return collate([dataset[draw] for draw in draws], FILL)
