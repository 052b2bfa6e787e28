"""The criterion of set-prediction detectors, everything trusted, against the losses of HF transformers."""

from __future__ import annotations

import pytest
import torch
from tests.unit.models.detr.made import all_trusted, answers_near, flat, random_targets
from torch import Tensor
from transformers import DFineConfig, LwDetrConfig, RTDetrConfig, RTDetrV2Config
from transformers.loss.loss_d_fine import DFineForObjectDetectionLoss
from transformers.loss.loss_deimv2 import Deimv2Loss
from transformers.loss.loss_lw_detr import LwDetrForObjectDetectionLoss
from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss

from crossdet.models.detr.criterion import Answers, Bins, Criterion, Noised, denoising_losses, set_losses
from crossdet.models.detr.distributions import bin_values
from crossdet.models.detr.matching import Costs, Matches
from crossdet.models.detr.objects import Objects

CLASSES, QUERIES, BINS, LAYERS, COPIES = 5, 14, 8, 3, 2
BOX_TERMS = {"l1": 5.0, "giou": 2.0}


def made(seed: int, counts=(3, 3), layers: int = LAYERS, queries: int = QUERIES) -> tuple[Objects, list[Answers]]:
    """Answers in float32, as HF computes them."""
    source = torch.Generator().manual_seed(seed)
    objects, _ = flat(random_targets(list(counts), CLASSES, source))
    answers = [answers_near(objects, queries, CLASSES, source, BINS) for _ in range(layers)]
    return objects, [Answers(*(None if t is None else t.detach().float() for t in one)) for one in answers]


def labels_of(objects: Objects) -> list[dict[str, Tensor]]:
    parts = zip(objects.labels.split(objects.counts), objects.boxes.split(objects.counts), strict=True)
    return [{"class_labels": labels, "boxes": boxes} for labels, boxes in parts]


def stacked(layers: list[Answers], name: str) -> Tensor:
    return torch.stack([getattr(layer, name) for layer in layers], 1)


def denoising(objects: Objects) -> tuple[Noised, dict]:
    """COPIES groups of (positives, negatives), with the same number of objects in every image."""
    (count,) = set(objects.counts)
    images = len(objects.counts)
    queries = torch.cat([torch.arange(count) + group * 2 * count for group in range(COPIES)])
    image = torch.arange(images).repeat_interleave(len(queries))
    rows = torch.cat([torch.arange(count).repeat(COPIES) + first for first in objects.first])
    size = 2 * count * COPIES
    noised = Noised(
        Matches(image, queries.repeat(images), rows),
        torch.ones(images, size, dtype=torch.bool),
        torch.full((images,), COPIES),
    )
    meta = {"dn_positive_idx": [queries] * images, "dn_num_group": COPIES, "dn_num_split": [size, QUERIES]}
    return noised, meta


def total(terms: dict[str, Tensor], objects: int) -> float:
    return float(sum(term.sum() for term in terms.values()) / objects)


@pytest.mark.parametrize("config", [RTDetrConfig, RTDetrV2Config])
@pytest.mark.parametrize("counts", [(3, 3), (1, 5), (4, 0)])
def test_rt_detr(config, counts):
    """Decoder layers, encoder, and denoising queries."""
    objects, layers = made(0, counts)
    _, (encoder,) = made(1, counts, layers=1)
    alike = len(set(counts)) == 1
    noised, meta = denoising(objects) if alike else (None, None)
    size = meta["dn_num_split"][0] if meta else 0
    _, extra = made(2, counts, queries=size) if size else (None, None)
    both = [
        Answers(torch.cat([e.logits, layer.logits], 1), torch.cat([e.boxes, layer.boxes], 1))
        for e, layer in zip(extra, layers, strict=True)
    ] if extra else layers  # fmt: skip
    wanted, parts, _ = RTDetrForObjectDetectionLoss(
        both[-1].logits,
        labels_of(objects),
        "cpu",
        both[-1].boxes,
        config(num_labels=CLASSES),
        stacked(both, "logits"),
        stacked(both, "boxes"),
        enc_topk_logits=encoder.logits,
        enc_topk_bboxes=encoder.boxes,
        denoising_meta_values=meta,
    )
    assert len(parts) == 3 * (LAYERS + 1 + (LAYERS if alike else 0))
    rule = all_trusted(objects, CLASSES)
    criterion = Criterion({"classification": 1.0, **BOX_TERMS})
    found, positives = set_losses([encoder, *layers], rule, rule.trusted, criterion)
    assert positives.tolist() == list(counts)
    value = total(found, sum(counts))
    if noised is not None:
        value += total(denoising_losses(extra, noised, rule, rule.trusted, criterion), sum(counts))
    assert value == pytest.approx(float(wanted), rel=1e-5)


