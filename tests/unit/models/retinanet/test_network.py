"""RetinaNet: initialisation, pyramid, decoding, loss."""

import math

import pytest
import torch
from torch import Tensor, nn

from crossdet.data.loading import pad_images
from crossdet.models.backbones import freeze_batch_norm
from crossdet.models.contract import Limits
from crossdet.models.retinanet.network import CoarseLevels, Outputs, RetinaNet
from crossdet.models.retinanet.settings import PYRAMID_STRIDES
from crossdet.types import Annotations, Batch, Flag

from .made import CLASSES, make


@pytest.fixture(scope="module")
def model() -> RetinaNet:
    return make()


def pictures(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=g, dtype=torch.uint8)


def make_batch(
    images: Tensor, boxes: list[list[list[float]]], flags: int = 0, trusted: Tensor | None = None
) -> Batch:
    count = len(images)
    sizes = torch.tensor([list(images.shape[2:])] * count)
    targets = [
        Annotations(
            torch.tensor(rows, dtype=torch.float32).reshape(-1, 4),
            torch.arange(len(rows)) % CLASSES,
            torch.full((len(rows),), flags, dtype=torch.uint8),
        )
        for rows in boxes
    ]
    if trusted is None:
        trusted = torch.ones(count, CLASSES, dtype=torch.bool)
    rows = torch.arange(count)
    return Batch(images, sizes, sizes, targets, trusted, rows, rows)


# ------------------------------------------------------------------------------------------------ forward


@pytest.mark.parametrize("prior", [0.01, 0.2])
def test_every_class_starts_at_the_prior(prior):
    outputs = make(prior=prior).eval()(pictures(1, 64, 96))
    scores = torch.cat(outputs.logits, 1).sigmoid()
    assert float(scores.detach().mean()) == pytest.approx(prior, rel=0.05)
    assert float((scores - prior).detach().abs().mean()) < 0.2 * prior
    assert float(torch.cat(outputs.deltas, 1).detach().abs().mean()) < 0.3  # boxes start near their anchors


def test_first_loss_is_that_of_the_prior(model):
    """What the prior is for: the background of the first step does not drown the positives."""
    batch = make_batch(pictures(1, 64, 64), [[[10, 10, 42, 42]]])
    sums = model.losses_of(model.features(batch.images), batch)
    anchors = sum(len(a) for a in model.anchors(model(batch.images).grids))
    assert float(sums.terms["classification"].detach()) < anchors * CLASSES * 0.75 * 0.012**2 * 0.013 + 1.3 * int(
        sums.positives
    )
    assert float(sums.terms["classification"].detach()) > 0.25 * 0.98**2 * -math.log(0.012) * int(sums.positives)


def test_p6_comes_from_c5():
    """torchvision's block takes P5 when its channels equal those of C5."""
    block = CoarseLevels(8, 8)
    p5, c5 = torch.randn(1, 8, 4, 6), torch.randn(1, 8, 4, 6)
    results, names = block([p5], [c5], ["c5"])
    assert names == ["c5", "p6", "p7"]
    assert torch.equal(results[0], p5)
    assert torch.equal(results[1], block.p6(c5))
    assert not torch.allclose(results[1], block.p6(p5))
    assert torch.equal(results[2], block.p7(block.p6(c5).relu()))
    assert [tuple(r.shape[2:]) for r in results] == [(4, 6), (2, 3), (1, 2)]


def test_a_picture_is_padded_as_batches_are(model):
    """By the network or before it: bit for bit the same."""
    picture = torch.randint(0, 256, (3, 70, 45), dtype=torch.uint8)
    stack, _ = pad_images([picture], model.fill_colour)
    assert stack.shape[-2:] == (96, 64)
    with torch.no_grad():
        for one, other in zip(model.features(picture[None]), model.features(stack), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (32, 160), (1, 1)])
