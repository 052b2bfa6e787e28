"""Matching of an old detector's answers: values and gradients by hand, and on whole networks."""

from __future__ import annotations

import math

import pytest
import torch

from crossdet.models.building import build_detector
from crossdet.models.retinanet.distillation import bernoulli_divergence, logit_matching, matching_loss
from crossdet.models.retinanet.growth import carry_over
from crossdet.models.retinanet.settings import Anchors, RetinaNetSettings
from crossdet.types import Annotations, Batch

SETTINGS = RetinaNetSettings(
    backbone="test_efficientnet", channels=16, head_depth=1, anchors=Anchors(scales=(2.0, 3.0), ratios=(0.6, 1.0)),
    freeze_batch_norm=False, prior=0.05,
)  # fmt: skip
SHAPES = 4


def test_divergence_by_hand():
    wanted = torch.tensor([0.0, 2.0, -30.0, 5.0], dtype=torch.float64)
    found = torch.tensor([0.0, -1.0, -30.0, 5.0], dtype=torch.float64)
    p, q = wanted.sigmoid()[1], found.sigmoid()[1]
    by_hand = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert torch.allclose(bernoulli_divergence(wanted, found), torch.stack([q * 0, by_hand, q * 0, q * 0]))
    assert torch.isfinite(bernoulli_divergence(torch.tensor([1e4, -1e4]), torch.tensor([-1e4, 1e4]))).all()


def logits_of(*scores: list[float]) -> torch.Tensor:
    return torch.tensor(scores, dtype=torch.float64).logit()


def test_matching_by_hand():
    """Four anchors, two classes: a sure one, one at 0.2, background, and one on the limit, which is background."""
    wanted = logits_of([0.6, 0.01], [0.1, 0.2], [0.01, 0.01], [0.04, 0.04])
    found = logits_of([0.3, 0.01], [0.1, 0.2], [0.01, 0.02], [0.04, 0.04])
    deltas = torch.zeros(4, 4, dtype=torch.float64)
    moved = deltas.clone()
    moved[0, 1] = 0.5  # beyond the corner: 0.5 - 0.1 / 2
    moved[1, 2] = -0.05  # within: 0.05^2 / 0.2
    moved[2] = 9.0  # background: nobody's box
    moved[3] = 9.0

    def divergence(p: float, q: float) -> float:
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    classes = divergence(0.6, 0.3) + divergence(0.01, 0.02)  # background counts above the line
    boxes = 0.6 * 0.45 + 0.2 * 0.0125
    # below it 0.6 + 0.2 are less than 1
    by_hand = classes + 3 * boxes
    assert matching_loss(wanted, found, deltas, moved, 0.1, 3.0).item() == pytest.approx(by_hand, rel=1e-9)
    # twice as many images of the same kind: the mean stays, now over 4 (0.6 + 0.2)
    many = [x.repeat(4, 1, 1) for x in (wanted, found, deltas, moved)]
    assert matching_loss(*many, 0.1, 3.0).item() == pytest.approx(by_hand / 0.8, rel=1e-9)
    # thousands of background anchors that are alike change nothing
    background = [logits_of(*[[0.01, 0.01]] * 5000)] * 2 + [torch.zeros(5000, 4)] * 2
    more = [torch.cat([x.flatten(0, -2), y]) for x, y in zip(many, background, strict=True)]
    assert matching_loss(*more, 0.1, 3.0).item() == pytest.approx(by_hand / 0.8, rel=1e-9)


