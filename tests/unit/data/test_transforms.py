"""Resizing, jitter and flips: boxes follow their pixels."""

import pytest
import torch
from torch import Tensor

from crossdet.data.augment import Augment, Resize, View
from crossdet.data.canvases import resized

from .made import PICTURE, as_tensor


@pytest.mark.parametrize(
    ("size", "limits", "scale", "wanted"),
    [
        ((480, 640), (240, 1000), 1.0, (240, 320)),
        ((640, 480), (240, 1000), 1.0, (320, 240)),
        ((100, 1000), (400, 800), 1.0, (80, 800)),  # the cap on the longer side
        ((1000, 100), (400, 800), 1.0, (800, 80)),
        ((50, 60), (100, 1000), 1.0, (100, 120)),  # small images grow
        ((480, 640), (240, 1000), 0.5, (120, 160)),
        ((100, 1000), (400, 800), 1.5, (120, 1200)),  # the cap is scaled with it
        ((1, 3000), (400, 600), 1.0, (1, 600)),
    ],
)
def test_resized(size, limits, scale, wanted):
    assert resized(*size, *limits, scale) == wanted


def with_rectangles(height: int, width: int, boxes: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Rectangle k is painted in channel k."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for channel, (x1, y1, x2, y2) in enumerate(boxes):
        image[channel, y1:y2, x1:x2] = 255
    return image, torch.tensor(boxes, dtype=torch.float32)


def painted(channel: Tensor) -> list[float]:
    rows, columns = (channel >= 128).nonzero(as_tuple=True)
    return [float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


@pytest.mark.parametrize("size", [(90, 160), (160, 90), (61, 187)])
@pytest.mark.parametrize(
    "transform",
    [
        Resize(120, 400),
        Resize(60, 70),
        Augment(120, 400, flip=0.0),
        Augment(120, 400, flip=1.0),
        Augment(120, 400, flip=1.0, scale_jitter=(0.6, 1.6)),
        Augment(40, 90, flip=0.5, scale_jitter=(0.8, 1.2)),
    ],
    ids=repr,
)
def test_boxes_follow_their_pixels(size, transform):
    height, width = size
    image, boxes = with_rectangles(height, width, [[0, 0, 30, 20], [10, 30, 70, 60], [width - 25, 5, width, 50]])
    for seed in range(4):
        torch.manual_seed(seed)
        out, moved, _ = transform(image, boxes)
        assert out.dtype == torch.uint8
        for channel, box in zip(out, moved.tolist(), strict=True):
            assert painted(channel) == pytest.approx(box, abs=1.0)
    # what went in is not changed
    assert boxes[0].tolist() == [0, 0, 30, 20]
    assert painted(image[0]) == [0, 0, 30, 20]


def test_images_without_boxes_and_images_of_the_right_size():
    image, _ = with_rectangles(60, 80, [[0, 0, 10, 10]])
    out, boxes, _ = Augment(30, 100, flip=1.0)(image, torch.zeros(0, 4))
    assert out.shape == (3, 30, 40)
    assert boxes.shape == (0, 4)
    same, box, _ = Resize(60, 80)(image, torch.tensor([[1.0, 2, 3, 4]]))
    assert torch.equal(same, image)
    assert box.tolist() == [[1, 2, 3, 4]]


def test_jitter_keeps_to_its_range_and_flips_to_their_share():
    image, boxes = with_rectangles(50, 100, [[0, 0, 20, 50]])
    augment = Augment(50, 500, flip=0.3, scale_jitter=(0.5, 1.5))
    torch.manual_seed(0)
    heights, flips = [], 0
    for _ in range(200):
        out, moved, _ = augment(image, boxes)
        heights.append(out.shape[1])
        flips += float(moved[0, 0]) > 0
    assert min(heights) >= 25
    assert max(heights) <= 75
    assert min(heights) < 30
    assert max(heights) > 70
    assert 35 <= flips <= 85


def test_augment_repeats_with_its_seed():
    image = as_tensor(PICTURE)
    augment = Augment(30, 100, scale_jitter=(0.5, 1.5))

    def run(seed: int) -> View:
        torch.manual_seed(seed)
        return augment(image, torch.tensor([[2.0, 3, 20, 22]]))

    assert torch.equal(run(1)[0], run(1)[0])
    assert torch.equal(run(1)[1], run(1)[1])
    assert len({tuple(run(seed)[1].flatten().tolist()) for seed in range(8)}) > 4
