"""Anchors, box coding and matching against full-matrix references."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_iou

from crossdet.models.retinanet import matching, nearby
from crossdet.models.retinanet.anchors import (
    AnchorGrid,
    AnchorLabels,
    anchor_grid,
    cell_anchors,
    decode_boxes,
    encode_boxes,
    grid_anchors,
)
from crossdet.models.retinanet.settings import PYRAMID_STRIDES
from crossdet.types import BACKGROUND, IGNORE, Annotations, Flag

STRIDES = (8, 16, 32)
GRID = anchor_grid(
    [cell_anchors(stride, [2, 3, 4], [0.5, 1, 2.44]) for stride in STRIDES],
    [(128 // stride, 160 // stride) for stride in STRIDES],
    STRIDES,
)
ALL_ANCHORS = GRID.boxes


def label_anchors(
    grid: AnchorGrid,
    targets: list[Annotations],
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    low_quality_matches: bool = True,
    has_regions: bool | None = None,
) -> AnchorLabels:
    """Every case of this file is labelled as on a CPU and as on other devices, with the same result."""
    arguments = (grid, targets, positive_iou, negative_iou, low_quality_matches, has_regions)
    found, dense = matching.label_anchors(*arguments), matching.label_densely(*arguments)
    for one, other in zip(dense[:4], found[:4], strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    assert sorted(dense.avoid.tolist()) == sorted(found.avoid.tolist())
    assert torch.equal(dense.sure, found.sure)
    iou = box_iou(grid.boxes[found.anchor], found.boxes).diagonal()
    lies_on = iou >= negative_iou
    assert (found.sure <= lies_on)[(iou - negative_iou).abs() > 1e-5].all()
    if not any((target.flags & int(Flag.TEACHER)).any() for target in targets):
        assert (found.sure == lies_on)[(iou - negative_iou).abs() > 1e-5].all()
    return found


def loose(anchors: Tensor | list) -> AnchorGrid:
    """Anchors anywhere: each is the only one of a level, around the centre (0.5, 0.5) of its one cell."""
    anchors = torch.as_tensor(anchors, dtype=torch.float32)
    found = anchor_grid([a[None] - 0.5 for a in anchors], [(1, 1)] * len(anchors), [1] * len(anchors))
    assert torch.allclose(found.boxes, anchors, atol=1e-5)
    return found


def annotations(
    boxes: Tensor | list, labels: Tensor | list | None = None, flags: Tensor | list | None = None
) -> Annotations:
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    count = len(boxes)
    return Annotations(
        boxes,
        torch.as_tensor([0] * count if labels is None else labels, dtype=torch.int64),
        torch.as_tensor([0] * count if flags is None else flags, dtype=torch.uint8),
    )


def random_boxes(count: int, seed: int, grid: float | None = None) -> Tensor:
    """Boxes in an image of 160 x 128; with `grid` on multiples of it, so that IoUs tie."""
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=g) * torch.tensor([130.0, 100.0])
    side = torch.rand(count, 2, generator=g) ** 2 * 70 + 4
    boxes = torch.cat([corner, corner + side], 1)
    return boxes if grid is None else (boxes / grid).round() * grid + torch.tensor([0, 0, grid, grid])


def reference(
    anchors: Tensor, boxes: Tensor, classes: Tensor, high: float, low: float, low_quality: bool
) -> tuple[Tensor, Tensor]:
    """torchvision's matcher on the whole matrix: labels `[N]` and the matched box of every foreground anchor; of
    boxes that are the same each anchor takes the next one, round and round.

    A box that meets no anchor at all is left out: torchvision would call *every* anchor its best (IoU 0) and make
    all of them positives of whatever box is first.
    """
    iou = box_iou(boxes, anchors)
    meets = iou.amax(1) > 0
    boxes, classes, iou = boxes[meets], classes[meets], iou[meets]
    if not len(boxes):
        return torch.full((len(anchors),), BACKGROUND), boxes
    matches = Matcher(high, low, allow_low_quality_matches=low_quality)(iou)
    turns: dict[tuple[float, ...], int] = {}
    for anchor in (matches >= 0).nonzero().flatten().tolist():
        box = tuple(boxes[matches[anchor]].tolist())
        twins = (boxes == boxes[matches[anchor]]).all(1).nonzero().flatten()
        matches[anchor] = twins[turns.get(box, 0) % len(twins)]
        turns[box] = turns.get(box, 0) + 1
    labels = torch.where(
        matches >= 0, classes[matches.clamp(min=0)], torch.where(matches == -1, BACKGROUND, IGNORE)
    )
    return labels, boxes[matches[matches >= 0]]


# ------------------------------------------------------------------------------------------------ anchors


def test_ratio_is_height_over_width():
    """2.44 is a standing pedestrian, not a lying one."""
    cells = cell_anchors(8, [2], [0.5, 1, 2.44])
    width, height = (cells[:, 2:] - cells[:, :2]).unbind(1)
    assert (height / width).tolist() == pytest.approx([0.5, 1, 2.44], rel=1e-6)
    assert height[2] > width[2]


def test_area_is_scale_times_stride_squared_and_not_rounded():
    scales, ratios = [4, 5.03, 6.35], [0.5, 1.0, 2.44]
    for stride in PYRAMID_STRIDES:
        cells = cell_anchors(stride, scales, ratios).double()
        area = (cells[:, 2] - cells[:, 0]) * (cells[:, 3] - cells[:, 1])
        assert area.tolist() == pytest.approx([(s * stride) ** 2 for _ in ratios for s in scales], rel=1e-6)
        assert (cells[:, :2] + cells[:, 2:]).abs().max() == 0  # around the origin
    # 2 * 8 at ratio 0.5 is 22.63 x 11.31; rounded base anchors would be 22 x 12
    assert cell_anchors(8, [2], [0.5])[0].tolist() == pytest.approx([-11.3137, -5.6569, 11.3137, 5.6569], abs=1e-4)


def test_grid_centres_are_half_a_stride_from_the_border():
    cells = cell_anchors(16, [2, 3], [1, 2])
    anchors = grid_anchors(cells, (3, 5), 16).reshape(3, 5, 4, 4)
    for i in range(3):
        for j in range(5):
            for a in range(4):
                x1, y1, x2, y2 = anchors[i, j, a].tolist()
                assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx(((j + 0.5) * 16, (i + 0.5) * 16))
                assert (x2 - x1, y2 - y1) == pytest.approx((cells[a, 2:] - cells[a, :2]).tolist(), rel=1e-6)


def test_grid_is_symmetric_under_flips():
    """So horizontal flips of an image see flipped anchors: no systematic shift of half a stride."""
    anchors = grid_anchors(cell_anchors(8, [2, 4], [0.5, 1]), (4, 6), 8)
    flipped = torch.stack([48 - anchors[:, 2], anchors[:, 1], 48 - anchors[:, 0], anchors[:, 3]], 1)
    assert {tuple(a) for a in anchors.mul(64).round().int().tolist()} == {
        tuple(a) for a in flipped.mul(64).round().int().tolist()
    }


# ------------------------------------------------------------------------------------------------ coding


def test_encode_and_decode_are_inverse_and_torchvisions():
    boxes = random_boxes(200, 1)
    anchors = ALL_ANCHORS[torch.arange(200) * 7 % len(ALL_ANCHORS)]
    deltas = encode_boxes(boxes, anchors)
    torch.testing.assert_close(decode_boxes(deltas, anchors), boxes, rtol=1e-5, atol=1e-4)
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    torch.testing.assert_close(deltas, coder.encode_single(boxes, anchors), rtol=1e-5, atol=1e-5)
    wild = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) * 3
    torch.testing.assert_close(
        decode_boxes(wild, anchors), coder.decode_single(wild, anchors), rtol=1e-5, atol=1e-3
    )


def test_deltas_by_hand_and_capped_scale():
    anchor = torch.tensor([[10.0, 20.0, 30.0, 60.0]])  # 20 x 40 around (20, 40)
    box = torch.tensor([[15.0, 30.0, 55.0, 40.0]])  # 40 x 10 around (35, 35)
    assert encode_boxes(box, anchor)[0].tolist() == pytest.approx([0.75, -0.125, math.log(2), math.log(0.25)])
    huge = decode_boxes(torch.tensor([[0.0, 0.0, 50.0, 50.0]]), anchor)[0]
    assert (huge[2:] - huge[:2]).tolist() == pytest.approx([20 * 1000 / 16, 40 * 1000 / 16])


# ------------------------------------------------------------------------------------------------ matching


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_labels_are_those_of_the_full_matrix(seed, low_quality):
    high, low = [(0.5, 0.4), (0.7, 0.3), (0.5, 0.5)][seed % 3]
    count = [1, 3, 20, 80][seed % 4]
    # every second case on a coarse grid with repeated boxes, so that many IoUs are equal
    boxes = random_boxes(count, seed, grid=8.0 if seed % 2 else None)
    boxes = torch.cat([boxes, boxes[: count // 3]])
    classes = torch.arange(len(boxes)) % 7
    labels, matched = reference(ALL_ANCHORS, boxes, classes, high, low, low_quality)
    found = label_anchors(GRID, [annotations(boxes, classes)], high, low, low_quality)
    assert torch.equal(found.labels[0], labels)
    assert torch.equal(found.boxes, matched)
    assert found.avoid.shape == (0, 3)
    assert (labels >= 0).any() or not low_quality


def watch_pairs(monkeypatch) -> list[int]:
    """How many pairs each call of the pairwise overlap looks at."""
    seen, intersection = [], matching._intersection

    def watched(a: Tensor, b: Tensor) -> Tensor:
        found = intersection(a, b)
        seen.append(found.numel())
        return found

    monkeypatch.setattr(matching, "_intersection", watched)
    return seen


@pytest.mark.parametrize("entries", [1, 300, 3000])
def test_pieces_change_nothing(monkeypatch, entries):
    """Ties between boxes of different pieces too."""
    boxes = torch.cat([random_boxes(40, 5), random_boxes(40, 6, grid=8.0), random_boxes(40, 5)])
    flags = torch.zeros(len(boxes), dtype=torch.uint8)
    flags[::9] = int(Flag.IGNORE_REGION)
    boxes[::9] += torch.tensor([-30.0, -30, 30, 30])
    target = annotations(boxes, torch.arange(len(boxes)) % 11, flags)
    whole = label_anchors(GRID, [target, target])
    for module in (matching, nearby):
        monkeypatch.setattr(module, "CHUNK_ENTRIES", entries)
    monkeypatch.setattr(matching, "DENSE_PAIRS", 50 * entries)
    parts = label_anchors(GRID, [target, target])
    assert torch.equal(parts.labels, whole.labels)
    assert torch.equal(parts.boxes, whole.boxes)
    assert sorted(parts.avoid.tolist()) == sorted(whole.avoid.tolist())
    assert len(whole.avoid) > 100


def test_two_thousand_boxes_are_memory_bounded(monkeypatch):
    """Never more than CHUNK_ENTRIES pairs at once, few of all pairs, and the labels of the full matrix."""
    boxes, classes = random_boxes(2000, 11), torch.arange(2000) % 5
    seen = watch_pairs(monkeypatch)
    for module in (matching, nearby):
        monkeypatch.setattr(module, "CHUNK_ENTRIES", 20_000)
    found = matching.label_anchors(GRID, [annotations(boxes, classes)])
    assert max(seen) <= 20_000
    assert sum(seen) < 0.1 * 2000 * len(ALL_ANCHORS)
    labels, matched = reference(ALL_ANCHORS, boxes, classes, 0.5, 0.4, True)
    assert torch.equal(found.labels[0], labels)
    assert torch.equal(found.boxes, matched)


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("kind", ["tiny", "huge", "thin", "border", "outside"])
def test_odd_boxes_are_matched_as_by_the_full_matrix(kind, low_quality):
    """Where the best anchor of a box has a small IoU, many anchors tie, or windows end at the border."""
    g = torch.Generator().manual_seed(len(kind))
    corner = torch.rand(60, 2, generator=g) * torch.tensor([150.0, 120.0])
    side = {
        "tiny": torch.rand(60, 2, generator=g) * 3 + 0.2,
        "huge": torch.rand(60, 2, generator=g) * 100 + 200,
        "thin": torch.tensor([[150.0, 1.0]]).repeat(60, 1),
        "border": torch.full((60, 2), 16.0),
        "outside": torch.full((60, 2), 40.0),
    }[kind]
    if kind == "border":
        corner = (corner / 160).round() * torch.tensor([144.0, 112.0])  # the four corners, many times
    if kind == "outside":
        corner = corner * 3 - 100
    boxes = torch.cat([corner, corner + side], 1)
    classes = torch.arange(60)
    for anchors in (GRID, anchor_grid([cell_anchors(8, [0.3], [1.0])], [(16, 20)], [8])):
        labels, matched = reference(anchors.boxes, boxes, classes, 0.5, 0.4, low_quality)
        found = label_anchors(anchors, [annotations(boxes, classes)], low_quality_matches=low_quality)
        assert torch.equal(found.labels[0], labels)
        assert torch.equal(found.boxes, matched)


def test_thresholds_by_hand():
    """IoU exactly at the thresholds: 0.5 is positive, 0.4 is ignored, just below it is background."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 25], [0, 0, 10, 26], [50, 50, 60, 60]])
    found = label_anchors(loose(anchors), [annotations([[0, 0, 10, 10]], [3])])
    assert found.labels.tolist() == [[3, 3, IGNORE, BACKGROUND, BACKGROUND]]
    assert found.boxes.tolist() == [[0, 0, 10, 10]] * 2