def test_gradients_of_matching_by_hand():
    """q - p by the logits, the teacher's highest score times the slope of smooth L1 by the deltas."""
    wanted = logits_of([0.8, 0.01], [0.01, 0.7], [0.02, 0.01])
    found = logits_of([0.5, 0.01], [0.03, 0.7], [0.05, 0.01]).requires_grad_()
    deltas = torch.zeros(3, 4, dtype=torch.float64)
    moved = torch.tensor(
        [[0.3, 0, 0, -0.3], [0.02, 0, 0, 0], [5, 5, 5, 5]], dtype=torch.float64, requires_grad=True
    )
    matching_loss(wanted, found, deltas, moved, 0.1, 2.0).backward()
    count = 0.8 + 0.7
    slopes = torch.tensor([[-0.3, 0], [0.02, 0], [0.03, 0]], dtype=torch.float64) / count
    torch.testing.assert_close(found.grad, slopes)
    by_hand = torch.tensor([[0.8, 0, 0, -0.8], [0.7 * 0.02 / 0.1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(moved.grad, 2 * by_hand / count)
    assert torch.autograd.gradcheck(
        lambda a, b: matching_loss(wanted, a, deltas, b, 0.1, 2.0), (found.detach().requires_grad_(), moved)
    )


def some_batch(classes: int) -> Batch:
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    size, rows = torch.tensor([[64, 96]] * 2), torch.arange(2)
    empty = Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.uint8))
    return Batch(images, size, size, [empty] * 2, torch.ones(2, classes, dtype=torch.bool), rows, rows * 0)


def test_identical_networks_match():
    """Exactly 0, at any score, and without a gradient anywhere."""
    torch.manual_seed(0)
    teacher, model = build_detector(SETTINGS, 2), build_detector(SETTINGS, 2).eval()
    torch.nn.init.constant_(teacher.class_subnet.predict.bias, 0.5)  # everywhere sure
    carry_over(model, teacher.state_dict(), 2)
    batch = some_batch(2)
    value = logit_matching(teacher, 5.0)(model, model.features(batch.images), batch)
    assert value.item() == 0
    value.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or float(parameter.grad.abs().max()) < 1e-6, name


def test_boxes_are_held_where_the_teacher_is_sure():
    """The box subnet is moved by 0.3 in one coordinate: smooth L1 of that, at background nothing."""
    torch.manual_seed(0)
    teacher, model = build_detector(SETTINGS, 2), build_detector(SETTINGS, 2).eval()
    batch = some_batch(2)
    for bias, expected in ((0.5, 2 * (0.3 - 1 / 18)), (-4.0, 0.0)):  # scores about 0.62 and 0.02
        torch.nn.init.constant_(teacher.class_subnet.predict.bias, bias)
        carry_over(model, teacher.state_dict(), 2)
        with torch.no_grad():
            model.box_subnet.predict.bias.view(SHAPES, 4)[:, 1] += 0.3
        model.zero_grad()
        value = logit_matching(teacher, 2.0)(model, model.features(batch.images), batch)
        assert value.item() == pytest.approx(expected, abs=1e-5)
        value.backward()
        slope = model.box_subnet.predict.bias.grad.view(SHAPES, 4)
        assert bool((slope[:, 1] > 0).any()) is (expected > 0)
        assert slope[:, 1].sum().item() == pytest.approx(2.0 if expected else 0.0, abs=1e-5)
        assert not slope[:, [0, 2, 3]].abs().max() > 1e-5


def test_matching_is_zero_at_the_start_and_pulls_back():
    """Equal old rows: no loss; after a change of an old row the gradient points back, new rows are free."""
    torch.manual_seed(0)
    teacher, model = build_detector(SETTINGS, 2), build_detector(SETTINGS, 3).eval()
    carry_over(model, teacher.state_dict(), 2)
    loss = logit_matching(teacher, 2.0)
    batch = some_batch(3)

    def value() -> torch.Tensor:
        return loss(model, model.features(batch.images), batch)

    assert abs(float(value().detach())) < 1e-6
    bias = model.class_subnet.predict.bias
    with torch.no_grad():
        by_class = bias.view(SHAPES, 3)
        by_class[:, 0] += 1
        by_class[:, 2] += 1  # a new class: nobody's business
    moved = value()
    moved.backward()
    assert float(moved.detach()) > 1e-3
    gradient = bias.grad.view(SHAPES, 3)
    assert (gradient[:, 0] > 0).all()
    assert torch.allclose(gradient[:, 1], torch.zeros(SHAPES), atol=1e-6)
    assert not gradient[:, 2].any()
    assert all(p.grad is None for p in teacher.parameters())
