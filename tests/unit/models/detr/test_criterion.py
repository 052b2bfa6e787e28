"""The dataset-aware loss of set-prediction detectors: against an oracle, and by its properties."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import pytest
import torch

from crossdet.models.detr.boxes import corners
from crossdet.models.detr.criterion import Answers, Bins, Criterion, Noised, denoising_losses, set_losses
from crossdet.models.detr.distributions import bin_values, boxes_to_edges, edges_to_boxes
from crossdet.models.detr.matching import Costs, Matches, match
from crossdet.models.detr.negatives import Rule, negatives_of
from crossdet.models.detr.objects import own_classes
from crossdet.types import BACKGROUND, IGNORE, Flag, Tiles

from .made import FRAME, all_trusted, annotations, answers_near, flat, random_targets

CLASSES, QUERIES, BINS = 5, 12, 8
CLASS_ONLY = Criterion({"classification": 1.0})
FULL = Criterion({"classification": 1.0, "l1": 5.0, "giou": 2.0, "distribution": 0.15, "distillation": 1.5})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bins() -> Bins:
    return Bins(bin_values(BINS, 0.5, 4.0).double(), torch.tensor(4.0).double())


def random_rule(seed: int, counts=(3, 0, 2), regions: int = 2, **changes) -> Rule:
    source = generator(seed)
    targets = random_targets(list(counts), CLASSES, source, regions, teacher=0.4)
    objects, avoid = flat(targets)
    overlap = torch.rand(CLASSES, CLASSES, generator=source) < 0.2
    overlap = (overlap | overlap.T) & ~torch.eye(CLASSES, dtype=torch.bool)
    trusted = torch.rand(len(counts), CLASSES, generator=source) < 0.5
    weight = torch.rand(len(counts), CLASSES, generator=source)
    return Rule(objects, avoid, trusted, overlap, weight, **changes)


def told(rule: Rule, boxes, labels, taught) -> torch.Tensor:
    return negatives_of(rule, boxes, labels, taught, (labels >= 0).nonzero(as_tuple=True))


def overlap_of(a, b) -> float:
    """IoU of two xyxy boxes, by hand."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def covered(a, b) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0) / ((a[2] - a[0]) * (a[3] - a[1]))


def rows_of(objects, image: int) -> list[tuple]:
    """(xyxy box, label, whether a teacher's) of an image."""
    columns = (corners(objects.boxes).tolist(), objects.labels.tolist(), objects.by_teacher.tolist())
    rows = zip(*columns, objects.images.tolist(), strict=True)
    return [row[:3] for row in rows if row[3] == image]


def oracle_weight(rule: Rule, boxes, labels, taught, b: int, q: int, c: int, matched_iou: float) -> float:
    """The rule's table for one query and one class, in plain Python. matched_iou: with the query's own object."""
    mine, label = boxes[b][q], labels[b][q]
    if label in (IGNORE, c):
        return 0.0
    for box, cls, teacher in rows_of(rule.regions, b):
        free = [other for other, of in zip(boxes[b], labels[b], strict=True) if of == BACKGROUND]
        best = [max((overlap_of(other, box) for other in some), default=0.0) for some in (boxes[b], free)]
        own = overlap_of(mine, box)
        near = covered(mine, box) >= 0.5 or own == best[0] > 0 or (label == BACKGROUND and own == best[1] > 0)
        if cls in (-1, c) and near and not (teacher and label >= 0 and not taught[b][q]):
            return 0.0
    spoken = float(rule.trusted[b, c]) * float(rule.background_weight[b, c])
    if label >= 0:
        as_background = matched_iou < 0.5 or rule.foreground == "none" or taught[b][q]
        return (spoken if as_background else 1.0) * (not rule.overlap[label, c])
    on = [row[1:] for row in rows_of(rule.objects, b) if overlap_of(mine, row[0]) >= rule.duplicate_iou]
    if any(cls == c for cls, _ in on):
        return 1.0
    if any(rule.overlap[cls, c] for cls, _ in on):
        return 0.0
    sure = any(not teacher for _, teacher in on)
    return 1.0 if sure and rule.foreground == "on_object" else spoken