def test_low_quality_match_takes_the_box_that_is_best_for_the_anchor():
    anchors = torch.tensor([[0.0, 0, 10, 10], [100, 100, 110, 110]])
    # the first box meets only anchor 0, which is a better fit for the second box
    target = annotations([[8, 8, 30, 30], [0, 0, 10, 9]], [1, 2])
    found = label_anchors(loose(anchors), [target])
    assert found.labels.tolist() == [[2, BACKGROUND]]
    assert found.boxes.tolist() == [[0, 0, 10, 9]]
    alone = annotations([[8, 8, 30, 30]], [1])
    assert label_anchors(loose(anchors), [alone]).labels.tolist() == [[1, BACKGROUND]]
    assert label_anchors(loose(anchors), [alone], low_quality_matches=False).labels.tolist() == [[BACKGROUND] * 2]


def test_a_box_of_two_classes_teaches_both():
    """A face that is all that is seen of its person (README's `overlap`)."""
    for seed in range(20):
        one = random_boxes(1, seed)
        found = label_anchors(GRID, [annotations(torch.cat([one, one]), [3, 5])])
        threes, fives = (int((found.labels == c).sum()) for c in (3, 5))
        assert threes - fives in (0, 1)
        assert threes + fives == len(found.boxes)
        assert fives or len(found.boxes) == 1
        alone = label_anchors(GRID, [annotations(one, [3])])
        assert torch.equal(alone.anchor, found.anchor)  # the same anchors, shared


