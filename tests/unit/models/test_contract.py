"""What every network must do (models/contract.py): the package's own, and one from outside."""

from __future__ import annotations

import io
import pickle
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from crossdet.models.contract import Growable, Limits, Losses, Network, step_divisor
from crossdet.models.detecting import nms_within
from crossdet.models.detr.architecture import DFINE, RFDETR, RTDETR
from crossdet.models.retinanet.architecture import RETINANET
from crossdet.models.retinanet.settings import RetinaNetSettings
from crossdet.training.state import Average
from crossdet.types import Annotations, Batch, Detections, Flag

from .detr.made import TINY_SETTINGS
from .tiny import TINY, TinySettings

CLASSES = 4
TRUSTED = torch.tensor([[True, True, False, False], [False, False, True, True], [True, True, True, True]])
MADE = {
    "retinanet": (RETINANET, RetinaNetSettings(backbone="test_efficientnet", channels=16, head_depth=1)),
    "tiny": (TINY, TinySettings()),
    "dfine": (DFINE, TINY_SETTINGS["dfine"]),
    "rtdetr": (RTDETR, TINY_SETTINGS["rtdetr v2"]),
    "dfine with nms": (DFINE, TINY_SETTINGS["dfine"].model_copy(update={"nms": True})),
    "rfdetr": (RFDETR, TINY_SETTINGS["rfdetr"]),
}


@pytest.fixture(params=MADE)
def architecture(request):
    return MADE[request.param]


@pytest.fixture
def network(architecture) -> Network:
    torch.manual_seed(0)
    kind, settings = architecture
    made = kind.build(settings, CLASSES, None).double()
    made.training_mode(fixed_statistics=True)  # those of a batch would tie its images together
    if getattr(settings, "nms", False):  # boxes large enough to lie on each other
        made.state_dict()["core.decoder.pre_bbox_head.layers.2.bias"][2:] += 3
    return made


def annotations(boxes: list[list[float]], labels: list[int], flags: list[int] | None = None) -> Annotations:
    return Annotations(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(flags or [0] * len(labels), dtype=torch.uint8),
    )


TARGETS = [
    annotations([[4, 4, 40, 30], [50, 10, 80, 50]], [0, 1]),
    annotations([[10, 10, 60, 60], [70, 2, 90, 22]], [2, 3], [0, int(Flag.IGNORE_REGION)]),
    annotations([], []),
]


