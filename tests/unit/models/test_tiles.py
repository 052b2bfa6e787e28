"""What a position of a mosaic trusts: by the tiles that it touches."""

import torch

from crossdet.models.tiles import LocalTrust
from crossdet.types import Tiles

# two mosaics of two tiles side by side, with a gap of 2 pixels; the second image is none
BOXES = torch.tensor([[[0.0, 0, 10, 20], [12, 0, 30, 20]], [[0.0] * 4] * 2])
TRUSTED = torch.tensor([[[True, False, True], [True, True, False]], [[False, True, False]] * 2])
TILES = Tiles(BOXES, TRUSTED, torch.tensor([[0, 1], [2, 2]]))
POSITIONS = torch.tensor(
    [[1.0, 1, 5, 5], [13, 1, 20, 5], [9.5, 1, 12.5, 5], [10, 1, 12, 5], [-50, -50, 90, 90], [1, 20, 5, 40]]
)


def test_a_position_trusts_what_all_its_tiles_trust():
    local = LocalTrust.of(TILES, POSITIONS)
    left, right, both, any_tile = [True, False, True], [True, True, False], [True, False, False], [True] * 3
    # in the gap, and touching the lower border from below, there is no picture
    assert local.dense()[0].tolist() == [left, right, both, any_tile, both, any_tile]
    assert local.dense()[1].tolist() == [[False, True, False]] * 6
    image, position = torch.tensor([0, 0, 1]), torch.tensor([2, 1, 4])
    assert local.at(image, position).tolist() == [both, right, [False, True, False]]


def test_some_images_and_classes():
    local = LocalTrust.of(TILES, POSITIONS)
    some = local.of_images([1, 0], torch.tensor([2, 1]))
    assert torch.equal(some.dense(), local.dense()[[1, 0]][:, :, [2, 1]])
    logits = torch.arange(24.0).view(2, 6, 2).requires_grad_()
    hidden = some.hidden(logits)
    assert torch.equal(hidden == -1e4, ~some.dense())
    assert torch.equal(hidden[some.dense()], logits[some.dense()])
    assert torch.equal(some.hidden(logits[:, 2:5], start=2), hidden[:, 2:5])
    hidden.sum().backward()
    assert torch.equal(logits.grad, some.dense().float())
