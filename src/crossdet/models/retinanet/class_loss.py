"""The class loss without the full logits: its cost does not grow with the union of classes.

By the loss's own rule an image needs logits for its trusted classes at every anchor, and for all classes at its few
foreground anchors (docs/design.md, "Cost"). So the last layer of the class subnet is evaluated for each distinct
trusted set of the batch, and for the whole union at the foreground anchors only. Loss and gradients are those of
the full computation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from crossdet.losses import background_focal_sums, foreground_focal_parts, foreground_negatives_of
from crossdet.models.retinanet.anchors import AnchorLabels
from crossdet.types import BACKGROUND, TrustGroup

FOREGROUND_ENTRIES = 8_000_000
"""Foreground anchors x classes held at once (32 MB per tensor)."""


def union_focal_losses(
    towers: Sequence[Tensor],
    predict: nn.Conv2d,
    labelled: AnchorLabels,
    trusted: Tensor,
    groups: Sequence[TrustGroup],
    alpha: float = 0.25,
    gamma: float = 2.0,
    foreground_negatives: bool = True,
    overlap: Tensor | None = None,
    compiled: bool = False,
    background_weight: Tensor | None = None,
) -> Tensor:
    """`[B]` dataset-aware focal loss per image, equal to `image_focal_losses` of all logits.

    Args:
        towers: per level `[B, D, H, W]`, what the last layer of the class subnet takes.
        predict: that layer, a 3x3 convolution with padding 1 to A * C channels, class fastest.
        labelled: of `label_anchors`, anchors by level, row, column and shape.
        trusted: `[B, C]` bool. groups: its distinct rows (`trust_groups(trusted)`).
        alpha, gamma, foreground_negatives, overlap, compiled, background_weight: see
            `dataset_aware_focal_loss`.
    """
    classes = trusted.shape[1]
    shapes = predict.out_channels // classes
    spots = _positions(towers, labelled, shapes)
    rows = [_rows_of(group, classes, shapes, trusted.device) for group in groups]
    negatives = (trusted, labelled, foreground_negatives, overlap)
    terms, weight, bias = _UnionLayer.apply(
        predict.weight,
        predict.bias,
        _patches(towers, spots, predict.weight),
        labelled.anchor % shapes,
        torch.cat(rows),
        negatives,
        (alpha, gamma),
    )
    background = _background(
        towers, weight, bias, [len(r) for r in rows], labelled, groups, alpha, gamma, compiled, background_weight
    )
    losses: Tensor = background.index_add(0, labelled.image, terms.to(background.dtype))
    return losses


def _rows_of(group: TrustGroup, classes: int, shapes: int, device: torch.device) -> Tensor:
    """`[A * K]` output channels of the group's classes."""
    first = torch.arange(shapes, device=device)[:, None] * classes
    return (first + group.classes.to(device, non_blocking=True)).flatten()


# ------------------------------------------------------------------------------------------ background


