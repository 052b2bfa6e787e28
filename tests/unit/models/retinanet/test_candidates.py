"""The best pairs of every image, against a loop over images; and how often a device is asked for them."""

from __future__ import annotations

import pytest
import torch

from crossdet.models.contract import Limits
from crossdet.models.retinanet.candidates import best_candidates, merged
from crossdet.types import Detections

from ..questions import Questions
from .made import make

IMAGES, ANCHORS, CLASSES = 3, 64, 6  # whole vectors: the last few numbers of others are rounded in another way


def logits_of(seed: int, values: int) -> torch.Tensor:
    """With many equal ones; of one image all are low."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randint(-values, values, (IMAGES, ANCHORS, CLASSES), generator=g).float() / values * 6
    logits[seed % IMAGES] -= 9 * (seed % 2)
    return logits


def by_loops(logits: torch.Tensor, classes: torch.Tensor, limits: Limits) -> list[tuple[float, int, int, int]]:
    found = []
    for image, rows in enumerate(logits.sigmoid().tolist()):
        pairs = [
            (-score, anchor, column)
            for anchor, row in enumerate(rows)
            for column, score in enumerate(row)
            if score > float(torch.as_tensor(limits.threshold_of(classes)).expand(len(classes))[column])
        ]
        best = sorted(pairs)[: limits.topk]
        found += [(-score, image, anchor, int(classes[column])) for score, anchor, column in best]
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("values", [3, 1000])
@pytest.mark.parametrize("topk", [1, 7, 60, 10_000])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9999, "per class"])
def test_the_best_pairs_are_those_of_a_loop(seed, values, topk, threshold):
    classes = torch.tensor([0, 2, 3, 5, 8, 9])
    limits = Limits(torch.linspace(0.1, 0.9, 10) if threshold == "per class" else threshold, topk)
    logits = logits_of(seed, values)
    wanted = by_loops(logits, classes, limits)
    whole = best_candidates(logits, classes, limits)
    assert list(zip(*(values.tolist() for values in whole), strict=True)) == wanted
    parts = None
    for columns in torch.arange(CLASSES).split(2):
        more = best_candidates(logits[..., columns], classes[columns], limits)
        parts = merged(parts, more, IMAGES, topk)
    assert list(zip(*(values.tolist() for values in parts), strict=True)) == wanted


def test_no_anchors_and_no_classes_are_no_candidates():
    for shape in ((2, 0, 3), (2, 5, 0)):
        found = best_candidates(torch.zeros(shape), torch.arange(shape[2]), Limits(0.1))
        assert [len(values) for values in found] == [0, 0, 0, 0]


def test_a_larger_batch_is_not_asked_more_often_but_for_nms(monkeypatch):
    lists = []  # which no dispatcher sees
    to_list = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: (lists.append(len(tensor)), to_list(tensor))[1])
    model = make().eval()
    torch.nn.init.normal_(model.class_subnet.predict.weight, std=0.05)
    g = torch.Generator().manual_seed(0)
    asked = []
    for count in (2, 5):
        images = torch.randint(0, 256, (count, 3, 64, 96), generator=g, dtype=torch.uint8)
        with torch.inference_mode(), Questions() as questions:
            found = model.find(images, torch.tensor([[64, 96]] * count), limits=Limits(0.0, topk=3))
        assert all(isinstance(one, Detections) and len(one) for one in found)
        asked.append([place for place in questions.places if "torchvision" not in place])
        asked[-1] += ["list"] * len(lists)
        lists.clear()
    assert asked[0]
    assert asked[0] == asked[1]
