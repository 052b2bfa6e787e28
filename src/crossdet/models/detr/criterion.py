"""The loss of set-prediction detectors under the dataset-aware rule: pure functions on tensors.

`set_losses` is that of the queries that find objects, `denoising_losses` that of the queries that are given them.
Both go layer by layer: match, say who is negative for what (`negatives`), and add up terms per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from crossdet.models.detr.boxes import corners, generalised_iou, iou
from crossdet.models.detr.class_losses import class_sums
from crossdet.models.detr.distributions import distillation, fine_grained_localisation
from crossdet.models.detr.matching import Costs, Matches, match
from crossdet.models.detr.negatives import Rule, negatives_of, spare_beside_objects
from crossdet.types import BACKGROUND, IGNORE

Terms = dict[str, Tensor]
COSTS = Costs()


class Answers(NamedTuple):
    """What one layer says about every query.

    logits: `[B, N, C]`. boxes: `[B, N, 4]` centre, width, height in shares of the frame.
    quality: `[B, N, 1]`, added to all logits of a query, or None.
    edges: `[B, N, 4 (bins + 1)]` logits of D-FINE's distributions, and references: `[B, N, 4]` the boxes that they
    are distances from, or None.
    """

    logits: Tensor
    boxes: Tensor
    quality: Tensor | None = None
    edges: Tensor | None = None
    references: Tensor | None = None

    @property
    def scored(self) -> Tensor:
        """`[B, N, C]` logits with the quality."""
        return self.logits if self.quality is None else self.logits + self.quality

    def wide(self) -> Answers:
        """In float32, or float64 where they are, and boxes as HF's loss of D-FINE takes them: a centre or a side
        beyond the frame counts as at its edge, and has no gradient there."""
        kind = torch.promote_types(self.logits.dtype, torch.float32)
        boxes = self.boxes.to(kind)
        return Answers(
            self.logits.to(kind),
            boxes if self.edges is None else boxes.clamp(0, 1),
            None if self.quality is None else self.quality.to(kind),
            None if self.edges is None else self.edges.to(kind),
            None if self.references is None else self.references.to(kind),
        )


class Bins(NamedTuple):
    """Of D-FINE's distributions: values of `bin_values`, and the scale of the distances."""

    values: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Criterion:
    """What the loss consists of.

    weights: of the terms, by name; a term without one is left out. costs: of the matching.
    classification: a name of `CLASS_LOSSES`, with its alpha and gamma.
    free_quality: the quality learns also from images that do not trust all classes. As it is added to all logits,
    their background then pushes down classes that nobody spoke of.
    """

    weights: dict[str, float]
    classification: str = "vfl"
    alpha: float = 0.75
    gamma: float = 2.0
    costs: Costs = COSTS
    free_quality: bool = False


def set_losses(
    layers: Sequence[Answers],
    rule: Rule,
    own: Tensor,
    criterion: Criterion,
    bins: Bins | None = None,
    groups: int = 1,
) -> tuple[Terms, Tensor]:
    """Sums per image `[B]` of every term over the layers, and `[B]` how many objects there are, also where they are
    more than the queries.

    layers: of the decoder, the last one last; those of other heads (encoder, first guess) before them. own: of
    `objects.own_classes`. groups: see `match`; the sums are means over the groups.
    """
    wide = [layer.wide() for layer in layers]
    scored, boxes = [layer.scored for layer in wide], [layer.boxes for layer in wide]
    matches = match(scored, boxes, rule.objects, criterion.costs, groups)
    terms: list[Terms] = []
    for answers, pairs in zip(wide, matches, strict=True):
        labels = torch.full(answers.logits.shape[:2], BACKGROUND, device=answers.logits.device)
        terms.append(_layer_losses(answers, wide[-1], pairs, labels, rule, own, criterion, bins, groups))
    return _summed(terms, groups), counts(rule.objects.images, len(own))


class Noised(NamedTuple):
    """Queries made of objects with noise: which of them are to find their object again.

    pairs: as of `match`. real: `[B, D]` bool, no padding. groups: `[B]` copies of the objects of each image; less
    than one where some of them have none.
    """

    pairs: Matches
    real: Tensor
    groups: Tensor


def denoising_losses(
    layers: Sequence[Answers],
    noised: Noised,
    rule: Rule,
    own: Tensor,
    criterion: Criterion,
    bins: Bins | None = None,
) -> Terms:
    """The same of denoising queries, as means over the copies of an image's objects.

    A query beside a labelled object is background, under the rule for background: something else may be there.
    """
    wide = [layer.wide() for layer in layers]
    labels = torch.where(noised.real, BACKGROUND, IGNORE)
    terms = [_layer_losses(answers, wide[-1], noised.pairs, labels, rule, own, criterion, bins) for answers in wide]
    return _summed(terms, torch.where(noised.groups > 0, noised.groups, 1))


