"""Detectors over the modules of HF transformers: their answers, and the leaks that are not in the loss."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from crossdet.errors import UserError
from crossdet.models.architectures import ARCHITECTURES
from crossdet.models.backbones import Backbone
from crossdet.models.contract import Limits
from crossdet.models.detr.architecture import DFINE, RFDETR, build, contradictions
from crossdet.models.detr.boxes import corners
from crossdet.models.detr.building import OLDEST, hf_config, hf_name
from crossdet.models.detr.denoising import MOST, PADDING, Settings, add_noise, attention_mask
from crossdet.models.detr.growth import EMBEDDING
from crossdet.models.detr.network import Detr, stretched_by_products
from crossdet.models.detr.objects import objects_of, own_classes
from crossdet.models.detr.selection import chosen
from crossdet.models.detr.settings import DetrLoss, DFineModel, DFineSettings, RTDetrModel, RTDetrSettings
from crossdet.models.settings import NetworkDefaults
from crossdet.types import Batch, Flag, trust_groups

from .made import TINY_SETTINGS, annotations, class_tensors, flat, hf_labels, random_targets, tiny

CLASSES = 4
TARGETS = [
    annotations([[4, 4, 40, 30], [50, 10, 80, 50]], [0, 1]),
    annotations([[10, 10, 60, 60], [70, 2, 90, 22]], [2, 3], [0, int(Flag.IGNORE_REGION)]),
    annotations([], []),
]
TRUSTED = torch.tensor([[True, True, False, False], [False, False, True, True], [True, True, False, False]])


def batch_of(trusted: Tensor = TRUSTED, draws: tuple[int, ...] = (5, 6, 7)) -> Batch:
    images = torch.randint(0, 256, (3, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    sizes, ids = torch.tensor([[64, 96]] * 3), torch.arange(3)
    return Batch(images, sizes, sizes, TARGETS, trusted, ids, ids, draws=torch.tensor(draws))


def learning(network: Detr) -> Detr:
    network.training_mode(fixed_statistics=True)
    return network


def loss_of(network: Detr, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """`[B]` sums of all terms, and the gradients."""
    network.zero_grad(set_to_none=True)
    losses = network.losses(batch)
    sums = torch.stack(list(losses.terms.values())).sum(0)
    sums.sum().backward()
    return sums.detach(), {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


def sorted_rows(values: Tensor) -> Tensor:
    """Queries in an order of their own: which comes first among equals is nobody's."""
    order = values[:, 0].argsort(stable=True)
    return values[order]


@pytest.mark.parametrize("name", TINY_SETTINGS)
def test_answers_are_those_of_hf(name):
    from transformers import AutoModelForObjectDetection

    network = tiny(name).eval()
    whole: Any = AutoModelForObjectDetection.from_config(hf_config(network.settings, CLASSES)).eval()
    lost = whole.load_state_dict({hf_name(n): t for n, t in network.core.state_dict().items()}, strict=False)
    assert not lost.unexpected_keys
    assert all(key.startswith(("class_embed", "bbox_embed")) for key in lost.missing_keys)  # tied
    images = batch_of().images
    with torch.no_grad():
        wanted = whole(network.pictures(images, None))
        logits, boxes = network.export_module()(images)
    size = torch.tensor([96, 64, 96, 64])
    theirs = corners(wanted.pred_boxes) * size
    for image in range(3):
        ours = sorted_rows(torch.cat([logits[image], boxes[image]], 1))
        others = sorted_rows(torch.cat([wanted.logits[image], theirs[image]], 1))
        torch.testing.assert_close(ours, others, rtol=1e-4, atol=1e-4)


def test_groups_of_queries_have_the_loss_of_hf():
    """From pictures on: selection and decoder of every group, and the criterion, where all is trusted."""
    from transformers import AutoModelForObjectDetection

    network = learning(tiny("rfdetr"))
    with torch.no_grad():
        network.core.reference_point_embed.weight.normal_(std=0.1)
    whole: Any = AutoModelForObjectDetection.from_config(hf_config(network.settings, CLASSES)).train()
    whole.load_state_dict({hf_name(n): t for n, t in network.core.state_dict().items()})
    batch = replace(batch_of(torch.ones_like(TRUSTED)), targets=[TARGETS[0], TARGETS[0], TARGETS[2]])
    objects, _ = objects_of(batch.targets, batch.sizes)
    wanted = whole(network.pictures(batch.images, batch.sizes), labels=hf_labels(objects)).loss
    losses = network.losses(batch)
    assert losses.positives.tolist() == [2, 2, 0]
    found = sum(losses.normalised("batch").values())
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    wanted.backward()
    found.backward()
    theirs = dict(whole.named_parameters())
    grads = {hf_name(n): p.grad for n, p in network.core.named_parameters() if p.requires_grad}
    assert len(grads) > 100
    for name, gradient in grads.items():
        torch.testing.assert_close(gradient, theirs[name].grad, rtol=1e-3, atol=1e-6)


