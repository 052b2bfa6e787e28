"""Class towers of their own for the classes of a frozen extension."""

from __future__ import annotations

import copy
import itertools
import json

import pytest
import torch

from crossdet.errors import UserError
from crossdet.losses import image_focal_losses
from crossdet.models.building import build_detector
from crossdet.models.contract import Limits
from crossdet.models.retinanet.growth import BIAS, WEIGHT, by_class, carry_over, freeze_old
from crossdet.models.retinanet.network import RetinaNet
from crossdet.models.retinanet.settings import Adapter, Anchors, RetinaNetSettings
from crossdet.training.state import Average
from crossdet.types import Annotations, Batch

SETTINGS = RetinaNetSettings(
    backbone="test_efficientnet", channels=16, head_depth=1, group_norm=True,
    anchors=Anchors(scales=(2.0, 3.0), ratios=(0.6, 1.0)),
    freeze_batch_norm=False,
)  # fmt: skip
SHAPES = 4
LAYOUTS = (torch.contiguous_format, torch.channels_last)
IMAGES = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
SIZES = torch.tensor([[64, 96], [50, 90]])


def made(classes: int, *adapters: Adapter) -> RetinaNet:
    return build_detector(SETTINGS.model_copy(update={"adapters": adapters}), classes).eval()


def grown(parent: RetinaNet, classes: int, *adapters: Adapter) -> RetinaNet:
    """The parent with more classes, all rows as if learnt."""
    child = made(classes, *adapters)
    with torch.no_grad():
        child.class_subnet.predict.weight.normal_(0, 0.3)
    carry_over(child, parent.state_dict(), parent.num_classes)
    return child


def made_batch(model: RetinaNet) -> Batch:
    """Objects of the classes 3 and 1 in the first image, of class 2 in the second."""
    boxes = torch.tensor([[8.0, 8, 40, 40], [50, 20, 80, 50]])
    targets = [
        Annotations(boxes[: len(ids)], torch.tensor(ids), torch.zeros(len(ids), dtype=torch.uint8))
        for ids in ([3, 1], [2])
    ]
    trusted = torch.tensor([[True, True, False, True], [False, False, True, False]])
    rows = torch.arange(2)
    return model.prepare()(Batch(IMAGES, SIZES, SIZES, targets, trusted, rows, rows))


@pytest.fixture
def generations() -> list[RetinaNet]:
    """Two classes; one more with an adapter of 6 channels; one more with another of 4."""
    torch.manual_seed(0)
    first = made(2)
    torch.nn.init.normal_(first.class_subnet.predict.weight, std=0.3)
    second = grown(first, 3, Adapter(2, 6, 2))
    return [first, second, grown(second, 4, Adapter(2, 6, 2), Adapter(3, 4, 3))]


def poisoned(model: RetinaNet) -> RetinaNet:
    """With NaN in the newest adapter: times a weight of zero it is NaN, too, so whatever looks at it shows it."""
    with torch.no_grad():
        for module in (model.class_subnet.adapters[-1], model.box_adapters[-1]):
            for parameter in module.parameters():
                parameter.fill_(torch.nan)
    return model


@pytest.mark.parametrize("layout", LAYOUTS)
def test_old_classes_are_bit_identical_and_never_see_the_adapter(generations, layout):
    for parent, child in itertools.pairwise(generations):
        known = parent.num_classes
        parent.to(memory_format=layout)
        child = poisoned(copy.deepcopy(child)).to(memory_format=layout)
        with torch.inference_mode():
            for a, b in zip(parent(IMAGES).logits, child(IMAGES).logits, strict=True):
                assert torch.equal(b[..., :known], a)
                assert b[..., known:].isnan().all()
            before = parent.find(IMAGES, SIZES, limits=Limits(0.0))
            after = child.find(IMAGES, SIZES, range(known), Limits(0.0))
        for a, b in zip(before, after, strict=True):
            assert len(a.boxes) > 10
            assert torch.equal(a.boxes, b.boxes)
            assert torch.equal(a.scores, b.scores)
            assert torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("classes", [None, [0], [3], [1, 2], [0, 3], [2, 3], []])
