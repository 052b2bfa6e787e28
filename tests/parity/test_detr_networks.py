"""Whole networks of HF transformers with random weights: from the same pictures on the same answers of every layer,
the same loss, and the same gradient of every parameter.

In evaluation mode, where HF's D-FINE gives the answers of one layer only (`eval_idx`, the last): `test_network`.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.unit.models.detr.made import TINY_SETTINGS, hf_labels, stirred, tiny
from tests.unit.models.detr.test_network import CLASSES, TARGETS, batch_of, learning
from torch import Tensor, nn
from transformers import AutoModelForObjectDetection
from transformers.loss.loss_d_fine import DFineLoss

from crossdet.models.contract import Losses
from crossdet.models.detr import network as network_module
from crossdet.models.detr.building import hf_config, hf_name
from crossdet.models.detr.criterion import Answers
from crossdet.models.detr.denoising import Noise, attention_mask
from crossdet.models.detr.network import Detr
from crossdet.types import Batch

BATCH = replace(batch_of(torch.ones(3, CLASSES, dtype=torch.bool)), targets=[TARGETS[0]] * 3)
"""All trusted. As many objects in every picture: with others HF has other means, see docs/architectures.md."""


def both(name: str, monkeypatch) -> tuple[Detr, Any, Batch]:
    """Ours and HF's of one config, with the same weights, learning, and what both get."""
    network = learning(stirred(tiny(name), 0.1)).double()
    whole: Any = AutoModelForObjectDetection.from_config(hf_config(network.settings, CLASSES)).double().train()
    weights = {hf_name(key): tensor for key, tensor in network.core.state_dict().items()}
    lost = whole.load_state_dict(weights, strict=False)
    assert not lost.unexpected_keys
    assert all(key.startswith(("class_embed", "bbox_embed")) for key in lost.missing_keys)  # tied
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    if name == "dfine":  # whose loss HF cannot compute in float64
        whole.loss_function = lambda *_, **__: (None, None, None)
    batch = network.prepare()(BATCH)
    if batch.prepared.noise is not None:
        hand_over(batch.prepared.noise, whole, monkeypatch)
    return network, whole, batch


def hand_over(noise: Noise, whole: Any, monkeypatch) -> None:
    """HF draws noise of its own, from the global generator."""
    pairs = noise.noised.pairs

    def given(num_queries: int, class_embed: Any, **_: Any) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        meta = {
            "dn_positive_idx": [pairs.query[pairs.image == image] for image in range(len(noise.labels))],
            "dn_num_group": int(noise.noised.groups[0]),
            "dn_num_split": [noise.labels.shape[1], num_queries],
        }
        boxes = torch.special.logit(noise.boxes.double(), eps=1e-5)
        return class_embed(noise.labels), boxes, attention_mask(noise.group, num_queries, torch.float64), meta

    monkeypatch.setattr(sys.modules[type(whole).__module__], "get_contrastive_denoising_training_group", given)


def labels_of(batch: Batch) -> list[dict[str, Tensor]]:
    objects = batch.prepared.objects
    return hf_labels(objects._replace(boxes=objects.boxes.double()))


def judged(network: Detr, batch: Batch, monkeypatch) -> tuple[Losses, list[Answers], list[Answers]]:
    """The losses, and what they judge: the encoder's answers and the layers', and those of denoising queries."""
    found: dict[str, list[Answers]] = {"denoising_losses": []}
    for name in ("set_losses", "denoising_losses"):
        real = getattr(network_module, name)

        def spy(layers: list[Answers], *rest: Any, name: str = name, real: Any = real) -> Any:
            found[name] = layers
            return real(layers, *rest)

        monkeypatch.setattr(network_module, name, spy)
    return network.losses(batch), found["set_losses"], found["denoising_losses"]


