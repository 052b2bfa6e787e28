"""A step of a DETR asks the device for its matches and for nothing else: every other question would wait for it."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from crossdet.models.detr.matching import Costs, match
from crossdet.models.detr.negatives import negatives_of, spare_beside_objects
from crossdet.types import BACKGROUND, Tiles

from ..questions import Questions
from .made import answers_near, tiny
from .test_criterion import CLASSES, QUERIES, generator, random_rule
from .test_network import batch_of, learning


@pytest.mark.parametrize("foreground", ["none", "matched", "on_object"])
@pytest.mark.parametrize("tiled", [False, True], ids=["", "mosaics"])
def test_the_rule_waits_for_no_device(foreground, tiled):
    """A tensor without values refuses what would have to look at them: sizes that depend on them, and numbers."""
    tiles = Tiles(torch.rand(3, 2, 4), torch.rand(3, 2, CLASSES) < 0.5, torch.zeros(3, 2, dtype=torch.int64))
    rule = random_rule(4, foreground=foreground, tiles=tiles if tiled else None)
    answers = answers_near(rule.objects, QUERIES, CLASSES, generator(1))
    boxes = answers.boxes.detach()
    (pairs,) = match([answers.logits], [boxes], rule.objects, Costs())
    labels = torch.full((3, QUERIES), BACKGROUND)
    labels[pairs.image, pairs.query] = rule.objects.labels[pairs.object]
    taught = torch.zeros_like(labels, dtype=torch.bool)
    wanted = negatives_of(rule, boxes, labels, taught, pairs[:2])
    spared = spare_beside_objects(wanted.clone(), rule, boxes, pairs, torch.rand(len(pairs.image)))
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:

        def hollow(value):
            if isinstance(value, torch.Tensor):
                return mode.from_tensor(value)
            if isinstance(value, tuple) and hasattr(value, "_fields"):
                return type(value)(*map(hollow, value))
            return value

        known, places, matches = hollow(rule), hollow(boxes), hollow(pairs)
        found = negatives_of(known, places, hollow(labels), hollow(taught), matches[:2])
        beside = spare_beside_objects(found, known, places, matches, torch.rand(len(pairs.image)))
    assert (found.shape, beside.shape) == (wanted.shape, spared.shape)


def test_questions_are_seen():
    with Questions() as asked:
        values = torch.arange(3.0)
        float(values.sum())
        values[values > 1]
        values.nonzero()
    assert len(asked.places) == 3


@pytest.mark.parametrize("name", ["dfine", "rtdetr v2", "rfdetr"])
def test_a_step_asks_for_nothing(name):
    """But for the matches, whose costs are copied as a whole."""
    network = learning(tiny(name))
    batch = network.prepare()(batch_of())
    with Questions() as asked:
        losses = network.losses(batch)
        sum(term.sum() for term in losses.terms.values()).backward()
    assert asked.places == []