def _background(
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
        start, total = 0, torch.zeros((), dtype=_wide_type(towers[0]), device=device)
        mine = labels.split(images)[number]
        avoid = _in_group(avoided, first, images[number], group.classes)
        first += images[number]
        if background_weight is not None:
            # images of a group may differ: what one dataset labels a teacher labels in another
            weights = _of_group(background_weight, group)
        for level in parts:
            maps = level[number]
            cells = maps.shape[-2] * maps.shape[-1]
            width = len(group.classes)
            anchors = cells * (counts[number] // width) if width else 0
            if anchors:
                logits = F.conv2d(maps, w, b, padding=1).permute(0, 2, 3, 1).reshape(len(maps), -1, width)
                logits = logits if logits.dtype == torch.float64 else logits.float()
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


# ------------------------------------------------------------------------------------------ foreground


def _positions(towers: Sequence[Tensor], labelled: AnchorLabels, shapes: int) -> tuple[Tensor, Tensor]:
    """For every foreground anchor the 3x3 positions around it in all levels' maps, one after the other.

    Returns:
        rows `[F, 9]` of the maps laid out as `[B * cells, D]`, and whether each lies inside its map.
    """
    cell = labelled.anchor // shapes
    starts, heights, widths = (torch.zeros_like(cell) for _ in range(3))
    cells = 0
    for tower in towers:  # numbers of the host go into the kernels; a table of them would wait for the device
        here = cell >= cells
        for table, value in ((starts, cells), (heights, tower.shape[-2]), (widths, tower.shape[-1])):
            table.masked_fill_(here, value)
        cells += tower.shape[-2] * tower.shape[-1]
    y, x = (cell - starts) // widths, (cell - starts) % widths
    step = torch.arange(-1, 2, device=cell.device)
    ys = (y[:, None] + step)[:, :, None].expand(-1, 3, 3)
    xs = (x[:, None] + step)[:, None, :].expand(-1, 3, 3)
    high, wide = heights[:, None, None], widths[:, None, None]
    inside = (ys >= 0) & (ys < high) & (xs >= 0) & (xs < wide)
    rows = starts[:, None, None] + ys * wide + xs + (labelled.image * cells)[:, None, None]
    return torch.where(inside, rows, 0).flatten(1), inside.flatten(1)


def _patches(towers: Sequence[Tensor], spots: tuple[Tensor, Tensor], weight: Tensor) -> Tensor:
    """`[F, D * 9]` inputs of the layer at the foreground anchors, in the order of `_flat(weight)`."""
    rows, inside = spots
    maps = torch.cat([t.permute(0, 2, 3, 1).flatten(1, 2) for t in towers], 1).flatten(0, 1)
    patches = maps.index_select(0, rows.flatten()).view(*rows.shape, maps.shape[1])
    patches = patches * inside[..., None].to(maps.dtype)
    return patches.flatten(1) if _is_channels_last(weight) else patches.transpose(1, 2).flatten(1)


def _is_channels_last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def _flat(weight: Tensor, shapes: int) -> Tensor:
    """`[A, C, D * 9]` view of the layer's weight `[A * C, D, 3, 3]`, in whichever order it is stored."""
    stored = weight.permute(0, 2, 3, 1) if _is_channels_last(weight) else weight
    return stored.reshape(shapes, len(weight) // shapes, -1)


class _UnionLayer(torch.autograd.Function):
    """Foreground terms over the whole union, and the rows of the weight that the slices take.

    Both in one function, so that the dense gradient of the layer exists once per step and both write into it.
    The logits of the foreground are computed in chunks, and again for the gradient, so they are never all there.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor,
        patches: Tensor,
        shape_of: Tensor,
        rows: Tensor,
        negatives: tuple[Tensor, AnchorLabels, bool, Tensor | None],
        exponents: tuple[float, float],
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.negatives, ctx.exponents = negatives, exponents
        ctx.save_for_backward(weight, bias, patches, shape_of, rows)
        terms = patches.new_zeros(len(patches), dtype=_wide_type(patches))
        with torch.autocast(weight.device.type, enabled=False):
            for _, _, picked, parts in _chunks(ctx, weight, bias, patches, shape_of):
                terms[picked] = parts(False)[0]
        return terms, weight.index_select(0, rows), bias.index_select(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_terms: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> tuple[Any, ...]:
        weight, bias, patches, shape_of, rows = ctx.saved_tensors
        with torch.autocast(weight.device.type, enabled=False):
            dense, dense_bias = torch.zeros_like(weight), torch.zeros_like(bias)
            grad_patches = torch.zeros_like(patches, dtype=_wide_type(patches))
            shapes = len(bias) // ctx.negatives[0].shape[1]
            into, into_bias = _flat(dense, shapes), dense_bias.view(shapes, -1)
            for shape, flat, picked, parts in _chunks(ctx, weight, bias, patches, shape_of):
                slope = parts(True)[1] * grad_terms[picked, None]
                grad_patches[picked] = slope @ flat
                into[shape].addmm_(slope.T, _wide(patches[picked]))
                into_bias[shape] += slope.sum(0)
            dense.index_add_(0, rows, grad_weight.to(dense.dtype))
            dense_bias.index_add_(0, rows, grad_bias.to(dense.dtype))
        return dense, dense_bias, grad_patches.to(patches.dtype), None, None, None, None


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(_wide_type(tensor))


def _wide_type(tensor: Tensor) -> torch.dtype:
    """What is summed in: half types in single precision."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _chunks(ctx: Any, weight: Tensor, bias: Tensor, patches: Tensor, shape_of: Tensor) -> Any:
    """(anchor shape, its weight `[C, D * 9]`, foreground rows, function) of each chunk.

    The function computes terms `[f]` and, if asked, slopes `[f, C]` with respect to the logits.
    """
    trusted, labelled, foreground_negatives, overlap = ctx.negatives
    alpha, gamma = ctx.exponents
    classes = trusted.shape[1]
    shapes = len(bias) // classes
    flat, flat_bias = _flat(weight, shapes), bias.view(shapes, classes)
    order = shape_of.argsort(stable=True)
    counts = labelled.per_shape or torch.bincount(shape_of, minlength=shapes).tolist()
    step = max(1, FOREGROUND_ENTRIES // max(1, classes))
    end = 0
    for shape, count in enumerate(counts):
        start, end = end, end + count
        for first in range(start, end, step):
            picked = order[first : min(end, first + step)]

            def parts(with_slope: bool, shape: int = shape, picked: Tensor = picked) -> tuple[Tensor, Tensor]:
                logits = torch.addmm(flat_bias[shape], _wide(patches[picked]), flat[shape].T)
                image, anchor = labelled.image[picked], labelled.anchor[picked]
                negative = foreground_negatives_of(
                    trusted, labelled.labels, image, anchor, foreground_negatives, overlap, labelled.avoid
                )
                own = labelled.labels[image, anchor]
                return foreground_focal_parts(logits, own, negative.to(logits.dtype), alpha, gamma, with_slope)

            yield shape, flat[shape], picked, parts
