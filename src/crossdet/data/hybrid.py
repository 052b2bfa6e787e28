"""The hybrid dataset: several datasets in one label space, every image knowing where it came from.

Paper sec. 1, steps 2 and 3. What differs by dataset arrives as numbers (class ids, a row of the label space);
no dataset name is known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from crossdet.data import colour
from crossdet.data.augment import Augment, View, fitted
from crossdet.data.canvases import Canvas, Sizes, assigned, choose_canvases, resized_sizes
from crossdet.data.decoding import UnreadableImage, read_row
from crossdet.data.federated import repeat_factors, verified_classes
from crossdet.data.index import Index, offsets
from crossdet.data.mosaic import PICTURES, SCALE, Piece, joined, rooms
from crossdet.data.rotation import pictures, rows_per_picture
from crossdet.errors import RunError
from crossdet.labels.folds import NO_CLASS, mirror_map
from crossdet.labels.space import DROPPED, LabelSpace
from crossdet.types import REGION_FLAGS, Annotations, Flag, Tiles

Transform = Callable[[Tensor, Tensor], View]

VISIBLE = 0.3
"""Share of an object's area from which on what a crop leaves of it is learnt as the object."""
MAX_SUBSTITUTES = 20
"""Unreadable images in a row after which something is wrong with the disk, not with an image."""


@dataclass(frozen=True)
class Part:
    """One dataset inside the hybrid.

    index: its images and boxes. row: its row of the label space.
    class_ids: `[K]` unified id of each of the index's classes; `DROPPED` where the rules drop it.
    weight: sampling weight of its images. repeat_threshold: LVIS' repeat factors for rare classes.
    difficult_as_region: boxes marked difficult are avoided instead of learnt.
    one_direction: of a turned index (`data.rotation`) each picture is one row here, and every draw takes one of its
        directions at random: an epoch is as long as without. False: every row of the index is a row here.
    """

    index: Index
    row: int
    class_ids: NDArray[np.int64]
    weight: float = 1.0
    repeat_threshold: float | None = None
    difficult_as_region: bool = False
    one_direction: bool = False

    @property
    def rows(self) -> NDArray[np.int64]:
        """Rows of the index that the rows here begin with."""
        return pictures(self.index) if self.one_direction else np.arange(len(self.index), dtype=np.int64)

    @property
    def directions(self) -> int:
        """Rows of the index per row here."""
        return rows_per_picture(self.index) if self.one_direction else 1

    def repeat_factors(self) -> NDArray[np.float64]:
        """`[rows]`, see `federated.repeat_factors`."""
        index = self.index if self.directions == 1 else self.index.take(self.rows)
        return repeat_factors(index, self.class_ids, self.repeat_threshold, self.difficult_as_region)


class Draw(NamedTuple):
    """One draw of the sampler: which image, and the seed of everything random that happens to it.

    scale: in training on canvases the factor on the size, which is drawn before. canvas: that of its batch.
    """

    row: int
    seed: int
    scale: float | None = None
    canvas: Canvas | None = None


class Placing(NamedTuple):
    """Canvases, and what is drawn for draws: (rows `[N]`, seeds `[N]`, generator) -> factors on their sizes `[N]`
    and the numbers of their canvases `[N]`."""

    canvases: tuple[Canvas, ...]
    drawn: Callable[
        [NDArray[np.int64], NDArray[np.int64], np.random.Generator], tuple[NDArray[np.float64], NDArray[np.int64]]
    ]


class Picture(NamedTuple):
    """A picture that was read: image row of a part. lost: those that could not be read before it was taken."""

    number: int
    row: int
    pixels: Tensor
    original_size: tuple[int, int]
    lost: tuple[str, ...]


class Sample(NamedTuple):
    """One transformed image. `unreadable`: the images that could not be read before this one was taken.

    tiles: of a mosaic, whose other values are those of its first picture; but `trusted` is what all its pictures
    trust. seed, canvas: of the draw. colour: `[3, 4]`, what its colours are to become (`data.colour`); None: as
    they are.
    """

    image: Tensor
    original_size: tuple[int, int]
    target: Annotations
    trusted: Tensor
    image_id: int
    dataset_id: int
    unreadable: tuple[str, ...]
    tiles: Tiles | None = None
    seed: int = 0
    canvas: Canvas | None = None
    colour: Tensor | None = None


