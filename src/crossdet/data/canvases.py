"""Canvases: the few sizes that batches come in, chosen beforehand from the sizes of the pictures. No torch.

On a GPU every new size is paid for: kernels are chosen for it, and a compiled network is compiled for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crossdet.types import PAD_DIVISOR

Canvas = tuple[int, int]
"""Height and width in pixels, multiples of `PAD_DIVISOR`."""
Sizes = NDArray[np.int64]
"""`[N, 2]` (height, width) of pictures."""

CANVASES = 6
"""By default. On nine sets of photographs at 320 pixels they cost less padding than batches of tall and of wide
pictures each as large as its largest picture, with and without scale jitter (docs/log.md, 2026-11-28)."""
SMALLEST_BATCH = 4
"""Pictures per device and micro-batch from which on batch norm is trained."""
UNKNOWN = 1 << 30
"""In the place of a side that nobody knows: larger than any canvas."""
SCALES = 9
"""So many factors, from the smallest to the largest, stand for scale jitter when canvases are chosen."""
MIXED = 0.5
"""See `_parting`."""


def too_few(images: int, pieces: int) -> str:
    """What is said where there is not an image for every process and accumulation step."""
    return (
        f"{images} training images are too few for {pieces} processes x accumulation steps; lower "
        f"`train.devices` or `train.accumulate`"
    )


def resized(
    height: int, width: int, shorter: int, longer: int, scale: float = 1.0, square: int | None = None
) -> tuple[int, int]:
    """(height, width) with the shorter side `shorter * scale`, but the longer side at most `longer * scale`; or a
    square with the side `square * scale`, whatever the shape."""
    if square is not None:
        side = max(1, round(square * scale))
        return side, side
    factor = min(shorter / min(height, width), longer / max(height, width)) * scale
    return max(1, round(height * factor)), max(1, round(width * factor))


def fitted_into(height: int, width: int, frame: Sequence[int]) -> tuple[int, int]:
    """(height, width) as large as the frame (height, width) holds, in the same shape."""
    factor = min(frame[0] / height, frame[1] / width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def resized_sizes(
    sizes: NDArray[np.integer], shorter: int, longer: int, scale: float | NDArray[np.float64] = 1.0
) -> Sizes:
    """`[N, 2]` of images at the network's input: the rule of `resized`. scale: one for all, or `[N]`.

    An unknown size (0) becomes `UNKNOWN`.
    """
    given = np.asarray(sizes, np.float64).reshape(-1, 2)
    known = given.min(1) > 0
    given = np.where(known[:, None], given, 1)
    factor = np.minimum(shorter / given.min(1), longer / given.max(1)) * scale
    return np.where(known[:, None], np.maximum(1, np.rint(given * factor[:, None])), UNKNOWN).astype(np.int64)


def jittered_sizes(sizes: NDArray[np.integer], shorter: int, longer: int, jitter: Sequence[float]) -> Sizes:
    """`[M, 2]` of the images whose size is known at the network's input, over the range of scale jitter."""
    known = np.asarray(sizes)[(np.asarray(sizes) > 0).all(1)]
    factors = np.unique(np.linspace(jitter[0], jitter[1], SCALES)).tolist()
    return np.concatenate([resized_sizes(known, shorter, longer, factor) for factor in factors])