def test_find_gives_what_decode_of_all_logits_gives(generations, classes):
    model = generations[-1]
    with torch.inference_mode():
        found = model.find(IMAGES, SIZES, classes)
        wanted = model.decode(model(IMAGES), SIZES, classes)
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a.labels, b.labels)
        torch.testing.assert_close(a.scores, b.scores)
        torch.testing.assert_close(a.boxes, b.boxes)


@pytest.mark.parametrize("classes", [[0, 3], [2, 3], [0, 1, 2, 3]])
def test_a_graph_of_some_classes(generations, classes):
    """As `export --classes` makes it: nothing in it depends on what the classes are."""
    module = generations[-1].detection_module(torch.tensor(classes), Limits(0.0, topk=50, max_detections=20)).eval()
    thresholds = torch.full((4,), 0.05)
    with torch.no_grad():
        graph = torch.export.export(module, (IMAGES, thresholds)).module()
        for a, b in zip(graph(IMAGES, thresholds), module(IMAGES, thresholds), strict=True):
            torch.testing.assert_close(a, b)
        assert set(module(IMAGES, thresholds).labels.unique().tolist()) <= {-1, *classes}


def test_the_loss_is_that_of_these_logits(generations):
    """Training computes all rows at once, inference each class with its own channels: the same by the zeros."""
    model = generations[-1].double()
    batch = made_batch(model)
    trusted = batch.trusted
    features = model.features(IMAGES)
    logits = torch.cat(model.head(features).logits, 1)
    wanted = image_focal_losses(logits, batch.prepared.labels, trusted)
    found = model.losses_of(features, batch).terms["classification"]
    torch.testing.assert_close(found, wanted)
    gradients = [
        torch.autograd.grad(loss.sum(), list(model.class_subnet.adapters.parameters()), retain_graph=True)
        for loss in (found, wanted)
    ]
    for a, b in zip(*gradients, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b)


def test_each_class_has_the_boxes_of_its_own_subnet(generations):
    """Bias alone: the box subnet and the adapters move every anchor by 0, 1 and 2 of its widths."""
    model = generations[-1]
    subnets = [model.box_subnet, *model.box_adapters]
    with torch.no_grad():
        for number, subnet in enumerate(subnets):
            subnet.predict.weight.zero_()
            subnet.predict.bias.zero_().view(SHAPES, 4)[:, 0] = number
    batch = made_batch(model)
    with torch.inference_mode():
        outputs = model(IMAGES)
        anchors = torch.cat(model.anchors(outputs.grids))
        wide = (SIZES * 100, None, Limits(0.0, nms_iou=1.0))
        for found in (model.decode(outputs, *wide), model.find(IMAGES, *wide)):
            centres, widths = found[0].boxes[:, ::2].mean(1), found[0].boxes[:, 2] - found[0].boxes[:, 0]
            moved = torch.tensor([0.0, 0.0, 1.0, 2.0])[found[0].labels]
            inside = found[0].boxes[:, 0] > 0
            assert {*found[0].labels[inside].tolist()} == {0, 1, 2, 3}
            back = centres - moved * widths
            nearest = (back[:, None] - anchors[:, ::2].mean(1)).abs().amin(1)
            assert (nearest[inside] < 1e-2).all()
        losses = model.losses_of(model.features(IMAGES), batch).terms["box"]
    assert losses.shape == (2,)
    # the box of class 1 comes from the first subnet, those of 2 and 3 from the adapters
    with torch.no_grad():
        model.box_adapters[1].predict.bias.fill_(torch.nan)
        assert model.losses_of(model.features(IMAGES), batch).terms["box"].isnan().tolist() == [True, False]
        model.box_adapters[1].predict.bias.zero_()
        model.box_subnet.predict.bias.fill_(torch.nan)
        assert model.losses_of(model.features(IMAGES), batch).terms["box"].isnan().tolist() == [True, False]
        model.box_subnet.predict.bias.zero_()
        model.box_adapters[0].predict.bias.fill_(torch.nan)
        assert model.losses_of(model.features(IMAGES), batch).terms["box"].isnan().tolist() == [False, True]