def test_a_region_takes_no_turn():
    box = [20.0, 20, 60, 60]
    target = annotations([box, box, box], [1, 2, 3], [0, int(Flag.CROWD), 0])
    found = label_anchors(GRID, [target])
    assert set(found.labels.unique().tolist()) - {BACKGROUND, IGNORE} == {1, 3}


def test_box_that_meets_no_anchor_makes_no_positives():
    """On purpose unlike torchvision, where all anchors tie at IoU 0 for such a box."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    found = label_anchors(loose(anchors), [annotations([[500, 500, 510, 510]], [0])])
    assert found.labels.tolist() == [[BACKGROUND, BACKGROUND]]
    assert found.boxes.shape == (0, 4)


def test_images_without_boxes_and_order_of_the_batch():
    full = annotations(random_boxes(5, 2), [0, 1, 2, 3, 4])
    empty = annotations([])
    found = label_anchors(GRID, [empty, full, empty])
    assert (found.labels[[0, 2]] == BACKGROUND).all()
    alone = label_anchors(GRID, [full])
    assert torch.equal(found.labels[1], alone.labels[0])
    assert torch.equal(found.boxes, alone.boxes)
    none = label_anchors(GRID, [empty])
    assert none.boxes.shape == (0, 4)
    assert none.avoid.shape == (0, 3)
    assert none.avoid.dtype == torch.int64


def test_boxes_are_in_the_order_of_the_foreground_anchors():
    targets = [annotations(random_boxes(6, s), range(6)) for s in (3, 4)]
    found = label_anchors(GRID, targets)
    image, anchor = (found.labels >= 0).nonzero(as_tuple=True)
    assert len(found.boxes) == len(image)
    for row, (i, a) in enumerate(zip(image.tolist(), anchor.tolist(), strict=True)):
        label = int(found.labels[i, a])
        assert torch.equal(found.boxes[row], targets[i].boxes[label])


# ------------------------------------------------------------------------------------------------ regions


@pytest.mark.parametrize("flag", [Flag.CROWD, Flag.IGNORE_REGION, Flag.AVOID, Flag.INVALID | Flag.IGNORE_REGION])
def test_region_covers_from_as_much_of_the_anchor_as_makes_it_no_negative(flag):
    """An object that fills what the region has of the anchor would have that IoU with it."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [6, 0, 16, 10], [6.1, 0, 16.1, 10], [0, 0, 40, 40], [2, 2, 4, 4]])
    target = annotations([[0, 0, 10, 10]], [6], [int(flag)])
    found = label_anchors(loose(anchors), [annotations([]), target])
    assert (found.labels == BACKGROUND).all()  # never a positive, though anchor 0 is the very box
    # all of anchor 0, exactly 0.4 of 1, less of 2; 1/16 of the large 3, whatever the IoU; all of the small 4
    assert found.avoid.tolist() == [[1, 0, 6], [1, 1, 6], [1, 4, 6]]
    half = label_anchors(loose(anchors + 0.0), [annotations([]), target], 0.7, 0.6)
    assert half.avoid.tolist() == [[1, 0, 6], [1, 4, 6]]
    anchors[1, 0], anchors[1, 2] = 5, 15
    half = label_anchors(loose(anchors), [annotations([]), target], 0.7, 0.6)
    assert half.avoid.tolist() == [[1, 0, 6], [1, 1, 6], [1, 4, 6]]