class Matched(NamedTuple):
    """By image and query: xyxy boxes, labels, whether a teacher's object is matched; and the IoU of each pair."""

    places: list
    labels: list
    taught: list
    ious: dict


def matched(rule: Rule, answers) -> Matched:
    (pairs,) = match([answers.logits], [answers.boxes], rule.objects, CLASS_ONLY.costs)
    labels = [[BACKGROUND] * QUERIES for _ in rule.objects.counts]
    taught = [[False] * QUERIES for _ in rule.objects.counts]
    places, ious = corners(answers.boxes.detach()).tolist(), {}
    for b, q, row in zip(*(t.tolist() for t in pairs), strict=True):
        labels[b][q], taught[b][q] = int(rule.objects.labels[row]), bool(rule.objects.by_teacher[row])
        ious[b, q] = overlap_of(places[b][q], corners(rule.objects.boxes[row].double()).tolist())
    return Matched(places, labels, taught, ious)


@pytest.mark.parametrize("foreground", ["none", "matched", "on_object"])
@pytest.mark.parametrize("seed", range(4))
def test_class_loss_is_that_of_an_oracle(foreground, seed):
    """Every (query, class) by the table, over random trust, overlap, regions, an empty image, saturated logits."""
    rule = random_rule(seed, foreground=foreground, duplicate_iou=0.6)
    answers = answers_near(rule.objects, QUERIES, CLASSES, generator(seed + 10))
    with torch.no_grad():
        answers.logits[0, 0], answers.logits[1, 1], answers.logits[2, 2] = 1e4, -1e4, 300.0
    own = own_classes(rule.trusted, rule.objects)
    places, labels, taught, ious = matched(rule, answers)
    wanted, logits = [0.0] * len(labels), answers.logits.tolist()
    for (b, q), iou in ious.items():
        c = labels[b][q]
        z, silent = logits[b][q][c], not (rule.trusted[b, c] and rule.background_weight[b, c])
        aim = max(iou, 1 / (1 + math.exp(-z)) if z > -700 else 0.0) if silent and iou < 0.5 else iou
        wanted[b] += iou * (max(z, 0) + math.log1p(math.exp(-abs(z))) - aim * z)
    spoken = 0
    for b in range(len(labels)):
        for q in range(QUERIES):
            for c in range(CLASSES):
                z, weight = (
                    logits[b][q][c],
                    oracle_weight(rule, places, labels, taught, b, q, c, ious.get((b, q), 0.0)),
                )
                p = 1 / (1 + math.exp(-z)) if z > -700 else 0.0
                wanted[b] += weight * 0.75 * p**2 * (max(z, 0) + math.log1p(math.exp(-abs(z))))
                spoken += weight not in (0.0, 1.0)
    assert spoken  # by background weights
    assert seed != 0 or {iou < 0.5 for iou in ious.values()} == {True, False}
    terms, counts = set_losses([answers], rule, own, CLASS_ONLY)
    assert counts.tolist() == [3, 0, 2]
    torch.testing.assert_close(terms["classification"], torch.tensor(wanted).double(), rtol=1e-6, atol=1e-6)


def test_objects_beyond_the_queries_count():
    """What the sums are divided by is the number of objects, as in HF: denoising has queries for each of them."""
    rule = random_rule(0, counts=(3, 0, 2), regions=0)
    answers = answers_near(rule.objects, 2, CLASSES, torch.Generator().manual_seed(0))
    _, counts = set_losses([answers], rule, own_classes(rule.trusted, rule.objects), CLASS_ONLY)
    assert counts.tolist() == [3, 0, 2]


