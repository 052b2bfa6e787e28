"""For which classes a query is a negative: the dataset-aware rule where positions are queries."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from crossdet.losses import weights_of
from crossdet.models.detr.boxes import area, corners, intersection, iou
from crossdet.models.detr.matching import Matches
from crossdet.models.detr.objects import Objects
from crossdet.models.tiles import LocalTrust
from crossdet.types import BACKGROUND, Tiles

Foreground = Literal["none", "matched", "on_object"]
NO_GAIN = -1.0  # below any IoU
MARGIN = 1e-3  # in shares of the frame
ON_OBJECT = 0.5
"""IoU from which on a query lies on the object that it is matched to."""


class Rule(NamedTuple):
    """What a batch says about its background and its objects.

    objects, regions: of `objects_of`. trusted: `[B, C]` bool. overlap: `[C, C]` bool or None. background_weight:
    `[B, C]` or None; these as of `losses.dataset_aware_focal_loss`.
    foreground: which queries are negatives for all classes but the object's: none, those that are matched to an
    object, or also those that lie on one.
    tiles: of mosaics, in shares of the frame, or None; see `types.Tiles`.
    duplicate_iou: from this IoU with an object on, an unmatched query lies on it.
    """

    objects: Objects
    regions: Objects
    trusted: Tensor
    overlap: Tensor | None = None
    background_weight: Tensor | None = None
    foreground: Foreground = "matched"
    duplicate_iou: float = 0.7
    tiles: Tiles | None = None


def negatives_of(
    rule: Rule, boxes: Tensor, labels: Tensor, taught: Tensor, matched: tuple[Tensor, Tensor], groups: int = 1
) -> Tensor:
    """`[B, N, C]` weight of every negative term, as of `losses.negative_weights`.

    An unmatched query that lies on an object of class g is a negative for g, also where the image does not trust g:
    a detector without suppression learns from exactly these to find an object once. For classes that overlap with
    g it is none, unless it lies on an object of theirs as well.

    A query is no negative for the class of a region that covers at least half of it, nor if it is the one that fits
    the region best, of all or of those that nothing is matched to: an object there would have been matched to it.

    Args:
        boxes: `[B, N, 4]` that the queries predict (centre, width, height).
        labels: `[B, N]` class of the matched object, `BACKGROUND` or `IGNORE`.
        taught: `[B, N]` bool, matched to an object that a teacher labelled.
        matched: `[P]` images and `[P]` queries that are matched; nothing here asks the device for them.
        groups: the queries are so many sets of equal size, one after another.
    """
    places = corners(boxes.detach())
    trusted = rule.trusted if rule.tiles is None else _trusted_there(rule.tiles, places)
    everywhere = False if rule.foreground == "none" else ~taught  # what a teacher found may be something else
    weights = weights_of(labels, trusted, matched, rule.overlap, everywhere, rule.background_weight)
    if len(rule.objects.labels):
        _add_duplicates(weights, rule, places, labels)
    if len(rule.regions.labels):
        weights.masked_fill_(avoided(rule.regions, places, labels, taught, weights.shape[2], groups), 0)
    return weights


def spare_beside_objects(weights: Tensor, rule: Rule, boxes: Tensor, pairs: Matches, iou: Tensor) -> Tensor:
    """Takes from `weights` what the image cannot tell of matched queries that lie beside their object (IoU below
    `ON_OBJECT`). There may be an object that nobody labelled, of any class that the image does not trust: the query
    is a negative for no such class. What a positive aims at there is its IoU, little more than background, so
    neither may the score of its own class fall if that is not trusted.

    weights: `[B, N, C]`, of `negatives_of`. boxes: `[B, N, 4]` that the queries predict. iou: `[P]` of pairs.
    Returns `[P]` bool, the queries whose own class must not fall.
    """
    image, query, row = pairs
    if rule.tiles is None:
        spoken = rule.trusted[image].to(weights.dtype)
    else:
        spoken = _trusted_there(rule.tiles, corners(boxes.detach()))[image, query].to(weights.dtype)
    if rule.background_weight is not None:
        spoken = spoken * rule.background_weight[image]
    beside = iou < ON_OBJECT
    if rule.foreground != "none":  # else it is so of every matched query, and it is of a teacher's objects
        scaled = beside & ~rule.objects.by_teacher[row]
        weights[image, query] *= spoken.masked_fill(~scaled[:, None], 1)
    own = rule.objects.labels[row]
    return beside & (spoken.gather(1, own[:, None]).squeeze(1) == 0)


def _trusted_there(tiles: Tiles, places: Tensor) -> Tensor:
    """`[B, N, C]`: what all pictures of a mosaic that a query touches trust. One without area touches, too."""
    wider = torch.cat([places[..., :2] - MARGIN, places[..., 2:] + MARGIN], -1)
    return LocalTrust.of(tiles._replace(boxes=tiles.boxes.to(places.dtype)), wider).dense()


def _add_duplicates(weights: Tensor, rule: Rule, places: Tensor, labels: Tensor) -> None:
    """Writes the terms of unmatched queries on an object."""
    objects = rule.objects
    wanted = objects.padded(corners(objects.boxes)).to(places.dtype)
    real = objects.padded(torch.ones_like(objects.labels, dtype=torch.bool))
    overlaps = iou(places[:, :, None], wanted[:, None]).masked_fill(~real[:, None], NO_GAIN)
    on = (overlaps >= rule.duplicate_iou) & (labels == BACKGROUND)[:, :, None]
    of = objects.padded(objects.labels)
    if rule.foreground == "on_object":
        sure = on & ~objects.padded(objects.by_teacher)[:, None]
        others = sure.any(2)[:, :, None]
        if rule.overlap is not None:
            others = others & ~rule.overlap[of.gather(1, overlaps.masked_fill(~sure, NO_GAIN).argmax(2))]
        weights.clamp_(min=others.to(weights.dtype))
    if rule.overlap is not None:
        also = torch.bmm(on.to(weights.dtype), rule.overlap[of].to(weights.dtype))
        weights.masked_fill_(also > 0, 0)
    shown = torch.zeros_like(weights).scatter_reduce_(2, of[:, None].expand_as(on), on.to(weights.dtype), "amax")
    weights.masked_fill_(shown > 0, 1)


def avoided(
    regions: Objects, places: Tensor, labels: Tensor, taught: Tensor, classes: int, groups: int = 1
) -> Tensor:
    """`[B, N, C]` bool, no negatives: see `negatives_of`. places: `[B, N, 4]` xyxy. classes: C.

    A teacher's region says nothing about objects that no teacher labelled.
    """
    mine = places[regions.images]
    wanted = corners(regions.boxes).to(places.dtype)[:, None]
    both = intersection(mine, wanted)
    own = area(mine)
    overlap = iou(mine, wanted)
    best = _best(overlap, groups)
    taken = labels[regions.images] != BACKGROUND  # then another one would have been matched to it
    best |= _best(overlap.masked_fill(taken, NO_GAIN), groups)
    near = ((both >= 0.5 * own) & (own > 0)) | best
    by_person = (labels >= 0) & ~taught
    near &= ~(regions.by_teacher[:, None] & by_person[regions.images])
    # one class too many takes the regions of no class in particular, which are of all
    images, queries = labels.shape
    column = torch.where(regions.labels < 0, classes, regions.labels)
    counts = torch.zeros(images * (classes + 1), queries, dtype=torch.int32, device=labels.device)
    counts.index_add_(0, regions.images * (classes + 1) + column, near.int())
    told = counts.view(images, classes + 1, queries).transpose(1, 2) > 0
    return told[..., :-1] | told[..., -1:]


def _best(overlap: Tensor, groups: int) -> Tensor:
    """`[R, N]` bool: the queries of each set that fit a region best. overlap: `[R, N]`."""
    of_group = overlap.unflatten(1, (groups, -1))
    return (of_group == of_group.amax(2, keepdim=True)).flatten(1) & (overlap > 0)
