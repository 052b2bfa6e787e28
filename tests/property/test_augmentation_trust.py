"""No augmentation makes a negative of what a picture does not know, and none turns an object into background.

What a picture knows is read from the pixels' colours (`coloured`).
"""

import numpy as np
import pytest
import torch
from coloured import FILL, drawn, may_be_negative, own_trust, world
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from crossdet.data.augment import Augment
from crossdet.data.hybrid import VISIBLE, HybridDataset, after_transform
from crossdet.data.loading import MicroBatches, collate, epoch_batches, make_loader
from crossdet.losses import image_focal_losses, negative_weights
from crossdet.models.backbones import Backbone
from crossdet.models.retinanet.anchors import pyramid_grids
from crossdet.models.retinanet.matching import label_anchors
from crossdet.models.retinanet.network import RetinaNet
from crossdet.models.retinanet.settings import RetinaNetLoss, RetinaNetSettings
from crossdet.models.tiles import LocalTrust
from crossdet.types import REGION_FLAGS, Annotations, Flag

AUGMENT = Augment(64, 110, scale_jitter=(0.6, 1.2), zoom_out=0.5, iou_crop=0.5, fill=FILL)


@pytest.fixture(scope="module", params=[0.0, 0.6, 1.0], ids=["no mosaic", "some mosaics", "mosaics"])
def dataset(request, tmp_path_factory) -> HybridDataset:
    return world(tmp_path_factory.mktemp("world"), AUGMENT, request.param)


def network(foreground_negatives: bool = True) -> RetinaNet:
    torch.manual_seed(0)
    loss = RetinaNetLoss(foreground_negatives=foreground_negatives)
    made = RetinaNet(Backbone("mobilenetv2_100"), 5, RetinaNetSettings(channels=8, head_depth=0, loss=loss)).eval()
    predict = made.class_subnet.predict
    nn.init.zeros_(predict.weight)  # every logit is a bias: its gradient tells which anchors are negatives
    nn.init.normal_(predict.bias)
    return made


@pytest.fixture(scope="module")
def networks() -> dict[bool, RetinaNet]:
    return {choice: network(choice) for choice in (True, False)}


@pytest.mark.parametrize("canvases", [0, 3], ids=["as large as the largest", "canvases"])
@pytest.mark.parametrize("seed", range(6))
def test_a_negative_touches_no_pixel_whose_picture_does_not_trust_the_class(dataset, networks, seed, canvases):
    """And every other background is one: the class loss's gradient is that of the trust read from the pixels."""
    foreground_negatives = seed % 2 == 0
    batch, model = drawn(dataset, seed, canvases=canvases), networks[foreground_negatives]
    grid = model.anchor_grid(pyramid_grids(*batch.images.shape[2:], 5))
    labelled = label_anchors(grid, batch.targets)
    distrusted, somewhere = own_trust(dataset, batch)
    allowed = may_be_negative(distrusted, grid.boxes) & somewhere[:, None]

    said = batch.trusted[:, None].expand(-1, len(grid.boxes), -1)
    if batch.tiles is not None:
        said = LocalTrust.of(batch.tiles, grid.boxes).dense()
        tiled = batch.tiles.boxes.flatten(1).any(1)
        assert not (batch.trusted & ~allowed.all(1))[tiled].any()  # a network that ignores the tiles is safe
    weights = negative_weights(labelled.labels, said, avoid=labelled.avoid)
    background = (labelled.labels < 0)[:, :, None]
    assert (weights[background & ~allowed & said] == 0).all()
    if batch.tiles is not None:
        torch.testing.assert_close(said, allowed)

    sure = torch.zeros(labelled.labels.shape, dtype=torch.bool)
    sure[labelled.image, labelled.anchor] = labelled.sure  # other anchors of objects are as background is
    unsure = (labelled.labels >= 0) & ~sure
    assert unsure.any()
    bias = model.class_subnet.predict.bias
    gradient = torch.autograd.grad(model.losses(batch).terms["classification"].sum(), bias)[0]
    leaf = bias.detach().clone().requires_grad_()
    logits = leaf.view(model.num_anchors, -1).repeat(len(grid.boxes) // model.num_anchors, 1)
    wanted = image_focal_losses(
        logits.expand(len(batch), -1, -1), labelled.labels, allowed if batch.tiles is not None else batch.trusted,
        foreground_negatives=sure if foreground_negatives else False, avoid=labelled.avoid,
    )  # fmt: skip
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted.sum(), leaf)[0], rtol=1e-3, atol=1e-4)


