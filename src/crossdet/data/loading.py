"""Sampling and batching: which images an epoch draws, in which batches, and how they become a `Batch`."""

from __future__ import annotations

import io
import math
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, get_worker_info

from crossdet.data.augment import IMAGENET_MEAN
from crossdet.data.canvases import SMALLEST_BATCH, Canvas, holding, too_few
from crossdet.data.hybrid import Draw, HybridDataset, Placing, Sample
from crossdet.errors import RunError, UserError
from crossdet.types import PAD_DIVISOR, Batch, Tiles


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
    placing: Placing | None = None,
) -> list[list[Draw]]:
    """The batches of one epoch, a pure function of its arguments: a resumed run skips what it has seen.

    Images of one canvas come in batches of their own; what is left over of each is mixed at the end, on the
    smallest canvas that holds all of a batch. Without canvases (`placing`) the same holds for landscape and
    portrait images (with `group_aspect`). The last batch may be smaller, but see `_with_a_larger_last`.

    sizes: `[N, 2]` (height, width). weights: `[N]`. min_batch: the number of processes x accumulation. Raises
    `UserError` if there are fewer images.
    """
    if len(weights) < max(1, min_batch):
        raise UserError(too_few(len(weights), min_batch))
    generator = np.random.default_rng([seed, epoch])
    rows = epoch_rows(weights, generator)
    seeds = generator.integers(0, 2**62, len(rows))
    if placing is None:
        draws = list(map(Draw, rows.tolist(), seeds.tolist()))
        portrait = sizes[rows, 0] > sizes[rows, 1] if group_aspect else np.zeros(len(rows), bool)
        groups = portrait.astype(np.int64).tolist()
    else:
        scales, numbers = placing.drawn(rows, seeds, generator)
        draws = list(map(Draw, rows.tolist(), seeds.tolist(), scales.tolist()))
        groups = numbers.tolist()
    batches = _with_a_larger_last(_in_groups(groups, batch_size), groups, min_batch)
    if placing is None:
        return [[draws[place] for place in batch] for batch in batches]
    of_batch = [holding([groups[place] for place in batch], placing.canvases) for batch in batches]
    return [
        [draws[place]._replace(canvas=canvas) for place in batch]
        for batch, canvas in zip(batches, of_batch, strict=True)
    ]


def _in_groups(groups: Sequence[int], batch_size: int) -> list[list[int]]:
    """Places in batches of one group each, in the order in which they become full; then what is left over, by
    group."""
    batches: list[list[int]] = []
    waiting: list[list[int]] = [[] for _ in range(max(groups, default=0) + 1)]
    for place, group in enumerate(groups):
        current = waiting[group]
        current.append(place)
        if len(current) == batch_size:
            batches.append(current.copy())
            current.clear()
    rest = [place for current in waiting for place in current]
    return [*batches, *(rest[i : i + batch_size] for i in range(0, len(rest), batch_size))]


def _with_a_larger_last(batches: list[list[int]], groups: Sequence[int], pieces: int) -> list[list[int]]:
    """A last batch of few images shares evenly with one before, of its group where there is one: batch norm would
    learn the statistics of a picture or two. pieces: micro-batches of every batch.

    Few are less than `SMALLEST_BATCH` in each of them. Where halves would be no better the batch stays, or joins
    the one before, if there is not an image for each.
    """
    if len(batches) == 1 or len(batches[-1]) >= SMALLEST_BATCH * pieces:
        return batches
    *others, last = batches
    alike = [place for place, batch in enumerate(others) if groups[batch[0]] == groups[last[0]]]
    place = alike[-1] if alike else len(others) - 1
    both = others[place] + last
    half = (len(both) + 1) // 2
    if len(both) >= 2 * 2 * pieces:
        return [*others[:place], both[:half], *others[place + 1 :], both[half:]]
    return [*others[:place], both, *others[place + 1 :]] if len(last) < pieces else batches


class MicroBatches(Sampler[list[Draw]]):
    """Splits every global batch into the micro-batches of one process.

    Micro-batch m of process r takes every (ranks x accumulate)-th image, starting at `m * ranks + r`; the sizes
    differ by at most one image, and the loss is normalised by counts, so no image is dropped or repeated.
    """

    def __init__(self, batches: Sequence[list[Draw]], accumulate: int = 1, rank: int = 0, ranks: int = 1) -> None:
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


