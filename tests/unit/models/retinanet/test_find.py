"""Searching some classes at a time gives what all logits at once give."""

from __future__ import annotations

import pytest
import torch

from crossdet.models.backbones import Backbone
from crossdet.models.contract import Limits
from crossdet.models.retinanet import network as retinanet
from crossdet.models.retinanet.network import RetinaNet
from crossdet.models.retinanet.settings import RetinaNetSettings

CLASSES = 11
SIZES = torch.tensor([[96, 128], [70, 128]])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = RetinaNet(Backbone("mobilenetv2_100"), CLASSES, RetinaNetSettings(channels=32, head_depth=1)).eval()
    torch.nn.init.normal_(made.class_subnet.predict.weight, std=0.05)
    return made


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (2, 3, 96, 128), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize("entries", [1, 20_000, 10**9])
@pytest.mark.parametrize("classes", [None, [3], [9, 0, 4, 5], [*range(CLASSES)][::-1], [3] * CLASSES, []])
@pytest.mark.parametrize("per_class", [False, True])
def test_find_equals_decode_of_all_logits(monkeypatch, model, images, entries, classes, per_class):
    """However many classes are looked at together; a threshold for all or one per class; top-k and caps bind."""
    monkeypatch.setattr(retinanet, "LOGITS_AT_ONCE", entries)
    threshold = torch.linspace(0.009, 0.012, CLASSES) if per_class else 0.0095
    limits = Limits(threshold, topk=60, max_detections=70, nms_iou=0.6)
    with torch.inference_mode():
        found = model.find(images, SIZES, classes, limits)
        wanted = model.decode(model(images), SIZES, classes, limits)
    for one, other in zip(found, wanted, strict=True):
        assert len(one) == (0 if classes == [] else len(other))
        assert bool((one.labels == other.labels).all())
        torch.testing.assert_close(one.boxes, other.boxes, rtol=0, atol=1e-4)
        torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-6)
    if classes is None:
        assert len(found[0]) == 70


def test_only_the_wanted_logits_are_computed(monkeypatch, model, images):
    widths = []
    conv2d = retinanet.F.conv2d

    def watched(x, weight, *args, **kwargs):
        widths.append(len(weight))
        return conv2d(x, weight, *args, **kwargs)

    monkeypatch.setattr(retinanet.F, "conv2d", watched)
    with torch.inference_mode():
        model.find(images, SIZES, [3, 7])
    assert 9 * CLASSES not in widths
    assert widths.count(18) == 5  # one per level


def test_a_thousand_classes_are_never_there_at_once(monkeypatch, images):
    monkeypatch.setattr(retinanet, "LOGITS_AT_ONCE", 300_000)
    many = RetinaNet(Backbone("mobilenetv2_100"), 1000, RetinaNetSettings(channels=16, head_depth=0)).eval()
    sizes = []
    candidates = retinanet.best_candidates

    def watched(logits, *args):
        sizes.append(logits.numel())
        return candidates(logits, *args)

    monkeypatch.setattr(retinanet, "best_candidates", watched)
    with torch.inference_mode():
        many.find(images, SIZES)
    assert max(sizes) <= 300_000
    assert sum(sizes) == 2 * 9 * 1000 * (12 * 16 + 6 * 8 + 3 * 4 + 2 * 2 + 1)