def test_a_teacher_has_no_doubt_about_what_a_person_labelled():
    """Four anchors inside all regions: of a person's object, of a teacher's, between the thresholds, background."""
    anchors = [[0, 0, 20, 20], [40, 0, 60, 20], [0, 40, 20, 60], [40, 40, 60, 60]]
    boxes = [anchors[0], anchors[1], [0, 40, 20, 49], *[[0, 0, 64, 64]] * 2]
    teacher = int(Flag.TEACHER)
    flags = [0, teacher, 0, teacher | int(Flag.AVOID), int(Flag.AVOID)]
    some = annotations(boxes, [5, 6, 5, 7, 8], flags)
    other = annotations(anchors[:2], [5, 6])  # of another image
    found = label_anchors(loose(anchors), [other, some], low_quality_matches=False)
    assert found.labels.tolist() == [[5, 6, BACKGROUND, BACKGROUND], [5, 6, IGNORE, BACKGROUND]]
    by_teacher = [[1, anchor, 7] for anchor in (1, 2, 3)]
    by_person = [[1, anchor, 8] for anchor in range(4)]
    assert sorted(found.avoid.tolist()) == sorted([*by_teacher, *by_person])


def test_an_anchor_is_sure_where_it_lies_on_an_object_that_a_person_labelled():
    """The second is only the best for a small object, the third shows what a teacher labelled."""
    anchors = [[0, 0, 20, 20], [40, 0, 60, 20], [0, 40, 20, 60], [40, 40, 60, 60]]
    boxes = [[0, 0, 20, 15], [45, 5, 49, 9], anchors[2]]
    found = label_anchors(loose(anchors), [annotations(boxes, [1, 2, 3], [0, 0, int(Flag.TEACHER)])])
    assert found.labels.tolist() == [[1, 2, 3, BACKGROUND]]
    assert found.sure.tolist() == [True, False, False]
    twins = annotations([anchors[0]] * 2, [1, 2], [0, int(Flag.TEACHER)])  # they take their anchors in turns
    found = label_anchors(loose([anchors[0], [0, 0, 20, 19]]), [twins])
    assert (found.labels.tolist(), found.sure.tolist()) == ([[1, 2]], [True, False])