def test_grids_follow_the_padded_size(model, size):
    """Any size is padded to a multiple of 32; the coarse levels round up."""
    height, width = (-(-side // 32) * 32 for side in size)
    features = model.features(pictures(2, *size))
    want = []
    for stride in PYRAMID_STRIDES:
        want.append((math.ceil(height / stride), math.ceil(width / stride)))
    assert [tuple(f.shape) for f in features] == [(2, 32, h, w) for h, w in want]
    outputs = model.head(features)
    assert outputs.grids == want
    for logits, deltas, anchors, (h, w) in zip(
        outputs.logits, outputs.deltas, model.anchors(outputs.grids), want, strict=True
    ):
        assert logits.shape == (2, h * w * 9, CLASSES)
        assert deltas.shape == (2, h * w * 9, 4)
        assert anchors.shape == (h * w * 9, 4)


def test_padding_is_nearly_zero_after_normalisation(model):
    """An image padded by `features` is the image padded by hand with the mean colour, in whole numbers."""
    image = pictures(1, 40, 50).float()
    padded = model.mean.round().expand(1, 3, 64, 64).clone()
    padded[:, :, :40, :50] = image
    for a, b in zip(model.features(image), model.features(padded), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_uint8_and_float_images_give_the_same(model):
    image = pictures(1, 64, 64)
    for a, b in zip(model.features(image), model.features(image.float()), strict=True):
        assert torch.equal(a, b)


def test_logits_lie_anchor_by_anchor_in_grid_order(model):
    """Row (i * W + j) * A + a of the logits is anchor a at grid position (i, j), as in `anchors`."""
    features = model.features(pictures(1, 64, 96))
    raw = model.class_subnet(features[0])[0]  # [A * C, H, W]
    logits = model.head(features).logits[0][0]
    for i, j, a, c in ((0, 0, 0, 0), (3, 7, 5, 2), (7, 11, 8, 3)):
        assert float(logits[(i * 12 + j) * 9 + a, c].detach()) == pytest.approx(
            float(raw[a * CLASSES + c, i, j].detach()), rel=1e-5
        )


def test_forward_does_not_depend_on_the_mode(model):
    image = pictures(2, 64, 64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        training = model.train()(image)
        evaluating = model.eval()(image)
    for a, b in zip((*training.logits, *training.deltas), (*evaluating.logits, *evaluating.deltas), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_batch_norm_is_trained_unless_frozen():
    model = make(freeze=False)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    before = model.backbone.body.bn1.running_mean.clone()
    model.train().features(pictures(2, 64, 64))
    assert not torch.equal(model.backbone.body.bn1.running_mean, before)
    freeze_batch_norm(model.backbone)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    frozen = model.backbone.body.bn1.running_mean.clone()
    model.train().features(pictures(2, 64, 64))
    assert torch.equal(model.backbone.body.bn1.running_mean, frozen)
    assert not any("bn" in name for name, p in model.backbone.named_parameters() if p.requires_grad)


def test_state_holds_normalisation_and_no_derived_buffer(model):
    names = set(model.state_dict())
    assert {"mean", "std"} <= names
    assert not any(n.startswith("cell_") or n == "overlap" for n in names)
    assert model.mean.flatten().tolist() == pytest.approx([255 * m for m in model.backbone.mean])


# ------------------------------------------------------------------------------------------------ decode


def outputs_with(model: RetinaNet, found: list[tuple[int, int, int, float]], images: int = 1) -> Outputs:
    """Outputs for 128 x 128 that are silent but for (level, row, class, logit), boxes = anchors."""
    grids = [(math.ceil(128 / s), math.ceil(128 / s)) for s in PYRAMID_STRIDES]
    logits = [torch.full((images, h * w * model.num_anchors, CLASSES), -20.0) for h, w in grids]
    deltas = [torch.zeros(images, h * w * model.num_anchors, 4) for h, w in grids]
    for level, row, cls, logit in found:
        logits[level][:, row, cls] = logit
    return Outputs(logits, deltas, grids)


def row_of(level: int, i: int, j: int, a: int = 3) -> int:
    return (i * math.ceil(128 / PYRAMID_STRIDES[level]) + j) * 9 + a


SIZES = torch.tensor([[128, 128]])


def test_nothing_found(model):
    found = model.decode(outputs_with(model, []), SIZES)
    assert len(found) == 1
    assert found[0].boxes.shape == (0, 4)
    assert found[0].boxes.dtype == torch.float32
    assert found[0].scores.shape == found[0].labels.shape == (0,)
    assert found[0].labels.dtype == torch.int64
    some = outputs_with(model, [(0, 5, 1, 3.0)])
    assert len(model.decode(some, SIZES, classes=[])[0]) == 0


def test_boxes_are_the_anchors_by_falling_score(model):
    rows = [(0, row_of(0, 8, 8), 2, 0.5), (1, row_of(1, 1, 1), 0, 2.0), (0, row_of(0, 3, 12), 2, 1.0)]
    outputs = outputs_with(model, rows)
    found = model.decode(outputs, SIZES)[0]
    assert found.labels.tolist() == [0, 2, 2]
    assert found.scores.tolist() == pytest.approx([1 / (1 + math.exp(-z)) for z in (2.0, 1.0, 0.5)])
    anchors = model.anchors(outputs.grids)
    want = torch.stack([anchors[1][rows[1][1]], anchors[0][rows[2][1]], anchors[0][rows[0][1]]])
    torch.testing.assert_close(found.boxes, want.clamp(0, 128))


def test_score_threshold_is_strict(model):
    outputs = outputs_with(model, [(0, row_of(0, 4, 4), 0, 0.0), (0, row_of(0, 12, 12), 1, 0.01)])
    assert model.decode(outputs, SIZES, limits=Limits(score_threshold=0.5))[0].labels.tolist() == [1]
    assert model.decode(outputs, SIZES, limits=Limits(score_threshold=0.4999))[0].labels.tolist() == [1, 0]


def test_nms_is_by_class(model):
    """The same place: two classes stay, of one class the better anchor suppresses the other."""
    here, shifted = row_of(0, 8, 8), row_of(0, 8, 8, 4)  # scales 2 and 3: IoU 4 / 9
    outputs = outputs_with(
        model, [(0, here, 0, 2.0), (0, here, 1, 1.0), (0, row_of(0, 8, 9), 0, 1.5), (0, shifted, 0, 0.5)]
    )
    # one step of 8 px beside a 16 px box: IoU 1 / 3
    assert model.decode(outputs, SIZES, limits=Limits(nms_iou=0.5))[0].labels.tolist() == [0, 0, 1, 0]
    assert model.decode(outputs, SIZES, limits=Limits(nms_iou=0.4))[0].labels.tolist() == [0, 0, 1]
    assert model.decode(outputs, SIZES, limits=Limits(nms_iou=0.3))[0].labels.tolist() == [0, 1]


def test_cap_and_topk(model):
    rows = [
        (0, row_of(0, i, j), (i + j) % CLASSES, 0.1 * i + 0.01 * j) for i in range(0, 16, 3) for j in (2, 8, 14)
    ]
    rows += [(2, row_of(2, 1, 1), 0, -1.0)]
    outputs = outputs_with(model, rows)
    everything = model.decode(outputs, SIZES, limits=Limits(score_threshold=0.1))[0]
    assert len(everything) == 19
    capped = model.decode(outputs, SIZES, limits=Limits(score_threshold=0.1, max_detections=7))[0]
    assert torch.equal(capped.boxes, everything.boxes[:7])
    # top-k is per level: the weak candidate of another level stays
    top = model.decode(outputs, SIZES, limits=Limits(score_threshold=0.1, topk=2))[0]
    assert top.scores.tolist() == [*everything.scores[:2].tolist(), float(everything.scores[-1])]


def test_classes_are_applied_before_topk_and_cap(model):
    """Another class never uses up the candidates of the classes asked for."""
    strong = [(0, row_of(0, i, j), 0, 5.0) for i in (2, 7, 12) for j in (2, 7, 12)]
    weak = [(0, row_of(0, 4, 4), 3, -1.0), (0, row_of(0, 10, 10), 1, -2.0)]
    outputs = outputs_with(model, strong + weak)
    limits = Limits(topk=2, max_detections=2)
    assert model.decode(outputs, SIZES, limits=limits)[0].labels.tolist() == [0, 0]
    for classes in ([3, 1], torch.tensor([3, 1]), [1, 2, 3]):
        found = model.decode(outputs, SIZES, classes=classes, limits=limits)[0]
        assert found.labels.tolist() == [3, 1]  # unified ids, not positions in `classes`
    # the same as looking at everything and throwing the others away, when nothing is limited
    everything = model.decode(outputs, SIZES)[0]
    chosen = model.decode(outputs, SIZES, classes=[1, 3])[0]
    others = everything.labels != 0
    assert torch.equal(chosen.boxes, everything.boxes[others])
    assert torch.equal(chosen.scores, everything.scores[others])


def test_boxes_are_clipped_to_the_image_and_not_to_its_padding(model):
    outputs = outputs_with(model, [(2, row_of(2, 0, 3, 5), 0, 1.0), (0, row_of(0, 15, 15), 1, 2.0)], images=2)
    sizes = torch.tensor([[128, 128], [100, 90]])
    first, second = model.decode(outputs, sizes)
    assert first.labels.tolist() == [1, 0]
    assert first.boxes[1].tolist() == [48.0, 0.0, 128.0, 80.0]  # anchor of 128 px around (112, 16)
    # of the second image only that box is left, cut at x = 90: the other lies in the padding
    assert second.labels.tolist() == [0]
    assert second.boxes[0].tolist() == [48.0, 0.0, 90.0, 80.0]


def test_images_of_a_batch_are_decoded_apart(model):
    images = pictures(3, 96, 64)
    sizes = torch.tensor([[96, 64]] * 3)
    limits = Limits(score_threshold=0.0, topk=50, max_detections=20)
    with torch.no_grad():
        outputs = model(images)
        together = model.decode(outputs, sizes, limits=limits)
    for i in range(3):
        one = Outputs([x[i : i + 1] for x in outputs.logits], [x[i : i + 1] for x in outputs.deltas], outputs.grids)
        alone = model.decode(one, sizes[:1], limits=limits)[0]
        assert len(alone) == 20
        assert torch.equal(alone.boxes, together[i].boxes)
        assert torch.equal(alone.labels, together[i].labels)


# ------------------------------------------------------------------------------------------------ loss


def test_batches_without_any_box(model):
    batch = make_batch(pictures(2, 64, 64), [[], []])
    model.zero_grad()
    losses = model.losses_of(model.features(batch.images), batch).normalised(model.normaliser)
    sum(losses.values()).backward()
    assert set(losses) == {"classification", "box"}
    assert float(losses["box"].detach()) == 0.0
    assert float(losses["classification"].detach()) > 0
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())  # DDP needs one everywhere
    assert (gradients["box_subnet.predict.weight"] == 0).all()


def test_only_regions_and_nothing_trusted_is_a_loss_of_zero(model):
    trusted = torch.zeros(1, CLASSES, dtype=torch.bool)
    batch = make_batch(pictures(1, 64, 64), [[[0, 0, 60, 60]]], int(Flag.IGNORE_REGION), trusted)
    losses = model.losses_of(model.features(batch.images), batch).normalised(model.normaliser)
    assert float(losses["classification"].detach()) == float(losses["box"].detach()) == 0.0


@pytest.mark.parametrize("flag", [Flag.CROWD, Flag.IGNORE_REGION, Flag.AVOID])
def test_regions_are_no_negatives_of_their_class(model, flag):
    """A region over everything, of class 0: the other classes still learn from the background."""
    batch = make_batch(pictures(1, 64, 64), [[[-999, -999, 999, 999]]], int(flag))
    model.zero_grad()
    sums = model.losses_of(model.features(batch.images), batch)
    sums.terms["classification"].sum().backward()
    bias = model.class_subnet.predict.bias.grad.reshape(9, CLASSES)
    assert int(sums.positives) == 0
    assert (bias[:, 0] == 0).all()
    assert (bias[:, 1:] > 0).all()


def test_normalised_by_the_positives_of_the_batch(model):
    batch = make_batch(pictures(2, 64, 96), [[[5, 5, 40, 40], [50, 10, 80, 60]], [[20, 20, 40, 60]]])
    features = model.features(batch.images)
    sums = model.losses_of(features, batch)
    losses = model.losses_of(features, batch).normalised(model.normaliser)
    assert sums.positives.min() > 0
    total = int(sums.positives.sum())
    assert float(losses["classification"].detach()) == pytest.approx(
        float(sums.terms["classification"].detach().sum()) / total, rel=1e-5
    )
    assert float(losses["box"].detach()) == pytest.approx(float(sums.terms["box"].detach().sum()) / total, rel=1e-5)
    for row in range(2):  # the sums of an image do not depend on the other one
        alone = make_batch(batch.images[row : row + 1], [batch.targets[row].boxes.tolist()])
        one = model.losses_of(model.features(alone.images), alone)
        assert float(one.terms["classification"].detach()) == pytest.approx(
            float(sums.terms["classification"][row].detach()), rel=1e-4
        )
        assert float(one.terms["box"].detach()) == pytest.approx(float(sums.terms["box"][row].detach()), rel=1e-4)


def test_options_reach_the_losses():
    batch = make_batch(
        pictures(1, 64, 64),
        [[[5, 5, 40, 40], [20, 20, 60, 60]]],
        trusted=torch.tensor([[True, True, False, False]]),
    )
    overlap = torch.zeros(CLASSES, CLASSES, dtype=torch.bool)
    overlap[0, 1] = overlap[1, 0] = True

    def losses(**options) -> tuple[float, float]:
        model = make(**options)
        found = model.losses_of(model.features(batch.images), batch).normalised(model.normaliser)
        return float(found["classification"].detach()), float(found["box"].detach())

    # a low prior makes the negatives of the foreground too small to see
    plain = losses(prior=0.3)
    assert losses(prior=0.3, foreground_negatives=False)[0] < plain[0]
    assert losses(prior=0.3, overlap=overlap)[0] < plain[0]
    assert losses(prior=0.3, overlap=torch.zeros_like(overlap)) == plain
    assert losses(prior=0.3, alpha=0.5)[0] != plain[0]
    assert losses(prior=0.3, gamma=0.0)[0] > plain[0]
    assert losses(prior=0.3, box_weight=2.0) == pytest.approx((plain[0], 2 * plain[1]), rel=1e-5)
    assert losses(prior=0.3, box_beta=0.0)[1] > plain[1]
    assert losses(prior=0.3, positive_iou=0.9, negative_iou=0.2, low_quality_matches=False) != plain


@pytest.mark.parametrize(("box", "flag"), [([30, 30, 35, 35], 0), ([4, 4, 36, 36], int(Flag.TEACHER))])
def test_an_object_that_its_anchors_hardly_show_is_no_negative_of_untrusted_classes(model, box, flag):
    """A few pixels, whose best anchors are many times larger, or what a teacher took for something: there may be
    an object of a class that nobody labels. The trusted ones learn as ever."""
    trusted = torch.tensor([[True, True, False, False]])

    def gradient(network: RetinaNet) -> Tensor:
        batch = make_batch(pictures(1, 64, 64), [[box]], flag, trusted)
        network.zero_grad()
        network.losses_of(network.features(batch.images), batch).terms["classification"].sum().backward()
        return network.class_subnet.predict.bias.grad.reshape(9, CLASSES).abs().sum(0)

    spared = gradient(model)
    assert (spared[:2] > 0).all()
    assert (spared[2:] == 0).all()
    assert (gradient(make(foreground_negatives="all")) > 0).all()
    assert (gradient(make(foreground_negatives=False))[2:] == 0).all()


def test_untrusted_classes_get_no_gradient_without_foreground(model):
    trusted = torch.tensor([[True, False, True, False]])
    batch = make_batch(pictures(1, 64, 64), [[]], trusted=trusted)
    model.zero_grad()
    model.losses_of(model.features(batch.images), batch).normalised(model.normaliser)["classification"].backward()
    bias = model.class_subnet.predict.bias.grad.reshape(9, CLASSES)
    assert (bias[:, [1, 3]] == 0).all()
    assert (bias[:, [0, 2]] > 0).all()


def test_head_runs_in_bfloat16_under_autocast_and_the_loss_in_float32(model):
    batch = make_batch(pictures(2, 64, 64), [[[5, 5, 40, 40]], []])
    seen = []
    hooks = [
        module.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
        for module in (*model.class_subnet.modules(), *model.box_subnet.modules())
        if isinstance(module, nn.Conv2d)
    ]
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = model.features(batch.images)
            losses = model.losses_of(features, batch).normalised(model.normaliser)
    finally:
        for hook in hooks:
            hook.remove()
    assert seen
    assert set(seen) == {torch.bfloat16}
    assert {f.dtype for f in features} == {torch.bfloat16}
    exact = model.losses_of(model.features(batch.images), batch).normalised(model.normaliser)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        assert float(value.detach()) == pytest.approx(float(exact[name].detach()), rel=0.03)