@pytest.mark.parametrize("classification", ["vfl", "mal", "iou_aware"])
@pytest.mark.parametrize("seed", range(2))
def test_what_the_table_says_has_no_term_has_no_gradient(classification, seed):
    """Exactly zero by trust, regions, overlap and teachers' objects, of saturated logits too; else there is one."""
    rule = random_rule(seed, duplicate_iou=0.6)
    rule = rule._replace(background_weight=rule.background_weight.clamp(min=0.1))
    answers = answers_near(rule.objects, QUERIES, CLASSES, generator(seed + 10))
    with torch.no_grad():
        answers.logits[0, 0], answers.logits[1, 1] = 1e4, 88.8
    places, labels, taught, ious = matched(rule, answers)
    criterion = replace(CLASS_ONLY, classification=classification)
    terms, _ = set_losses([answers], rule, own_classes(rule.trusted, rule.objects), criterion)
    terms["classification"].sum().backward()
    gradient = answers.logits.grad
    assert bool(gradient.isfinite().all())
    seen = {True: 0, False: 0}
    for b, q, c in product(range(len(labels)), range(QUERIES), range(CLASSES)):
        if labels[b][q] != c:
            weight = oracle_weight(rule, places, labels, taught, b, q, c, ious.get((b, q), 0.0))
            assert bool(gradient[b, q, c] != 0) == (weight > 0), (b, q, c)
            seen[weight > 0] += 1
    assert min(seen.values()) > 30


@pytest.mark.parametrize("classification", ["vfl", "mal", "iou_aware"])
def test_masked_logits_have_no_gradient_at_all(classification):
    rule = random_rule(3, foreground="none", regions=0)
    answers = answers_near(rule.objects, QUERIES, CLASSES, generator(5), BINS, quality=True)
    terms, _ = set_losses(
        [answers],
        rule,
        own_classes(rule.trusted, rule.objects),
        replace(FULL, classification=classification),
        bins(),
    )
    sum(term.sum() for term in terms.values()).backward()
    shown = own_classes(rule.trusted, rule.objects)
    mute = ~shown[:, None].expand_as(answers.logits)
    assert bool(mute.any())
    assert bool((answers.logits.grad[mute] == 0).all())
    assert bool((answers.logits.grad[~mute] != 0).any())
    # the whole of a query of no matter, in an image that trusts nothing and shows nothing
    nothing = rule._replace(trusted=torch.zeros_like(rule.trusted))
    again = answers_near(rule.objects, QUERIES, CLASSES, generator(5), BINS, quality=True)
    terms, _ = set_losses([again], nothing, own_classes(nothing.trusted, rule.objects), FULL, bins())
    sum(term.sum() for term in terms.values()).backward()
    assert bool((again.logits.grad[1] == 0).all())
    assert bool((again.quality.grad[1] == 0).all())
    assert bool((again.boxes.grad[1] == 0).all())


@pytest.mark.parametrize("classification", ["vfl", "mal", "iou_aware"])
@pytest.mark.parametrize("box", [[0.7, 0.7, 0.3, 0.3], [0.16, 0.1, 0.1, 0.1], [0.1, 0.1, 0.09, 0.1]])
def test_a_query_beside_its_object_unlearns_nothing_where_its_class_is_not_trusted(classification, box):
    """The image says where one dog is, not where none is; the only query has found another one, or nearly this."""
    objects, regions = flat([annotations([[5, 5, 15, 15]], [0])])
    gradient = {}
    for trusted in (True, False):
        logits = torch.tensor([[[2.0, -4.0]]], requires_grad=True)
        rule = Rule(objects, regions, torch.tensor([[trusted, True]]))
        answers = Answers(logits, torch.tensor([[box]]))
        criterion = Criterion({"classification": 1.0}, classification, 0.25, 2.0)
        terms, _ = set_losses([answers], rule, own_classes(rule.trusted, objects), criterion)
        terms["classification"].sum().backward()
        gradient[trusted] = float(logits.grad[0, 0, 0])
    on_object = box[0] == 0.1
    assert gradient[False] == pytest.approx(gradient[True] if on_object else 0, abs=1e-6)
    beside = box[0] == 0.16
    assert on_object or gradient[True] > 0.01 or (classification == "vfl" and not beside)


