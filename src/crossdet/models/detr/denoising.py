"""Denoising queries (DN-DETR, arXiv 2203.01305; contrastive as in DINO, arXiv 2203.03605), under the rule.

An object is given to the decoder with a wrong class now and then, and with its edges moved: the first copy a
little, to be found again, the second more, to be told from it. A wrong class is one that the image can teach; an
embedding of another dataset's class would else learn from pictures that say nothing about it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from crossdet.models.detr.boxes import centres, corners, iou
from crossdet.models.detr.criterion import Noised
from crossdet.models.detr.matching import Matches
from crossdet.models.detr.negatives import ON_OBJECT
from crossdet.models.detr.objects import Objects

PADDING = -1
MOST = 300
"""Objects of an image that are given to the decoder at once. Attention grows with the square of the queries: for
2,000 faces its mask alone had 74 MB, and every layer many times that."""


class Settings(NamedTuple):
    """number: queries of an image, about. flips: share of wrong classes, times two. moves: of the edges, in halves
    of the object's sides. any_class: a wrong class may be any of the union."""

    number: int
    flips: float = 0.5
    moves: float = 1.0
    any_class: bool = False


class Noise(NamedTuple):
    """Queries `D`, image by image padded at the end.

    labels: `[B, D]` class that a query is given, C for padding. boxes: `[B, D, 4]` centre, width, height. group:
    `[B, D]` copy of the image's objects that it belongs to, `PADDING` for none. noised: which are positives.
    """

    labels: Tensor
    boxes: Tensor
    group: Tensor
    noised: Noised

    def map(self, function: Callable[[Tensor], Tensor]) -> Noise:
        pairs = Matches(*map(function, self.noised.pairs))
        noised = Noised(pairs, function(self.noised.real), function(self.noised.groups))
        return Noise(function(self.labels), function(self.boxes), function(self.group), noised)


def add_noise(objects: Objects, own: Tensor, seeds: Sequence[int], settings: Settings) -> Noise | None:
    """On a CPU. own: `[B, C]` of `own_classes`. seeds: of each image, from which all of its noise comes, so that it
    depends neither on the batch nor on the process. None where there is nothing to add noise to.

    Of more than `MOST` objects so many are drawn, each of which stands for more than itself in the sums."""
    if not settings.number or not len(objects.labels):
        return None
    classes = own.shape[1]
    labels, boxes, group, queries, rows = [], [], [], [], []
    copies: list[float] = []
    boxes_of, labels_of = objects.boxes.split(objects.counts), objects.labels.split(objects.counts)
    for image, (count, first) in enumerate(zip(objects.counts, objects.first, strict=True)):
        repeat = max(1, settings.number // count) if count else 0
        random = torch.Generator().manual_seed(seeds[image])
        some = torch.arange(count)
        if count > MOST:
            some = torch.randperm(count, generator=random)[:MOST].sort().values
        copies.append(repeat if count <= MOST else repeat * MOST / count)
        count = len(some)
        allowed = torch.arange(classes) if settings.any_class else own[image].nonzero().squeeze(1)
        labels.append(_flipped(labels_of[image][some].repeat(2 * repeat), allowed, settings.flips, random))
        positive = torch.arange(2 * repeat * count) // max(1, count) % 2 == 0
        boxes.append(_moved(boxes_of[image][some].repeat(2 * repeat, 1), positive, settings.moves, random))
        group.append(torch.arange(2 * repeat * count) // max(1, 2 * count))
        queries.append(positive.nonzero().squeeze(1))
        rows.append(some.repeat(repeat) + first)
    padded = pad_sequence(group, batch_first=True, padding_value=PADDING)
    image_of = torch.repeat_interleave(torch.arange(len(queries)), torch.tensor([len(q) for q in queries]))
    pairs = Matches(image_of, torch.cat(queries), torch.cat(rows))
    return Noise(
        pad_sequence(labels, batch_first=True, padding_value=classes),
        pad_sequence(boxes, batch_first=True, padding_value=0.5),
        padded,
        Noised(pairs, padded != PADDING, torch.tensor(copies)),
    )


def _flipped(labels: Tensor, allowed: Tensor, share: float, random: torch.Generator) -> Tensor:
    wrong = torch.rand(len(labels), generator=random) < share * 0.5
    if not len(allowed):
        return labels
    return torch.where(wrong, allowed[torch.randint(0, len(allowed), (len(labels),), generator=random)], labels)


def _moved(boxes: Tensor, positive: Tensor, moves: float, random: torch.Generator) -> Tensor:
    """Each edge by 0 to 1/2 of the side in positives, 1/2 to 1 in the others, in or out (times `moves`).

    Edges that both move in by more than half change places, as of D-FINE's authors; HF transformers leaves sides
    below 0, which become 0: 43 % of the negatives were lines or points, and told nothing of boxes that miss. One
    that lies on its object all the same becomes a point: it is no box to reject."""
    sign = torch.randint(0, 2, boxes.shape, generator=random) * 2.0 - 1.0
    part = torch.rand(boxes.shape, generator=random) + (~positive)[:, None].float()
    half = (boxes[:, 2:] * 0.5).repeat(1, 2)
    moved = centres((corners(boxes) + sign * part * half * moves).clamp(0, 1)).abs()
    on_object = iou(corners(moved), corners(boxes)) >= ON_OBJECT
    moved[on_object & ~positive, 2:] = 0.0
    return moved


def attention_mask(group: Tensor, queries: int, dtype: torch.dtype) -> Tensor:
    """`[B, 1, D + N, D + N]` to be added to attention: 0, or minus infinity where a query may not look.

    The queries that find objects must not see those that were given them, and copies must not see each other.
    """
    images, noised = group.shape
    same = (group[:, :, None] == group[:, None]) & (group[:, None] != PADDING)
    may = torch.ones(images, noised + queries, noised + queries, dtype=torch.bool, device=group.device)
    may[:, :noised, :noised] = same
    may[:, noised:, :noised] = False
    mask = torch.zeros(may.shape, dtype=dtype, device=group.device).masked_fill(~may, -torch.inf)
    return mask[:, None]