def test_region_of_no_class_and_several_regions():
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    target = annotations(
        [[0, 0, 12, 12], [0, 0, 40, 40], [19, 0, 31, 10]], [2, -1, 3], [int(Flag.CROWD), int(Flag.IGNORE_REGION), 0]
    )
    found = label_anchors(loose(anchors), [target])
    assert found.labels.tolist() == [[BACKGROUND, 3]]  # a region takes no object away
    assert sorted(found.avoid.tolist()) == [[0, 0, -1], [0, 0, 2], [0, 1, -1]]


def test_difficult_boxes_are_ordinary_objects():
    target = annotations([[0, 0, 10, 10]], [1], [int(Flag.DIFFICULT)])
    found = label_anchors(loose([[0.0, 0, 10, 10]]), [target])
    assert found.labels.tolist() == [[1]]
    assert not len(found.avoid)


def avoided_by(region: Tensor, label: int) -> set[tuple[int, int, int]]:
    """None if an object lay there (by torchvision's matcher), or filled what is covered, on the full matrix."""
    meets = torch.minimum(region[2:], ALL_ANCHORS[:, 2:]) - torch.maximum(region[:2], ALL_ANCHORS[:, :2])
    inside = meets.clamp(min=0).prod(1)
    covered = inside >= 0.4 * (ALL_ANCHORS[:, 2:] - ALL_ANCHORS[:, :2]).prod(1)
    as_object, _ = reference(ALL_ANCHORS, region[None], torch.tensor([0]), 0.5, 0.4, low_quality=True)
    return {(0, n, label) for n in (covered | (as_object != BACKGROUND)).nonzero().flatten().tolist()}