@pytest.mark.parametrize("foreground", ["matched", "on_object"])
def test_a_query_beside_its_object_is_a_negative_for_no_class_that_the_image_does_not_trust(foreground):
    """The image labels the first class alone; the query that is to find its object still lies on something else."""
    objects, regions = flat([annotations([[5, 5, 15, 15]], [0])])
    rule = Rule(objects, regions, torch.tensor([[True, False, True]]), foreground=foreground)
    told = {}
    for place, box in {"on": [0.1, 0.1, 0.09, 0.1], "beside": [0.6, 0.6, 0.3, 0.3]}.items():
        logits = torch.zeros(1, 1, 3, requires_grad=True)
        answers = Answers(logits, torch.tensor([[box]]))
        terms, _ = set_losses([answers], rule, own_classes(rule.trusted, objects), CLASS_ONLY)
        terms["classification"].sum().backward()
        told[place] = (logits.grad[0, 0, 1:] > 0).tolist()
    assert told == {"on": [True, True], "beside": [False, True]}


def test_quality_learns_nothing_from_places_that_speak_of_some_classes():
    """In a crowd of one class the others' background would push down the score of that one."""
    place = annotations([[40, 40, 60, 60]], [1], [int(Flag.CROWD)])
    objects, regions = flat([place])
    rule = Rule(objects, regions, torch.ones(1, CLASSES, dtype=torch.bool))
    answers = answers_near(objects, QUERIES, CLASSES, generator(7), quality=True)
    with torch.no_grad():
        answers.boxes[0, :2] = regions.boxes[0]
    terms, _ = set_losses([answers], rule, own_classes(rule.trusted, objects), CLASS_ONLY)
    terms["classification"].sum().backward()
    assert answers.quality is not None
    logits, quality = answers.logits.grad[0], answers.quality.grad[0, :, 0]
    assert (logits[:2] != 0).tolist() == [[True, False, True, True, True]] * 2
    assert quality[:2].tolist() == [0, 0]
    inside = (logits[2:] == 0).any(1)
    assert bool((quality[2:][~inside] != 0).all())
    assert not bool(inside.all())


def test_a_region_spares_the_free_query_that_fits_it_best():
    """The one that fits best of all may be matched to something else, such as the face on an avoided person."""
    objects, regions = flat([annotations([[36, 36, 56, 66], [40, 40, 50, 60]], [0, 1], [0, int(Flag.AVOID)])])
    rule = Rule(objects, regions, torch.ones(1, 2, dtype=torch.bool))
    xyxy = torch.tensor([[36.0, 36, 56, 66], [30, 30, 60, 70], [0, 0, 9, 9]]) / FRAME
    boxes = torch.cat([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], 1)[None]
    labels, taught = torch.tensor([[0, BACKGROUND, BACKGROUND]]), torch.zeros(1, 3, dtype=torch.bool)
    assert told(rule, boxes, labels, taught).tolist() == [[[0, 0], [1, 0], [1, 1]]]


def test_quality_learns_from_images_that_trust_every_class():
    """It is added to all logits: pushed down by the trusted classes' background it would take the others along, and
    pushed up by objects alone it would take the background along."""
    rule = random_rule(1, counts=(2, 2), regions=0)
    overlap = torch.zeros(CLASSES, CLASSES, dtype=torch.bool)  # else finds on objects are spared some classes
    rule = rule._replace(trusted=torch.tensor([[True] * 4 + [False], [True] * 5]), overlap=overlap)
    objects = rule.objects
    own = own_classes(rule.trusted, objects)

    def quality_gradient(criterion: Criterion) -> torch.Tensor:
        answers = answers_near(objects, QUERIES, CLASSES, generator(7), quality=True)
        terms, _ = set_losses([answers], rule, own, criterion)
        terms["classification"].sum().backward()
        gradient = answers.quality.grad[..., 0]
        assert bool((gradient[1] != 0).all())
        assert bool((answers.logits.grad[0] != 0).any(1).all())  # its classes do learn there
        return gradient[0]

    assert bool((quality_gradient(CLASS_ONLY) == 0).all())
    assert bool((quality_gradient(replace(CLASS_ONLY, free_quality=True)) != 0).any())