def test_selection_by_own_classes_all_and_half():
    head = torch.nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    memory = torch.tensor([[[5.0, 0.0], [4.0, 0.0], [0.0, 9.0], [0.0, 8.0], [3.0, 7.0]]])
    groups = trust_groups(torch.tensor([[True, False, False]]))
    found = {how: set(chosen(memory, head, groups, 2, how)[0].tolist()) for how in ("trusted", "union", "split")}
    assert found == {"trusted": {0, 1}, "union": {2, 3}, "split": {0, 2}}
    nothing = trust_groups(torch.zeros(1, 3, dtype=torch.bool))
    with torch.no_grad():
        head.weight[1:] = torch.nan  # rows of other classes are not computed, so their number costs nothing
    assert set(chosen(memory, head, groups, 2, "trusted")[0].tolist()) == {0, 1}
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    assert set(chosen(memory, head, nothing, 2, "trusted")[0].tolist()) == {2, 3}
    assert chosen(memory, head, groups, 99, "trusted").shape == (1, 5)
    with torch.no_grad():
        head.weight[0, 0] = 9.0  # an older class, in a frozen extension by the two others
    for begin, wanted in ((0, {0, 1}), (1, {2, 3})):
        assert set(chosen(memory, head, groups, 2, "union", None, begin)[0].tolist()) == wanted
        assert set(chosen(memory, head, nothing, 2, "trusted", None, begin)[0].tolist()) == wanted


def test_noise_stays_with_its_image():
    """Flips within own classes, whatever else is in the batch; equal draws give equal noise."""
    targets = random_targets([3, 0, 1], 6, torch.Generator().manual_seed(0))
    objects, _ = flat(targets)
    trusted = torch.zeros(3, 6, dtype=torch.bool)
    trusted[:, 5] = True
    own = own_classes(trusted, objects)
    noise = add_noise(objects, own, [1, 2, 3], Settings(40, flips=2.0))
    given = noise.labels[noise.group != PADDING]
    image = (noise.group != PADDING).nonzero()[:, 0]
    assert bool(own[image, given].all())
    assert len(set(given[image == 0].tolist())) > 1
    assert bool((noise.labels[noise.group == PADDING] == 6).all())
    assert noise.noised.groups.tolist() == [13, 0, 40]
    anything = add_noise(objects, own, [1, 2, 3], Settings(40, flips=2.0, any_class=True))
    assert not bool(own[image, anything.labels[noise.group != PADDING]].all())

    (alone, _), last = flat([targets[2]]), slice(0, 80)
    same = add_noise(alone, own[2:], [3], Settings(40, flips=2.0))
    assert torch.equal(same.labels[0], noise.labels[2, last])
    assert torch.equal(same.boxes[0], noise.boxes[2, last])
    assert not torch.equal(add_noise(alone, own[2:], [4], Settings(40)).boxes, same.boxes)

    # positives are moved by less than half a side, the others by more
    first = noise.noised.pairs.image == 0
    moved = (corners(noise.boxes[0]) - corners(objects.boxes[0])).abs() / objects.boxes[0, 2:].repeat(2)
    positive = noise.noised.pairs.query[first][noise.noised.pairs.object[first] == 0]
    assert float(moved[positive].amax()) <= 0.5 + 1e-5
    assert add_noise(objects, own, [1, 2, 3], Settings(0)) is None


