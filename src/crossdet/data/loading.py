"""Sampling and batching: which images an epoch draws, in which batches, and how they become a `Batch`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from crossdet.data.hybrid import Draw, HybridDataset, Sample
from crossdet.errors import RunError, UserError
from crossdet.types import PAD_DIVISOR, Batch

IMAGENET_MEAN = (124, 116, 104)
"""RGB mean of ImageNet: what batches are padded with where no model says otherwise."""


def epoch_rows(weights: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.int64]:
    """`[N]` image rows of one epoch of N = len(weights) draws, in random order.

    Image i comes floor or ceil of `N w_i / sum(w)` times (systematic sampling), so equal weights give every
    image exactly once.
    """
    count = len(weights)
    order = generator.permutation(count)
    if np.all(weights == weights[0]):
        return order
    expected = np.cumsum(weights[order]) * (count / weights.sum())
    expected[-1] = count
    marks = np.floor(np.concatenate([[0.0], expected]) + generator.random())
    rows = np.repeat(order, np.diff(marks).astype(np.int64))
    return generator.permutation(rows)


def epoch_batches(
    sizes: NDArray[np.int32],
    weights: NDArray[np.float64],
    batch_size: int,
    seed: int,
    epoch: int,
    group_aspect: bool = True,
    min_batch: int = 1,
) -> list[list[Draw]]:
    """The batches of one epoch, a pure function of its arguments: a resumed run skips what it has seen.

    With `group_aspect` landscape and portrait images are batched apart, which saves padding; what is left over
    of both is mixed at the end. The last batch may be smaller; if it has fewer than `min_batch` images (the
    number of processes x accumulation) it joins the one before.

    sizes: `[N, 2]` (height, width). weights: `[N]`. Raises `UserError` if there are fewer than `min_batch`
    images.
    """
    if len(weights) < max(1, min_batch):
        raise UserError(
            f"{len(weights)} training images are too few for {min_batch} processes x accumulation steps"
        )
    generator = np.random.default_rng([seed, epoch])
    rows = epoch_rows(weights, generator)
    seeds = generator.integers(0, 2**62, len(rows))
    portrait = sizes[rows, 0] > sizes[rows, 1] if group_aspect else np.zeros(len(rows), bool)
    batches: list[list[Draw]] = []
    open_batches: tuple[list[Draw], list[Draw]] = ([], [])
    for row, draw_seed, group in zip(rows.tolist(), seeds.tolist(), portrait.tolist(), strict=True):
        current = open_batches[group]
        current.append(Draw(row, draw_seed))
        if len(current) == batch_size:
            batches.append(current.copy())
            current.clear()
    rest = [*open_batches[0], *open_batches[1]]
    batches.extend(rest[i : i + batch_size] for i in range(0, len(rest), batch_size))
    if len(batches) > 1 and len(batches[-1]) < min_batch:
        last = batches.pop()
        batches[-1] = batches[-1] + last
    return batches


class MicroBatches(Sampler[list[Draw]]):
    """Splits every global batch into the micro-batches of one process.

    Micro-batch m of process r takes every (ranks x accumulate)-th image, starting at `m * ranks + r`; the sizes
    differ by at most one image, and the loss is normalised by counts, so no image is dropped or repeated.
    """

    def __init__(
        self, batches: Sequence[list[Draw]], accumulate: int = 1, rank: int = 0, ranks: int = 1
    ) -> None:
        self.batches = batches
        self.accumulate = accumulate
        self.rank = rank
        self.ranks = ranks

    def __len__(self) -> int:
        return len(self.batches) * self.accumulate

    def __iter__(self) -> Iterator[list[Draw]]:
        for batch in self.batches:
            for micro in range(self.accumulate):
                yield batch[micro * self.ranks + self.rank :: self.ranks * self.accumulate]


def pad_images(pictures: Sequence[Tensor], fill: Sequence[int]) -> tuple[Tensor, Tensor]:
    """`[3, H, W]` uint8 pictures -> `[B, 3, H', W']` padded with `fill`, and their `[B, 2]` sizes before."""
    sizes = torch.tensor([picture.shape[1:] for picture in pictures], dtype=torch.int64)
    height, width = (int(-(-side // PAD_DIVISOR) * PAD_DIVISOR) for side in sizes.amax(0).tolist())
    images = torch.empty((len(pictures), 3, height, width), dtype=torch.uint8)
    images[:] = torch.tensor(fill, dtype=torch.uint8).view(3, 1, 1)
    for row, picture in enumerate(pictures):
        images[row, :, : picture.shape[1], : picture.shape[2]] = picture
    return images, sizes


def collate(samples: list[Sample], fill: Sequence[int] = IMAGENET_MEAN) -> Batch:
    """Samples -> `Batch`: images padded at the right and the bottom with the colour `fill`.

    `fill` is the mean colour of the backbone's normalisation, so that padding is close to zero after it.
    """
    images, sizes = pad_images([sample.image for sample in samples], fill)
    return Batch(
        images=images,
        sizes=sizes,
        original_sizes=torch.tensor([sample.original_size for sample in samples], dtype=torch.int64),
        targets=[sample.target for sample in samples],
        trusted=torch.stack([sample.trusted for sample in samples]),
        image_ids=torch.tensor([sample.image_id for sample in samples], dtype=torch.int64),
        dataset_ids=torch.tensor([sample.dataset_id for sample in samples], dtype=torch.int64),
        unreadable=tuple(line for sample in samples for line in sample.unreadable),
    )


def make_loader(
    dataset: HybridDataset,
    batches: Sampler[list[Draw]] | Sequence[list[Draw]],
    workers: int = 0,
    pin_memory: bool = False,
    fill: Sequence[int] = IMAGENET_MEAN,
) -> DataLoader[Batch]:
    """A loader over given batches. Deterministic for any number of workers (see `HybridDataset`)."""
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # items are samples, what comes out is what collate makes of them
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=partial(collate, fill=fill),
        pin_memory=pin_memory,
        # else the loader draws its seed from the global generator: once more after a resume than without
        generator=torch.Generator(),
    )


def next_batch(batches: Iterator[Batch]) -> Batch:
    """The next batch; an error of the package that a worker raised comes without the worker's traceback."""
    try:
        return next(batches)
    except RunError as error:
        last = str(error).strip().splitlines()[-1]
        raise RunError(last.removeprefix("crossdet.errors.RunError: ")) from None


def sequential_batches(count: int, batch_size: int, rank: int = 0, ranks: int = 1) -> list[list[Draw]]:
    """All rows of this process in order, for evaluation."""
    rows = range(rank, count, ranks)
    return [
        [Draw(row, 0) for row in rows[start : start + batch_size]]
        for start in range(0, len(rows), batch_size)
    ]