def test_order_of_classes_boxes_and_images_does_not_matter():
    rule = random_rule(2, counts=(3, 0, 2), regions=1)
    answers = [answers_near(rule.objects, QUERIES, CLASSES, generator(s), BINS, quality=True) for s in (1, 2)]
    own = own_classes(rule.trusted, rule.objects)
    before, _ = set_losses(answers, rule, own, FULL, bins())

    order = torch.tensor([3, 0, 4, 1, 2])  # new class c was old class order[c]
    new_of = order.argsort()
    rows = torch.tensor([2, 0, 1, 4, 3])  # boxes of image 0 and of image 2 in another order
    objects, regions = rule.objects, rule.regions
    objects = objects._replace(
        boxes=objects.boxes[rows], labels=new_of[objects.labels][rows], by_teacher=objects.by_teacher[rows]
    )
    regions = regions._replace(labels=torch.where(regions.labels < 0, -1, new_of[regions.labels.clamp(min=0)]))
    permuted = rule._replace(
        objects=objects,
        regions=regions,
        trusted=rule.trusted[:, order],
        overlap=rule.overlap[order][:, order],
        background_weight=rule.background_weight[:, order],
    )
    other = [one._replace(logits=one.logits[..., order]) for one in answers]
    after, _ = set_losses(other, permuted, own[:, order], FULL, bins())
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)

    alone = []
    for image in range(3):
        mine = [Answers(*(None if t is None else t[image : image + 1] for t in one)) for one in answers]
        alone.append(set_losses(mine, of_image(rule, image), own[image : image + 1], FULL, bins())[0])
    for name, value in before.items():
        torch.testing.assert_close(torch.cat([one[name] for one in alone]), value)


def of_image(rule: Rule, image: int) -> Rule:
    def pick(objects):
        mine = objects.images == image
        return objects._replace(
            boxes=objects.boxes[mine],
            labels=objects.labels[mine],
            images=objects.images[mine] * 0,
            by_teacher=objects.by_teacher[mine],
            counts=(objects.counts[image],),
        )

    one = slice(image, image + 1)
    return rule._replace(
        objects=pick(rule.objects),
        regions=pick(rule.regions),
        trusted=rule.trusted[one],
        background_weight=rule.background_weight[one],
    )


def test_a_dataset_that_shares_nothing_changes_nothing():
    """Two more classes that no image trusts or shows: the old classes' losses and gradients stay, and the new ones
    learn from labelled objects only."""
    rule = random_rule(4, regions=1)
    answers = answers_near(rule.objects, QUERIES, CLASSES, generator(3))
    own = own_classes(rule.trusted, rule.objects)
    set_losses([answers], rule, own, CLASS_ONLY)[0]["classification"].sum().backward()

    def wider(tensor, value):
        return torch.cat([tensor, tensor.new_full((*tensor.shape[:-1], 2), value)], -1)

    grown = rule._replace(
        trusted=wider(rule.trusted, False),
        overlap=torch.nn.functional.pad(rule.overlap, (0, 2, 0, 2), value=False),
        background_weight=wider(rule.background_weight, 1.0),
    )
    more = answers._replace(logits=wider(answers.logits.detach(), 0.3).requires_grad_())
    set_losses([more], grown, wider(own, False), CLASS_ONLY)[0]["classification"].sum().backward()
    assert torch.equal(more.logits.grad[..., :CLASSES], answers.logits.grad)
    (pairs,) = match([more.logits], [more.boxes], rule.objects, CLASS_ONLY.costs)
    matched = torch.zeros(3, QUERIES, dtype=torch.bool)
    matched[pairs.image, pairs.query] = True
    new = more.logits.grad[..., CLASSES:]
    assert bool((new[~matched] == 0).all())
    assert bool((new[matched] > 0).any())