def test_only_the_newest_adapter_and_rows_train(generations):
    model = generations[-1]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    restore = freeze_old(model, 3)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5, momentum=0.9, weight_decay=0.1)
    batch = made_batch(model)
    for _ in range(3):
        sum(model.losses_of(model.features(IMAGES), batch).normalised(model.normaliser).values()).backward()
        optimizer.step()
        restore()
        optimizer.zero_grad()
    after = model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    own = {name for name in after if name.startswith(("class_subnet.adapters.1.", "box_adapters.1."))}
    assert len(own) > 8
    assert changed == {WEIGHT, BIAS, *own}
    for name in (WEIGHT, BIAS):
        assert torch.equal(by_class(after[name], SHAPES)[:, :3], by_class(before[name], SHAPES)[:, :3])
    assert not by_class(after[WEIGHT], SHAPES)[:, :2, 16:].any()
    assert not by_class(after[WEIGHT], SHAPES)[:, 2, 22:].any()


def test_later_all_rows_may_use_all_channels(generations):
    """What a replay extension starts from: the adapters begin at class 0, and nothing has changed yet."""
    parent = generations[-1]
    child = grown(parent, 5, Adapter(0, 6, 2), Adapter(0, 4, 3))
    rows, known = (by_class(m.state_dict()[WEIGHT], SHAPES) for m in (child, parent))
    assert torch.equal(rows[:, :4], known)
    with torch.inference_mode():
        for a, b in zip(parent(IMAGES).logits, child(IMAGES).logits, strict=True):
            torch.testing.assert_close(b[..., :4], a)


def test_later_classes_have_the_boxes_of_the_wide_subnet():
    ends = (Adapter(2, 6, 2, 3), Adapter(3, 4, 3, 4))
    assert made(6, *ends).box_subnet_of.tolist() == [0, 0, 1, 2, 0, 0]
    assert made(6, Adapter(2, 6, 2), Adapter(3, 4, 3)).box_subnet_of.tolist() == [0, 0, 1, 2, 2, 2]
    assert made(4, Adapter(0, 6, 2, 2)).box_subnet_of.tolist() == [0, 0, 0, 0]


def test_settings_know_the_adapters():
    settings = SETTINGS.model_copy(update={"adapters": (Adapter(2, 6, 2),)})
    assert RetinaNetSettings.from_json(settings.to_json()) == settings
    older = {key: value for key, value in json.loads(SETTINGS.to_json()).items() if key != "adapters"}
    assert RetinaNetSettings.from_json(json.dumps(older)) == SETTINGS
    newer = json.loads(settings.to_json()) | {"adapters": [[2, 6, 2, 3, "more"]]}
    with pytest.raises(UserError, match="written by another version"):
        RetinaNetSettings.from_json(json.dumps(newer))
    newer = json.loads(settings.to_json()) | {"anchor_free": True}
    with pytest.raises(UserError, match=r"another version .*\(anchor_free: Extra inputs are not permitted\)"):
        RetinaNetSettings.from_json(json.dumps(newer))


def test_an_adapter_has_a_convolution_where_subnets_have_none():
    model = build_detector(SETTINGS.model_copy(update={"head_depth": 0, "adapters": (Adapter(1, 4, 1),)}), 2)
    assert len(model.class_subnet.adapters[0].tower) == 1
    assert len(model(IMAGES).logits) == 5


@pytest.mark.parametrize("decay", [0.9, 0.9995])
def test_an_average_copies_what_has_no_mean(decay):
    """The box subnet of a class (0 to 3) and batch norm's counts; rounding a mean of them gave the wrong subnet."""
    model = made(5, Adapter(1, 2, 1, 2), Adapter(2, 2, 2, 3), Adapter(3, 2, 3, 4))
    assert model.box_subnet_of.tolist() == [0, 1, 2, 3, 0]
    average = Average(model, decay)
    bias = model.class_subnet.predict.bias
    wanted = bias.detach().clone()
    for step in range(1, 4):
        with torch.no_grad():
            bias += 1.0
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.num_batches_tracked += 1
        average.update_parameters(model)
        means, current = average.module.state_dict(), model.state_dict()
        whole = [name for name, value in current.items() if not value.is_floating_point()]
        assert len(whole) > 3
        assert all(torch.equal(means[name], current[name]) for name in whole)
        kept = min(decay, step / (9 + step))  # n = step - 1 updates before
        wanted = current[BIAS].clone() if step == 1 else kept * wanted + (1 - kept) * current[BIAS]
        torch.testing.assert_close(means[BIAS], wanted, rtol=1e-6, atol=1e-6)
