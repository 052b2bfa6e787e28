"""What a dataset with other classes must not reach: another one's images, by doors that are not the class loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from crossdet.models.detr import negatives
from crossdet.models.detr.class_losses import CLASS_LOSSES, class_sums
from crossdet.models.detr.growth import EMBEDDING
from crossdet.models.detr.network import Detr
from crossdet.types import Batch

from .made import TINY_SETTINGS, annotations, class_tensors, stirred, tiny
from .test_network import CLASSES, TRUSTED, batch_of, learning, loss_of

WIDE = torch.cat([TRUSTED, torch.zeros(3, 2, dtype=torch.bool)], 1)


def grown_from(old: Detr, name: str, **changes: Any) -> Detr:
    """With two more classes, which would win every query."""
    grown = learning(tiny(name, CLASSES + 2, seed=1, **changes).double())
    grown.carry_over(old.state_dict(), CLASSES)
    of_classes = class_tensors(grown)
    with torch.no_grad():
        for key, tensor in grown.state_dict().items():
            if key in of_classes and key.endswith("bias"):
                tensor[CLASSES:] = 50.0
    return grown


def without_objects(trusted: Tensor) -> Batch:
    return replace(batch_of(trusted), targets=[annotations([], [])] * 3)


@pytest.mark.parametrize("name", ["dfine", "rtdetr v2", "rfdetr"])
def test_another_dataset_changes_nothing_of_the_old(name):
    """From 4 to 6 classes with the same old weights, where objects are negatives of trusted classes only: equal
    losses, equal gradients, and new rows that learn nothing. Selection, flips and distillation would each leak."""
    loss = TINY_SETTINGS[name].loss.model_copy(update={"foreground": "none"})
    few: dict[str, Any] = {"loss": loss, "queries": 6}  # of many, most are the same whoever chooses them
    old = learning(stirred(tiny(name, **few), 0.1).double())
    before, gradients = loss_of(old, batch_of())
    after, more = loss_of(grown_from(old, name, **few), batch_of(WIDE))
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-12)
    of_classes = class_tensors(old)
    assert bool((before > 0).all())
    assert gradients.keys() == more.keys()
    for key, gradient in gradients.items():
        mine = more[key]
        if key in of_classes:
            assert bool((mine[CLASSES : CLASSES + 2] == 0).all())
            assert bool((gradient[:2] != 0).any())
            mine = torch.cat([mine[:CLASSES], mine[CLASSES + 2 :]])  # the embedding has the row of padding
        torch.testing.assert_close(mine, gradient, rtol=1e-7, atol=1e-10)
    # it is added to every class, so where some are not spoken of it would take them along
    quality = [gradient for key, gradient in more.items() if "lqe_layers" in key]
    assert bool(quality) == (name == "dfine")
    assert not any(bool(gradient.any()) for gradient in quality)


@pytest.mark.parametrize("name", ["dfine", "rtdetr v2", "rfdetr"])
def test_classes_of_another_dataset_learn_from_objects_alone(name, monkeypatch):
    grown = grown_from(learning(tiny(name).double()), name)
    _, more = loss_of(grown, without_objects(WIDE))
    for key in class_tensors(grown):
        assert bool((more[key][CLASSES:] == 0).all())
    monkeypatch.setattr(negatives, "ON_OBJECT", 0)  # queries of random weights lie beside the objects
    # with objects: the embedding's new rows are given to nobody, and the classes' see foreground only
    _, more = loss_of(grown, batch_of(WIDE))
    if name != "rfdetr":
        assert bool((more[EMBEDDING][CLASSES:] == 0).all())
        assert bool((more[EMBEDDING][:CLASSES] != 0).any())
    last = "core.class_embed.bias" if name == "rfdetr" else "core.decoder.class_embed.0.bias"
    assert bool((more[last][CLASSES:] > 0).all())


@pytest.mark.parametrize("how", ["trusted", "union", "split"])
def test_only_selection_by_all_classes_lets_another_dataset_in(how):
    """What the switch leaves open: the loss of the same images moves. Background alone says nothing of new
    classes, so what moves it are the places that they choose."""
    loss = TINY_SETTINGS["dfine"].loss.model_copy(update={"selection": how})
    old = learning(tiny("dfine", loss=loss).double())
    grown = grown_from(old, "dfine", loss=loss)
    with torch.no_grad():
        grown.core.enc_score_head.weight[CLASSES:] *= 20
    before, _ = loss_of(old, without_objects(TRUSTED))
    after, _ = loss_of(grown, without_objects(WIDE))
    assert torch.allclose(before, after, rtol=1e-6) == (how == "trusted")


@pytest.mark.parametrize("kind", list(CLASS_LOSSES))
def test_a_score_that_may_only_rise_has_a_gradient_of_exactly_nothing_above_its_target(kind):
    logits = torch.linspace(-6, 6, 200).view(1, 200, 1).requires_grad_()
    image, query = torch.zeros(200, dtype=torch.int64), torch.arange(200)
    iou, upward = torch.full((200,), 0.4), torch.ones(200, dtype=torch.bool)
    given = (kind, logits, torch.zeros(1, 200, 1), image, query, image, iou, 0.75, 1.5)
    class_sums(*given, only_up=upward).sum().backward()
    free = logits.detach().clone().requires_grad_()
    class_sums(kind, free, *given[2:]).sum().backward()
    falls = free.grad > 0
    assert 50 < int(falls.sum()) < 150
    assert not logits.grad[falls].any()
    assert torch.equal(logits.grad[~falls], free.grad[~falls])