def test_second_find_of_an_object_is_a_negative_though_its_class_is_not_exhaustive():
    """Of a federated image that labels class 1 but not all of it: background says nothing, a duplicate does."""
    objects, regions = flat([annotations([[10, 10, 50, 50]], [1])])
    rule = Rule(objects, regions, torch.tensor([[True, False, False]]))
    boxes = torch.tensor([[[0.3, 0.3, 0.4, 0.4], [0.31, 0.3, 0.4, 0.4], [0.7, 0.7, 0.2, 0.2]]])
    labels = torch.tensor([[1, BACKGROUND, BACKGROUND]])
    taught = torch.zeros(1, 3, dtype=torch.bool)
    weights = told(rule, boxes, labels, taught)
    assert weights[0].tolist() == [[1, 0, 1], [1, 1, 0], [1, 0, 0]]
    on_object = told(rule._replace(foreground="on_object"), boxes, labels, taught)
    assert on_object[0].tolist() == [[1, 0, 1], [1, 1, 1], [1, 0, 0]]
    # an object that only a teacher found may be anything else
    guessed = rule._replace(objects=flat([annotations([[10, 10, 50, 50]], [1], [int(Flag.TEACHER)])])[0])
    on_object = told(guessed._replace(foreground="on_object"), boxes, labels, taught)
    assert on_object[0].tolist() == [[1, 0, 1], [1, 1, 0], [1, 0, 0]]
    # unless a crowd of the class lies there
    crowd = flat([annotations([[5, 5, 60, 60]], [1], [int(Flag.CROWD)])])[1]
    assert told(rule._replace(regions=crowd), boxes, labels, taught)[0].tolist() == [
        [1, 0, 1],
        [1, 0, 0],
        [1, 0, 0],
    ]


def test_small_region_keeps_the_query_that_fits_it_best_from_being_a_negative():
    objects, regions = flat([annotations([[40, 40, 44, 44]], [0], [int(Flag.AVOID)])])
    rule = Rule(objects, regions, torch.tensor([[True]]))
    boxes = torch.tensor([[[0.42, 0.42, 0.2, 0.2], [0.45, 0.45, 0.3, 0.3], [0.8, 0.8, 0.1, 0.1]]])
    weights = told(rule, boxes, torch.full((1, 3), BACKGROUND), torch.zeros(1, 3, dtype=torch.bool))
    assert weights.flatten().tolist() == [0, 1, 1]


