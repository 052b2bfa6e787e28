"""Batches that bring their anchor labels along: the same loss, and a step that reads nothing from the device."""

from __future__ import annotations

import pickle
import shutil
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from crossdet.data.canvases import assigned, choose_canvases
from crossdet.data.hybrid import Placing
from crossdet.data.loading import epoch_batches
from crossdet.losses import background_focal_parts, image_focal_losses
from crossdet.models.building import build_detector
from crossdet.models.retinanet import class_loss
from crossdet.models.retinanet.network import RetinaNet
from crossdet.models.retinanet.settings import RetinaNetSettings
from crossdet.training.loop import TrainStep
from crossdet.types import BACKGROUND, IGNORE, Annotations, Batch, Flag

CLASSES = 5


@pytest.fixture(scope="module")
def model() -> RetinaNet:
    torch.manual_seed(0)
    settings = RetinaNetSettings(backbone="test_resnet", channels=16, head_depth=1, freeze_batch_norm=True)
    return build_detector(settings, CLASSES).train()


def make_batch(images: int = 3, size: tuple[int, int] = (96, 160), regions: bool = False) -> Batch:
    """Images of two datasets, the first ones of one; every second image has a region of a class and one of none."""
    g = torch.Generator().manual_seed(1)
    targets = []
    for image in range(images):
        corner = torch.rand(6, 2, generator=g) * torch.tensor([size[1] * 0.6, size[0] * 0.6])
        boxes = torch.cat([corner, corner + 8 + torch.rand(6, 2, generator=g) * 40], 1)
        labels = torch.randint(0, CLASSES, (6,), generator=g)
        flags = torch.zeros(6, dtype=torch.uint8)
        if regions and image % 2 == 0:
            flags[:2] = int(Flag.CROWD)
            labels[1] = -1
        targets.append(Annotations(boxes, labels, flags))
    trusted = torch.zeros(images, CLASSES, dtype=torch.bool)
    trusted[: images // 2 + 1, :2], trusted[images // 2 + 1 :, 2:] = True, True
    pictures = torch.randint(0, 256, (images, 3, *size), generator=g, dtype=torch.uint8)
    sizes, rows = torch.tensor([size] * images), torch.arange(images)
    return Batch(pictures, sizes, sizes, targets, trusted, rows, rows % 2)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("size", [(96, 160), (32, 32), (100, 70), (257, 300)])
def test_labels_found_before_are_those_found_in_the_step(model, size, regions):
    """Also for sizes that `features` still pads, and for levels of a single position."""
    batch = make_batch(size=size, regions=regions)
    labelled = pickle.loads(pickle.dumps(model.prepare()))(batch)  # as it reaches a worker process
    assert labelled.prepared is not None
    assert sum(labelled.prepared.per_shape) == len(labelled.prepared.anchor) > 0
    features = model.features(batch.images)
    found, wanted = model.losses_of(features, labelled), model.losses_of(features, batch)
    assert torch.equal(found.positives, wanted.positives)
    for name, sums in found.terms.items():
        assert torch.equal(sums, wanted.terms[name])


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("regions", [False, True])
def test_a_step_on_a_labelled_batch_reads_no_value(model, regions, batched, monkeypatch):
    """On fake tensors, which have shapes but no values, everything that would wait for a device fails."""
    monkeypatch.setattr(class_loss, "is_batched", lambda device: batched)
    batch = model.prepare()(make_batch(regions=regions)).to("cpu")  # what is found of it is found here
    step = TrainStep(model)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:

        def fake(unlabelled: bool) -> Batch:
            make = mode.from_tensor
            made = replace(
                batch,
                images=make(batch.images),
                targets=[target._map(make) for target in batch.targets],
                trusted=make(batch.trusted),
                prepared=None if unlabelled else batch.prepared.map(make),
            )
            return batch.passed_on(made, make)

        terms, *_ = step(fake(unlabelled=False))
        sum(terms.values()).backward()
        # the test can fail: matching counts what it finds
        with pytest.raises(DynamicOutputShapeException):
            step(fake(unlabelled=True))
    model.zero_grad()


def test_labels_travel_with_the_batch(model):
    batch = model.prepare()(make_batch())
    moved = batch.to("meta")
    assert all(t.device.type == "meta" for t in moved.prepared[:5])
    assert moved.prepared.per_shape == batch.prepared.per_shape


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.parametrize("gamma", [2.0, 1.5])
def test_compiled_terms_are_the_same(gamma):
    """Value and gradient, also where a probability is 0 or 1 in float32."""
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 400, 7, generator=g) * 4 - 2
    logits[0, 0] = torch.tensor([200.0, -200.0, 90.0, -90.0, 20.0, -20.0, 0.0])
    labels = torch.full((3, 400), BACKGROUND)
    labels[:, 5::40], labels[:, 6::40] = 2, IGNORE
    trusted = torch.rand(3, 7, generator=g) < 0.6
    results = []
    for compiled in (False, True):
        leaf = logits.clone().requires_grad_()
        losses = image_focal_losses(leaf, labels, trusted, gamma=gamma, compiled=compiled)
        losses.sum().backward()
        results.append((losses.detach(), leaf.grad))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-5, atol=1e-7)
    assert torch.isfinite(results[1][1]).all()
    for one, other in zip(*(background_focal_parts(logits, 0.25, gamma, c) for c in (True, False)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_compiled_features_are_not_compiled_for_every_shape(model, monkeypatch):
    """Six sizes and two numbers of images: the second shape makes the graph a dynamic one, and that is all."""
    counter = CompileCounter()
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: whole(function, backend=counter, **options))
    model = deepcopy(model)
    model.compile_parts()
    for images in (2, 3):
        for size in ((64, 96), (96, 64), (96, 96), (128, 160), (64, 128), (160, 96)):
            pictures = make_batch(images, size).images
            wanted = model.features(pictures)
            for found, level in zip(model._compiled_features(pictures), wanted, strict=True):
                torch.testing.assert_close(found, level)
    assert 1 <= counter.frame_count <= 4


def test_nothing_is_compiled_after_the_first_epoch_on_canvases(model, monkeypatch):
    """A graph of fixed size for each canvas; smaller last batches, whose sizes are others in every epoch, have
    none."""
    counter = CompileCounter()
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: whole(function, backend=counter, **options))
    sizes = np.array([(64, 96)] * 5 + [(96, 64)] * 4)
    canvases = choose_canvases([sizes], 64, 96)
    placing = Placing(canvases, lambda rows, *_: (np.ones(len(rows)), assigned(sizes[rows], canvases)))
    model = deepcopy(model)
    model.compile_parts(full=2)
    compiled, shapes = [], set()
    for epoch in range(2):
        for batch in epoch_batches(sizes, np.ones(9), 2, 0, epoch, placing=placing):
            shapes.add((len(batch), batch[0].canvas))
            model.losses(make_batch(len(batch), batch[0].canvas))
        compiled.append(counter.frame_count)
    assert len(canvases) == 3
    assert shapes == {(2, (64, 96)), (2, (96, 64)), (1, (64, 96))}
    assert compiled == [2, 2]
    model.compile_nothing()
    model.losses(make_batch(2, (128, 160)))
    assert counter.frame_count == 2