class HybridDataset(Dataset[Sample]):
    """Concatenation of parts in unified class ids.

    Args:
        parts: the datasets.
        space: their label space.
        transform: (image, boxes) -> `View`.
        plain: naive concatenation: every image trusts its background for every class.
        substitute: an unreadable image is replaced by the next readable one of its part (training). Otherwise
            (evaluation) it comes as a blank image with original size (0, 0), for which nothing is reported.
        min_side: objects with a side below this many pixels after the transform are not learnt: they would turn
            an anchor that is many times larger into a positive.
        mosaic: share of the draws that become a mosaic: of the picture drawn and three more, drawn from all parts
            by `draw_weights`. Needs an `Augment`, whose zoom out and crop are for the other draws.
        photometric: every draw has random colours. They are drawn here, and changed by `data.colour.coloured`
            where the network is.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        space: LabelSpace,
        transform: Transform,
        plain: bool = False,
        substitute: bool = True,
        min_side: float = 1.0,
        mosaic: float = 0.0,
        photometric: bool = False,
    ) -> None:
        self.parts = list(parts)
        self.space = space
        self.transform = transform
        self.plain = plain
        self.substitute = substitute
        self.min_side = min_side
        self.directions = [part.directions for part in parts]
        self.starts = offsets([len(part.index) // part.directions for part in parts])
        self.mirrored = mirror_map(len(space.classes), space.folds)
        self.overlap = space.overlap_array if space.overlap_pairs else None
        self.mosaic = mosaic
        self.photometric = photometric
        self.drawn_below = np.cumsum(self.draw_weights()) if mosaic else None

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(self, row: int) -> tuple[int, int]:
        """(part, image row in the part's index) of a row of the hybrid dataset; the first of several directions."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return part, (row - int(self.starts[part])) * self.directions[part]

    def sizes(self) -> NDArray[np.int32]:
        """`[N, 2]` (height, width) of all images, 0 where unknown."""
        return np.concatenate([part.index.sizes[part.rows] for part in self.parts])

    def draw_weights(self) -> NDArray[np.float64]:
        """`[N]` how often each image is drawn, up to a common factor: dataset weight x repeat factor."""
        return np.concatenate([part.weight * part.repeat_factors() for part in self.parts])

    def choose_canvases(self, count: int) -> tuple[Canvas, ...]:
        """At most so many, for training; none where pictures are not resized."""
        if not isinstance(self.transform, Augment):
            return ()
        sets, transform = [part.index.sizes for part in self.parts], self.transform
        return choose_canvases(sets, transform.shorter, transform.longer, transform.scale_jitter, count)

    def placing(self, canvases: tuple[Canvas, ...]) -> Placing | None:
        """For `loading.epoch_batches`; None without canvases."""
        return Placing(canvases, partial(self._placed, canvases)) if canvases else None

    def _placed(
        self,
        canvases: tuple[Canvas, ...],
        rows: NDArray[np.int64],
        seeds: NDArray[np.int64],
        generator: np.random.Generator,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        assert isinstance(self.transform, Augment)  # training's transform
        scales = generator.uniform(*self.transform.scale_jitter, len(rows))
        sizes = self._drawn_sizes(rows, seeds)
        sizes = resized_sizes(sizes, self.transform.shorter, self.transform.longer, scales)
        return scales, assigned(sizes, canvases)

    def _drawn_sizes(self, rows: NDArray[np.int64], seeds: NDArray[np.int64]) -> Sizes:
        """`[N, 2]` (height, width) of what is drawn, in the direction that is drawn."""
        sizes = self.sizes()[rows].astype(np.int64)
        if max(self.directions) > 1:
            for place, draw in enumerate(map(Draw, rows.tolist(), seeds.tolist())):
                number, image = self._image_of(draw)
                sizes[place] = self.parts[number].index.sizes[image]
        return sizes

    def __getitem__(self, draw: Draw | int) -> Sample:
        draw = draw if isinstance(draw, Draw) else Draw(draw, 0)
        sample = self._sample_of(draw)._replace(seed=draw.seed, canvas=draw.canvas)
        if not self.photometric:
            return sample
        generator = np.random.default_rng([draw.seed, colour.STREAM])
        return sample._replace(colour=colour.drawn(sample.image, generator))

    def files(self, row: int, seed: int) -> list[Path]:
        """Of what a draw shows: its picture's, and of a mosaic those of the three others. Where one cannot be read
        another is shown in its place, which the training tells when it happens."""
        generator = self._for_mosaic(seed)
        draws = [Draw(row, seed)] if generator is None else self._of_mosaic(row, generator)
        places = [self.locate(draw.row) for draw in draws]
        return [self.parts[number].index.path(image) for number, image in places]

    def _for_mosaic(self, seed: int) -> np.random.Generator | None:
        """What the draw of this seed takes its chances from if it becomes a mosaic; None if it does not."""
        if not self.mosaic:
            return None
        generator = np.random.default_rng([seed, PICTURES])
        return generator if generator.random() < self.mosaic else None

    def _of_mosaic(self, row: int, generator: np.random.Generator) -> list[Draw]:
        """The pictures of a mosaic: that of this row, and three more."""
        assert self.drawn_below is not None  # there are mosaics
        marks = generator.random(PICTURES - 1) * self.drawn_below[-1]
        others = np.searchsorted(self.drawn_below, marks, side="right").clip(max=len(self) - 1)
        return list(map(Draw, [row, *others.tolist()], generator.integers(0, 2**62, PICTURES).tolist()))

    def _sample_of(self, draw: Draw) -> Sample:
        if (generator := self._for_mosaic(draw.seed)) is not None:
            return self._mosaic(draw, generator)
        picture, transform = self._read(draw), self.transform
        if draw.scale is not None:
            assert isinstance(transform, Augment)  # training's transform
            transform = partial(transform, scale=draw.scale, canvas=draw.canvas)
        piece = self._piece(picture, draw.seed, transform)
        return self._sample(picture, piece.image, piece.target, piece.trusted, picture.lost)

    def _sample(
        self,
        picture: Picture,
        image: Tensor,
        target: Annotations,
        trusted: Tensor,
        lost: tuple[str, ...],
        tiles: Tiles | None = None,
    ) -> Sample:
        return Sample(
            image=image,
            original_size=picture.original_size,
            target=target,
            trusted=trusted,
            image_id=int(self.starts[picture.number]) + picture.row // self.directions[picture.number],
            dataset_id=self.parts[picture.number].row,
            unreadable=lost,
            tiles=tiles,
        )

    def _mosaic(self, draw: Draw, generator: np.random.Generator) -> Sample:
        """Of this draw's picture and three more; a function of the draw alone, as all that happens to it."""
        assert isinstance(self.transform, Augment)  # training's transform
        read = [(self._read(one), one.seed) for one in self._of_mosaic(draw.row, generator)]
        first = read[0][0]
        scale = 1.0 if draw.scale is None else draw.scale
        height, width = fitted(*self.transform.size_of(*first.original_size, scale), draw.canvas)
        size = (max(2, height), max(2, width))  # of a thread of a picture, too, there is room for four
        places = rooms(*size, generator)
        pieces = []
        for (picture, seed), place in zip(read, places, strict=True):
            left, top, right, bottom = place
            scale = float(generator.uniform(*SCALE))
            show = partial(self.transform.piece, room=(bottom - top, right - left), scale=scale)
            pieces.append(self._piece(picture, seed, show))
        image, target, tiles = joined(pieces, places, size, self.transform.fill)
        lost = tuple(line for picture, _ in read for line in picture.lost)
        return self._sample(first, image, target, tiles.trusted.all(0), lost, tiles)

    def _piece(self, picture: Picture, seed: int, transform: Transform) -> Piece:
        """What the transform shows of a picture, with its labels and its trust."""
        target, trusted = self.annotations(picture.number, picture.row)
        target = replace(target, boxes=_clipped(target.boxes, picture.pixels))
        # Seeded per draw, not per worker: the same run gives the same pictures for any number of workers, and a
        # resumed one continues with the pictures it would have seen.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well
            view = transform(picture.pixels, target.boxes)
        if self.mirrored is not None and view.mirrored:
            target = replace(target, labels=_mirrored(target.labels, self.mirrored))
        target = after_transform(target, view.boxes, view.image, self.min_side)
        if self.overlap is not None:
            target = with_overlapping_regions(target, self.overlap)
        return Piece(view.image, target, trusted, self.parts[picture.number].row)

    def _image_of(self, draw: Draw) -> tuple[int, int]:
        """As `locate`, in one of the directions."""
        number, image = self.locate(draw.row)
        if self.directions[number] > 1:
            image += int(np.random.default_rng(draw.seed).integers(self.directions[number]))
        return number, image

    def _read(self, draw: Draw) -> Picture:
        """The picture of a draw, or the next readable one of its part."""
        number, image = self._image_of(draw)
        part, directions, lost = self.parts[number], self.directions[number], []
        for step in range(min(MAX_SUBSTITUTES, len(part.index) // directions)):
            candidate = (image + step * directions) % len(part.index)
            try:
                pixels = read_row(part.index, candidate)
            except UnreadableImage as error:
                lost.append(str(error))
                if not self.substitute:
                    blank = torch.full((3, 64, 64), 128, dtype=torch.uint8)
                    return Picture(number, candidate, blank, (0, 0), tuple(lost))
                continue
            return Picture(number, candidate, pixels, (pixels.shape[1], pixels.shape[2]), tuple(lost))
        raise RunError(f"{len(lost)} images in a row cannot be read, the last one: {lost[-1]}")

    def annotations(self, number: int, image: int) -> tuple[Annotations, Tensor]:
        """Targets in unified ids and original pixels, and the `[C]` trusted row, of one image of one part."""
        part = self.parts[number]
        index, rows = part.index, part.index.rows(image)
        # plain arrays: every operation on a memory-mapped one makes another of its kind
        boxes, own_labels, own_flags = map(np.asarray, (index.boxes, index.labels, index.flags))
        labels, flags = own_labels[rows].astype(np.int64), own_flags[rows].copy()
        unified = np.where(labels >= 0, part.class_ids[labels], -1) if len(labels) else labels
        kept = (labels < 0) | (unified != DROPPED)
        flags[(flags & Flag.INVALID) != 0] |= np.uint8(Flag.IGNORE_REGION)
        if part.difficult_as_region:
            flags[(flags & Flag.DIFFICULT) != 0] |= np.uint8(Flag.AVOID)
        target = Annotations(
            boxes=torch.from_numpy(boxes[rows][kept]),
            labels=torch.from_numpy(unified[kept]),
            flags=torch.from_numpy(flags[kept]),
        )
        return target, torch.from_numpy(self._trusted(part, image))

    def _trusted(self, part: Part, image: int) -> NDArray[np.bool_]:
        if self.plain:
            return np.ones(len(self.space.classes), bool)
        if part.row not in self.space.federated:
            return self.space.trusted_row(part.row)
        one = range(image, image + 1)
        _, verified = verified_classes(part.index, part.class_ids, self.space, part.row, one)
        return self.space.trusted_row(part.row, verified)


def _mirrored(labels: Tensor, becomes: NDArray[np.int64]) -> Tensor:
    own = labels.numpy()
    if not len(own):
        return labels
    mirrored = np.where(own >= 0, becomes[own], own)
    if ((own >= 0) & (mirrored == NO_CLASS)).any():
        raise ValueError("a mirrored picture shows a direction that is no class; do not flip, or add the direction")
    return torch.from_numpy(mirrored)


def _clipped(boxes: Tensor, pixels: Tensor) -> Tensor:
    """Boxes `[M, 4]` cut at the border of the picture `[3, H, W]`."""
    height, width = pixels.shape[1:]
    # in NumPy: on a handful of boxes an operation of torch takes several times as long
    high = np.array([width, height, width, height], np.float32)
    return torch.from_numpy(np.minimum(np.maximum(boxes.numpy(), np.float32(0)), high))


def after_transform(target: Annotations, boxes: Tensor, pixels: Tensor, min_side: float) -> Annotations:
    """The annotations of a view: what a crop does to objects, and nothing that is visible becomes background.

    An object of which less than `VISIBLE` of the area is left, or that is tiny, is an avoided region of its class
    over what is visible of it; one that is outside is gone. Others, and all regions, are cut at the border.

    target: before the transform, boxes inside the picture. boxes: the same boxes in the view `pixels`, not yet cut.
    min_side: see `HybridDataset`.
    """
    whole, cut = boxes.numpy(), _clipped(boxes, pixels).numpy()
    sides = cut[:, 2:] - cut[:, :2]
    shorter = sides.min(1)
    hidden = sides.prod(1) < VISIBLE * (whole[:, 2:] - whole[:, :2]).prod(1)
    flags = target.flags.numpy() | np.where((shorter < min_side) | hidden, np.uint8(Flag.AVOID), np.uint8(0))
    kept = shorter > 0
    arrays = (cut[kept], target.labels.numpy()[kept], flags[kept])
    return Annotations(*(torch.from_numpy(array) for array in arrays))


def with_overlapping_regions(target: Annotations, overlap: NDArray[np.bool_]) -> Annotations:
    """Every region of a class is one of the classes, too, that an object of it can be at once: what a crop leaves
    of a `man` is no negative for `person`, as the whole man is none. overlap: `[C, C]`.

    Not those that a teacher was unsure of: whoever says what is background for the other class, a person or a
    teacher of that class, has looked for it."""
    labels, flags = target.labels.numpy(), target.flags.numpy()
    regions = np.flatnonzero((labels >= 0) & ((flags & REGION_FLAGS) != 0) & ((flags & int(Flag.TEACHER)) == 0))
    which, also = np.nonzero(overlap[labels[regions]])
    if not len(which):
        return target
    rows = regions[which]
    own = (target.boxes, target.labels, target.flags)
    more = (target.boxes.numpy()[rows], also.astype(np.int64), flags[rows])
    return Annotations(*(torch.cat([a, torch.from_numpy(b)]) for a, b in zip(own, more, strict=True)))