def test_trust_in_a_mosaic_belongs_to_its_tiles():
    """Background counts for a class only where every tile that the query touches trusts it."""
    objects, regions = flat([annotations([], [])])
    boxes = torch.tensor([[[0.2, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2], [0.8, 0.5, 0.2, 0.2], [0.8, 0.5, 0.0, 0.0]]])
    tiles = Tiles(
        torch.tensor([[[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]]),
        torch.tensor([[[True, False, True], [False, True, True]]]),
        torch.tensor([[0, 1]]),
    )
    rule = Rule(objects, regions, torch.tensor([[False, False, True]]), tiles=tiles)
    weights = told(rule, boxes, torch.full((1, 4), BACKGROUND), torch.zeros(1, 4, dtype=torch.bool))
    assert weights[0].tolist() == [[1, 0, 1], [0, 0, 1], [0, 1, 1], [0, 1, 1]]


def test_groups_are_matched_apart_and_averaged():
    rule = random_rule(6)
    one = answers_near(rule.objects, QUERIES, CLASSES, generator(1))
    two = answers_near(rule.objects, QUERIES, CLASSES, generator(2))
    both = Answers(torch.cat([one.logits, two.logits], 1), torch.cat([one.boxes, two.boxes], 1))
    own = own_classes(rule.trusted, rule.objects)
    criterion = Criterion({"classification": 1.0, "l1": 5.0, "giou": 2.0}, "iou_aware", 0.25)
    found, counts = set_losses([both], rule, own, criterion, groups=2)
    parts = [set_losses([part], rule, own, criterion)[0] for part in (one, two)]
    assert counts.tolist() == [3, 0, 2]
    for name, value in found.items():
        torch.testing.assert_close(value, (parts[0][name] + parts[1][name]) / 2)


def test_padding_and_negatives_of_denoising_obey_the_rule():
    """A query beside an object is background of trusted classes only; padding is nothing."""
    objects, regions = flat([annotations([[10, 10, 50, 50]], [1])])
    rule = Rule(objects, regions, torch.tensor([[True, True, False]]))
    answers = answers_near(objects, 4, 3, generator(0))
    zero = torch.zeros(1, dtype=torch.int64)
    noised = Noised(Matches(zero, zero, zero), torch.tensor([[True, True, True, False]]), torch.tensor([1]))
    with torch.no_grad():
        answers.boxes[0, 1:] = torch.tensor([0.8, 0.8, 0.1, 0.1]).double()
    denoising_losses([answers], noised, rule, rule.trusted, CLASS_ONLY)["classification"].sum().backward()
    told = answers.logits.grad[0] != 0
    assert told.tolist() == [[True, True, True], [True, True, False], [True, True, False], [False] * 3]


def test_two_processes_are_one():
    """Sums over the parts of a batch are those of the whole, so any split over ranks gives the same loss."""
    rule = random_rule(8, counts=(1, 4, 2))
    answers = answers_near(rule.objects, QUERIES, CLASSES, generator(4), BINS)
    own = own_classes(rule.trusted, rule.objects)
    whole, counts = set_losses([answers], rule, own, FULL, bins())
    parts = []
    for i in range(3):
        mine = Answers(*(None if t is None else t[i : i + 1] for t in answers))
        parts.append(set_losses([mine], of_image(rule, i), own[i : i + 1], FULL, bins()))
    assert sum(int(part[1].sum()) for part in parts) == int(counts.sum()) == 7
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[0][name].sum() for part in parts), value.sum())


def test_broken_answers_do_not_break_the_matching():
    rule = all_trusted(flat(random_targets([2], CLASSES, generator(0)))[0], CLASSES)
    answers = answers_near(rule.objects, QUERIES, CLASSES, generator(1))
    with torch.no_grad():
        answers.logits[0, :3] = math.nan
    (pairs,) = match([answers.logits], [answers.boxes], rule.objects, Costs())
    assert bool((pairs.query >= 3).all())
    terms, _ = set_losses([answers], rule, rule.trusted, CLASS_ONLY)
    assert bool(terms["classification"].isnan().all())  # and are not hidden


def test_edges_and_boxes_are_inverse():
    boxes = torch.rand(20, 4, generator=generator(0)).double() * 0.3 + 0.1
    references = torch.rand(20, 4, generator=generator(1)).double() * 0.3 + 0.1
    distances = boxes_to_edges(references, corners(boxes), 4.0)
    torch.testing.assert_close(edges_to_boxes(references, distances, 4.0), boxes)


def test_frames_give_shares():
    objects, regions = flat([annotations([[10, 20, 30, 60], [0, 0, 50, 50]], [2, -1], [0, int(Flag.CROWD)])])
    torch.testing.assert_close(objects.boxes * FRAME, torch.tensor([[20.0, 40.0, 20.0, 40.0]]))
    assert (objects.counts, regions.counts, regions.labels.tolist()) == ((1,), (1,), [-1])
