"""The class loss without the full logits: its cost does not grow with the union of classes.

By the loss's own rule an image needs logits for its trusted classes at every anchor, and for all classes at its few
foreground anchors (docs/design.md, "The rule"). So the last layer of the class subnet is evaluated for each
distinct trusted set of the batch, and for the whole union at the foreground anchors only. Loss and gradients are
those of the full computation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from crossdet.losses import foreground_focal_parts, foreground_weights
from crossdet.models.retinanet.anchors import AnchorLabels
from crossdet.models.retinanet.background import background_sums, batched_background_sums, wide, wide_type
from crossdet.models.tiles import LocalTrust
from crossdet.types import TrustGroup

FOREGROUND_ENTRIES = 8_000_000
"""Foreground anchors x classes, or x inputs of the layer, held at once (32 MB per tensor)."""


def union_focal_losses(
    towers: Sequence[Tensor],
    predict: nn.Conv2d,
    labelled: AnchorLabels,
    trusted: Tensor,
    groups: Sequence[TrustGroup],
    alpha: float = 0.25,
    gamma: float = 2.0,
    foreground_negatives: bool | Tensor = True,
    overlap: Tensor | None = None,
    compiled: bool = False,
    background_weight: Tensor | None = None,
    local: LocalTrust | None = None,
) -> Tensor:
    """`[B]` dataset-aware focal loss per image, equal to `image_focal_losses` of all logits.

    Args:
        towers: per level `[B, D, H, W]`, what the last layer of the class subnet takes.
        predict: that layer, a 3x3 convolution with padding 1 to A * C channels, class fastest.
        labelled: of `label_anchors`, anchors by level, row, column and shape.
        trusted: `[B, C]` bool. groups: its distinct rows (`trust_groups(trusted)`).
        alpha, gamma, foreground_negatives, overlap, compiled, background_weight: see
            `dataset_aware_focal_loss`; but `foreground_negatives` by foreground anchor, `[F]`.
        local: where in the image `trusted` holds; None: everywhere.
    """
    classes = trusted.shape[1]
    shapes = predict.out_channels // classes
    spots = _positions(towers, labelled, shapes)
    device = trusted.device
    counts = [shapes * len(group.classes) for group in groups]
    rows = [_rows_of(group, classes, shapes, device) for group in groups]
    negatives = Negatives(trusted, local, labelled, foreground_negatives, overlap, background_weight)
    terms, weight, bias = _UnionLayer.apply(
        predict.weight,
        predict.bias,
        _patches(towers, spots, predict.weight),
        labelled.anchor % shapes,
        torch.cat(rows),
        negatives,
        (alpha, gamma),
    )
    rest = (counts, labelled, groups, alpha, gamma, compiled, background_weight, local)
    if is_batched(device):
        background = batched_background_sums(towers, weight, bias, *rest, trusted)
    else:
        background = background_sums(towers, weight, bias, *rest)
    losses: Tensor = background.index_add(0, labelled.image, terms.to(background.dtype))
    return losses


def is_batched(device: torch.device) -> bool:
    """Whether the background takes few and large operations: a device waits for every small one, but a CPU is
    faster with small pieces, which stay in its cache."""
    return device.type != "cpu"


def _rows_of(group: TrustGroup, classes: int, shapes: int, device: torch.device) -> Tensor:
    """`[A * K]` output channels of the group's classes."""
    first = torch.arange(shapes, device=device)[:, None] * classes
    return (first + group.classes.to(device, non_blocking=True)).flatten()


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