def layers_of(whole: Any, outputs: Any) -> tuple[list[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    """HF's logits and boxes of every layer, and of the encoder."""
    if whole.config.model_type == "rf_detr":
        every = whole.predict_class_and_boxes(
            outputs.intermediate_hidden_states, outputs.intermediate_reference_points
        )
        encoder = (outputs.enc_outputs_class, outputs.enc_outputs_coord_logits)
        return list(zip(*(tensor.unbind(0) for tensor in every), strict=True)), encoder
    # D-FINE's begin with the first guess, as ours do
    every = (outputs.intermediate_logits, outputs.intermediate_reference_points)
    layers = list(zip(*(tensor.unbind(1) for tensor in every), strict=True))
    return layers, (outputs.enc_topk_logits, outputs.enc_topk_bboxes)


@pytest.mark.parametrize("name", TINY_SETTINGS)
def test_every_layer_answers_as_in_hf(name, monkeypatch):
    """Also to denoising queries, and in every group of RF-DETR."""
    network, whole, batch = both(name, monkeypatch)
    outputs = whole(network.pictures(batch.images, batch.sizes), labels=labels_of(batch))
    _, (encoder, *free), noised = judged(network, batch, monkeypatch)
    theirs, of_encoder = layers_of(whole, outputs)
    assert len(theirs) == len(free) == 3 + (name == "dfine")
    assert len(noised) == (0 if name == "rfdetr" else len(free))
    if noised:
        free = [
            Answers(torch.cat([a.scored, b.scored], 1), torch.cat([a.boxes, b.boxes], 1))
            for a, b in zip(noised, free, strict=True)
        ]
    for ours, (logits, boxes) in zip([encoder, *free], [of_encoder, *theirs], strict=True):
        torch.testing.assert_close(ours.scored, logits, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(ours.boxes, boxes, rtol=1e-7, atol=1e-9)
    assert float(free[-1].scored.detach().std()) > 0.1  # not the prior everywhere


def as_the_authors_pair(config: Any, outputs: Any, labels: list[dict[str, Tensor]]) -> Tensor:
    """HF's criterion of D-FINE over the layers as the authors of D-FINE give them to theirs.

    `DFineForObjectDetectionLoss` of transformers 5.24 gives them otherwise, so HF's own number is another one,
    though all answers are the same. Classes and boxes begin with the first guess, distributions do not, and
    `_set_aux_loss2` zips both as they are, up to the end of the shorter. Of L layers so
    - the last but one has no loss of its classes and boxes, nor has the last one for denoising queries;
    - every layer's distributions go with the layer before: its matches and the IoU of its boxes;
    - the last layer has no localisation loss on its distributions, as they are not handed over.
    """
    every = (
        outputs.intermediate_logits,
        outputs.intermediate_reference_points.clamp(0, 1),
        outputs.intermediate_predicted_corners,
        outputs.initial_reference_points,
    )
    every = tuple(tensor.float() for tensor in every)
    labels = [{"class_labels": one["class_labels"], "boxes": one["boxes"].float()} for one in labels]
    meta = outputs.denoising_meta_values
    noised, free = zip(*(tensor.split(meta["dn_num_split"], 2) for tensor in every), strict=True)
    *before, last = paired(*free)
    encoder = {"logits": outputs.enc_topk_logits.float(), "pred_boxes": outputs.enc_topk_bboxes.float()}
    further = {"auxiliary_outputs": [encoder, *before], "dn_auxiliary_outputs": paired(*noised)}
    terms = DFineLoss(config)(last | further | {"denoising_meta_values": meta}, labels)
    return sum(terms.values())


def paired(logits: Tensor, boxes: Tensor, edges: Tensor, references: Tensor) -> list[dict[str, Tensor]]:
    """The first guess, which has no distributions, and every layer with its own."""
    names = ("logits", "pred_boxes", "pred_corners", "ref_points")
    teacher = {"teacher_corners": edges[:, -1], "teacher_logits": logits[:, -1]}
    guess = {"logits": logits[:, 0], "pred_boxes": boxes[:, 0]}
    columns = (logits[:, 1:].unbind(1), boxes[:, 1:].unbind(1), edges.unbind(1), references.unbind(1))
    return [guess, *(dict(zip(names, row, strict=True)) | teacher for row in zip(*columns, strict=True))]


@pytest.mark.parametrize("name", ["dfine", "rtdetr v1", "rtdetr v2"])
def test_loss_and_gradients_from_pictures_on_are_those_of_hf(name, monkeypatch):
    """With encoder, layers and denoising queries. RF-DETR's: `test_network`."""
    network, whole, batch = both(name, monkeypatch)
    labels = labels_of(batch)
    outputs = whole(network.pictures(batch.images, batch.sizes), labels=labels)
    wanted = as_the_authors_pair(whole.config, outputs, labels) if name == "dfine" else outputs.loss
    losses = network.losses(batch)
    assert losses.positives.tolist() == [2, 2, 2]
    found = sum(losses.normalised("batch").values())
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    wanted.backward()
    found.backward()
    theirs = dict(whole.model.named_parameters())
    grads = {key: p.grad for key, p in network.core.named_parameters() if p.requires_grad}
    assert len(grads) > 100
    assert any(bool(grad.any()) for key, grad in grads.items() if "denoising" in key)
    for key, gradient in grads.items():
        # HF computes the loss of D-FINE in float32
        torch.testing.assert_close(
            gradient, theirs[key].grad, rtol=1e-4, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}"
        )