@pytest.mark.parametrize("seed", range(4))
def test_regions_are_those_of_the_full_matrix(seed):
    regions = random_boxes(15, seed)
    regions[:, 2:] += 40
    labels = torch.arange(15) % 4 - 1
    target = annotations(regions, labels, [int(Flag.IGNORE_REGION)] * 15)
    found = label_anchors(GRID, [target])
    wanted = set().union(*map(avoided_by, regions, labels.tolist()))
    assert {tuple(row) for row in found.avoid.tolist()} == wanted
    assert len(wanted) > 20


@pytest.mark.parametrize("side", [2, 3, 4, 6, 8, 10, 11, 12, 14, 16, 20, 24, 32, 48, 64])
@pytest.mark.parametrize("low_quality", [True, False])
def test_a_region_of_any_size_avoids_what_an_object_there_would_take(side, low_quality):
    g = torch.Generator().manual_seed(side)
    corner = torch.rand(30, 2, generator=g) * torch.tensor([150.0, 120.0])
    regions = torch.cat([corner, corner + side * (0.7 + 0.6 * torch.rand(30, 2, generator=g))], 1)
    target = annotations(regions, torch.arange(30), [int(Flag.AVOID)] * 30)
    found = label_anchors(GRID, [target], low_quality_matches=low_quality)
    rows = {tuple(row) for row in found.avoid.tolist()}
    for label, region in enumerate(regions):
        of_region = {row for row in rows if row[2] == label}
        assert of_region
        assert of_region == avoided_by(region, label)


def test_regions_in_pieces_are_the_same(monkeypatch):
    regions = random_boxes(40, 5)
    target = annotations(regions, torch.arange(40), [int(Flag.CROWD)] * 40)
    whole = label_anchors(GRID, [target]).avoid
    monkeypatch.setattr(nearby, "CHUNK_ENTRIES", 7)
    assert sorted(label_anchors(GRID, [target]).avoid.tolist()) == sorted(whole.tolist())


@pytest.mark.parametrize("entries", [1, 3000, 10**9])
def test_images_with_very_different_numbers_of_boxes_are_matched_as_alone(monkeypatch, entries):
    """However the batch is cut: the first boxes of all images together, the last of the crowded one alone."""
    for module in (matching, nearby):
        monkeypatch.setattr(module, "CHUNK_ENTRIES", entries)
    monkeypatch.setattr(matching, "DENSE_PAIRS", 50 * entries)
    targets = []
    for row, count in enumerate((3, 0, 40, 1, 17, 40)):
        flags = torch.zeros(count, dtype=torch.uint8)
        flags[::5] = int(Flag.CROWD)
        targets.append(Annotations(random_boxes(count, 50 + row), torch.arange(count) % 7, flags))
    together = label_anchors(GRID, targets)
    alone = [label_anchors(GRID, [target]) for target in targets]
    assert torch.equal(together.labels, torch.cat([one.labels for one in alone]))
    assert torch.equal(together.boxes, torch.cat([one.boxes for one in alone]))
    assert torch.equal(together.anchor, torch.cat([one.anchor for one in alone]))
    wanted = [torch.cat([torch.full((len(o.avoid), 1), i), o.avoid[:, 1:]], 1) for i, o in enumerate(alone)]
    assert sorted(together.avoid.tolist()) == sorted(torch.cat(wanted).tolist())
    same = label_anchors(GRID, targets, has_regions=True)
    assert torch.equal(same.avoid, together.avoid)
