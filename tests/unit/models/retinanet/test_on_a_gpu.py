"""What takes another way on a GPU gives there what it gives on a CPU. Skipped where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from crossdet.models.retinanet.anchors import AnchorLabels, anchor_grid, cell_anchors, pyramid_grids
from crossdet.models.retinanet.class_loss import union_focal_losses
from crossdet.models.retinanet.matching import label_anchors
from crossdet.models.retinanet.settings import PYRAMID_STRIDES
from crossdet.types import Annotations, Flag, trust_groups

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
SIZE, SHAPES, CLASSES, DEPTH = (96, 160), 9, 12, 8


def label(targets: list[Annotations], device: str) -> AnchorLabels:
    cells = [cell_anchors(stride, (2, 3, 4), (0.5, 1, 2)).to(device) for stride in PYRAMID_STRIDES]
    grid = anchor_grid(cells, pyramid_grids(*SIZE, len(cells)), PYRAMID_STRIDES)
    return label_anchors(grid, [target.to(device) for target in targets])


@pytest.fixture(params=range(4))
def targets(request) -> list[Annotations]:
    g = torch.Generator().manual_seed(request.param)
    found = []
    for count in (3, 0, 40, 11):
        corner = torch.rand(count, 2, generator=g) * torch.tensor([130.0, 70.0])
        boxes = torch.cat([corner, corner + 3 + torch.rand(count, 2, generator=g) ** 2 * 70], 1)
        boxes = boxes.round() if request.param % 2 else boxes  # equal IoUs
        flags = torch.zeros(count, dtype=torch.uint8)
        flags[::4] = int(Flag.CROWD)
        flags[1::4] = int(Flag.TEACHER)
        flags[2::4] = int(Flag.TEACHER | Flag.AVOID)
        found.append(Annotations(boxes, torch.randint(0, CLASSES, (count,), generator=g), flags))
    return found


def test_labels_of_anchors(targets):
    here, there = label(targets, "cpu"), label(targets, "cuda")
    assert len(here.anchor)
    for one, other in zip(there[:4], here[:4], strict=True):
        assert torch.equal(one.cpu(), other)
    assert sorted(there.avoid.tolist()) == sorted(here.avoid.tolist())


@pytest.mark.parametrize("order", [[0, 0, 1, 2], [2, 0, 1, 0]])
def test_loss_and_gradients(targets, order):
    g = torch.Generator().manual_seed(0)
    labelled = label(targets, "cpu")
    trusted = (torch.rand(3, CLASSES, generator=g) < 0.5)[order]
    towers = [torch.randn(4, DEPTH, h, w, generator=g, dtype=torch.float64) for h, w in pyramid_grids(*SIZE, 5)]
    torch.manual_seed(0)
    layer = nn.Conv2d(DEPTH, SHAPES * CLASSES, 3, padding=1).double()
    results = []
    for device in ("cpu", "cuda"):
        maps = [t.to(device).requires_grad_() for t in towers]
        layer = layer.to(device)
        losses = union_focal_losses(
            maps, layer, labelled.map(lambda t, d=device: t.to(d)), trusted.to(device), trust_groups(trusted)
        )
        gradients = torch.autograd.grad(losses.sum(), [*maps, layer.weight, layer.bias])
        results.append([losses.detach(), *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=0, atol=1e-10)
