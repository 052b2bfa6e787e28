"""Mosaics: where the pictures and their boxes lie, what is trusted, which pictures are drawn."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from crossdet import LabelSpace
from crossdet.data import hybrid
from crossdet.data.augment import Augment
from crossdet.data.drawing import _tile_line, _tiles_of
from crossdet.data.hybrid import Draw, HybridDataset, Part
from crossdet.data.loading import collate
from crossdet.data.mosaic import Piece, joined, rooms
from crossdet.errors import Diverged
from crossdet.training.loop import _stop_with
from crossdet.training.state import Progress
from crossdet.types import Annotations, Batch

from .made import build

FILL = (250, 251, 252)


def test_rooms_fill_the_canvas_around_a_point_near_the_middle():
    rng = np.random.default_rng(0)
    middles = []
    for _ in range(50):
        places = rooms(40, 60, rng)
        covered = np.zeros((40, 60), int)
        for left, top, right, bottom in places:
            covered[top:bottom, left:right] += 1
        assert (covered == 1).all()
        middles.append((places[0][2] / 60, places[0][3] / 40))
    assert np.min(middles) >= 0.3 - 1e-9
    assert np.max(middles) <= 0.7 + 1e-9
    assert np.ptp(middles, axis=0).min() > 0.3
    assert all(min(r - x, b - y) >= 1 for x, y, r, b in rooms(2, 2, rng))


def piece(number: int, height: int, width: int) -> Piece:
    image = torch.full((3, height, width), 10 * number, dtype=torch.uint8)
    target = Annotations(
        torch.tensor([[0.0, 0, width, height]]), torch.tensor([number]), torch.tensor([number], dtype=torch.uint8)
    )
    return Piece(image, target, torch.arange(4) == number, dataset_id=number)


def test_pieces_meet_in_the_middle_and_boxes_go_along():
    places = [(0, 0, 30, 20), (30, 0, 60, 20), (0, 20, 30, 40), (30, 20, 60, 40)]
    pieces = [piece(0, 20, 30), piece(1, 12, 30), piece(2, 20, 9), piece(3, 5, 6)]
    image, target, tiles = joined(pieces, places, (40, 60), FILL)
    wanted = [[0, 0, 30, 20], [30, 8, 60, 20], [21, 20, 30, 40], [30, 20, 36, 25]]
    assert tiles.boxes.tolist() == target.boxes.tolist() == wanted
    assert target.labels.tolist() == target.flags.tolist() == tiles.dataset_ids.tolist() == [0, 1, 2, 3]
    assert torch.equal(tiles.trusted, torch.eye(4, dtype=torch.bool))
    rest = torch.ones(40, 60, dtype=torch.bool)
    for number, (x1, y1, x2, y2) in enumerate(wanted):
        assert (image[:, y1:y2, x1:x2] == 10 * number).all()
        rest[y1:y2, x1:x2] = False
    assert (torch.tensor(FILL) == image[:, rest].T).all()


@pytest.fixture
def dataset(tmp_path) -> HybridDataset:
    """Pictures of grey 10 and 11 in a, 10 to 12 in b; b is drawn three times as often."""
    space = LabelSpace.build({"a": ["cat"], "b": ["dog"]}, absent={"b": ["cat"]})
    box = ((1.0, 2.0, 21.0, 18.0), 0)
    a = build(tmp_path / "a", ["cat"], [[box], []])
    b = build(tmp_path / "b", ["dog"], [[box], [box], [box]])
    parts = [Part(a, 0, space.ids("a", ["cat"])), Part(b, 1, space.ids("b", ["dog"]), weight=3.0)]
    return HybridDataset(parts, space, Augment(48, 200, flip=0.0, fill=FILL), mosaic=1.0)


@pytest.mark.parametrize("size", [(1, 400), (400, 1)])
def test_a_thread_of_a_picture_leaves_room_for_four(tmp_path, size):
    thread = build(tmp_path / "a", ["cat"], [[((0.0, 0.0, 1.0, 1.0), 0)]], size=size)
    space = LabelSpace.build({"a": ["cat"]})
    one = HybridDataset([Part(thread, 0, space.ids("a", ["cat"]))], space, Augment(48, 200), mosaic=1.0)
    for seed in range(5):
        assert sorted(one[Draw(0, seed)].image.shape[1:]) == [2, 200]


def test_three_pictures_are_drawn_by_weight_beside_the_one_asked_for(dataset):
    drawn = Counter()
    for seed in range(80):
        sample = dataset[Draw(0, seed)]
        assert sample.image.shape[1:] == (48, 80)
        assert (sample.image_id, sample.dataset_id, sample.original_size) == (0, 0, (24, 40))
        assert sample.tiles.dataset_ids[0] == 0
        drawn.update(sample.tiles.dataset_ids[1:].tolist())
        assert torch.equal(sample.trusted, sample.tiles.trusted.all(0))
        for box, owner, trusted in zip(*sample.tiles[::2], sample.tiles.trusted, strict=True):
            assert trusted.tolist() == [[True, False], [True, True]][owner]
            x1, y1, x2, y2 = box.int().tolist()
            assert 10 <= sample.image[0, y1:y2, x1:x2].float().mean() <= 12
        assert (sample.target.boxes >= 0).all()
        assert (sample.target.boxes <= torch.tensor([80, 48, 80, 48])).all()
    assert drawn[1] / drawn.total() == pytest.approx(9 / 11, abs=0.08)


def test_the_share_of_mosaics(dataset):
    dataset.mosaic = 0.3
    made = [dataset[Draw(3, seed)] for seed in range(150)]
    assert 30 <= sum(sample.tiles is not None for sample in made) <= 60
    batch = collate(made[:12], FILL)
    tiled = batch.tiles.boxes.flatten(1).any(1)
    assert 0 < int(tiled.sum()) < 12
    assert torch.equal(batch.trusted_somewhere[~tiled], batch.trusted[~tiled])
    assert set(batch.tiles.dataset_ids[~tiled].flatten().tolist()) == {1}
    assert [image for group in batch.trust_groups for image in group.images] == list(range(12))
    for copy in (batch.to("cpu"), batch.to("meta")):
        assert all(t.device == copy.images.device for t in copy.tiles)
    with pytest.raises(ValueError, match=r"tiles\.trusted"):
        replace(batch, tiles=batch.tiles._replace(trusted=batch.tiles.trusted[:, :1]))


def test_unreadable_pictures_of_a_mosaic_are_replaced_and_told(dataset):
    dataset.parts[1].index.path(1).write_bytes(b"")
    told = [dataset[Draw(0, seed)] for seed in range(30)]
    lines = [line for sample in told for line in sample.unreadable]
    assert lines
    assert all("is empty" in line for line in lines)
    assert all((sample.image != 0).any() for sample in told)


def test_the_strip_of_a_drawn_mosaic_says_what_each_tile_avoids(dataset):
    batch: Batch = collate([dataset[Draw(0, 0)]], FILL)
    tiles = _tiles_of(batch, 0)
    lines = [_tile_line(tile, ("a", "b"), dataset.space.classes) for tile in tiles]
    assert lines[0] == "upper left, a: background not used for: dog"
    after = {0: "a: background not used for: dog", 1: "b: background used for all classes"}
    assert lines[3] == f"lower right, {after[int(batch.tiles.dataset_ids[0, 3])]}"
    assert _tiles_of(replace(batch, tiles=None), 0) == []


def test_a_loss_that_is_not_finite_names_all_pictures_of_its_mosaics(dataset, tmp_path, monkeypatch):
    read, read_row = [], hybrid.read_row
    monkeypatch.setattr(
        hybrid, "read_row", lambda index, row: (read.append(index.path(row)), read_row(index, row))[1]
    )
    samples = [dataset[Draw(row, seed)] for row, seed in ((0, 1), (3, 2))]
    assert len(read) == 8
    assert [*dataset.files(0, 1), *dataset.files(3, 2)] == read
    fabric = SimpleNamespace(world_size=1, global_rank=0, barrier=lambda: None)
    run: Any = SimpleNamespace(fabric=fabric, run_dir=tmp_path, progress=Progress())
    with pytest.raises(Diverged) as error:
        _stop_with(run, collate(samples[::-1]), dataset)
    stored = torch.load(tmp_path / "non_finite_batch_rank0.pt", weights_only=True)["files"]
    wanted = {" + ".join(map(str, files)) for files in (read[:4], read[4:])}
    assert set(stored) == wanted
    assert all(files in str(error.value) for files in wanted)
    dataset.mosaic = 0.5
    alone = [seed for seed in range(20) if dataset[Draw(1, seed)].tiles is None]
    assert [seed for seed in range(20) if len(dataset.files(1, seed)) == 1] == alone
    assert 3 < len(alone) < 17