class Negatives(NamedTuple):
    """What decides for which classes a foreground anchor is a negative; see `union_focal_losses`."""

    trusted: Tensor
    local: LocalTrust | None
    labelled: AnchorLabels
    everywhere: bool | Tensor
    overlap: Tensor | None
    background_weight: Tensor | None

    def weights(self, rows: Tensor) -> Tensor:
        """`[f, C]` of some of the foreground anchors."""
        labelled, everywhere = self.labelled, self.everywhere
        return foreground_weights(
            self.trusted,
            labelled.labels,
            labelled.image[rows],
            labelled.anchor[rows],
            everywhere if isinstance(everywhere, bool) else everywhere[rows],
            self.overlap,
            labelled.avoid,
            self.background_weight,
            None if self.local is None else self.local.at,
        )


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
        negatives: Negatives,
        exponents: tuple[float, float],
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.negatives, ctx.exponents = negatives, exponents
        ctx.save_for_backward(weight, bias, patches, shape_of, rows)
        terms = patches.new_zeros(len(patches), dtype=wide_type(patches))
        with torch.autocast(weight.device.type, enabled=False):
            for chunk in _chunks(ctx, patches, shape_of):
                inputs = wide(patches[chunk.rows])
                terms[chunk.rows] = _foreground_parts(ctx, weight, bias, inputs, chunk, False)[0]
        return terms, weight.index_select(0, rows), bias.index_select(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_terms: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> tuple[Any, ...]:
        weight, bias, patches, shape_of, rows = ctx.saved_tensors
        with torch.autocast(weight.device.type, enabled=False):
            dense, dense_bias = torch.zeros_like(weight), torch.zeros_like(bias)
            grad_patches = torch.zeros_like(patches, dtype=wide_type(patches))
            shapes = len(bias) // ctx.negatives.trusted.shape[1]
            flat, into, into_bias = _flat(weight, shapes), _flat(dense, shapes), dense_bias.view(shapes, -1)
            for chunk in _chunks(ctx, patches, shape_of):
                inputs = wide(patches[chunk.rows])
                slope = _foreground_parts(ctx, weight, bias, inputs, chunk, True)[1]
                slope *= grad_terms[chunk.rows, None]
                grad_inputs = torch.empty_like(inputs)
                for shape, part in chunk.parts:
                    torch.mm(slope[part], flat[shape], out=grad_inputs[part])
                    into[shape].addmm_(slope[part].T, inputs[part])
                    into_bias[shape] += slope[part].sum(0)
                grad_patches[chunk.rows] = grad_inputs
            dense.index_add_(0, rows, grad_weight.to(dense.dtype))
            dense_bias.index_add_(0, rows, grad_bias.to(dense.dtype))
        return dense, dense_bias, grad_patches.to(patches.dtype), None, None, None, None


class Chunk(NamedTuple):
    """Foreground anchors by shape. rows: `[f]`. parts: of each anchor shape among them, where its rows are."""

    rows: Tensor
    parts: list[tuple[int, slice]]


def _chunks(ctx: Any, patches: Tensor, shape_of: Tensor) -> Iterator[Chunk]:
    """Of bounded size, see `FOREGROUND_ENTRIES`; without waiting for the device where the counts are known."""
    trusted, labelled = ctx.negatives.trusted, ctx.negatives.labelled
    order = shape_of.argsort(stable=True)
    counts = labelled.per_shape or torch.bincount(shape_of).tolist()
    ends = list(accumulate(counts))
    step = max(1, FOREGROUND_ENTRIES // max(trusted.shape[1], patches.shape[1]))
    for first in range(0, sum(counts), step):
        last = min(first + step, sum(counts))
        parts = [
            (shape, slice(max(0, end - count - first), min(end, last) - first))
            for shape, (count, end) in enumerate(zip(counts, ends, strict=True))
            if max(first, end - count) < min(end, last)
        ]
        yield Chunk(order[first:last], parts)


def _foreground_parts(
    ctx: Any, weight: Tensor, bias: Tensor, inputs: Tensor, chunk: Chunk, with_slope: bool
) -> tuple[Tensor, Tensor]:
    """Terms `[f]` of a chunk and, if asked, slopes `[f, C]` with respect to its logits. inputs: its patches."""
    labelled, classes = ctx.negatives.labelled, ctx.negatives.trusted.shape[1]
    flat, flat_bias = _flat(weight, len(bias) // classes), bias.view(-1, classes)
    logits = inputs.new_empty(len(inputs), classes)
    for shape, part in chunk.parts:
        torch.addmm(flat_bias[shape], inputs[part], flat[shape].T, out=logits[part])
    own = labelled.labels[labelled.image[chunk.rows], labelled.anchor[chunk.rows]]
    negative = ctx.negatives.weights(chunk.rows).to(logits.dtype)
    alpha, gamma = ctx.exponents
    return foreground_focal_parts(logits, own, negative, alpha, gamma, with_slope)