def choose_canvases(
    sets: Sequence[NDArray[np.integer]],
    shorter: int,
    longer: int,
    jitter: Sequence[float] = (1.0, 1.0),
    count: int = CANVASES,
) -> tuple[Canvas, ...]:
    """At most `count` canvases, by rising area, for datasets with images of these sizes `[N, 2]`. The last
    one holds all that can come, and is there for what an epoch leaves over even where no image is assigned to it.

    Greedy: at first every padded size is a canvas, and as long as there are too many of them those two become one
    that add the fewest pixels by it. Then those that part the datasets are joined with others (`_parting`).
    Empty where no size is known.
    """
    wanted = [jittered_sizes(sizes, shorter, longer, jitter) for sizes in sets]
    if not count or not sum(map(len, wanted)):
        return ()
    height, width = (-(-np.concatenate(wanted) // PAD_DIVISOR) * PAD_DIVISOR).T
    whole = int(height.max()) << 32 | int(width.max())
    coded, places = np.unique([*(height << 32 | width), whole], return_inverse=True)  # far faster than of rows
    numbers = np.zeros((len(coded), len(sets)))
    np.add.at(numbers, (places[:-1], np.repeat(np.arange(len(sets)), [len(some) for some in wanted])), 1)
    found = _joined(np.stack([coded >> 32, coded & (1 << 32) - 1], 1).astype(np.float64), numbers, count)
    return tuple(sorted(found, key=lambda canvas: (canvas[0] * canvas[1], canvas)))


def _joined(cells: NDArray[np.float64], numbers: NDArray[np.float64], count: int) -> list[Canvas]:
    """Of `cells [M, 2]`, one of which holds all the others, for `numbers [M, D]` of pictures of each dataset."""
    left = np.ones(len(cells), bool)

    def added(one: int) -> NDArray[np.float64]:
        """Pixels, by joining it with each of the others."""
        joint, of_all = np.maximum(cells[one], cells).prod(1), numbers.sum(1)
        pixels: NDArray[np.float64] = of_all[one] * (joint - cells[one].prod()) + of_all * (joint - cells.prod(1))
        pixels[one] = np.inf
        return np.where(left, pixels, np.inf)

    costs = np.stack([added(one) for one in range(len(cells))])
    while True:
        if left.sum() > count:
            one, other = divmod(int(costs.argmin()), len(cells))
        elif (parting := _parting(cells, numbers, left)) is not None:
            one, partners = parting
            other = int(np.where(partners, costs[one], np.inf).argmin())
        else:
            return [(int(height), int(width)) for height, width in np.unique(cells[left], axis=0)]
        cells[one], numbers[one] = np.maximum(cells[one], cells[other]), numbers[one] + numbers[other]
        left[other] = False
        costs[one] = costs[:, one] = added(one)
        costs[other] = costs[:, other] = np.inf


def _parting(
    cells: NDArray[np.float64], numbers: NDArray[np.float64], left: NDArray[np.bool_]
) -> tuple[int, NDArray[np.bool_]] | None:
    """A canvas where the datasets other than its main one have less than `MIXED` of the share that they have among
    all upright or all lying pictures, and those `[M]` that it may be joined with; None where there is none.

    Batches of one dataset each would be another training: batch norm then sees each dataset by itself, and never
    what it is evaluated with. Upright and lying pictures are batched apart all the same, or half would be padding.
    """
    used = left.copy()
    used[numbers.sum(1) == 0] = False
    upright = cells[:, 0] > cells[:, 1]
    for one in np.flatnonzero(used).tolist():
        alike = used.copy()
        alike[upright != upright[one]] = False
        main = numbers[one].argmax()
        here, among_all = (1 - some[main] / some.sum() for some in (numbers[one], numbers[alike].sum(0)))
        if alike.sum() > 1 and here < MIXED * among_all:
            alike[one] = False
            return one, alike
    return None


def assigned(sizes: Sizes, canvases: Sequence[Canvas]) -> NDArray[np.int64]:
    """`[N]` number of the smallest canvas that holds each picture; the last where none does."""
    fits = (np.asarray(canvases) - sizes[:, None]).min(2) >= 0
    fits[:, -1] = True
    return fits.argmax(1)


def canvases_of(sizes: NDArray[np.integer], shorter: int, longer: int) -> list[Canvas]:
    """The canvas of each of the images of `sizes [N, 2]`, without scale jitter; empty where no size is known."""
    canvases = choose_canvases([sizes], shorter, longer)
    if not canvases:
        return []
    return [canvases[number] for number in assigned(resized_sizes(sizes, shorter, longer), canvases).tolist()]


def holding(numbers: Sequence[int], canvases: Sequence[Canvas]) -> Canvas:
    """The smallest canvas that holds those of these numbers."""
    height, width = np.asarray(canvases)[list(numbers)].max(0)
    return next(canvas for canvas in canvases if canvas[0] >= height and canvas[1] >= width)


def padding(sizes: Sizes, canvases: Sequence[Canvas], numbers: NDArray[np.int64]) -> float:
    """The share of the pixels that is padding where pictures of `sizes` are on the canvases of these numbers."""
    return 1 - float(sizes.prod(1).sum() / np.asarray(canvases)[numbers].prod(1).sum())
