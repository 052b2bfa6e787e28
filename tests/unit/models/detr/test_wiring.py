"""That everything a batch and the settings say reaches the loss of the network as the rule has it.

A decoder that gives known answers stands in for the real one; what the loss tells it is read off its logits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from crossdet.models.detr.architecture import build
from crossdet.models.detr.boxes import centres, corners
from crossdet.models.detr.building import hf_config, hf_name
from crossdet.models.detr.criterion import Answers
from crossdet.models.detr.denoising import PADDING, Settings, add_noise
from crossdet.models.detr.network import Detr
from crossdet.models.detr.objects import Objects
from crossdet.models.detr.selection import chosen
from crossdet.models.detr.settings import DetrLoss
from crossdet.types import Annotations, Batch, Flag, Tiles

from .made import TINY_SETTINGS, annotations, class_tensors, stirred, tiny
from .test_network import CLASSES, batch_of, learning, loss_of

NEGATIVE = 0.75 * 0.5**3
"""What the logit 0 of a negative of weight 1 is told."""
OBJECT, REST, FAR = [10.0, 10.0, 50.0, 50.0], [10.0, 10.0, 50.0, 40.0], [60.0, 10.0, 90.0, 50.0]
QUERIES = [OBJECT, REST, FAR]
"""One that finds the object, a second find of it (IoU 0.75), and background."""


def picture(target: Annotations, trusted: list[bool], **more: Any) -> Batch:
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    size, row = torch.tensor([[64, 96]]), torch.zeros(1, dtype=torch.int64)
    return Batch(images, size, size, [target], torch.tensor([trusted]), row, row, draws=row, **more)


def network_of(name: str = "rtdetr v2", overlap: Tensor | None = None, denoising: int = 0, **loss: Any) -> Detr:
    settings = TINY_SETTINGS[name]
    changes = {"queries": 3, "denoising": denoising, "loss": settings.loss.model_copy(update=loss)}
    torch.manual_seed(0)
    return learning(build(settings.model_copy(update=changes), 3, overlap))


def told(network: Detr, batch: Batch, boxes: list[list[float]], monkeypatch, quality: bool = False) -> Answers:
    """Answers of one layer with all logits 0 and these boxes (pixels), after the backward pass. Denoising queries,
    which come first, have the last box."""
    given: list[Answers] = []

    def decode(queries, _memory, _classes):
        first = queries.hidden.shape[1] - len(boxes)
        places = centres(torch.tensor([boxes[-1]] * first + boxes) / torch.tensor([96, 64, 96, 64]))[None]
        logits = torch.zeros(1, len(places[0]), network.num_classes, requires_grad=True)
        sure = torch.zeros(1, len(places[0]), 1, requires_grad=True) if quality else None
        given.append(Answers(logits, places, sure))
        return given

    monkeypatch.setattr(network.graph, "decode", decode)
    loss_of(network, batch)
    return given[0]


def negatives(answers: Answers) -> Tensor:
    """`[N, C]` weights; a positive's own class has none."""
    return (answers.logits.grad[0] / NEGATIVE).clamp(min=0)