def pad_images(
    pictures: Sequence[Tensor], fill: Sequence[int], canvas: Canvas | None = None
) -> tuple[Tensor, Tensor]:
    """`[3, H, W]` uint8 pictures -> `[B, 3, H', W']` padded with `fill`, and their `[B, 2]` sizes before.

    canvas: H' and W', if it holds the pictures; without it they are as small as can be.
    The batch is channels_last in memory, as decoders and resizing give the pictures and as the network wants them.
    """
    sizes = torch.tensor([picture.shape[1:] for picture in pictures], dtype=torch.int64)
    tall, wide = sizes.amax(0).tolist()
    if canvas is None or tall > canvas[0] or wide > canvas[1]:
        canvas = (-(-tall // PAD_DIVISOR) * PAD_DIVISOR, -(-wide // PAD_DIVISOR) * PAD_DIVISOR)
    height, width = canvas
    rows = _new_bytes((len(pictures), height, width, 3))
    line = torch.tensor(fill, dtype=torch.uint8).repeat(width)  # whole lines are copied faster than pixels
    for row, picture in zip(rows, pictures, strict=True):
        tall, wide = picture.shape[1:]
        row[:tall, :wide] = picture.permute(1, 2, 0)
        flat = row.view(height, 3 * width)
        flat[:tall, 3 * wide :] = line[3 * wide :]
        flat[tall:] = line
    return rows.permute(0, 3, 1, 2), sizes


def _new_bytes(shape: tuple[int, ...]) -> Tensor:
    """An uninitialised uint8 tensor; in a worker it lies in shared memory from the start, which saves a copy."""
    new_shared = getattr(torch.UntypedStorage, "_new_shared", None)  # what torch's own collate uses
    if get_worker_info() is None or new_shared is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def collate(
    samples: list[Sample], fill: Sequence[int] = IMAGENET_MEAN, finish: Callable[[Batch], Batch] | None = None
) -> Batch:
    """Samples -> `Batch`: images padded at the right and the bottom with the colour `fill`, to their canvas.

    `fill` is the mean colour of the backbone's normalisation, so that padding is close to zero after it. Images
    that trust the same classes come side by side, where the loss needs them. finish: what else is done to the
    batch in the worker (the network's `prepare`).
    """
    groups: dict[bytes, list[Sample]] = {}
    for sample in samples:
        somewhere = sample.trusted if sample.tiles is None else sample.tiles.trusted.any(0)
        groups.setdefault(somewhere.numpy().tobytes(), []).append(sample)
    samples = [sample for group in groups.values() for sample in group]
    images, sizes = pad_images([sample.image for sample in samples], fill, samples[0].canvas)
    batch = Batch(
        images=images,
        sizes=sizes,
        original_sizes=torch.tensor([sample.original_size for sample in samples], dtype=torch.int64),
        targets=[sample.target for sample in samples],
        trusted=torch.stack([sample.trusted for sample in samples]),
        image_ids=torch.tensor([sample.image_id for sample in samples], dtype=torch.int64),
        dataset_ids=torch.tensor([sample.dataset_id for sample in samples], dtype=torch.int64),
        unreadable=tuple(line for sample in samples for line in sample.unreadable),
        tiles=_tiles(samples),
        draws=torch.tensor([sample.seed for sample in samples], dtype=torch.int64),
        colours=_colours(samples),
    )
    return batch if finish is None else finish(batch)


def _colours(samples: Sequence[Sample]) -> Tensor | None:
    """`[B, 3, 4]`, see `Batch.colours`."""
    colours = [sample.colour for sample in samples if sample.colour is not None]
    return torch.stack(colours) if colours else None


def _tiles(samples: Sequence[Sample]) -> Tiles | None:
    """Of a batch, see `Tiles`; None where there is no mosaic."""
    count = max((len(sample.tiles.boxes) for sample in samples if sample.tiles is not None), default=0)
    if not count:
        return None
    alone = [
        Tiles(
            torch.zeros(count, 4),
            sample.trusted.expand(count, -1),
            torch.full((count,), sample.dataset_id, dtype=torch.int64),
        )
        if sample.tiles is None
        else sample.tiles
        for sample in samples
    ]
    return Tiles(*(torch.stack(parts) for parts in zip(*alone, strict=True)))


LARGE = 1 << 14
"""Bytes from which on a tensor of a batch is passed between processes in shared memory."""


class _BatchPickler(pickle.Pickler):
    """Pickles small tensors as NumPy arrays, by value; large ones go into `shared`."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.shared: list[Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, Tensor) or value.nbytes < LARGE:
            return None
        self.shared.append(value)
        return len(self.shared) - 1

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented


class _BatchUnpickler(pickle.Unpickler):
    def __init__(self, message: bytes, shared: Sequence[Tensor]) -> None:
        super().__init__(io.BytesIO(message))
        self.shared = shared

    def persistent_load(self, position: int) -> Tensor:
        return self.shared[position]


def _reduce_batch(batch: Batch) -> tuple[Any, ...]:
    """How a batch goes from a worker to the training process: images and other large tensors in shared memory.

    The rest is in the message. Otherwise every one of its small tensors (three per image) would take a file
    descriptor and a connection of its own, which together cost a tenth of what decoding does.
    """
    message = io.BytesIO()
    pickler = _BatchPickler(message)
    found = (batch.trust_groups, batch.has_regions)
    pickler.dump(({f.name: getattr(batch, f.name) for f in fields(Batch)}, found))
    return _rebuild_batch, (message.getvalue(), *pickler.shared)


def _rebuild_batch(message: bytes, *shared: Tensor) -> Batch:
    values, (groups, regions) = _BatchUnpickler(message, shared).load()
    batch = Batch(**values)
    vars(batch).update(trust_groups=groups, has_regions=regions)
    return batch


ForkingPickler.register(Batch, _reduce_batch)


def make_loader(
    dataset: HybridDataset,
    batches: Sampler[list[Draw]] | Sequence[list[Draw]],
    workers: int = 0,
    pin_memory: bool = False,
    fill: Sequence[int] = IMAGENET_MEAN,
    finish: Callable[[Batch], Batch] | None = None,
    stay: bool = False,
) -> DataLoader[Batch]:
    """A loader over given batches. Deterministic for any number of workers (see `HybridDataset`).

    fill, finish: see `collate`. stay: the workers go on when one has gone through it, and work for the next time.
    """
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # items are samples, what comes out is what collate makes of them
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=stay and workers > 0,
        collate_fn=partial(collate, fill=fill, finish=finish),
        pin_memory=pin_memory,
        worker_init_fn=_outlive_sigterm,
        # else the loader draws its seed from the global generator: once more after a resume than without
        generator=torch.Generator(),
    )


def _outlive_sigterm(_worker: int) -> None:
    """SLURM, systemd and `timeout` send SIGTERM to all processes at once. The training process saves its state
    after the step, for which it may need one more batch, and then ends its workers; a second signal is its own."""

    def first(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, first)


def is_dead_worker(error: Exception) -> bool:
    """Whether torch's loader says that a worker process has ended before its time."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


def next_batch(batches: Iterator[Batch]) -> Batch:
    """The next batch; an error of the package that a worker raised comes without the worker's traceback."""
    try:
        return next(batches)
    except RunError as error:
        last = str(error).strip().splitlines()[-1]
        raise RunError(last.removeprefix("crossdet.errors.RunError: ")) from None


def sequential_batches(
    count: int, batch_size: int, rank: int = 0, ranks: int = 1, canvases: Sequence[Canvas] = ()
) -> list[list[Draw]]:
    """All rows of this process, for evaluation: in order, those of one canvas together.

    canvases: of each of the `count` rows; empty: there are none.
    """
    groups: dict[Canvas | None, list[int]] = {}
    for row in range(rank, count, ranks):
        groups.setdefault(canvases[row] if canvases else None, []).append(row)
    return [
        [Draw(row, 0, canvas=canvas) for row in rows[start : start + batch_size]]
        for canvas, rows in groups.items()
        for start in range(0, len(rows), batch_size)
    ]
