"""No augmentation makes a negative of what a picture does not know, and none turns an object into background.

Every picture has a colour of its own, so a pixel of an augmented image tells which picture it comes from, and by
that which classes may be told from it: nothing here relies on what the mosaic says about itself.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from crossdet import LabelSpace
from crossdet.data.augment import Augment
from crossdet.data.hybrid import VISIBLE, Draw, HybridDataset, Part, after_transform
from crossdet.data.index import IndexBuilder
from crossdet.data.loading import MicroBatches, collate, epoch_batches, make_loader
from crossdet.losses import image_focal_losses, negative_weights
from crossdet.models.backbones import Backbone
from crossdet.models.retinanet.anchors import pyramid_grids
from crossdet.models.retinanet.matching import label_anchors
from crossdet.models.retinanet.network import RetinaNet
from crossdet.models.retinanet.settings import RetinaNetLoss, RetinaNetSettings
from crossdet.models.tiles import LocalTrust
from crossdet.types import REGION_FLAGS, Annotations, Batch, Flag

NAMES = ("a", "b", "c", "d", "e")
LABELLED = {"first": ["a", "b"], "second": ["b", "c"], "third": ["d"], "fed": ["a", "c", "e"]}
FILL = (250, 250, 250)
IMAGES = 4  # per dataset


def colour(part: int, row: int) -> tuple[int, int, int]:
    return 40 * part + 10, 40 * row + 10, 90


def world(folder: Path, augment: Augment, mosaic: float, plain: bool = False) -> HybridDataset:
    """Four datasets of pictures in one colour each, one of them federated, one partly labelled; some boxes are
    regions, some pictures have none."""
    rng = np.random.default_rng(5)
    space = LabelSpace.build(
        LABELLED, merge={"same_names": True}, absent={"third": ["a"]}, not_exhaustive={"second": ["b"]},
        federated=["fed"],
    )  # fmt: skip
    parts = []
    for number, (name, classes) in enumerate(LABELLED.items()):
        (folder / name).mkdir(exist_ok=True)
        builder = IndexBuilder(folder / name)
        for row in range(IMAGES):
            height, width = (int(side) for side in rng.integers(30, 90, 2))
            picture = np.broadcast_to(np.array(colour(number, row), np.uint8), (height, width, 3))
            Image.fromarray(picture.copy()).save(folder / name / f"{row}.png")
            verified = {"negatives": [int(rng.integers(3))]} if name == "fed" else {}
            builder.image(f"{row}.png", height, width, **verified)
            for _ in range(int(rng.integers(0, 5))):
                low = rng.random(2) * [width - 8, height - 8]
                high = low + 4 + rng.random(2) * ([width - 4, height - 4] - low)
                flag = int(rng.choice([0, 0, 0, Flag.IGNORE_REGION, Flag.CROWD]))
                builder.box((*low, *high), int(rng.integers(len(classes))), flag)
        index = builder.build(classes, federated=name == "fed")
        parts.append(Part(index, number, space.ids(name, classes), weight=1.0 + number % 2))
    return HybridDataset(parts, space, augment, plain=plain, mosaic=mosaic)


AUGMENT = Augment(64, 110, scale_jitter=(0.6, 1.2), zoom_out=0.5, iou_crop=0.5, fill=FILL)


@pytest.fixture(scope="module", params=[0.0, 0.6, 1.0], ids=["no mosaic", "some mosaics", "mosaics"])
def dataset(request, tmp_path_factory) -> HybridDataset:
    return world(tmp_path_factory.mktemp("world"), AUGMENT, request.param)


def own_trust(dataset: HybridDataset, batch: Batch) -> tuple[Tensor, Tensor]:
    """By the pixels' colours. `[B, C, H, W]` bool: the pixel's picture does not trust the class; `[B, C]` bool:
    some picture that is seen does."""
    distrusted = torch.zeros(len(batch), len(dataset.space.classes), *batch.images.shape[2:], dtype=torch.bool)
    somewhere = torch.zeros(len(batch), len(dataset.space.classes), dtype=torch.bool)
    explained = (batch.images == torch.tensor(FILL)[:, None, None]).all(1)
    for part in range(len(LABELLED)):
        for row in range(IMAGES):
            shown = (batch.images.int() - torch.tensor(colour(part, row))[:, None, None]).abs().amax(1) <= 2
            trusted = dataset.annotations(part, row)[1]
            distrusted |= shown[:, None] & ~trusted[:, None, None]
            somewhere |= shown.flatten(1).any(1)[:, None] & trusted
            explained |= shown
    assert explained.all()
    return distrusted, somewhere


def may_be_negative(distrusted: Tensor, anchors: Tensor) -> Tensor:
    """`[B, N, C]`: all pixels that an anchor overlaps at all trust the class (what is no picture, too)."""
    height, width = distrusted.shape[2:]
    sums = nn.functional.pad(distrusted.double().cumsum(2).cumsum(3), (1, 0, 1, 0))
    x1, y1 = (anchors[:, i].floor().clamp(0, s).long() for i, s in ((0, width), (1, height)))
    x2, y2 = (anchors[:, i].ceil().clamp(0, s).long() for i, s in ((2, width), (3, height)))
    x2, y2 = torch.maximum(x1, x2), torch.maximum(y1, y2)
    counts = sums[:, :, y2, x2] - sums[:, :, y1, x2] - sums[:, :, y2, x1] + sums[:, :, y1, x1]
    return (counts == 0).transpose(1, 2)


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


def drawn(dataset: HybridDataset, seed: int, count: int = 4) -> Batch:
    rng = np.random.default_rng(seed)
    draws = [Draw(int(row), int(rng.integers(2**62))) for row in rng.integers(len(dataset), size=count)]
    return collate([dataset[draw] for draw in draws], FILL)


@pytest.mark.parametrize("seed", range(6))
def test_a_negative_touches_no_pixel_whose_picture_does_not_trust_the_class(dataset, networks, seed):
    """And every other background is one: the class loss's gradient is that of the trust read from the pixels."""
    foreground_negatives = seed % 2 == 0
    batch, model = drawn(dataset, seed), networks[foreground_negatives]
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

    bias = model.class_subnet.predict.bias
    gradient = torch.autograd.grad(model.losses(batch).terms["classification"].sum(), bias)[0]
    leaf = bias.detach().clone().requires_grad_()
    logits = leaf.view(model.num_anchors, -1).repeat(len(grid.boxes) // model.num_anchors, 1)
    wanted = image_focal_losses(
        logits.expand(len(batch), -1, -1), labelled.labels, allowed if batch.tiles is not None else batch.trusted,
        foreground_negatives=foreground_negatives, avoid=labelled.avoid,
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