def test_a_picture_alone_is_trusted_as_before_whatever_its_border(dataset):
    """Zooming out adds ordinary background; mosaics of pictures that disagree are among the examples above."""
    mixed = 0
    for seed in range(12):
        batch = drawn(dataset, seed)
        for row, image in enumerate(batch.image_ids.tolist()):
            tiled = batch.tiles is not None and bool(batch.tiles.boxes[row].any())
            if not tiled:
                assert torch.equal(batch.trusted[row], dataset.annotations(*dataset.locate(image))[1])
            else:
                mixed += bool((batch.tiles.trusted[row] != batch.tiles.trusted[row, 0]).any())
    assert mixed > 10 if dataset.mosaic else not mixed


def test_naive_concatenation_trusts_every_tile(tmp_path):
    batch = drawn(world(tmp_path, AUGMENT, 1.0, plain=True), 0)
    assert batch.trusted.all()
    assert batch.trusted_somewhere.all()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**31), part=st.booleans())
def test_no_visible_object_becomes_background(seed, part):
    """Each box that reaches into the view is there, over all that is seen of it; and only those are."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(20, 120, 2))
    low = rng.random((6, 2)) * [width - 3, height - 3]
    high = low + 2 + rng.random((6, 2)) * ([width - 2, height - 2] - low)
    boxes = torch.from_numpy(np.concatenate([low, high], 1).astype(np.float32))
    given_flags = torch.from_numpy(rng.choice([0, 0, Flag.CROWD, Flag.DIFFICULT], 6).astype(np.uint8))
    before = Annotations(boxes, torch.arange(6), given_flags)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    torch.manual_seed(seed)
    augment = Augment(60, 100, scale_jitter=(0.5, 1.5), zoom_out=0.6, iou_crop=0.8)
    room = (int(rng.integers(8, 60)), int(rng.integers(8, 60)))
    view = augment.piece(image, boxes, room, 0.8) if part else augment(image, boxes)
    after = after_transform(before, view.boxes, view.image, 1.0)

    limit = torch.tensor([view.image.shape[2], view.image.shape[1]] * 2)
    seen = view.boxes.clamp(min=0).minimum(limit)
    share = (seen[:, 2:] - seen[:, :2]).clamp(min=0).prod(1) / (view.boxes[:, 2:] - view.boxes[:, :2]).prod(1)
    assert after.labels.tolist() == (((seen[:, 2:] - seen[:, :2]).amin(1)) > 0).nonzero().flatten().tolist()
    torch.testing.assert_close(after.boxes, seen[after.labels])
    for label, flags, box in zip(after.labels.tolist(), after.flags.tolist(), after.boxes, strict=True):
        assert flags & int(given_flags[label]) == int(given_flags[label])
        learnt = not flags & REGION_FLAGS
        if learnt:
            assert share[label] >= VISIBLE - 1e-5
            assert (box[2:] - box[:2]).min() >= 1
        elif not given_flags[label] & REGION_FLAGS:
            assert share[label] < VISIBLE + 1e-5 or (box[2:] - box[:2]).min() < 1


def test_the_samples_do_not_depend_on_workers_or_ranks(dataset):
    batches = epoch_batches(dataset.sizes(), dataset.draw_weights(), 4, seed=3, epoch=1)
    alone = [sample for batch in batches for sample in map(dataset.__getitem__, batch)]
    for workers in (1, 2):
        for made, batch in zip(make_loader(dataset, batches, workers, fill=FILL), batches, strict=True):
            wanted = collate([dataset[draw] for draw in batch], FILL)
            assert torch.equal(made.images, wanted.images)
            assert torch.equal(made.trusted, wanted.trusted)
            assert (made.tiles is None) == (wanted.tiles is None)
            if made.tiles is not None:
                assert all(map(torch.equal, made.tiles, wanted.tiles))
            for one, other in zip(made.targets, wanted.targets, strict=True):
                assert torch.equal(one.boxes, other.boxes)
                assert torch.equal(one.flags, other.flags)
    shares = [[draw for micro in MicroBatches(batches, rank=rank, ranks=2) for draw in micro] for rank in (0, 1)]
    assert sorted(shares[0] + shares[1]) == sorted(draw for batch in batches for draw in batch)
    # what a rank or a resumed run draws alone is what it draws among others
    places = {draw: place for place, draw in enumerate(draw for batch in batches for draw in batch)}
    for draw in shares[1]:
        assert torch.equal(dataset[draw].image, alone[places[draw]].image)