def test_a_crowd_is_given_to_the_decoder_in_part():
    """2,000 faces would be 4,000 queries. Those that are drawn stand for all in the sums, and change by epoch."""
    crowd = [[x % 40, x // 40, x % 40 + 1.0, x // 40 + 1.0] for x in range(700)]
    targets = [annotations(crowd, [0] * 700), annotations([[4, 4, 40, 30]], [1])]
    objects, _ = objects_of(targets, torch.tensor([[64, 64]] * 2))
    own = torch.ones(2, 2, dtype=torch.bool)
    noise = add_noise(objects, own, [1, 2], Settings(100))
    assert noise.labels.shape == (2, 2 * MOST)
    of_crowd = noise.noised.pairs.object[noise.noised.pairs.image == 0]
    assert len(of_crowd) == len(of_crowd.unique()) == MOST
    assert of_crowd.max() < 700
    assert float(MOST / noise.noised.groups[0]) == pytest.approx(700)
    assert int(noise.noised.groups[1]) == 100
    many = add_noise(objects, own, [1, 2], Settings(1000)).noised  # three copies of those that are drawn
    assert float((many.pairs.image == 0).sum() / many.groups[0]) == pytest.approx(700)
    assert not torch.equal(of_crowd, add_noise(objects, own, [3, 2], Settings(100)).noised.pairs.object[:MOST])


def test_queries_see_no_objects_that_were_given():
    group = torch.tensor([[0, 0, 1, PADDING]])
    mask = attention_mask(group, 2, torch.float32)[0, 0] == 0
    assert mask.int().tolist() == [
        [1, 1, 0, 0, 1, 1],
        [1, 1, 0, 0, 1, 1],
        [0, 0, 1, 0, 1, 1],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1],
    ]


def test_losses_depend_on_the_draw_only_through_the_noise():
    network = learning(tiny("dfine").double())
    one, other = (network.losses(batch_of(draws=draws)).terms for draws in ((5, 6, 7), (8, 9, 10)))
    for name in network.terms:
        alike = torch.allclose(one[name], other[name])
        assert alike == (name != "denoising"), name
    again = network.losses(batch_of()).terms
    assert all(torch.equal(again[name], one[name]) for name in one)


def test_padding_row_of_the_embedding_does_not_learn():
    network = learning(tiny("rtdetr v2"))
    _, gradients = loss_of(network, batch_of())
    assert bool((gradients[EMBEDDING][-1] == 0).all())


@pytest.mark.parametrize(
    ("name", "model", "shorter", "side"),
    [
        ("dfine", {}, 160, 160),
        ("rtdetr", {"square": "auto"}, 500, 512),
        ("rtdetr", {}, 20, 32),
        ("dfine", {"square": 96}, 160, 96),
        ("dfine", {"square": None}, 160, None),
        ("rfdetr", {}, 160, 512),
        ("rfdetr", {"square": None, "size": "nano"}, 160, 384),
    ],
)
def test_the_square_is_as_large_as_pictures_unless_somebody_says_more(name, model, shorter, side):
    """A new detector; those of checkpoints: test_checkpoints."""
    kind = ARCHITECTURES[name]
    given, loss = kind.model.model_validate(model), kind.loss()
    assert kind.settings.of(given, loss, NetworkDefaults(side=shorter)).stretched_to == side
    assert kind.settings.side_of(given, loss, shorter) == side


@pytest.mark.parametrize(("name", "wrong"), [("dfine", 50), ("dfine", "large"), ("rfdetr", 31), ("rtdetr", True)])
def test_squares_that_cannot_be(name, wrong):
    with pytest.raises(ValidationError, match="auto or null, got"):
        ARCHITECTURES[name].model(square=wrong)


def test_pictures_are_stretched_to_a_square():
    """The same picture with other padding has the same answers, in its own pixels."""
    network = tiny("dfine", square=64).eval()
    picture = torch.randint(0, 256, (1, 3, 50, 70), dtype=torch.uint8)
    small, large = torch.zeros(1, 3, 64, 96, dtype=torch.uint8), torch.full((1, 3, 96, 128), 77, dtype=torch.uint8)
    small[..., :50, :70], large[..., :50, :70] = picture, picture
    size = torch.tensor([[50, 70]])
    (one,), (other,) = (network.find(images, size, limits=Limits(0.0)) for images in (small, large))
    assert torch.equal(one.boxes, other.boxes)
    assert float(one.boxes[:, 2].amax()) > 50  # pixels of the picture, not of the square
    losses = learning(network).losses(replace(batch_of(), sizes=torch.tensor([[64, 96], [60, 91], [50, 70]])))
    assert all(bool(term.isfinite().all()) for term in losses.terms.values())


@pytest.mark.parametrize("name", ["dfine", "rfdetr"])
def test_pictures_that_are_the_square_already_stay_as_they_are(name, monkeypatch):
    """Which the workers say, so that a step need not ask the device."""
    network = learning(tiny(name, square=96))
    images = F.interpolate(batch_of().images.float(), (96, 96)).byte()
    batch = replace(batch_of(), images=images, sizes=torch.full((3, 2), 96))
    ready = network.prepare()(batch)
    assert ready.prepared.full
    wanted = network.losses(replace(ready, prepared=ready.prepared._replace(full=False))).terms
    padded = replace(batch, sizes=torch.tensor([[96, 96], [96, 90], [96, 96]]))
    assert not network.prepare()(padded).prepared.full
    assert not tiny(name).prepare()(batch).prepared.full or name == "rfdetr"  # which has a square always

    def refused(*_given):
        raise AssertionError

    monkeypatch.setattr(network, "pictures", refused)
    found = network.losses(ready).terms
    for key, sums in found.items():
        torch.testing.assert_close(sums, wanted[key])


@pytest.mark.parametrize("name", ["dfine", "rtdetr v1", "rfdetr"])
def test_half_precision(name):
    network = learning(tiny(name))
    wanted = network.losses(batch_of()).terms
    with torch.autocast("cpu", torch.bfloat16):
        losses = network.losses(batch_of())
        (found, *_) = network.eval().find(batch_of().images, batch_of().sizes, limits=Limits(0.0))
    assert len(found)
    for key, sums in losses.terms.items():
        assert sums.dtype == torch.float32
        torch.testing.assert_close(sums.sum(), wanted[key].sum(), rtol=0.3, atol=0.3)


def test_it_learns():
    """A few steps on one batch: the loss falls by a third."""
    network = learning(tiny("dfine", prior=0.1))
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    values = []
    for _ in range(30):
        losses = network.losses(batch_of())
        total = sum(losses.normalised("batch").values())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        values.append(float(total.detach()))
    assert values[-1] < 0.7 * values[0]


def test_feature_maps_are_those_of_the_backbone():
    maps = tiny("rtdetr v2").eval().feature_maps(batch_of().images)
    assert [tuple(m.shape) for m in maps] == [(3, 12, 8, 12), (3, 16, 4, 6), (3, 20, 2, 3)]


def test_scales_of_batch_norm_are_one():
    """HF draws them around 0."""
    scales = [m.weight for m in tiny("rtdetr v2").modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert scales
    assert all(bool((scale == 1).all()) for scale in scales)


def test_timm_backbone():
    network = tiny("dfine", backbone="test_efficientnet")
    body = network.core.backbone.model
    assert list(body.channels) == list(network.core.config.encoder_in_channels)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in body.modules())
    assert any(type(m).__name__ == "FrozenBatchNormAct2d" for m in body.modules())  # the activations are there
    assert [round(value) for value in network.fill_colour] == [124, 116, 104]
    assert all(bool(t.isfinite().all()) for t in learning(network).losses(batch_of()).terms.values())


OF_HF = ("embedder.", "encoder.stages.0.")


def test_weights_of_the_timm_backbone_from_a_file(tmp_path):
    """As RetinaNet takes them, and where no hub can be reached; all else begins as without."""
    backbone = Backbone("test_efficientnet", pretrained=False)
    file = tmp_path / "backbone.safetensors"
    own = backbone.body.state_dict()
    state = {name: torch.rand(t.shape) if t.is_floating_point() else t for name, t in own.items()}
    save_file({**state, "classifier.weight": torch.zeros(3)}, file)
    model = DFineModel(size="nano", backbone="test_efficientnet", weights=file)
    assert not list(contradictions(model))
    assert DFINE.weights_problem(model) is None
    defaults = NetworkDefaults(train_batch_norm=True, side=64)
    settings = DFineSettings.of(model, DetrLoss(), defaults)
    assert (settings.square, settings.freeze_batch_norm, settings.backbone) == (64, False, "test_efficientnet")
    assert DFineSettings.of(model, DetrLoss(), NetworkDefaults()).freeze_batch_norm  # as with `imagenet`
    torch.manual_seed(0)
    network = DFINE.build(settings, CLASSES, None, file)
    torch.manual_seed(0)
    without = DFINE.build(settings, CLASSES, None, "none").state_dict()
    place, found = "core.backbone.model._backbone.", network.state_dict()
    for name in state:
        assert torch.equal(found[place + name], state[name]), name
    rest = [name for name in found if not name.startswith(place)]
    assert len(rest) > 50
    assert all(torch.equal(found[name], without[name]) for name in rest)
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=r"model.weights: .*backbone.safetensors does not fit the backbone: "):
        DFINE.build(settings, CLASSES, None, file)
    gone = DFineModel(backbone="test_efficientnet", weights=tmp_path / "gone.safetensors")
    assert "gone.safetensors does not exist; give a file" in str(DFINE.weights_problem(gone))
    alone = DFINE.weights_problem(DFineModel(weights=file))
    assert "or beside `model.backbone` a file of that backbone's weights" in str(alone)