FACE_PERSON = torch.tensor([[0, 0, 1], [0, 0, 0], [1, 0, 0]], dtype=torch.bool)
ALWAYS = [[0, 1, 1], [1, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("loss", "overlap", "of_batch", "weights"),
    [
        ({}, None, {}, ALWAYS),
        ({"foreground": "none"}, None, {}, [[0, 1, 0], [1, 1, 0], [0, 1, 0]]),
        ({"foreground": "on_object"}, None, {}, [[0, 1, 1], [1, 1, 1], [0, 1, 0]]),
        ({"duplicate_iou": 0.8}, None, {}, [[0, 1, 1], [0, 1, 0], [0, 1, 0]]),
        ({}, FACE_PERSON, {}, [[0, 1, 0], [1, 1, 0], [0, 1, 0]]),
        ({}, None, {"background_weight": torch.tensor([[1, 0.25, 1]])}, [[0, 1, 1], [1, 0.25, 0], [0, 0.25, 0]]),
    ],
)
def test_a_query_is_a_negative_as_batch_and_settings_say(loss, overlap, of_batch, weights, monkeypatch):
    """Of an object of the first class, in a picture that trusts the second."""
    batch = picture(annotations([OBJECT], [0]), [False, True, False], **of_batch)
    found = negatives(told(network_of(overlap=overlap, **loss), batch, QUERIES, monkeypatch))
    torch.testing.assert_close(found, torch.tensor(weights, dtype=torch.float32))


def test_regions_spare_the_queries_in_them_and_denoising_queries_too(monkeypatch):
    target = annotations([OBJECT, [55, 5, 95, 60]], [0, 1], [0, int(Flag.AVOID)])
    batch = picture(target, [False, True, True])
    found = negatives(told(network_of(), batch, QUERIES, monkeypatch))
    assert found.tolist() == [[0, 1, 1], [1, 1, 1], [0, 0, 1]]
    found = negatives(told(network_of(denoising=2), batch, QUERIES, monkeypatch))
    assert found.tolist() == [[0, 0, 0.5]] * 4 + [[0, 1, 1], [1, 1, 1], [0, 0, 1]]  # a mean over two copies


def test_in_a_mosaic_the_tiles_are_trusted_and_not_the_picture(monkeypatch):
    """By the query that misses its object, and by background on the left, on the right and on the border."""
    sides = torch.tensor([[[0, 0, 48, 64], [48, 0, 96, 64]]], dtype=torch.float32)
    trusted = torch.tensor([[[False, True, False], [False, False, True]]])
    tiles = Tiles(sides, trusted, torch.tensor([[0, 1]]))
    batch = picture(annotations([[4, 4, 24, 24]], [0]), [False] * 3, tiles=tiles)
    boxes = [[12.0, 4.0, 32.0, 24.0], [4.0, 40.0, 24.0, 60.0], [60.0, 40.0, 80.0, 60.0], [40.0, 40.0, 60.0, 60.0]]
    network = network_of()
    found = negatives(told(network, batch, boxes, monkeypatch))
    assert found.tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert network.prepare()(batch).prepared.own.tolist() == [[True] * 3]  # shown, trusted left, trusted right


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("free", [True, False])
def test_quality_learns_where_everything_is_trusted_unless_it_is_free(free, trusted, monkeypatch):
    batch = picture(annotations([OBJECT], [0]), [True, True, trusted])
    network = network_of("dfine", free_quality=free)
    answers = told(network, batch, QUERIES, monkeypatch, quality=True)
    learns = free or trusted
    assert (answers.quality.grad[0] != 0).flatten().tolist() == [learns] * 3
    assert bool((answers.logits.grad[0] != 0).any(1).all())


def test_share_of_queries_that_say_what_their_picture_does_not_label(monkeypatch):
    """Of the last layer, without denoising queries. A class is the picture's if it trusts it or shows it."""
    network = network_of("dfine", denoising=2)
    batch = picture(annotations([OBJECT], [0]), [False, True, False])
    best = torch.tensor([0, 1, 2])

    def decode(queries, _memory, _classes):
        given = queries.hidden.shape[1] - len(best)
        assert given == 4
        boxes = torch.full((1, given + len(best), 4), 0.5)
        layers = []
        for classes in (torch.full_like(best, 2), best):  # of the first layer all are foreign
            logits = torch.nn.functional.one_hot(torch.cat([torch.full((given,), 2), classes]), 3)[None].float()
            layers.append(Answers(logits.requires_grad_(), boxes, torch.full((1, given + len(best), 1), 9.0)))
        return layers

    monkeypatch.setattr(network.graph, "decode", decode)
    noted = network.losses(batch).noted
    assert noted["top_not_labelled"].tolist() == pytest.approx([1 / 3])
    naive = replace(batch, trusted=torch.ones(1, 3, dtype=torch.bool))
    assert network.losses(naive).noted["top_not_labelled"].tolist() == [0]


@pytest.mark.parametrize("name", ["classification", "l1", "giou", "distribution", "distillation"])
def test_terms_weigh_what_the_settings_say(name):
    key = {"classification": "class_weight"}.get(name, f"{name}_weight")
    loss = TINY_SETTINGS["dfine"].loss
    once, twice = (
        learning(stirred(tiny("dfine", loss=loss.model_copy(update={key: weight})), 0.1)).losses(batch_of()).terms
        for weight in (0.7, 1.4)
    )
    for term in ("classification", "l1", "giou", "distribution", "distillation"):
        assert bool((once[term] != 0).any())
        torch.testing.assert_close(twice[term], once[term] * (1 + (term == name)))
    assert bool((twice["denoising"][:2] > once["denoising"][:2]).all())


@pytest.mark.parametrize("name", ["dfine", "rfdetr"])
def test_in_a_frozen_extension_old_rows_have_no_gradient(name):
    """They are written back after every step, but a gradient would count in the norm that is clipped."""
    network = learning(tiny(name, 6, begins=(4,)))
    network.freeze_old(4)
    _, gradients = loss_of(network, batch_of(torch.ones(3, 6, dtype=torch.bool)))
    assert set(gradients) == set(class_tensors(network)) & {key for key, _ in network.named_parameters()}
    assert not any(bool(gradient[:4].any()) for gradient in gradients.values())


@pytest.mark.parametrize("flips", ["own", "any"])
def test_denoising_queries_are_given_classes_as_the_settings_say(flips):
    loss = TINY_SETTINGS["dfine"].loss.model_copy(update={"flips": flips})
    prepared = tiny("dfine", denoising=200, loss=loss).prepare()(batch_of()).prepared
    image, query = (prepared.noise.group != PADDING).nonzero(as_tuple=True)
    given = prepared.noise.labels[image, query]
    assert set(given[image == 0].tolist()) == ({0, 1} if flips == "own" else {0, 1, 2, 3})


def test_in_a_frozen_extension_old_classes_choose_no_query():
    """Nor are they wrong classes of denoising queries, also where the new pictures trust or show them."""
    network = tiny("dfine", 6, begins=(2, 4), denoising=200)
    trusted = torch.tensor([[True, False, True, False, True, False]] * 3)
    prepared = network.prepare()(batch_of(trusted)).prepared
    assert prepared.own.tolist() == [[False] * 4 + [True, False]] * 3
    assert [group.classes.tolist() for group in prepared.groups] == [[4]]
    assert set(prepared.noise.labels[0].tolist()) == {0, 1, 4}


def one_object(label: int = 0) -> Objects:
    """In the middle, so that noise does not move it out."""
    box, row = torch.tensor([[0.5, 0.5, 0.2, 0.3]]), torch.zeros(1, dtype=torch.int64)
    return Objects(box, torch.tensor([label]), row, row.bool(), (1,))


@pytest.mark.parametrize("moves", [1.0, 0.4])
def test_positives_move_by_up_to_half_a_side_and_negatives_by_half_to_one(moves):
    noise = add_noise(one_object(), torch.ones(1, 3, dtype=torch.bool), [5], Settings(500, moves=moves))
    box = one_object().boxes
    parts = (corners(noise.boxes[0]) - corners(box)).abs() / box[:, 2:].repeat(1, 2) / moves
    positive = torch.zeros(len(parts), dtype=torch.bool)
    positive[noise.noised.pairs.query] = True
    assert int(positive.sum()) == int((~positive).sum()) == 500
    point = (noise.boxes[0, :, 2:] == 0).all(1)  # negatives that would lie on the object
    assert int(point.sum()) < 10 or moves < 1
    assert float(noise.boxes[0, ~point, 2:].min()) > 0
    assert float(box_iou(corners(noise.boxes[0, ~positive]), corners(box)).max()) < 0.5
    parts, positive = parts[~point], positive[~point]
    pairs = parts[~positive].view(-1, 2, 2)  # row, edge, axis
    changed = (pairs * moves < 0.5 - 1e-5).all(1) & (moves == 1)  # both came in, past each other
    assert 0.2 < float(changed.float().mean()) < 0.3 or moves < 1
    parts[~positive] = torch.where(changed[:, None], 1 - pairs, pairs).flatten(1)
    for rows, low in ((parts[positive], 0.0), (parts[~positive], 0.5)):
        assert low - 1e-5 <= float(rows.min()) < low + 0.01
        assert low + 0.49 < float(rows.max()) <= low + 0.5 + 1e-5


@pytest.mark.parametrize("flips", [0.0, 0.5, 1.0])
def test_half_of_the_flips_are_wrong_classes(flips):
    """As in the authors' code, whose ratio counts twice as many."""
    own = torch.ones(1, 1000, dtype=torch.bool)
    noise = add_noise(one_object(7), own, [5], Settings(5000, flips=flips))
    assert float((noise.labels != 7).float().mean()) == pytest.approx(flips / 2, abs=0.02)


@pytest.mark.parametrize("name", ["dfine", "rtdetr v1", "rtdetr v2"])
def test_layers_teach_each_other_what_they_do_in_hf(name):
    """Where gradients stop, and that boxes have none where they stick out: of one random sum over all answers."""
    from transformers import AutoModelForObjectDetection

    network = learning(stirred(tiny(name))).double()
    whole: Any = AutoModelForObjectDetection.from_config(hf_config(network.settings, CLASSES)).double()
    whole.load_state_dict({hf_name(n): t for n, t in network.core.state_dict().items()}, strict=False)
    for ours, theirs in zip(network.core.modules(), whole.model.modules(), strict=True):
        theirs.training = ours.training
    pictures = network.pictures(batch_of().images, None)
    wanted = whole.model(pictures)

    graph = network.graph
    memory = graph.memory(pictures)
    proposals = graph.proposals(memory, 0)
    first = graph.first(proposals, chosen(proposals.inputs, graph.head(0), [], 20, "union"), 0)
    answers = graph.decode(first.queries, memory, None)
    logits = torch.stack([graph.head(0)(first.inputs), *(a.scored for a in answers)], 1)
    boxes = torch.stack([first.boxes, *(a.boxes for a in answers)], 1)
    their_logits = torch.cat([wanted.enc_topk_logits[:, None], wanted.intermediate_logits], 1)
    their_boxes = torch.cat([wanted.enc_topk_bboxes[:, None], wanted.intermediate_reference_points], 1)
    outside = (their_boxes < 0) | (their_boxes > 1)
    assert bool(outside.any()) == (name == "dfine")
    sums = []
    for one, other in ((logits, boxes), (their_logits, their_boxes)):
        source = torch.Generator().manual_seed(0)
        sums.append(sum((t * torch.randn(t.shape, generator=source)).sum() for t in (one, other)))
    torch.testing.assert_close(sums[0], sums[1])
    for total in sums:
        total.backward()
    parameters = dict(whole.model.named_parameters())
    learnt = {n: p.grad for n, p in network.core.named_parameters() if p.grad is not None}
    assert len(learnt) > 100
    for key, gradient in learnt.items():
        torch.testing.assert_close(gradient, parameters[key].grad, rtol=1e-6, atol=1e-8, msg=lambda m, k=key: k + m)


@pytest.mark.parametrize("name", TINY_SETTINGS)
def test_classes_begin_with_the_prior(name):
    """HF takes 1 / (C + 1)."""
    network = tiny(name, 7, prior=0.02)
    biases = [key for key in class_tensors(network) if key.endswith("bias")]
    assert len(biases) >= 4
    for key in biases:
        torch.testing.assert_close(network.state_dict()[key].sigmoid(), torch.full((7,), 0.02))


def test_each_class_loss_has_the_numbers_of_its_authors():
    """Also of `mal` in a config that says one of them, and of a run's own config, which says both."""
    loss = DetrLoss.model_validate({"classification": "mal"})
    assert (loss.alpha, loss.gamma) == (1, 1.5)
    assert DetrLoss.model_validate(loss.model_dump()) == loss
    assert DetrLoss.model_validate({"classification": "mal", "gamma": 2}).gamma == 2
    assert (DetrLoss().alpha, DetrLoss().gamma) == (0.75, 2)