def batch_of(rows: list[int], trusted: Tensor = TRUSTED) -> Batch:
    """Images and targets by row, as the loader would give them."""
    images = torch.randint(0, 256, (3, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    sizes = torch.tensor([[64, 96]] * len(rows))
    ids = torch.tensor(rows)
    return Batch(images[rows], sizes, sizes, [TARGETS[row] for row in rows], trusted[rows], ids, ids)


def prepared(network: Network, batch: Batch) -> Batch:
    prepare = network.prepare()
    return batch if prepare is None else prepare(batch)


def gradients(network: Network, losses: Losses) -> dict[str, Tensor]:
    network.zero_grad(set_to_none=True)
    sum(losses.normalised(network.normaliser).values()).backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def test_losses_are_sums_per_image(network):
    losses = network.losses(batch_of([0, 1, 2]))
    assert tuple(losses.terms) == network.terms
    assert losses.positives.shape == (3,)
    assert int(losses.positives[2]) == 0
    for sums in losses.terms.values():
        assert sums.shape == (3,)
        assert bool(sums.isfinite().all())
    alone = [network.losses(batch_of([row])) for row in range(3)]
    for name, sums in losses.terms.items():
        torch.testing.assert_close(sums, torch.cat([one.terms[name] for one in alone]), rtol=1e-9, atol=1e-12)
    assert tuple(losses.noted) == network.noted
    for name, values in losses.noted.items():
        assert not values.requires_grad
        torch.testing.assert_close(values, torch.cat([one.noted[name] for one in alone]))
    torch.testing.assert_close(losses.of_images(), sum(losses.terms.values()).detach())


def test_gradients_of_images_alone_add_up(network):
    """Also those of layers before the losses: the backward of torch's batch norm was wrong for an image alone."""

    def of(rows: list[int]) -> dict[str, Tensor]:
        network.zero_grad(set_to_none=True)
        sum(term.sum() for term in network.losses(batch_of(rows)).terms.values()).backward()
        return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}

    together, *alone = of([0, 1, 2]), of([0]), of([1]), of([2])
    for name, gradient in together.items():
        torch.testing.assert_close(sum(one[name] for one in alone), gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("by", ["batch", "image"])
def test_micro_batches_add_up_to_the_batch(network, by):
    """One object among two images, three in another: they weigh what they weigh in one batch."""
    micro = [prepared(network, batch_of(rows)) for rows in ([0], [1], [2])]
    counts = [network.positives(batch) for batch in micro]
    for batch, positives in zip(micro, counts, strict=True):
        assert torch.equal(positives, network.losses(batch).positives)
        assert torch.equal(positives, network.positives(replace(batch, prepared=None)))
    divisor = step_divisor([count.double() for count in counts], by)

    def gradient(losses: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        network.zero_grad(set_to_none=True)
        for terms in losses:
            (sum(terms.values()) / len(losses)).backward()
        return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}

    whole = gradient([network.losses(batch_of([0, 1, 2])).normalised(by)])
    parts = gradient([network.losses(batch).normalised(by, divisor) for batch in micro])
    assert whole.keys() == parts.keys()
    for name, wanted in whole.items():
        torch.testing.assert_close(parts[name], wanted, rtol=1e-6, atol=1e-9)


def test_half_precision_counts_every_positive():
    half = Losses({"a": torch.ones(1, dtype=torch.bfloat16)}, torch.tensor([257]))  # 256 in bfloat16
    assert float(half.normalised("batch")["a"]) == pytest.approx(1 / 257)


def test_fixed_statistics_are_for_any_batch_norm():
    network = TINY.build(TinySettings(), CLASSES, None)
    network.backbone.append(torch.nn.BatchNorm2d(24))
    network.training_mode()
    assert network.backbone[-1].training
    network.training_mode(fixed_statistics=True)
    assert network.training
    assert not network.backbone[-1].training


def test_prepared_batches_have_the_same_losses(network):
    """What the workers do travels as it is: pickled, and moved to another device."""
    batch = batch_of([0, 1, 2])
    prepare = network.prepare()
    if prepare is not None:
        assert pickle.loads(pickle.dumps(prepare)) is not None
    wanted = network.losses(batch).terms
    for one in (prepared(network, batch), prepared(network, batch).to("cpu"), pickled(prepared(network, batch))):
        for name, sums in network.losses(one).terms.items():
            torch.testing.assert_close(sums, wanted[name], rtol=1e-9, atol=1e-12)


def pickled(batch: Batch) -> Batch:
    from multiprocessing.reduction import ForkingPickler

    return pickle.load(io.BytesIO(ForkingPickler.dumps(batch)))


def test_untrusted_background_gives_exactly_nothing(network):
    """Neither a loss nor a gradient, also where no class is trusted at all."""
    empty = annotations([], [])
    nothing = torch.zeros_like(TRUSTED)
    batch = replace(batch_of([0, 1], nothing), targets=[empty, empty])
    losses = network.losses(batch)
    assert all(bool((sums == 0).all()) for sums in losses.terms.values())
    assert all(bool((g == 0).all()) for g in gradients(network, losses).values())


def test_a_class_that_nobody_trusts_or_shows_changes_nothing(network):
    """Its logits get no gradient, so another dataset's class that shares nothing changes nothing either."""
    trusted = TRUSTED.clone()
    trusted[:, 3] = False
    batch = replace(
        batch_of([0, 2], trusted),
        targets=[annotations([], []), annotations([[4, 4, 40, 30]], [1], [int(Flag.AVOID)])],
    )
    grads = gradients(network, network.losses(batch))
    of_classes = re.compile(r".*(class_subnet\.predict|classes|class_embed(\.\d)?|enc_score_head)\.bias")
    biases = [g for name, g in grads.items() if of_classes.fullmatch(name)]
    assert biases
    for bias in biases:
        assert bool((bias.view(-1, CLASSES)[:, 3] == 0).all())
        assert bool((bias.view(-1, CLASSES)[:, 0] != 0).any())


def test_order_of_images_does_not_matter(network):
    one, other = network.losses(batch_of([0, 1, 2])), network.losses(batch_of([2, 0, 1]))
    for name, sums in one.terms.items():
        torch.testing.assert_close(sums[[2, 0, 1]], other.terms[name], rtol=1e-9, atol=1e-12)
    for by in ("batch", "image"):
        a, b = one.normalised(by), other.normalised(by)
        assert all(float(a[name].detach()) == pytest.approx(float(b[name].detach()), rel=1e-5) for name in a)


def test_detections_are_sorted_clipped_and_as_asked(network):
    batch = batch_of([0, 1])
    sizes = torch.tensor([[64, 96], [50, 70]])
    found = network.float().eval().find(batch.images, sizes, limits=Limits(0.0, max_detections=7))
    assert [len(one) for one in found] == [7, 7]
    for one, (height, width) in zip(found, sizes.tolist(), strict=True):
        assert bool((one.scores.diff() <= 0).all())
        assert bool((one.boxes >= 0).all())
        assert bool((one.boxes <= torch.tensor([width, height, width, height])).all())
    asked = network.find(batch.images, sizes, [2], Limits(0.0, max_detections=7))
    assert all(set(one.labels.tolist()) == {2} for one in asked)
    limits = Limits(torch.tensor([2.0, 2.0, 2.0, 0.0]))  # no score reaches the first three
    assert all(set(one.labels.tolist()) == {3} for one in network.find(batch.images, sizes, limits=limits))


def test_feature_maps_are_of_images_alone(network):
    """Deepest last, one row per image, the same for a picture in any company; gradients reach the backbone."""
    images = batch_of([0, 1, 2]).images
    maps = network.eval().feature_maps(images)
    assert maps
    areas = [one.shape[2] * one.shape[3] for one in maps]
    assert areas == sorted(areas, reverse=True)
    for one, alone in zip(maps, network.feature_maps(images[1:2]), strict=True):
        assert one.shape[0] == 3
        assert one.dim() == 4
        torch.testing.assert_close(one[1:2], alone, rtol=1e-9, atol=1e-12)
    maps[-1].sum().backward()
    (backbone,) = (g.parameters for g in network.parameter_groups() if g.part == "backbone" and g.decay)
    assert any(p.grad is not None and bool((p.grad != 0).any()) for p in backbone)


def test_groups_hold_every_parameter_that_learns_once(network):
    wanted = [p for p in network.parameters() if p.requires_grad]
    found = [p for group in network.parameter_groups() for p in group.parameters]
    assert {id(p) for p in found} == {id(p) for p in wanted}
    assert len(found) == len(wanted)
    assert {group.part for group in network.parameter_groups()} == {"backbone", "rest"}


def test_export_module_gives_the_same_for_any_batch(network):
    module = network.float().eval().export_module()
    shapes = ({0: torch.export.Dim("batch", min=1, max=8)},)
    program = torch.export.export(module, (batch_of([0, 1]).images,), dynamic_shapes=shapes, strict=False).module()
    for rows in ([0, 1], [2], [0, 1, 2]):
        images = batch_of(rows).images
        for got, want in zip(program(images), module(images), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("classes", "asked"), [([0, 1, 2, 3], [0, 1, 2, 3]), ([1, 3], [1, 3]), ([0, 1, 2, 3], [1])]
)
@pytest.mark.parametrize("agnostic", [False, True])
def test_detection_module_finds_what_find_finds(network, classes, asked, agnostic):
    """In pictures of any size, of a batch, and padded; where not all of its classes are asked for, as well."""
    network.float().eval()
    thresholds = torch.tensor([0.1, 0.001, 0.0, 0.0])
    limits = Limits(thresholds, topk=60, max_detections=20, agnostic_nms=agnostic)
    module = network.detection_module(torch.tensor(classes), limits)
    given = torch.full((4,), 2.0)
    given[asked] = thresholds[asked]
    padded = batch_of([0, 1]).images.clone()
    fill = torch.tensor(network.fill_colour, dtype=padded.dtype)[:, None, None]
    padded[1, :, 50:], padded[1, :, :, 70:] = fill, fill
    cases = [(batch_of([0, 1]).images, None), (batch_of([2]).images[:, :, :50, :70], None)]
    if network.stretched_to is None:
        cases.append((padded, torch.tensor([[64, 96], [50, 70]])))
    for images, free in cases:
        sizes = torch.tensor([images.shape[2:]] * len(images)) if free is None else free
        with torch.no_grad():
            boxes, scores, labels = module(images, given) if free is None else module(images, given, free)
            found = network.find(images, sizes, asked, limits)
        for row, wanted in enumerate(found):
            count = int((labels[row] >= 0).sum())
            assert count == len(wanted) > 3
            torch.testing.assert_close(scores[row, :count], wanted.scores, rtol=1e-4, atol=1e-6)
            # as sets, for equal scores may change places; the last one may be another of the same score
            apart = (boxes[row, :count, None] - wanted.boxes).abs().amax(-1)
            apart[labels[row, :count, None] != wanted.labels] = torch.inf
            assert float(apart.amin(0)[:-1].max()) < 1e-2
            assert float(apart.amin(1)[:-1].max()) < 1e-2
            assert not scores[row, count:].any()


def test_agnostic_nms_leaves_the_best_of_all_classes_at_one_place(network):
    batch = batch_of([0, 1])
    limits = Limits(0.001, nms_iou=0.4, max_detections=10, agnostic_nms=True)
    network.float().eval()
    found = network.find(batch.images, batch.sizes, [0, 1, 3], limits)
    everything = replace(limits, nms_iou=1.0, max_detections=10**6, agnostic_nms=False)
    whole = network.find(batch.images, batch.sizes, [0, 1, 3], everything)
    for got, wanted in zip(found, whole, strict=True):
        keep = nms(wanted.boxes, wanted.scores, 0.4)[:10]
        assert len(keep) < len(wanted)
        torch.testing.assert_close(got.boxes, wanted.boxes[keep])
        torch.testing.assert_close(got.scores, wanted.scores[keep])
        assert got.labels.tolist() == wanted.labels[keep].tolist()


def test_finds_of_a_class_suppress_each_other_as_the_settings_say(network):
    batch = batch_of([0, 1])
    limits = Limits(0.001, nms_iou=0.4, max_detections=10)
    network.float().eval()
    everything = replace(limits, nms_iou=1.0, max_detections=10**6)
    whole = network.find(batch.images, batch.sizes, [0, 1, 3], everything)
    for got, wanted in zip(network.find(batch.images, batch.sizes, [0, 1, 3], limits), whole, strict=True):
        keep = batched_nms(wanted.boxes.double(), wanted.scores.double(), wanted.labels, 0.4)
        assert len(keep) < len(wanted) or not network.suppresses
        keep = (keep if network.suppresses else torch.arange(len(wanted)))[:10]
        torch.testing.assert_close(got.boxes, wanted.boxes[keep])
        torch.testing.assert_close(got.scores, wanted.scores[keep])
        assert got.labels.tolist() == wanted.labels[keep].tolist()


def test_no_class_finds_nothing(network):
    """A dataset may have no class of the union left."""
    batch = batch_of([0, 1])
    found = network.float().eval().find(batch.images, batch.sizes, [], Limits(score_threshold=0.0))
    assert [(one.boxes.shape, one.boxes.dtype, len(one.labels)) for one in found] == [
        ((0, 4), torch.float32, 0)
    ] * 2


@pytest.mark.parametrize("rows", [[2], [0, 1, 2]])
def test_every_parameter_takes_part(network, rows):
    """Also where no image has an object: DDP waits for the gradient of every parameter."""
    grads = gradients(network, network.losses(batch_of(rows)))
    assert grads.keys() == {name for name, p in network.named_parameters() if p.requires_grad}


def test_averages_are_copies_with_the_same_names(network):
    average = Average(network, 0.5)
    assert average.module.state_dict().keys() == network.state_dict().keys()
    assert average.module.prepare is not network.prepare
    before = {name: tensor.clone() for name, tensor in average.module.state_dict().items()}
    average.update_parameters(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    average.update_parameters(network)
    after = average.module.state_dict()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(after[name], before[name] + 9 / 11, rtol=1e-6, atol=1e-6)
        assert not torch.equal(parameter, after[name])


def test_settings_know_whether_there_is_batch_norm(architecture):
    kind, settings = architecture
    state = kind.build(settings, CLASSES, None).state_dict()
    assert settings.has_batch_norm or not any("running_mean" in name for name in state)


def test_settings_survive_the_weights_file(architecture):
    kind, settings = architecture
    assert kind.settings.from_json(settings.to_json()) == settings
    assert kind.settings.of(kind.model(), kind.loss()).name == settings.name


def test_old_weights_are_carried_over(architecture):
    """The grown network answers about old classes what the old one did, bit for bit."""
    kind, settings = architecture
    torch.manual_seed(0)
    old = kind.build(settings, CLASSES, None).eval()
    grown = kind.build(settings.extended("replay", 0, CLASSES, CLASSES + 2), CLASSES + 2, None).eval()
    assert isinstance(grown, Growable)
    grown.carry_over(old.state_dict(), CLASSES)
    images, sizes = batch_of([0]).images, torch.tensor([[64, 96]])
    asked = (images, sizes, range(CLASSES), Limits(0.0))
    (before,), (after,) = old.find(*asked), grown.find(*asked)
    assert torch.equal(before.scores, after.scores)
    assert torch.equal(before.boxes, after.boxes)


@pytest.mark.parametrize("name", [name for name, (kind, _) in MADE.items() if "begin_as" in kind.grows_by])
def test_classes_begin_as_others(name):
    """They answer what these do, and nobody else's answers change."""
    kind, settings = MADE[name]
    torch.manual_seed(0)
    network = kind.build(settings, CLASSES + 2, None).eval()
    assert isinstance(network, Growable)
    images, sizes = batch_of([0]).images, torch.tensor([[64, 96]])

    def found(c: int) -> Detections:
        return network.find(images, sizes, [c], Limits(0.0))[0]

    before = [found(c) for c in range(CLASSES + 1)]
    network.begin_as({5: 1, 4: 2})
    for c, other in ((0, 0), (1, 1), (2, 2), (3, 3), (5, 1), (4, 2)):
        torch.testing.assert_close(found(c).scores, before[other].scores)
        torch.testing.assert_close(found(c).boxes, before[other].boxes)
    assert not torch.allclose(found(4).scores, before[4].scores)


def test_suppression_of_many_classes_is_that_of_each_alone():
    """In float32 the places that torchvision gives to 2,000 classes leave a quarter of a pixel."""
    g = torch.Generator().manual_seed(0)
    objects = torch.randint(0, 150, (900,), generator=g)
    centres = torch.rand(150, 2, generator=g)[objects] * 1300 + torch.randn(900, 2, generator=g)
    sides = 8 * (0.6 + 0.8 * torch.rand(900, 2, generator=g))
    boxes, scores = torch.cat([centres - sides / 2, centres + sides / 2], 1), torch.rand(900, generator=g)
    classes = torch.randint(0, 2000, (150,), generator=g)[objects]
    rows = nms_within(boxes, scores, classes, 0.5)
    alone = set()
    for one in classes.unique():
        members = (classes == one).nonzero().squeeze(1)
        alone |= set(members[nms(boxes[members], scores[members], 0.5)].tolist())
    assert set(rows.tolist()) == alone
    assert bool((scores[rows].diff() <= 0).all())