OF_TIMM = ("_backbone.conv_stem.", "_backbone.bn1.", "_backbone.blocks.0.", "_backbone.blocks.1.")


@pytest.mark.parametrize(
    ("name", "backbone", "stem"),
    [("dfine", None, OF_HF), ("rtdetr v2", None, OF_HF), ("dfine", "test_efficientnet", OF_TIMM)],
)
def test_frozen_stem(name, backbone, stem):
    """Nothing of it moves, neither a weight nor a statistic; all behind it does."""
    network = tiny(name, backbone=backbone, freeze_batch_norm=False)
    network.freeze_stem()
    body = network.core.backbone.model
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    network.training_mode()
    optimiser = torch.optim.SGD((p for p in network.parameters() if p.requires_grad), 0.1)
    sum(network.losses(batch_of()).normalised("batch").values()).backward()
    optimiser.step()
    still = {name for name, tensor in body.state_dict().items() if torch.equal(tensor, before[name])}
    frozen = {name for name in before if name.startswith(stem)}
    assert 0 < len(frozen) < len(before)
    assert frozen <= still
    weights = dict(body.named_parameters())  # before a batch norm the gradient of a shift can be 0 in earnest
    assert all(weights[name].requires_grad and not weights[name].grad.any() for name in still - frozen)