def test_d_fine():
    """With the distributions and their distillation.

    HF's loss leaves the last layer's distributions out of the localisation term; so they get no references here.
    """
    objects, layers = made(3)
    _, (encoder,) = made(4, layers=1)
    encoder = encoder._replace(edges=None, references=None)
    noised, meta = denoising(objects)
    _, extra = made(5, queries=meta["dn_num_split"][0])
    both = [
        Answers(*(torch.cat([a, b], 1) if a is not None else None for a, b in zip(e, layer, strict=True)))
        for e, layer in zip(extra, layers, strict=True)
    ]
    config = DFineConfig(num_labels=CLASSES, max_num_bins=BINS)
    wanted, parts, _ = DFineForObjectDetectionLoss(
        both[-1].logits,
        labels_of(objects),
        "cpu",
        both[-1].boxes,
        config,
        stacked(both, "logits"),
        stacked(both, "boxes"),
        enc_topk_logits=encoder.logits,
        enc_topk_bboxes=encoder.boxes,
        denoising_meta_values=meta,
        predicted_corners=stacked(both, "edges"),
        initial_reference_points=stacked(both, "references"),
    )
    assert float(parts["loss_ddf_aux_0"]) > 0.01
    assert float(parts["loss_fgl_dn_2"]) > 0.01
    rule = all_trusted(objects, CLASSES)
    criterion = Criterion({"classification": 1.0, **BOX_TERMS, "distribution": 0.15, "distillation": 1.5})
    bins = Bins(bin_values(BINS, config.up, config.reg_scale), torch.tensor(config.reg_scale))
    last = layers[-1]._replace(references=None)
    found, _ = set_losses([encoder, *layers[:-1], last], rule, rule.trusted, criterion, bins)
    noise = denoising_losses(extra, noised, rule, rule.trusted, criterion, bins)
    value = total(found, 6) + total(noise, 6)
    assert value == pytest.approx(float(wanted), rel=1e-5)
    for name, ours in (("fgl", "distribution"), ("ddf", "distillation"), ("vfl", "classification")):
        theirs = sum(float(v) for key, v in parts.items() if key.startswith(f"loss_{name}"))
        mine = float((found[ours].sum() + noise[ours].sum()) / 6)
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_matchability_aware_loss():
    objects, (answers,) = made(6, (3, 1), layers=1)
    config = DFineConfig(num_labels=CLASSES)
    for name, value in {"weight_loss_mal": 1.0, "mal_alpha": 0.6, "use_dense_one_to_one": False}.items():
        setattr(config, name, value)
    theirs = Deimv2Loss(config)
    theirs.losses = ["mal", "boxes"]
    parts = theirs({"logits": answers.logits, "pred_boxes": answers.boxes}, labels_of(objects))
    rule = all_trusted(objects, CLASSES)
    found, _ = set_losses(
        [answers], rule, rule.trusted, Criterion({"classification": 1.0, **BOX_TERMS}, "mal", 0.6)
    )
    assert total(found, 4) == pytest.approx(float(sum(parts.values())), rel=1e-5)


def test_lw_detr_and_rf_detr():
    """Groups of queries, IoU-aware classification, decoder layers and encoder."""
    groups, size = 3, 8
    objects, layers = made(7, (4, 2), queries=groups * size)
    _, (encoder,) = made(8, (4, 2), layers=1, queries=groups * size)
    config = LwDetrConfig(num_labels=CLASSES, group_detr=groups, decoder_layers=LAYERS, auxiliary_loss=True)
    wanted, parts, _ = LwDetrForObjectDetectionLoss(
        layers[-1].logits,
        labels_of(objects),
        "cpu",
        layers[-1].boxes,
        config,
        torch.stack([layer.logits for layer in layers]),
        torch.stack([layer.boxes for layer in layers]),
        encoder.logits,
        encoder.boxes,
    )
    assert "loss_ce_enc" in parts
    rule = all_trusted(objects, CLASSES)
    weights = {
        "classification": float(config.class_loss_coefficient),
        "l1": float(config.bbox_loss_coefficient),
        "giou": float(config.giou_loss_coefficient),
    }
    costs = Costs(config.class_cost, config.bbox_cost, config.giou_cost)
    criterion = Criterion(weights, "iou_aware", config.focal_alpha, costs=costs)
    found, _ = set_losses([encoder, *layers], rule, rule.trusted, criterion, groups=groups)
    assert total(found, 6) == pytest.approx(float(wanted), rel=1e-5)
