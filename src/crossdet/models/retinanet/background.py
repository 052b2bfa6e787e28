"""The background's part of the class loss: the last layer of the class subnet for each distinct trusted set.

Once for a CPU, in small pieces, and once for a device, in few and large operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, repeat
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from crossdet.losses import background_focal_parts, background_focal_sums, with_entries
from crossdet.models.retinanet.anchors import AnchorLabels
from crossdet.models.tiles import LocalTrust
from crossdet.types import BACKGROUND, TrustGroup

CHANNEL_MULTIPLE = 8
"""A device's convolution has a multiple of so many output channels: what tensor cores take in half precision."""
DEVICE_ENTRIES = 1 << 24
"""Background logits whose focal terms a device computes at once (64 MB per tensor, of which five are held)."""


def background_sums(
    towers: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    counts: Sequence[int],
    labelled: AnchorLabels,
    groups: Sequence[TrustGroup],
    alpha: float,
    gamma: float,
    compiled: bool,
    background_weight: Tensor | None,
    local: LocalTrust | None,
) -> Tensor:
    """`[B]` sums of the background anchors, each image over its own trusted classes."""
    device = weight.device
    order = [image for group in groups for image in group.images]
    images = [len(group.images) for group in groups]
    sorted_already = order == list(range(len(order)))  # the loader sees to it
    place = None if sorted_already else torch.tensor(order, device=device)
    # One gather of all images and one scatter of all gradients, instead of one per group.
    parts = [(t if place is None else _take(t, place)).split(images) for t in towers]
    labels = (labelled.labels if place is None else labelled.labels[place]) == BACKGROUND
    avoided, first = labelled.avoid, 0
    if place is not None and len(avoided):
        avoided = torch.cat([place.argsort()[avoided[:, :1]], avoided[:, 1:]], 1)
    sums = []
    for number, (group, w, b) in enumerate(zip(groups, weight.split(counts), bias.split(counts), strict=True)):
        start, total = 0, torch.zeros((), dtype=wide_type(towers[0]), device=device)
        mine = labels.split(images)[number]
        avoid = _in_group(avoided, first, images[number], group.classes)
        first += images[number]
        if background_weight is not None:
            # images of a group may differ: what one dataset labels a teacher labels in another
            weights = _of_group(background_weight, group)
        places = None if local is None else local.of_images(group.images, group.classes)
        for level in parts:
            maps = level[number]
            cells = maps.shape[-2] * maps.shape[-1]
            width = len(group.classes)
            anchors = cells * (counts[number] // width) if width else 0
            if anchors:
                logits = F.conv2d(maps, w, b, padding=1).permute(0, 2, 3, 1).reshape(len(maps), -1, width)
                logits = logits if logits.dtype == torch.float64 else logits.float()
                logits = logits if places is None else places.hidden(logits, start)
                piece = slice(start, start + anchors)
                here = _in_level(avoid, start, anchors)
                terms = background_focal_sums(logits, mine[:, piece], here, alpha, gamma, compiled)
                if background_weight is not None:
                    terms = terms * weights.to(terms.dtype)
                total = total + terms.sum(1)
            start += anchors
        sums.append(total.expand(len(group.images)))
    joined = torch.cat(sums)
    return joined if place is None else joined[place.argsort()]


def _of_group(table: Tensor, group: TrustGroup) -> Tensor:
    """`[images, K]` part of `table [B, C]`, without waiting for the device."""
    rows = torch.stack([table[image] for image in group.images])
    return rows.index_select(1, group.classes.to(table.device, non_blocking=True))


def _take(maps: Tensor, images: Tensor) -> Tensor:
    wide = maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()
    taken = maps.index_select(0, images)
    return taken.contiguous(memory_format=torch.channels_last) if wide else taken


def _in_group(avoid: Tensor, first: int, images: int, classes: Tensor) -> Tensor:
    """Avoided pairs `[P, 3]` (image, anchor, class), counted within some images in a row and their classes.

    Image -1 for pairs of others: picking rows out would wait for the device.
    """
    if not len(avoid) or not len(classes):
        return avoid[:0]
    image, anchor, cls = avoid.unbind(1)
    column = cls[:, None] == classes.to(avoid.device)
    here = (image >= first) & (image < first + images) & ((cls < 0) | column.any(1))
    column_of = torch.where(cls < 0, -1, column.to(torch.int8).argmax(1))
    return torch.stack([torch.where(here, image - first, -1), anchor, column_of], 1)


def _in_level(avoid: Tensor, start: int, anchors: int) -> Tensor | None:
    """The same, counted within the anchors of one level."""
    if not len(avoid):
        return None
    image, anchor, cls = avoid.unbind(1)
    here = (anchor >= start) & (anchor < start + anchors)
    return torch.stack([torch.where(here, image, -1), anchor - start, cls], 1)


def wide(tensor: Tensor) -> Tensor:
    return tensor.to(wide_type(tensor))


def wide_type(tensor: Tensor) -> torch.dtype:
    """What is summed in: half types in single precision."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


# ------------------------------------------------------------------------------ on a device


def batched_background_sums(
    towers: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    counts: Sequence[int],
    labelled: AnchorLabels,
    groups: Sequence[TrustGroup],
    alpha: float,
    gamma: float,
    compiled: bool,
    background_weight: Tensor | None,
    local: LocalTrust | None,
    trusted: Tensor,
) -> Tensor:
    """What `background_sums` gives, by few and large operations.

    All levels lie side by side in one map, so that a trusted set is one convolution, and the focal terms of all
    sets are computed together.
    """
    device, layout = weight.device, Layout.of(towers)
    order = [image for group in groups for image in group.images]
    place = None  # the images in the order of the groups, where the loader has not seen to it
    if order != list(range(len(order))):
        place = torch.tensor(order).to(device, non_blocking=True)
    shapes = labelled.labels.shape[1] // layout.cells
    silent = layout.put_anchors(labelled.labels != BACKGROUND, shapes)
    avoid = labelled.avoid
    if len(avoid):
        image, anchor, cls = avoid.unbind(1)
        anchor = layout.anchor_places(shapes, device)[anchor]
        every = torch.where(cls < 0, image * silent.shape[1] + anchor, silent.numel())
        silent = with_entries(silent, every, True)
        cls, meant = cls.clamp(min=0), cls >= 0
        column = (trusted.cumsum(1) - 1)[image, cls]
        meant &= trusted[image, cls]
        image = image if place is None else place.argsort()[image]
        avoid = torch.stack([torch.where(meant, image, -1), anchor, column], 1)
    weights = None
    if background_weight is not None:
        weights = [_of_group(background_weight, group) for group in groups]
    places = None
    if local is not None:
        local = LocalTrust(layout.put_anchors(local.zone, shapes), local.table)
        places = [local.of_images(group.images, group.classes) for group in groups]
    sums: Tensor = _BatchedBackground.apply(
        weight,
        bias,
        layout,
        Sets([len(g.images) for g in groups], [len(g.classes) for g in groups], list(counts)),
        place,
        silent if place is None else silent.index_select(0, place),
        avoid,
        weights,
        places,
        (alpha, gamma, compiled),
        *towers,
    )
    return sums if place is None else sums[place.argsort()]


class Layout(NamedTuple):
    """Maps of all levels in one: the first, below it the others side by side, one empty row or column between.

    What a 3x3 convolution with padding 1 gives inside a level is then what it gives for the level alone.
    grids: (rows, columns) of each level; corners: where it lies.
    """

    rows: int
    columns: int
    grids: tuple[tuple[int, int], ...]
    corners: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, maps: Sequence[Tensor]) -> Layout:
        grids = tuple((t.shape[-2], t.shape[-1]) for t in maps)
        corners, right, below = [(0, 0)], 0, 0
        for rows, columns in grids[1:]:
            corners.append((grids[0][0] + 1, right))
            right, below = right + columns + 1, max(below, rows + 1)
        return cls(grids[0][0] + below, max(grids[0][1], right - 1), grids, tuple(corners))

    @property
    def cells(self) -> int:
        """Of the levels, without what is between them."""
        return sum(rows * columns for rows, columns in self.grids)

    def windows(self) -> Iterator[tuple[slice, slice]]:
        for (rows, columns), (top, left) in zip(self.grids, self.corners, strict=True):
            yield slice(top, top + rows), slice(left, left + columns)

    def put(self, maps: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """`[B, D, rows, columns]` of all levels' maps, zero between them."""
        batch, channels = maps[0].shape[:2]
        whole = maps[0].new_zeros((batch, self.rows, self.columns, channels), dtype=dtype)
        whole = whole.permute(0, 3, 1, 2)
        for level, (down, across) in zip(maps, self.windows(), strict=True):
            whole[:, :, down, across] = level
        return whole

    def put_anchors(self, values: Tensor, shapes: int) -> Tensor:
        """`[B, rows * columns * A]` of `values [B, N]` by anchor; true or 1 between the levels."""
        whole = values.new_ones((len(values), self.rows, self.columns, shapes))
        levels = values.split([rows * columns * shapes for rows, columns in self.grids], 1)
        for level, (rows, columns), (down, across) in zip(levels, self.grids, self.windows(), strict=True):
            whole[:, down, across] = level.unflatten(1, (rows, columns, shapes))
        return whole.flatten(1)

    def anchor_places(self, shapes: int, device: torch.device) -> Tensor:
        """`[N]`: where each anchor is in what `put_anchors` gives."""
        places = torch.arange(self.rows * self.columns * shapes, device=device)
        whole = places.view(self.rows, self.columns, shapes)
        return torch.cat([whole[down, across].flatten() for down, across in self.windows()])


class Sets(NamedTuple):
    """The trusted sets of a batch: of each its images, its classes, and its output channels (A x classes)."""

    images: list[int]
    classes: list[int]
    channels: list[int]

    @property
    def padded(self) -> list[int]:
        return [-(-channels // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE for channels in self.channels]

    def channel_places(self, device: torch.device) -> Tensor | None:
        """Where each channel is among the padded ones; None: as it is."""
        if self.padded == self.channels:
            return None
        ends = accumulate(self.padded)
        places = [
            torch.arange(end - padded, end - padded + channels)
            for end, padded, channels in zip(ends, self.padded, self.channels, strict=True)
        ]
        return torch.cat(places).to(device, non_blocking=True)

    def pieces(self, cells: int) -> Iterator[list[tuple[int, int, int, int]]]:
        """The logits, image after image, cut into pieces of about `DEVICE_ENTRIES`.

        cells: positions of a map. A piece is a list of (set, first of its images, number of images, logits).
        """
        piece: list[tuple[int, int, int, int]] = []
        room = DEVICE_ENTRIES
        for number, (images, channels) in enumerate(zip(self.images, self.channels, strict=True)):
            each, first = cells * channels, 0
            while channels and first < images:
                if room < each and piece:
                    yield piece
                    piece, room = [], DEVICE_ENTRIES
                some = min(images - first, max(1, room // each))
                piece.append((number, first, some, some * each))
                first, room = first + some, room - some * each
        if piece:
            yield piece


class _BatchedBackground(torch.autograd.Function):
    """`[B]` sums of the background anchors, images in the order of the sets; see `batched_background_sums`.

    silent: `[B, N]`, anchors without a term. avoid: `[P, 3]` (image, anchor, column of the image's set); image -1
    means nothing. weights: per set `[images, K]`. places: per set, of its images and classes.
    The slopes take the place of the logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor,
        layout: Layout,
        sets: Sets,
        place: Tensor | None,
        silent: Tensor,
        avoid: Tensor,
        weights: list[Tensor] | None,
        places: list[LocalTrust] | None,
        options: tuple[float, float, bool],
        *towers: Tensor,
    ) -> Tensor:
        device = weight.device.type
        half = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if half else weight.dtype
        with torch.autocast(device, enabled=False):
            maps = layout.put(towers, dtype)
            maps = maps if place is None else _take(maps, place)
            channels = sets.channel_places(weight.device)
            layer, offsets = weight.to(dtype), bias.to(dtype)
            if channels is not None:
                total = sum(sets.padded)
                layer = layer.new_zeros(total, *layer.shape[1:]).index_copy_(0, channels, layer)
                offsets = offsets.new_zeros(total).index_copy_(0, channels, offsets)
            layer = layer.contiguous(memory_format=torch.channels_last)
            flat = _logits_of_sets(maps, layer, offsets, sets, silent, avoid, places)
            sums = _replace_by_slopes(flat, sets, layout.rows * layout.columns, weights, options)
        ctx.save_for_backward(_as_slopes(flat), maps, layer, place, channels)
        ctx.layout, ctx.sets = layout, sets
        ctx.dtypes = weight.dtype, [t.dtype for t in towers]
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sums: Tensor) -> tuple[Any, ...]:
        slopes, maps, layer, place, channels = ctx.saved_tensors
        sets, cells = ctx.sets, ctx.layout.rows * ctx.layout.columns
        lengths = [i * c * cells for i, c in zip(sets.images, sets.channels, strict=True)]
        parts = zip(
            slopes.split(lengths),
            grad_sums.split(sets.images),
            maps.split(sets.images),
            layer.split(sets.padded),
            strict=True,
        )
        grads = [_layer_gradients(*part) for part in parts]
        grad_maps, grad_weight, grad_bias = (torch.cat(some) for some in zip(*grads, strict=True))
        grad_maps = grad_maps if place is None else grad_maps.index_select(0, place.argsort())
        if channels is not None:
            grad_weight, grad_bias = (g.index_select(0, channels) for g in (grad_weight, grad_bias))
        dtype, tower_types = ctx.dtypes
        grad_towers = [
            grad_maps[:, :, down, across].to(tower_type)
            for tower_type, (down, across) in zip(tower_types, ctx.layout.windows(), strict=True)
        ]
        return grad_weight.to(dtype), grad_bias.to(dtype), *[None] * 8, *grad_towers


def _layer_gradients(slopes: Tensor, factor: Tensor, maps: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a set's maps, weight and bias. slopes: flat, without those of padding. factor: by image."""
    if not len(weight):
        return torch.zeros_like(maps), weight, weight.new_zeros(0)
    slopes = slopes.view(len(maps), *maps.shape[2:], -1)
    channels = slopes.shape[-1]
    grad = maps.new_empty(*slopes.shape[:-1], len(weight))
    grad[..., channels:] = 0
    torch.mul(slopes, factor[:, None, None, None], out=grad[..., :channels])
    ones = [1, 1]
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2), maps, weight, [len(weight)], ones, ones, ones, False, [0, 0], 1, [True] * 3
    )
    return gradients


def _logits_of_sets(
    maps: Tensor,
    weight: Tensor,
    bias: Tensor,
    sets: Sets,
    silent: Tensor,
    avoid: Tensor,
    places: list[LocalTrust] | None,
) -> Tensor:
    """All logits of all sets, flat: by set, image, position, anchor shape and class. -1e4, which is a probability
    of zero with slope zero, where a logit has no term. weight, bias: of the padded channels."""
    parts, table, start = [], [], 0
    of_sets = zip(
        maps.split(sets.images),
        silent.split(sets.images),
        weight.split(sets.padded),
        bias.split(sets.padded),
        sets.classes,
        repeat(None, len(sets.classes)) if places is None else places,
        strict=True,
    )
    for some, without, rows, offsets, classes, local in of_sets:
        each = silent.shape[1] * classes
        table += [(start + image * each, classes) for image in range(len(some))]
        start += len(some) * each
        if classes:
            logits = F.conv2d(some, rows, offsets, padding=1).permute(0, 2, 3, 1).flatten(1, 2)
            without = without.view(len(some), logits.shape[1], -1, 1)
            logits = logits[..., : without.shape[2] * classes].unflatten(2, (-1, classes))
            logits = logits.masked_fill(without, -1e4)
            parts.append((logits if local is None else local.hidden(logits.flatten(1, 2))).flatten())
    flat = parts[0] if len(parts) == 1 else torch.cat([bias.new_zeros(0), *parts])
    if len(avoid):
        first, width = torch.tensor(table).to(avoid.device, non_blocking=True).unbind(1)
        image, anchor, column = avoid.unbind(1)
        place = first[image] + anchor * width[image] + column
        flat = with_entries(flat, torch.where(image < 0, len(flat), place), -1e4)
    return flat


def _as_slopes(logits: Tensor) -> Tensor:
    """The memory of logits, for their slopes. Those of background that is hardly taken for something are below what
    float16 has, and the factor that a loss is scaled by comes too late for them."""
    return logits.view(torch.bfloat16) if logits.dtype == torch.float16 else logits


def _replace_by_slopes(
    flat: Tensor, sets: Sets, cells: int, weights: list[Tensor] | None, options: tuple[float, float, bool]
) -> Tensor:
    """`[B]` sums of the focal terms of the logits; in their place come the derivatives."""
    zero = torch.zeros((), dtype=wide_type(flat), device=flat.device)
    sums = [[] if classes else [zero.expand(n)] for n, classes in zip(sets.images, sets.classes, strict=True)]
    start = 0
    for piece in sets.pieces(cells):
        lengths = [length for *_, length in piece]
        logits = flat[start : start + sum(lengths)]
        start += sum(lengths)
        terms, slopes = background_focal_parts(wide(logits), *options)
        parts = zip(piece, terms.split(lengths), slopes.split(lengths), strict=True)
        for (number, first, images, _), term, slope in parts:
            shape = (images, -1, sets.classes[number])
            if weights is None:
                sums[number].append(term.view(images, -1).sum(1))
            else:
                by_class = weights[number][first : first + images].to(terms.dtype)
                sums[number].append((term.view(shape).sum(1) * by_class).sum(1))
                slope.view(shape).mul_(by_class[:, None])
        _as_slopes(logits).copy_(slopes)
    return torch.cat([part for parts in sums for part in parts])