def _summed(layers: Sequence[Terms], groups: Tensor | int) -> Terms:
    """Over the layers. The distillation is a mean already, whatever the number of groups."""
    names = dict.fromkeys(name for layer in layers for name in layer)
    sums = {name: torch.stack([layer[name] for layer in layers if name in layer]).sum(0) for name in names}
    return {name: total if name == "distillation" else total / groups for name, total in sums.items()}


def _layer_losses(
    answers: Answers,
    last: Answers,
    pairs: Matches,
    labels: Tensor,
    rule: Rule,
    own: Tensor,
    criterion: Criterion,
    bins: Bins | None,
    groups: int = 1,
) -> Terms:
    """labels: `[B, N]` `BACKGROUND`, or `IGNORE` for padding; becomes the labels of the matched queries, too."""
    objects = rule.objects
    image, query, row = pairs
    labels[image, query] = objects.labels[row]
    taught = torch.zeros_like(labels, dtype=torch.bool)
    taught[image, query] = objects.by_teacher[row]
    negative = negatives_of(rule, answers.boxes, labels, taught, (image, query), groups)

    found = answers.boxes[image, query]
    wanted = objects.boxes[row].to(found.dtype)
    wanted_corners = corners(wanted)
    overlap = iou(corners(found.detach()), wanted_corners)
    only_up = spare_beside_objects(negative, rule, answers.boxes, pairs, overlap)
    logits = _learning_logits(answers, rule.trusted, labels, negative, criterion.free_quality)
    sums = {
        "classification": class_sums(
            criterion.classification,
            logits,
            negative,
            image,
            query,
            objects.labels[row],
            overlap,
            criterion.alpha,
            criterion.gamma,
            only_up,
        )
    }
    per_object = {"l1": (found - wanted).abs().sum(-1), "giou": 1 - generalised_iou(corners(found), wanted_corners)}
    if bins is not None and answers.edges is not None and answers.references is not None:
        edges, references = answers.edges[image, query], answers.references[image, query]
        per_object["distribution"] = fine_grained_localisation(
            edges, references, wanted_corners, overlap, bins.values, bins.scale
        )
        if answers is not last and last.edges is not None:
            means = _distilled(answers.edges, last.edges, last, labels, overlap, pairs, own, len(bins.values) - 1)
            # a mean per image, times what the sum over the batch is divided by
            sums["distillation"] = means * counts(objects.images, len(labels))
    for name, terms in per_object.items():
        sums[name] = torch.index_add(terms.new_zeros(len(labels)), 0, image, terms)
    return {name: value * criterion.weights[name] for name, value in sums.items() if name in criterion.weights}


def counts(images: Tensor, most: int) -> Tensor:
    """`[most]` how often each image is named. `torch.bincount` waits for the device."""
    return torch.zeros(most, dtype=torch.int64, device=images.device).index_add(0, images, torch.ones_like(images))


def _learning_logits(answers: Answers, trusted: Tensor, labels: Tensor, negative: Tensor, free: bool) -> Tensor:
    """Logits with the quality, which learns from images that trust every class.

    Not from the objects of the others either: with them and without the background it would only ever rise, and
    background that nobody spoke of with it. Nor from a query that is matched to nothing and is no negative for some
    class, such as in a crowd of it: the other classes would push down the score of that one.

    labels: `[B, N]` class of the matched object, `BACKGROUND` or `IGNORE`. negative: as of `negatives_of`.
    """
    if answers.quality is None:
        return answers.logits
    if free:
        return answers.scored
    learns = trusted.all(1)[:, None] & ((labels >= 0) | (negative > 0).all(2))
    return answers.logits + torch.where(learns[:, :, None], answers.quality, answers.quality.detach())


def _distilled(
    edges: Tensor,
    teacher: Tensor,
    last: Answers,
    labels: Tensor,
    overlap: Tensor,
    pairs: Matches,
    own: Tensor,
    bins: int,
) -> Tensor:
    """`[B]` means per image; how sure the last layer is of a query counts the image's own classes only."""
    matched = labels >= 0
    iou_of = torch.zeros_like(labels, dtype=overlap.dtype)
    iou_of[pairs.image, pairs.query] = overlap
    sure = last.scored.detach().masked_fill(~own[:, None], -torch.inf).amax(2).sigmoid()
    return distillation(edges, teacher, iou_of, matched, sure, labels != IGNORE, bins)