def test_a_vision_transformer_has_no_stem():
    with pytest.raises(UserError, match=r"train.freeze_stem: the backbone of rfdetr is a vision transformer"):
        tiny("rfdetr").freeze_stem()


@pytest.mark.parametrize("name", ["dfine", "rtdetr v2", "rfdetr"])
def test_frozen_extension_leaves_old_detections_bit_for_bit(name):
    """New classes have queries of their own; with one set they would take places of the old ones."""
    old = tiny(name, prior=0.2).eval()
    settings = old.settings.extended("frozen", 0, CLASSES, CLASSES + 2)
    assert settings.begins == (CLASSES,)
    network = build(settings, CLASSES + 2, None)
    network.carry_over(old.state_dict(), CLASSES)
    fresh = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    restore = network.freeze_old(CLASSES)
    trusted = torch.zeros(3, CLASSES + 2, dtype=torch.bool)
    trusted[:, CLASSES:] = True
    shown = annotations([[4, 4, 40, 30], [50, 10, 80, 50]], [4, 5])
    batch = replace(batch_of(trusted), targets=[shown, shown, annotations([], [])])
    optimiser = torch.optim.AdamW((p for p in network.parameters() if p.requires_grad), 0.005, weight_decay=1.0)
    values = []
    for _ in range(8):
        network.training_mode()
        assert not network.training
        terms = network.losses(batch).normalised("batch")
        optimiser.zero_grad()
        sum(terms.values()).backward()
        optimiser.step()
        restore()
        values.append(float(terms["classification"].detach()))  # boxes do not learn
    assert values[-1] < values[0]
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, fresh[name])}
    assert moved == set(class_tensors(network))
    # frozen weights go through other kernels of torch (XNNPACK's); those of a file do not
    network.requires_grad_(True)
    size = torch.tensor([[64, 96]] * 3)
    before = old.find(batch.images, size, limits=Limits(0.0, max_detections=200))
    together = network.eval().find(batch.images, size, limits=Limits(0.0, max_detections=400))
    for one, all_found in zip(before, together, strict=True):
        mine = all_found.labels < CLASSES
        assert len(one) > 10
        assert torch.equal(all_found.scores[mine], one.scores)
        assert torch.equal(all_found.boxes[mine], one.boxes)
        assert torch.equal(all_found.labels[mine], one.labels)
        assert bool((all_found.labels >= CLASSES).any())
    logits, boxes = network.export_module()(batch.images)
    assert logits.shape == (3, 40, CLASSES + 2)
    assert boxes.shape == (3, 40, 4)
    with pytest.raises(UserError, match=r"extend.adapter: 8, but networks of the architecture"):
        old.settings.extended("frozen", 8, CLASSES, CLASSES + 2)
    assert settings.extended("replay", 0, 6, 7).begins == ()


