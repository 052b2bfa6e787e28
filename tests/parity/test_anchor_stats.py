"""Anchor coverage in numpy against brute force, and against the anchors that training uses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from crossdet.check.boxes import resized_boxes
from crossdet.data.augment import Resize
from crossdet.data.canvases import resized, resized_sizes
from crossdet.models.retinanet import anchors as torch_anchors
from crossdet.models.retinanet.anchor_stats import best_anchor_iou
from crossdet.models.retinanet.settings import PYRAMID_STRIDES

side = st.floats(0.3, 900)
place = st.floats(-50, 700)
positive = st.floats(0.3, 8)


def brute_force(boxes, size, scales, ratios, strides):
    """The largest IoU over every anchor, one by one in Python."""
    best = []
    padded = [-(-s // 32) * 32 for s in size]
    for x1, y1, x2, y2 in boxes:
        top = 0.0
        for stride in strides:
            for row in range(-(-padded[0] // stride)):
                for column in range(-(-padded[1] // stride)):
                    for ratio in ratios:
                        for scale in scales:
                            w, h = scale * stride / ratio**0.5, scale * stride * ratio**0.5
                            cx, cy = (column + 0.5) * stride, (row + 0.5) * stride
                            inside = max(0, min(x2, cx + w / 2) - max(x1, cx - w / 2))
                            inside *= max(0, min(y2, cy + h / 2) - max(y1, cy - h / 2))
                            top = max(top, inside / ((x2 - x1) * (y2 - y1) + w * h - inside))
        best.append(top)
    return np.array(best)


@settings(max_examples=60, deadline=None)
@given(
    corners=st.lists(st.tuples(place, place, side, side), min_size=1, max_size=2),
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    scales=st.lists(positive, min_size=1, max_size=2),
    ratios=st.lists(positive, min_size=1, max_size=2),
)
def test_equals_brute_force(corners, size, scales, ratios):
    """Also for boxes outside the image, between grid centres, and larger than any anchor."""
    boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in corners])
    sizes = np.tile(size, (len(boxes), 1))
    have = best_anchor_iou(boxes, sizes, scales, ratios, (16, 32))
    np.testing.assert_allclose(have, brute_force(boxes, size, scales, ratios, (16, 32)), atol=1e-9)


def test_equals_the_anchors_of_the_model():
    """All five levels, the paper's scales and a pedestrian's ratio, images of several sizes in one call."""
    rng = np.random.default_rng(0)
    scales, ratios = (4, 5.03, 6.35), (0.5, 1.0, 2.44)
    boxes, sizes, expected = [], [], []
    for height, width in [(320, 427), (97, 640), (33, 31), (256, 256)]:
        corner = rng.uniform(-10, [width, height], (60, 2))
        part = np.hstack([corner, corner + np.exp(rng.uniform(0, 6, (60, 2)))]).astype(np.float32)
        grids = [[-(-(-(-s // 32) * 32) // stride) for s in (height, width)] for stride in PYRAMID_STRIDES]
        anchors = torch.cat(
            [
                torch_anchors.grid_anchors(torch_anchors.cell_anchors(stride, scales, ratios), grid, stride)
                for stride, grid in zip(PYRAMID_STRIDES, grids, strict=True)
            ]
        )
        expected.append(box_iou(torch.from_numpy(part), anchors).amax(1).numpy())
        boxes.append(part)
        sizes.append(np.tile([height, width], (60, 1)))
    have = best_anchor_iou(np.concatenate(boxes), np.concatenate(sizes), scales, ratios)
    np.testing.assert_allclose(have, np.concatenate(expected), atol=2e-6)


@pytest.mark.parametrize(("shorter", "longer"), [(800, 1333), (320, 320), (7, 1000)])
def test_sizes_are_those_of_the_transform(shorter, longer):
    rng = np.random.default_rng(1)
    sizes = np.concatenate([rng.integers(1, 3000, (3000, 2)), [[1, 3000], [480, 640], [640, 480]]])
    have = resized_sizes(sizes, shorter, longer)
    assert [tuple(row) for row in have.tolist()] == [resized(h, w, shorter, longer) for h, w in sizes.tolist()]


def test_boxes_are_those_of_the_transform():
    boxes = np.array([[10, 20, 70, 50], [0, 0, 101, 77]], np.float32)
    _, expected, _ = Resize(200, 333)(torch.zeros((3, 77, 101), dtype=torch.uint8), torch.from_numpy(boxes))
    sizes = np.array([[77, 101]] * 2)
    have = resized_boxes(boxes, sizes, resized_sizes(sizes, 200, 333))
    np.testing.assert_allclose(have, expected.numpy(), rtol=1e-6)


def test_recall_counts_boxes_at_the_threshold():
    """A box that is an anchor, one whose best IoU is exactly 0.5, and one that none covers."""
    boxes = np.array([[-4, -4, 12, 12], [-4, -4, 12, 4], [30, 4, 31, 60]])
    sizes = np.full((3, 2), 64)
    best = best_anchor_iou(boxes, sizes, [2], [1.0])
    np.testing.assert_allclose(best[:2], [1.0, 0.5])
    assert best[2] < 0.1
    assert (best >= 0.5).mean() == pytest.approx(2 / 3)
    assert best_anchor_iou(boxes[:0], sizes[:0], [2], [1.0]).shape == (0,)
