"""Zoom out, IoU crop and pieces of mosaics: boxes stay on their pixels, borders are filled, and shares are kept."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from crossdet.data.augment import IMAGENET_MEAN, Augment, Resize, blank
from crossdet.data.hybrid import after_transform, with_overlapping_regions
from crossdet.types import Annotations, Flag

BOXES = [[4, 6, 34, 26], [40, 30, 100, 60], [75, 5, 110, 50]]
FILL = (1, 2, 3)


def rectangles(height: int = 80, width: int = 120) -> tuple[Tensor, Tensor]:
    """Rectangle k is painted in channel k; the rest is 60."""
    image = torch.full((3, height, width), 60, dtype=torch.uint8)
    for channel, (x1, y1, x2, y2) in enumerate(BOXES):
        image[channel, y1:y2, x1:x2] = 255
    return image, torch.tensor(BOXES, dtype=torch.float32)


def on_their_pixels(image: Tensor, boxes: Tensor) -> int:
    """How many boxes are visible; each is where its pixels are."""
    size, seen = torch.tensor([image.shape[2], image.shape[1]] * 2), 0
    for channel, box in zip(image, boxes.clamp(min=0).minimum(size).tolist(), strict=True):
        rows, columns = (channel >= 158).nonzero(as_tuple=True)
        if len(rows):
            edges = [float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]
            assert edges == pytest.approx(box, abs=1.1)
            seen += 1
        else:
            assert min(box[2] - box[0], box[3] - box[1]) < 1.1
    return seen


@pytest.mark.parametrize(
    "options",
    [{"zoom_out": 1.0}, {"iou_crop": 1.0}, {"zoom_out": 1.0, "iou_crop": 1.0, "scale_jitter": (0.7, 1.3)}],
)
def test_boxes_follow_their_pixels(options):
    image, boxes = rectangles()
    seen, sizes = [], set()
    for seed in range(25):
        torch.manual_seed(seed)
        view = Augment(100, 200, fill=FILL, **options)(image, boxes)
        assert view.image.dtype == torch.uint8
        sizes.add(tuple(view.image.shape))
        seen.append(on_their_pixels(view.image, view.boxes))
        if "scale_jitter" not in options:
            assert min(view.image.shape[1:]) == 100 or max(view.image.shape[1:]) == 200
    assert max(seen) == 3
    assert min(seen) == (3 if "iou_crop" not in options else min(seen))
    assert "iou_crop" not in options or len(set(seen)) > 1
    assert torch.equal(rectangles()[0], image)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("options", [{}, {"zoom_out": 1.0}, {"iou_crop": 1.0, "zoom_out": 0.5}])
def test_what_is_seen_fills_the_square(options, antialias):
    """Whatever the shape of the picture and of the window; scale jitter changes pieces of mosaics alone."""
    image, boxes = rectangles()
    augment = Augment(999, 9999, scale_jitter=(0.5, 0.6), fill=FILL, square=96, antialias=antialias, **options)
    for seed in range(15):
        torch.manual_seed(seed)
        view = augment(image, boxes)
        assert view.image.shape == (3, 96, 96)
        on_their_pixels(view.image, view.boxes)
    piece = augment.piece(image, boxes, (300, 300), 1.0)
    assert piece.image.shape[1] == piece.image.shape[2]
    assert 48 <= piece.image.shape[1] <= 58
    assert augment.piece(image, boxes, (20, 40), 2.0).image.shape == (3, 20, 40)
    seen = Resize(999, 9999, 96, antialias)(image, boxes)
    assert torch.equal(seen.image, F.resize(image, [96, 96], antialias=antialias))
    assert seen.boxes.tolist() == [pytest.approx([x * 0.8, y * 1.2, u * 0.8, v * 1.2]) for x, y, u, v in BOXES]


def test_zooming_out_adds_a_border_of_the_fill_and_cuts_nothing():
    image, boxes = rectangles()
    shares = []
    for seed in range(40):
        torch.manual_seed(seed)
        view = Augment(100, 200, flip=0.0, zoom_out=1.0, fill=FILL)(image, boxes)
        border = (view.image == torch.tensor(FILL)[:, None, None]).all(0)
        shares.append(1 - float(border.float().mean()))
        inside = (~border).nonzero()
        (top, left), (bottom, right) = inside.amin(0).tolist(), (inside.amax(0) + 1).tolist()
        assert not border[top:bottom, left:right].float().mean() > 0.02  # one rectangle
        assert (view.boxes[:, :2] >= torch.tensor([left, top]) - 0.1).all()
        assert (view.boxes[:, 2:] <= torch.tensor([right, bottom]) + 0.1).all()
    assert min(shares) > 0.2
    assert min(shares) < 0.4
    assert max(shares) > 0.8


def test_probabilities():
    image, boxes = rectangles()
    torch.manual_seed(0)
    never = [Augment(80, 200, flip=0.0)(image, boxes) for _ in range(5)]
    assert all(torch.equal(view.image, image) and torch.equal(view.boxes, boxes) for view in never)
    augment = Augment(80, 200, flip=0.0, zoom_out=0.3, fill=FILL)
    zoomed = sum(not torch.equal(augment(image, boxes).image, image) for _ in range(200))
    assert 40 <= zoomed <= 80
    # without a box there is nothing to crop around
    empty = Augment(80, 200, flip=0.0, iou_crop=1.0)(image, torch.zeros(0, 4))
    assert torch.equal(empty.image, image)


@pytest.mark.parametrize("room", [(30, 40), (200, 25), (300, 300)])
def test_a_piece_is_no_larger_than_its_room(room):
    image, boxes = rectangles()
    places = set()
    for seed in range(20):
        torch.manual_seed(seed)
        view = Augment(160, 400, flip=0.5)
        view = view.piece(image, boxes, room, 1.0)
        assert tuple(view.image.shape[1:]) == (min(160, room[0]), min(240, room[1]))
        on_their_pixels(view.image, view.boxes)
        places.add(tuple(view.boxes.flatten().tolist()))
    assert len(places) > (10 if room != (300, 300) else 1)  # whole, it has two views: mirrored or not
    half = Augment(160, 400).piece(image, boxes, (300, 300), 0.5)
    assert half.image.shape == (3, 80, 120)


def test_cut_objects():
    """Share left 1/2: learnt. 1/4: avoided over what is seen. Outside: gone. A crowd stays one, cut."""
    boxes = torch.tensor([[-10.0, 0, 10, 10], [35, 0, 55, 10], [60, 0, 70, 10], [-30, 20, 10, 30], [5, 5, 5.5, 9]])
    flags = torch.tensor([0, 0, 0, int(Flag.CROWD), 0], dtype=torch.uint8)
    after = after_transform(
        Annotations(boxes, torch.arange(5), flags), boxes, torch.zeros(3, 30, 40, dtype=torch.uint8), 1.0
    )
    assert after.labels.tolist() == [0, 1, 3, 4]
    assert after.boxes.tolist() == [[0, 0, 10, 10], [35, 0, 40, 10], [0, 20, 10, 30], [5, 5, 5.5, 9]]
    assert after.flags.tolist() == [0, Flag.AVOID, Flag.CROWD | Flag.AVOID, Flag.AVOID]


def test_regions_are_regions_of_the_classes_that_overlap_too():
    """What is left of a man (0) is no negative for person (2), nor is a crowd; a whole one stays as it is, and a
    region of no class, or of what a teacher was unsure of: people said where no person is."""
    overlap = np.zeros((3, 3), bool)
    overlap[0, 2] = overlap[2, 0] = True
    boxes = torch.arange(20.0).view(5, 4)
    flags = [0, Flag.AVOID, Flag.CROWD, Flag.IGNORE_REGION, Flag.AVOID | Flag.TEACHER]
    labels = torch.tensor([0, 0, 1, -1, 2])
    before = Annotations(boxes, labels, torch.tensor([int(flag) for flag in flags], dtype=torch.uint8))
    after = with_overlapping_regions(before, overlap)
    assert after.labels.tolist() == [0, 0, 1, -1, 2, 2]
    assert after.flags.tolist() == [int(flag) for flag in (*flags, flags[1])]
    assert torch.equal(after.boxes, boxes[[0, 1, 2, 3, 4, 1]])
    assert after.labels.dtype == torch.int64
    whole = Annotations(boxes[:1], labels[:1], before.flags[:1])
    assert with_overlapping_regions(whole, overlap) is whole


def test_blank():
    canvas = blank(4, 6, IMAGENET_MEAN)
    assert canvas.shape == (3, 4, 6)
    assert canvas[:, 3, 5].tolist() == list(IMAGENET_MEAN)
    canvas[:, 1:3, 2:4] = 9
    assert int((canvas == 9).sum()) == 12  # memory of its own
    assert np.array_equal(canvas[:, 0, 0], IMAGENET_MEAN)