def test_sides_that_an_extension_may_ask_for():
    assert tiny("dfine").settings.adjusted({"square": 96}).square == 96
    made = tiny("rfdetr").settings
    step = made.config["backbone_config"]["patch_size"] * made.config["backbone_config"]["num_windows"]
    assert made.adjusted({"square": 3 * step}).square == 3 * step
    with pytest.raises(UserError, match=f"needs square pictures with a side that is a multiple of {step}"):
        made.adjusted({"square": 3 * step + 1})


def test_a_layer_that_answers_before_the_last_is_refused():
    settings = tiny("dfine").settings
    layers = settings.config["decoder_layers"]
    for index in (-1, layers - 1):
        assert hf_config(settings.model_copy(update={"config": {**settings.config, "eval_idx": index}}), 2)
    with pytest.raises(UserError, match="model: `eval_idx` is 0; here the last of the"):
        hf_config(settings.model_copy(update={"config": {**settings.config, "eval_idx": 0}}), 2)


@pytest.mark.parametrize("size", ["nano", "small"])
def test_published_sizes_of_d_fine(size):
    """Parameters in millions, as the authors count them (without the denoising embedding they count 4 and 10)."""
    network = build(DFineSettings.of(DFineModel(size=size), DetrLoss()), 80, None)
    count = sum(p.numel() for p in network.parameters()) / 1e6
    assert round(count) == {"nano": 4, "small": 10}[size]


def test_published_size_of_rt_detr():
    network = build(RTDetrSettings.of(RTDetrModel(size="r18"), DetrLoss()), 80, None)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == 20


def test_without_transformers_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        UserError, match=r"^model.name: dfine needs HF transformers: pip install 'crossdet\[detr\]'$"
    ):
        DFINE.build(TINY_SETTINGS["dfine"], CLASSES, None)


def test_an_older_transformers_is_told(monkeypatch):
    monkeypatch.setattr("transformers.__version__", "5.18.0")
    with pytest.raises(UserError) as told:
        RFDETR.build(TINY_SETTINGS["rfdetr"], CLASSES, None)
    wanted = "model.name: rfdetr needs HF transformers 5.19 or newer, here is 5.18.0"
    assert str(told.value) == f"{wanted}: pip install -U 'crossdet[detr]'"
    pins = (Path(__file__).parents[4] / "pyproject.toml").read_text()
    assert f'detr = ["transformers>={".".join(map(str, OLDEST))},<6"]' in pins


def test_only_a_checkpoint_can_say_what_is_null():
    told = [list(contradictions(DFineModel(queries=None, denoising=None, weights=w))) for w in ("none", "./zoo")]
    assert [[key for problem in problems for key in problem.keys[:1]] for problems in told] == [
        ["model.queries", "model.denoising"],
        [],
    ]


def test_what_does_not_go_together():
    (found,) = contradictions(DFineModel(weights="imagenet"))
    assert found.keys == ("model.weights", "model.backbone")
    assert not list(contradictions(DFineModel(weights="imagenet", backbone="resnet18d")))
    (found,) = contradictions(DFineModel(weights="someone/dfine", size="nano"))
    assert found.keys == ("model.size", "model.weights")
    with pytest.raises(UserError, match=r"HF transformers refuses the config"):
        tiny("dfine", config={**TINY_SETTINGS["dfine"].config, "decoder_attention_heads": 3})


@pytest.mark.parametrize("shape", [(37, 90), (64, 20), (48, 48)])
def test_products_stretch_as_torch_resizes(shape):
    """What graphs for other software do, up, down and not at all."""
    pictures = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0)) * 255
    wanted = F.interpolate(pictures, (48, 48), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(stretched_by_products(pictures, 48), wanted, rtol=1e-5, atol=1e-3)
