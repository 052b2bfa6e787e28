"""Canvases: which are chosen, that every picture is on one that holds it, and that epochs stay what they were."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from crossdet import LabelSpace
from crossdet.data.augment import Augment
from crossdet.data.canvases import (
    assigned,
    canvases_of,
    choose_canvases,
    jittered_sizes,
    padding,
    resized,
    resized_sizes,
)
from crossdet.data.hybrid import Draw, HybridDataset, Part, Placing
from crossdet.data.index import Index, IndexBuilder
from crossdet.data.loading import MicroBatches, epoch_batches, make_loader, sequential_batches
from crossdet.data.rotation import rotated
from crossdet.evaluation.run import EvalSettings, detect
from crossdet.models.architectures import ARCHITECTURES
from crossdet.models.settings import NetworkSettings
from tests.unit.models.tiny import Tiny, TinySettings

SIZES = [(48, 64)] * 9 + [(64, 48)] * 7 + [(40, 90)] * 5 + [(60, 60)] * 6 + [(90, 41)]
"""Of the pictures below."""
BATCH = 4


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    root = tmp_path_factory.mktemp("pictures")
    builder = IndexBuilder(root)
    for number, (height, width) in enumerate(SIZES):
        Image.fromarray(np.full((height, width, 3), 5 + 8 * number, np.uint8)).save(root / f"{number}.png")
        builder.image(f"{number}.png", height, width)
        builder.box((2, 2, 30, 30), 0)
    return builder.build(["cat"])


def hybrid(index: Index, mosaic: float = 0.0, **options) -> HybridDataset:
    space = LabelSpace.build({"a": ["cat"]})
    part = Part(index, 0, space.ids("a", ["cat"]), one_direction=True)
    return HybridDataset([part], space, Augment(96, 160, flip=0.0, **options), mosaic=mosaic)


def batches_of(dataset: HybridDataset, count: int, epoch: int = 0, **options) -> list[list[Draw]]:
    placing = dataset.placing(dataset.choose_canvases(count))
    sizes, weights = dataset.sizes(), dataset.draw_weights()
    return epoch_batches(sizes, weights, BATCH, 3, epoch, placing=placing, **options)


# ----------------------------------------------------------------------------------------------- the choice


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(32, 900), st.integers(0, 900), st.floats(0.3, 2))
def test_sizes_are_those_of_the_transform(height, width, shorter, more, scale):
    many = resized_sizes(np.array([[height, width]]), shorter, shorter + more, np.array([scale]))
    assert tuple(many[0]) == resized(height, width, shorter, shorter + more, scale)


def test_a_choice_by_hand():
    """Twenty lying, ten upright, one square: the last one must hold all of them. With two the upright pictures go
    there, with three the square one lies among the upright ones: on a smaller canvas."""
    sizes = np.array([(320, 448)] * 20 + [(448, 320)] * 10 + [(320, 320)])
    assert choose_canvases([sizes], 320, 448, count=1) == ((448, 448),)
    assert choose_canvases([sizes], 320, 448, count=2) == ((320, 448), (448, 448))
    assert choose_canvases([sizes], 320, 448, count=3) == ((320, 448), (448, 320), (448, 448))
    four = choose_canvases([sizes], 320, 448, count=4)
    assert four == ((320, 320), (320, 448), (448, 320), (448, 448))
    assert choose_canvases([sizes], 320, 448, count=9) == four
    numbers = assigned(sizes, four)
    assert Counter(numbers.tolist()) == {0: 1, 1: 20, 2: 10}
    assert padding(sizes, four, numbers) == 0
    assert choose_canvases([sizes[:20]], 320, 448, count=6) == ((320, 448),)
    assert choose_canvases([sizes], 320, 448, count=0) == ()


def test_canvases_do_not_part_the_datasets():
    """Two sets of one shape each share a canvas, as they shared batches without; what is upright keeps its own."""
    square, lying = np.array([(320, 320)] * 20), np.array([(320, 448)] * 30)
    assert choose_canvases([np.concatenate([square, lying])], 320, 448) == ((320, 320), (320, 448))
    assert choose_canvases([square, lying], 320, 448) == ((320, 448),)
    upright = np.array([(448, 320)] * 10)
    assert choose_canvases([lying, upright], 320, 448) == ((320, 448), (448, 320), (448, 448))
    # a few strangers among its pictures are not enough, half of their share of all is
    few, enough = (np.concatenate([square, lying[:count]]) for count in (2, 20))
    assert choose_canvases([few, lying], 320, 448) == ((320, 448),)
    with_squares = np.concatenate([lying, square[:15]])
    assert choose_canvases([enough, with_squares], 320, 448) == ((320, 320), (320, 448))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(30, 300), st.integers(30, 300)), min_size=1, max_size=25), st.integers(1, 4))
def test_few_that_hold_all_and_waste_hardly_more_than_the_best(sizes, count):
    found = choose_canvases([np.array(sizes)], 96, 160, (0.8, 1.2), count)
    assert 1 <= len(found) == len(set(found)) <= count
    assert all(side % 32 == 0 for canvas in found for side in canvas)
    wanted = jittered_sizes(np.array(sizes), 96, 160, (0.8, 1.2))
    numbers = assigned(wanted, found)
    assert (wanted <= np.array(found)[numbers]).all()
    cells = sorted({tuple(cell) for cell in (-(-wanted // 32) * 32).tolist()})
    sides = [sorted({cell[i] for cell in cells}) for i in (0, 1)]
    whole = (sides[0][-1], sides[1][-1])
    every = [(h, w) for h in sides[0] for w in sides[1] if (h, w) != whole]
    best = min(
        padding(wanted, chosen, assigned(wanted, chosen))
        for some in combinations(every, min(count, 3) - 1)
        for chosen in [sorted([*some, whole], key=lambda c: c[0] * c[1])]
    )
    assert padding(wanted, found, numbers) <= best + 0.15  # greedy: 0.08 was the worst of some thousand random sets


def test_unknown_sizes_choose_nothing_and_go_where_there_is_most_room():
    sizes = np.array([(0, 0), (100, 50), (50, 100), (50, 100)])
    found = choose_canvases([sizes], 96, 160, count=6)
    assert found == choose_canvases([sizes[1:]], 96, 160, count=6)
    assert assigned(resized_sizes(sizes, 96, 160), found)[0] == len(found) - 1
    assert choose_canvases([sizes[:1]], 96, 160) == ()
    assert canvases_of(sizes[:1], 96, 160) == []
    assert canvases_of(sizes, 96, 160)[2:] == [(96, 160)] * 2


def test_a_network_that_stretches_pictures_to_a_square_has_none_besides():
    kind = ARCHITECTURES["dfine"]
    stretched = kind.settings.of(kind.model(square=64), kind.loss())
    assert stretched.stretched_to == 64
    assert kind.settings.of(kind.model(square=None), kind.loss()).stretched_to is None
    assert NetworkSettings.stretched_to.fget(None) is None


# ------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    "options",
    [{}, {"scale_jitter": (0.6, 1.4)}, {"scale_jitter": (0.7, 1.2), "zoom_out": 0.5, "iou_crop": 0.7},
     {"scale_jitter": (0.7, 1.2), "mosaic": 0.5}],
    ids=["plain", "jitter", "crops", "mosaics"],
)  # fmt: skip
def test_every_image_once_and_every_batch_on_one_of_few_canvases(index, options):
    dataset = hybrid(index, **options)
    canvases = dataset.choose_canvases(5)
    batches = batches_of(dataset, 5)
    assert sorted(draw.row for batch in batches for draw in batch) == list(range(len(SIZES)))
    assert [len(batch) for batch in batches] == [BATCH] * (len(SIZES) // BATCH)
    used = {draw.canvas for batch in batches for draw in batch}
    assert used <= set(canvases)
    assert len(used) > 2
    low, high = options.get("scale_jitter", (1.0, 1.0))
    for draws, batch in zip(batches, make_loader(dataset, batches), strict=True):
        assert {tuple(batch.images.shape[2:])} == {draw.canvas for draw in draws}
        assert all(low <= draw.scale <= high for draw in draws)
        if {"iou_crop", "mosaic"} & options.keys():
            continue
        rows = batch.image_ids.tolist()
        scales = {draw.row: draw.scale for draw in draws}
        wanted = [list(resized(*SIZES[row], 96, 160, scales[row])) for row in rows]
        assert batch.sizes.tolist() == wanted  # nothing becomes smaller for the sake of its canvas
        assert (batch.targets[0].boxes[0, 2:] - 30 * batch.sizes[0].flip(0) / torch.tensor(SIZES[rows[0]][::-1])
                ).abs().max() < 1e-3  # fmt: skip


def test_full_batches_have_the_canvas_of_their_pictures():
    """And those that are left over the smallest that holds them."""
    sizes = np.array([(64, 96)] * 10 + [(96, 64)] * 6, np.int32)
    canvases = ((64, 96), (96, 64), (96, 96))

    def drawn(rows, seeds, generator):
        return np.ones(len(rows)), assigned(sizes[rows].astype(np.int64), canvases)

    batches = epoch_batches(sizes, np.ones(16), 4, 0, 0, placing=Placing(canvases, drawn))
    kinds = [(len(batch), batch[0].canvas, {tuple(sizes[d.row].tolist()) for d in batch}) for batch in batches]
    assert Counter((n, canvas) for n, canvas, _ in kinds) == {(4, (64, 96)): 2, (4, (96, 64)): 1, (4, (96, 96)): 1}
    assert all(kind == {canvas} for _, canvas, kind in kinds[:3])
    joined = epoch_batches(sizes[:13], np.ones(13), 4, 0, 0, min_batch=2, placing=Placing(canvases, drawn))
    assert [len(batch) for batch in joined] == [4, 4, 5]
    assert {draw.canvas for draw in joined[2]} == {(96, 96)}


def test_an_epoch_is_a_function_of_its_number_for_all_ranks(index):
    dataset = hybrid(index, scale_jitter=(0.6, 1.4))
    batches = batches_of(dataset, 4)
    assert batches == batches_of(dataset, 4)
    scales = [{d.row: d.scale for batch in b for d in batch} for b in (batches, batches_of(dataset, 4, epoch=1))]
    assert scales[0] != scales[1]
    parts = [MicroBatches(batches, 1, rank, 2) for rank in (0, 1)]
    for whole, one, other in zip(batches, *parts, strict=True):
        assert sorted([*one, *other]) == sorted(whole)
        assert {draw.canvas for draw in one} == {draw.canvas for draw in other}
    alone, together = (list(make_loader(dataset, batches, workers)) for workers in (0, 2))
    assert all(torch.equal(a.images, b.images) for a, b in zip(alone, together, strict=True))


def test_a_turned_picture_is_placed_by_the_direction_that_is_drawn(index):
    dataset = hybrid(rotated(index, (0, 90)))
    batches = batches_of(dataset, 6)
    turned = 0
    for batch in make_loader(dataset, batches):
        for row, size in zip(batch.image_ids.tolist(), batch.sizes.tolist(), strict=True):
            upright = list(resized(*SIZES[row], 96, 160))
            assert size in (upright, upright[::-1])
            turned += size != upright
    assert 5 < turned < 23


# ----------------------------------------------------------------------------------------------- evaluation


def test_evaluation_looks_at_every_row_once_by_canvas():
    canvases = [(32, 64), (64, 32), (32, 64), (32, 64), (64, 32)]
    batches = sequential_batches(5, 2, canvases=canvases)
    assert [[draw.row for draw in batch] for batch in batches] == [[0, 2], [3], [1, 4]]
    assert all(draw.canvas == canvases[draw.row] for batch in batches for draw in batch)
    parts = [sequential_batches(5, 2, rank, 2, canvases) for rank in (0, 1)]
    assert sorted(draw.row for part in parts for batch in part for draw in batch) == list(range(5))


def test_what_is_found_does_not_depend_on_the_batch(index):
    """Every picture has its own canvas, whoever is beside it; and all come in the order of the images."""
    torch.manual_seed(0)
    network = Tiny(TinySettings(), 1, None)
    looks = [detect(network, index, None, EvalSettings(64, 96, 0.0, batch_size=size)) for size in (1, 5)]
    one, five = (found.detections for found in looks)
    assert (np.diff(one.image_of_box) >= 0).all()
    assert set(one.image_of_box) == set(range(len(SIZES)))
    for name in ("boxes", "scores", "labels", "image_of_box"):
        np.testing.assert_allclose(getattr(one, name), getattr(five, name), rtol=1e-4, atol=1e-4)


def test_pictures_that_cannot_be_read_are_told_in_their_order(index, tmp_path: Path):
    builder = IndexBuilder(tmp_path)
    for number, size in enumerate([(48, 64), (64, 48), (48, 64), (64, 48)]):
        builder.image(f"{number}.png", *size)
    found = detect(Tiny(TinySettings(), 1, None), builder.build(["cat"]), None, EvalSettings(64, 96))
    assert [line.split(".png")[0][-1] for line in found.unreadable] == ["0", "1", "2", "3"]
